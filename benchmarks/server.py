"""What `server` is for, and what it costs.

    mpirun -n 5 python benchmarks/server.py slow [--repeats 3]
    mpirun -n 2 python benchmarks/server.py messages

`slow` (four workers and a server): rounds are filled up with sleep to 20 ms, so that cores do not
count. One worker is ten times slower for good; or each is in a tenth of its rounds, at random.
Steps per second of `server` under several `parallel.staleness`, in ratio to `allreduce` of four
ranks in the same run, over 200 rounds of an agent; beside it the exact policy loss at equal steps.

`messages`: seconds of a pull and a push of 64 KB of rows, in ratio to a bare Sendrecv of as much.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np
from mpi4py import MPI

from distq_mpi import environments
from distq_mpi.architectures import Allreduce, Served, architecture_of
from distq_mpi.architectures.worker import Worker
from distq_mpi.certificate import Solver
from distq_mpi.certificate import requests as certificate_requests
from distq_mpi.config import Config, EnvConfig, LearnConfig, ParallelConfig, StopConfig, resolve
from distq_mpi.kernels.objects import load
from distq_mpi.transport import Transport

ROUND_S, SLOWER, SHARE, N_WORKERS, N_CLOCKS = 0.02, 10, 0.1, 4, 200
LOOKS = (50_000, 100_000, 200_000, 400_000)
TARGETS = {("one", "inf"): 5.0, ("random", 4): 1.3}


class Pace:
    """How long rounds of this rank take: those of `who` are ten times as long."""

    who, rng, on = "", np.random.default_rng(), False

    @classmethod
    def fill(cls, begin: float, last: bool) -> None:
        """Sleep until the round has taken its time; last : whether this is the last worker."""
        slow = last if cls.who == "one" else cls.rng.random() < SHARE
        time.sleep(max(0.0, begin + ROUND_S * (SLOWER if slow else 1) - time.perf_counter()))


def paced(owner: Any) -> None:
    """Let the rounds of an architecture take their time."""
    real = owner.learn

    def learn(self: Any, *arguments: Any) -> Any:
        begin = time.perf_counter()
        found = real(self, *arguments)
        if Pace.on:
            Pace.fill(begin, MPI.COMM_WORLD.rank == MPI.COMM_WORLD.size - 1)
        return found

    owner.learn = learn


def learner(transport: Transport, staleness: Any) -> tuple[Any, Solver]:
    """An architecture on FrozenLake 8x8, and what certifies it; staleness : None = allreduce."""
    environment = environments.make(EnvConfig("FrozenLake8x8-v1"))
    server = staleness is not None
    parallel = ParallelConfig(
        architecture="server" if server else "allreduce", agents=N_WORKERS, steps_per_round=8,
        staleness=staleness if server else 0,
    )  # fmt: skip
    config = Config(parallel=parallel, stop=StopConfig(wall_time_s=1e9))
    config = resolve(
        config, environment.n_states, environment.n_actions, transport.size, solvable=True
    )
    kind = architecture_of(config, environment, transport.size)
    certified = certificate_requests(environment, np.dtype(config.learn.dtype))
    kernels = load({**kind.requests(config, environment), **certified}, transport)
    solver = Solver(environment, config.learn.discount, kernels, transport)
    solver.solve()
    return kind(config, environment, kernels, transport), solver


def pace_of(transport: Transport, staleness: Any) -> tuple[float, list[float], list[int]]:
    """Steps per second, policy loss at `LOOKS`, rounds of each agent. COLLECTIVE."""
    this, solver = learner(transport, staleness)
    transport.sum_int(np.zeros(1, np.int64))
    Pace.on, seconds, losses = True, 0.0, []
    while this.progress.steps < N_CLOCKS * this.n_lanes * this.period:
        begin = time.perf_counter()
        this.learn()
        while this.exchange((False, False, False)) is None:
            raise SystemExit("a round did not fit")
        this.commit()
        seconds += time.perf_counter() - begin
        while len(losses) < len(LOOKS) and this.progress.steps >= LOOKS[len(losses)]:
            losses.append(solver.certify(this.holding, tight=False).policy_loss)
    Pace.on = False
    clocks = [N_CLOCKS] * N_WORKERS
    if isinstance(this, Served) and this.desk is not None:
        clocks = this.desk.clocks.tolist()
    return this.progress.steps / seconds, losses, clocks


def wait_for_all() -> None:
    """A barrier that leaves the cores to others."""
    request = MPI.COMM_WORLD.Ibarrier()
    while not request.Test():
        time.sleep(0.005)


def slow(repeats: int) -> None:
    """Both kinds of slowness, for each staleness."""
    world = MPI.COMM_WORLD
    if world.size != N_WORKERS + 1:
        raise SystemExit(f"needs {N_WORKERS + 1} ranks, has {world.size}")
    learners = world.Split(0 if world.rank else MPI.UNDEFINED, world.rank)
    transport = Transport(world)
    few = Transport(learners) if world.rank else None
    for owner in (Allreduce, Worker):
        paced(owner)
    for Pace.who in ("one", "random"):
        ratios: dict[Any, list[float]] = {4: [], "inf": []}
        for k in range(repeats):
            Pace.rng = np.random.default_rng((k, world.rank))
            alone = pace_of(few, None) if few is not None else None
            wait_for_all()
            bare = transport.broadcast(transport.gather(alone)[1] if world.rank == 0 else
                                       transport.gather(alone))  # fmt: skip
            if world.rank == 0:
                print(f"{Pace.who:<6} allreduce       {bare[0]:9.0f} steps/s          "
                      f"loss {_losses(bare[1])}")  # fmt: skip
            for staleness, found in ratios.items():
                rate, losses, clocks = pace_of(transport, staleness)
                found.append(rate / bare[0])
                if world.rank == 0:
                    print(f"{Pace.who:<6} staleness {staleness!s:<5} {rate:9.0f} steps/s "
                          f"{found[-1]:6.2f} x  loss {_losses(losses)}  rounds of each {clocks}",
                          flush=True)  # fmt: skip
        if world.rank == 0:
            for staleness, found in ratios.items():
                target = TARGETS.get((Pace.who, staleness))
                print(f"{Pace.who:<6} staleness {staleness!s:<5} median "
                      f"{statistics.median(found):.2f} x" + (f"  (target {target})" if target
                      else ""), flush=True)  # fmt: skip


def _losses(losses: list[float]) -> str:
    return " ".join(f"{n // 1000}k:{loss:.3f}" for n, loss in zip(LOOKS, losses, strict=False))


def messages(repeats: int) -> None:
    """Pull and push of all rows of a table, against Sendrecv of as many bytes."""
    world = MPI.COMM_WORLD
    transport = Transport(world)
    environment = environments.make(EnvConfig("grid", {"rows": 32, "columns": 32}))
    config = Config(
        learn=LearnConfig(), parallel=ParallelConfig(architecture="server", staleness="inf"),
        stop=StopConfig(wall_time_s=1e9),
    )  # fmt: skip
    config = resolve(config, 1024, 4, 2, solvable=False)
    kernels = load(Served.requests(config, environment), transport)
    this = Served(config, environment, kernels, transport)
    n_bytes, n_calls = 1024 * this.record.row_bytes, 300
    out, back = np.ones(n_bytes, np.uint8), np.zeros(n_bytes, np.uint8)
    ratios, times = [], []
    for _ in range(repeats):
        begin = time.perf_counter()
        for _ in range(n_calls):
            world.Sendrecv(out, 1 - world.rank, 0, back, 1 - world.rank, 0)
        bare = (time.perf_counter() - begin) / n_calls
        begin = time.perf_counter()
        if this.desk is not None:
            this.desk.serve({1}, n_calls)
        else:
            clock = 0
            while this.worker.pull(0, clock):
                this.replica.clock[:] = this.base.clock + 1
                clock += 1
                this.worker.push(0, clock, 1, (0, clock))
        took = (time.perf_counter() - begin) / n_calls
        ratios.append(took / bare)
        times.append((took, bare))
    if world.rank == 1:
        took, bare = (statistics.median(column) for column in zip(*times, strict=True))
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"pull + push of {n_bytes} bytes of rows {1e6 * took:.1f} us, Sendrecv "
              f"{1e6 * bare:.1f} us: {middle:.2f} x ({low:.2f}-{high:.2f}), limit 2")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["slow", "messages"])
    parser.add_argument("--repeats", type=int, default=0)
    asked = parser.parse_args()
    if asked.what == "slow":
        slow(asked.repeats or 3)
    else:
        messages(asked.repeats or 9)


if __name__ == "__main__":
    main()
