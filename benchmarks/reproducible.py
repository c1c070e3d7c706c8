"""What equal bits cost: whole runs with sums in fixed point, and the same in floating point.

    mpirun -n 2 python benchmarks/reproducible.py [--size 300] [--steps 3e8] [--repeats 9]

Grid of size x size states, slip 0.2, exploring starts, one agent a rank, `pooled`, periods `auto`.
A run is everything from its first step to its last: learning, fusing, waiting. Runs of both kinds,
and of `hogwild`, which fuses nothing, follow each other in turn; medians of ratios. The product has
no sums in floating point: here the two loops that need them are put in the place of its own. They
do less: they look for no overflow, and round nothing.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from typing import Any

import numpy as np

from distq_mpi.architectures import Allreduce, architecture_of
from distq_mpi.config import Config, EnvConfig, LearnConfig, ParallelConfig, StopConfig, resolve
from distq_mpi.fusion import fusion_of
from distq_mpi.kernels import chunks
from distq_mpi.kernels.fusing import LENGTH, NON_FINITE, UNIT, VISITS
from distq_mpi.kernels.objects import load
from distq_mpi.kernels.storing import exact
from distq_mpi.preparation import build
from distq_mpi.transport import Transport

KINDS = ("fixed point", "floating point", "hogwild")
u8, i8, f8 = np.uint64, np.int64, np.float64


def floating_parts(fusion: Any, parts: dict[str, Any]) -> dict[str, Any]:
    """`bases`, `shares` and `changes` of `kernels.chunks` with sums in `work`, behind its rows."""
    pairs, width, own_bases = parts["PAIRS"], parts["WIDTH"], parts["bases"]
    step, power, olds = (u8(row * pairs) for row in (chunks.STEP, chunks.POWER, chunks.OLD))
    every, sums = u8(chunks.ALL * pairs), u8((chunks.OLD + 1) * pairs)
    share, combine, agents, longest = fusion.share, fusion.combine, chunks.AGENTS, chunks.LONGEST

    def bases(base_q, base_clock, first, end, work, counts):  # type: ignore[no-untyped-def]
        own_bases(base_q, base_clock, first, end, work, counts)
        for i in range((end - first) * width):
            work[sums + u8(i)] = 0.0

    def shares(work, counts, n, rates, found, values, first_value, visits, first_visit):  # type: ignore[no-untyped-def]
        non_finite, length, total = i8(0), i8(0), i8(0)
        for i in range(n):
            times, alpha = counts[u8(i)], work[step + u8(i)]
            x = share(work[u8(i)], times, alpha, work[power + u8(i)])
            visited = times > 0
            non_finite += i8(visited & (not abs(x) < np.inf))
            length += min(i8(np.rint(alpha * f8(times * (times - 1)) * UNIT)), longest)
            total += times
            visits[first_visit + u8(i)] += times
            work[sums + u8(i)] += x if visited else 0.0
        found[NON_FINITE] += f8(non_finite)
        found[LENGTH] += f8(length)
        found[VISITS] += f8(total)

    def changes(work, counts, n, number, rates, control, unstable):  # type: ignore[no-untyped-def]
        n_agents = i8(control[agents])
        for i in range(n):
            visits, old = counts[every + u8(i)], work[olds + u8(i)]
            many = max(visits, i8(1))
            change = combine(
                work[sums + u8(i)], many, work[step + u8(i)], work[power + u8(i)], n_agents, 0.0
            )
            work[olds + u8(i)] = exact(old, change, u8(0)) if visits > 0 else old

    return {**parts, "bases": bases, "shares": shares, "changes": changes}


def made(kind: str, size: int, transport: Transport) -> Any:
    """A learner before its first round. COLLECTIVE."""
    environment = build(EnvConfig("grid", {"rows": size, "columns": size, "slip": 0.2}), True)
    shared = kind == "hogwild"
    parallel = ParallelConfig(
        agents=transport.size, fusion="hogwild" if shared else "pooled", reproducible=not shared
    )
    config = Config(
        learn=LearnConfig(exploring_starts=True), parallel=parallel,
        stop=StopConfig(wall_time_s=1e9),
    )  # fmt: skip
    shape = environment.n_states, environment.n_actions
    config = resolve(config, *shape, transport.size, solvable=False)
    architecture = architecture_of(config, environment, transport.size)
    requests = architecture.requests(config, environment)
    if kind == "floating point":
        own = requests["fuse_replicas"]
        parts = floating_parts(fusion_of(config), own.parts)
        requests["fuse_replicas"] = replace(own, parts=parts)
    this = architecture(config, environment, load(requests, transport), transport)
    if kind == "floating point":
        work, counts = this.work
        this.work = np.zeros(work.size * (chunks.OLD + 2) // (chunks.OLD + 1)), counts
    if issubclass(architecture, Allreduce) and not shared and not this.reads:
        raise SystemExit("this needs a table whose replicas owners read: a smaller --size")
    return this


def seconds(kind: str, size: int, n_steps: float, transport: Transport) -> float:
    """Of a whole run, on the slowest rank. COLLECTIVE."""
    this = made(kind, size, transport)
    transport.sum_int(np.zeros(1, np.int64))
    begin = time.perf_counter()
    while this.progress.steps < n_steps:
        this.learn()
        if this.exchange((False, False, False)) is None:
            this.rollback()
        else:
            this.commit()
    took = np.array([time.perf_counter() - begin])
    transport.max_float(took)
    this.close()
    return float(took[0])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=300)
    parser.add_argument("--steps", type=float, default=3e8)
    parser.add_argument("--repeats", type=int, default=9)
    asked = parser.parse_args()
    transport = Transport.connect()
    rounds: list[dict[str, float]] = []
    for k in range(asked.repeats + 1):
        order = KINDS if k % 2 else KINDS[::-1]
        rounds.append({kind: seconds(kind, asked.size, asked.steps, transport) for kind in order})
    rounds = rounds[1:]  # the first has compiled
    for other in KINDS[1:]:
        ratios = [one[other] / one[KINDS[0]] for one in rounds]
        low, middle, high = statistics.quantiles(ratios, n=4)
        if transport.rank == 0:
            print(f"fixed point is {middle:.3f} x as fast as {other} ({low:.3f}-{high:.3f})")
    if transport.rank == 0:
        told = (f"{kind} {statistics.median(one[kind] for one in rounds):.2f} s" for kind in KINDS)
        print(", ".join(told))
    transport.close()


if __name__ == "__main__":
    main()
