"""How fast lanes cross between owners, beside what the same memory and messages do at best.

    mpirun -n 2 python benchmarks/sharded.py [--quick] [--json] [--only PART]

The yardstick is the bucketed exchange (`distq_mpi.probe`): random 8-byte updates of 64 MB a rank,
sorted into one message per peer. Every slice of learning runs between two slices of it; a ratio is
the median over such triples. 64 MB of q per rank, float32, 4 actions, the default rule with counts.
On several ranks the parts `uniform`, `lockstep` and `grid`; `bytes` on any number.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from uniform import Uniform

from distq_mpi import environments
from distq_mpi.architectures import Sharded
from distq_mpi.config import Config, LearnConfig, ParallelConfig, StopConfig, resolve
from distq_mpi.kernels.ceilings import ceiling_kernels
from distq_mpi.kernels.objects import load
from distq_mpi.probe import EXCHANGE_TABLE, EXCHANGES
from distq_mpi.probe.ceilings import BucketedExchange, RandomRows
from distq_mpi.transport import Transport

ROWS = (64 << 20) // 16
"""Rows of 4 float32 values in 64 MB."""
UNIFORM_LANES = (1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
GRID_LANES = (512, 1024, 2048, 8192)
COLUMNS = 4096
SLICE_STEPS = 1 << 21
TARGETS = {"uniform": 0.45, "grid": 0.8, "lockstep": 0.6, "bytes": 24.0}

@dataclass(frozen=True)
class Row:
    """One measurement: steps per second of all ranks, quartiles of the ratio to the yardstick."""

    part: str
    lanes: int
    ranks: int
    steps_per_s: float
    ratio: float
    low: float
    high: float
    exchange_share: float
    bytes_per_step: float


class Learner:
    """A sharded learner whose slices are timed."""

    def __init__(
        self, environment: Any, lanes: int, lockstep: bool, transport: Transport
    ) -> None:
        config = Config(
            learn=LearnConfig(dtype="float32", epsilon=0.1),
            parallel=ParallelConfig(
                architecture="sharded", lanes=lanes, reproducible=lockstep, rebalance=False,
                steps_per_round=max(64, SLICE_STEPS // lanes // 64 * 64) * (1 if lockstep else 4),
            ),
            stop=StopConfig(wall_time_s=1e9),
        )  # fmt: skip
        shape = environment.n_states, environment.n_actions
        self.config = resolve(config, *shape, transport.size, solvable=False)
        requests = Sharded.requests(self.config, environment)
        self.architecture = Sharded(
            self.config, environment, load(requests, transport), transport
        )
        self.architecture.rows.raw[::4096] = 0
        self.transport = transport
        self.exchanging: list[float] = []
        self.slice()
        self.exchanging.clear()
        self._from = self._counted()

    def slice(self) -> float:
        """Learn for a round; return the steps per second of all ranks. COLLECTIVE."""
        this = self.architecture
        steps, before = this.progress.steps, this.exchange_time_s
        self.transport.sum_int(np.zeros(1, np.int64))
        begin = time.perf_counter()
        this.learn()
        this.exchange((False, False, False))
        took = time.perf_counter() - begin
        this.commit()
        self.exchanging.append((this.exchange_time_s - before) / took)
        return (this.progress.steps - steps) / took

    def bytes_per_step(self) -> float:
        """Bytes that all ranks have sent to others per step since the first slice. COLLECTIVE."""
        (sent, steps), (sent0, steps0) = self._counted(), self._from
        return (sent - sent0) / (steps - steps0)

    def _counted(self) -> tuple[int, int]:
        sent = np.array([self.architecture.sent_bytes], np.int64)
        self.transport.sum_int(sent)
        return int(sent[0]), self.architecture.progress.steps

    def close(self) -> None:
        """Free the messages."""
        self.architecture.close()


def paired(part: str, learner: Learner, yardstick: Any, n: int) -> Row:
    """Alternate slices of both. COLLECTIVE."""
    rates, ratios = [], []
    before = yardstick()
    for _ in range(n):
        learned = learner.slice()
        after = yardstick()
        rates.append(learned)
        ratios.append(learned / statistics.mean((before, after)))
        before = after
    low, middle, high = statistics.quantiles(ratios, n=4) if n > 1 else ratios * 3
    return Row(
        part, learner.config.parallel.lanes, learner.transport.size, statistics.median(rates),
        middle, low, high, statistics.median(learner.exchanging), learner.bytes_per_step(),
    )  # fmt: skip


def uniform(transport: Transport) -> Any:
    """The uniform law over 64 MB of q a rank."""
    return environments.from_object(
        Uniform(ROWS * transport.size), environments_config("uniform")
    )


def grid(transport: Transport) -> Any:
    """A grid whose rows of cells are the blocks' rows, 4096 wide; lanes begin anywhere."""
    rows = ROWS * transport.size // COLUMNS
    config = environments_config("grid", {"rows": rows, "columns": COLUMNS, "slip": 0.2})
    return environments.exploring_starts(environments.make(config))


def environments_config(id: str, kwargs: dict[str, Any] | None = None) -> Any:
    """The `[env]` section."""
    from distq_mpi.config import EnvConfig

    return EnvConfig(id, kwargs or {})


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="3 pairs, few lane counts")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", default="", help="uniform, lockstep, grid or bytes")
    parser.add_argument("--lanes", default="", help="lane counts of uniform and lockstep, 1024,...")
    options = parser.parse_args()
    transport = Transport.connect()
    n = 3 if options.quick else 9
    lanes = UNIFORM_LANES[1:6:2] if options.quick else UNIFORM_LANES
    if options.lanes:
        lanes = tuple(int(text) for text in options.lanes.split(","))
    kernels = load(ceiling_kernels(), transport)
    rows_per_s = RandomRows(kernels, 2 * EXCHANGE_TABLE).per_s(transport, False)
    exchanges = [BucketedExchange(kernels, transport, EXCHANGE_TABLE, k) for k in EXCHANGES]
    yardstick = max(exchanges, key=lambda one: one.per_s())
    best = yardstick.per_s()
    told = [
        f"{transport.size} ranks; random rows {rows_per_s / 1e6:.1f} M/s a rank, bucketed exchange "
        f"{best / 1e6:.1f} M/s in all"
    ]

    def timed() -> float:
        begin = time.perf_counter()
        yardstick.run()
        took = np.array([time.perf_counter() - begin])
        transport.max_float(took)
        return yardstick.amount / float(took[0])

    found: list[Row] = []
    parts = [("uniform", uniform, False, lanes), ("lockstep", uniform, True, lanes),
             ("grid", grid, False, GRID_LANES), ("grid lockstep", grid, True, lanes)]  # fmt: skip
    for part, law, lockstep, counts in parts:
        if transport.size == 1 or options.only not in part:
            continue
        environment = law(transport)
        for count in counts:
            learner = Learner(environment, count, lockstep, transport)
            found.append(paired(part, learner, timed, n))
            learner.close()
    if options.only in ("", "bytes"):
        learner = Learner(uniform(transport), 8192, True, transport)
        found.append(paired("bytes", learner, timed, 1))
        learner.close()
    if transport.rank == 0:
        print(json.dumps([asdict(row) for row in found]) if options.json else "\n".join(
            told + [_line(row) for row in found] + _verdicts(found)
        ))  # fmt: skip
    transport.close()


def _line(row: Row) -> str:
    return (
        f"{row.part:<14} {row.lanes:>7} lanes  {row.steps_per_s / 1e6:7.1f} M steps/s  "
        f"{row.ratio:.2f} of the exchange ({row.low:.2f}-{row.high:.2f})  "
        f"exchanging {100 * row.exchange_share:3.0f} %  {row.bytes_per_step:6.2f} bytes/step"
    )


def _verdicts(found: list[Row]) -> list[str]:
    best = {
        part: max((row for row in found if row.part == part), key=lambda row: row.ratio)
        for part in {row.part for row in found}
    }
    lines = []
    for part in ("uniform", "grid"):
        if part in best:
            lines.append(f"{part}: {best[part].ratio:.2f} at {best[part].lanes} lanes, at least "
                         f"{TARGETS[part]}")
    if "uniform" in best and "lockstep" in best:
        share = best["lockstep"].ratio / best["uniform"].ratio
        lines.append(f"lockstep over free running: {share:.2f}, at least {TARGETS['lockstep']}")
    if "grid" in best and "grid lockstep" in best:
        half = [row.lanes for row in found
                if row.part == "grid lockstep" and row.ratio >= best["grid"].ratio / 2]
        lines.append(f"grid: lockstep reaches half of free running at {min(half, default=None)} "
                     "lanes")
    if "bytes" in best:
        row = best["bytes"]
        lines.append(f"bytes per step, uniform: {row.bytes_per_step:.2f} = "
                     f"{48 * (row.ranks - 1) / row.ranks:.2f} expected at {row.ranks} ranks")
    return lines


if __name__ == "__main__":
    main()
