"""What a round costs beside its steps, against a bare Allreduce of the values it fuses.

    mpirun -n 2 python benchmarks/fusion.py [--quick] [--json]

A round of one step per lane: base to replica, contribution, exchange, commit. Slices of it and of
`MPI.Allreduce` of as many float32 values alternate in one run; the figure is the median of paired
ratios. The table is a grid. Its rounds are `few`: 64 lanes an agent, which touch little; or `all`:
16,384 lanes from anywhere, so that no tile is left untouched.

    python benchmarks/fusion.py --hosts 2

does the same, messages only, between virtual hosts on this machine (network namespaces, TCP between
them; needs root, iproute2 and the Open MPI of this environment). There the bytes that a rank sends
and receives are printed too, of a fusion and of the Allreduce.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distq_mpi.architectures import Allreduce
from distq_mpi.config import Config, EnvConfig, LearnConfig, ParallelConfig, StopConfig, resolve
from distq_mpi.kernels.objects import load
from distq_mpi.preparation import build
from distq_mpi.transport import Transport

TABLES = {"256 pairs": (8, 8), "360 K pairs": (300, 300), "64 MB": (2048, 2048)}
"""Rows and columns of the grids; 4 actions, values of 4 bytes."""
MANY_LANES = 16_384
SLICE_S = 0.05


@dataclass(frozen=True)
class Row:
    """One measurement: seconds of a fusion and of an Allreduce, and how often the one fits into the
    other (above 1: fusion is faster)."""

    table: str
    way: str
    touched: str
    ranks: int
    fusion_s: float
    allreduce_s: float
    ratio: float
    low: float
    high: float
    fusion_bytes: int = 0
    allreduce_bytes: int = 0
    """Sent and received by the first rank in one of each; 0 where nobody counted."""


class Fused:
    """A learner whose rounds are one step long."""

    def __init__(
        self, table: str, transport: Transport, shared: bool, everything: bool,
        fusion: Any = "pooled",
    ) -> None:
        rows, columns = TABLES[table]
        env = EnvConfig("grid", {"rows": rows, "columns": columns})
        environment = build(env, everything)
        lanes = transport.size * MANY_LANES if everything else 0
        parallel = ParallelConfig(agents=transport.size, lanes=lanes, steps_per_round=1,
                                  fusion=fusion)  # fmt: skip
        learn = LearnConfig(dtype="float32", exploring_starts=everything)
        config = Config(learn=learn, parallel=parallel, stop=StopConfig(wall_time_s=1e9))
        shape = environment.n_states, environment.n_actions
        config = resolve(config, *shape, transport.size, solvable=False)
        kernels = load(Allreduce.requests(config, environment), transport)
        lone = transport if shared else _Apart(transport)
        self.this = Allreduce(config, environment, kernels, lone)
        shares = self.this.memory is not None or self.this.room is not None
        self.way = "common memory" if shares else "messages"

    def __call__(self) -> None:
        """One round. COLLECTIVE."""
        self.this.learn()
        while self.this.exchange((False, False, False)) is None:
            self.this.rollback()
            self.this.learn()
        self.this.commit()

    def close(self) -> None:
        """Free what is shared."""
        self.this.close()


class _Apart:
    """A transport whose ranks have no memory in common."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def host_memory(self, common_bytes: int, own_bytes: int, replica_bytes: int = 0) -> None:
        """None there is."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def timed(work: Any, transport: Transport, n: int) -> float:
    """Seconds of one call on the slowest rank. COLLECTIVE."""
    transport.sum_int(np.zeros(1, np.int64))
    begin = time.perf_counter()
    for _ in range(n):
        work()
    took = np.array([time.perf_counter() - begin])
    transport.max_float(took)
    return float(took[0]) / n


def measure(
    table: str, shared: bool, everything: bool, transport: Transport, repeats: int
) -> Row:
    """Alternate slices of both. COLLECTIVE."""
    from mpi4py import MPI

    fused = Fused(table, transport, shared, everything)
    rows, columns = TABLES[table]
    mine, total = np.ones(4 * rows * columns, np.float32), np.zeros(4 * rows * columns, np.float32)

    def bare() -> None:
        MPI.COMM_WORLD.Allreduce(mine, total)

    calls = []
    for work in (fused, bare):
        work()
        calls.append(max(1, int(SLICE_S / timed(work, transport, 3))))
    calls = [int(transport.broadcast(n)) for n in calls]
    pairs = [
        (timed(fused, transport, calls[0]), timed(bare, transport, calls[1]))
        for _ in range(repeats)
    ]
    ratios = [bare_s / fused_s for fused_s, bare_s in pairs]
    low, middle, high = statistics.quantiles(ratios, n=4)
    sent = [counted(work, transport) for work in (fused, bare)]
    fused.close()
    fusion_s, bare_s = (statistics.median(column) for column in zip(*pairs, strict=True))
    touched = "all" if everything else "few"
    return Row(
        table, fused.way, touched, transport.size, fusion_s, bare_s, middle, low, high, *sent
    )


def count_beside_mean(table: str, transport: Transport, repeats: int) -> list[float]:
    """Quartiles of how fast a fusion by `count` is beside one by `mean`: sums of 24 bytes a pair
    and of 16, a ceiling of 0.67. COLLECTIVE."""
    both = [Fused(table, transport, True, True, fusion) for fusion in ("count", "mean")]
    for fused in both:
        fused()
    pairs = [
        [timed(fused, transport, 2) for fused in (both if k % 2 else both[::-1])]
        for k in range(repeats)
    ]
    for fused in both:
        fused.close()
    ratios = [pair[1] / pair[0] if k % 2 else pair[0] / pair[1] for k, pair in enumerate(pairs)]
    return statistics.quantiles(ratios, n=4)


def between_hosts(n_hosts: int) -> None:
    """Run this program on virtual hosts, and print what it prints."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.hosts import Hosts, missing

    if missing():
        raise SystemExit(f"virtual hosts need {', '.join(missing())}")
    words = [word for word in sys.argv[1:] if word == "--quick"]
    with tempfile.TemporaryDirectory() as folder:
        hosts = Hosts(Path(folder), n_hosts, 1)
        try:
            ended = hosts.start(n_hosts, str(Path(__file__).resolve()), *words).wait(1800)
        finally:
            hosts.close()
    print(ended.out, end="")
    if ended.code:
        raise SystemExit(ended.err)


def wire_bytes() -> int:
    """Bytes that this host has sent and received over its network. Local."""
    lines = Path("/proc/self/net/dev").read_text().splitlines()
    told = [line.split(":")[1].split() for line in lines if line.strip().startswith("eth0:")]
    return sum(int(one[0]) + int(one[8]) for one in told)


def counted(work: Any, transport: Transport) -> int:
    """Bytes over the network of the first rank's host in a call, or 0. COLLECTIVE."""
    transport.sum_int(np.zeros(1, np.int64))
    before = wire_bytes()
    work()
    transport.sum_int(np.zeros(1, np.int64))
    return wire_bytes() - before


def told_bytes(row: Row) -> str:
    """Bytes as they are printed."""
    if not row.fusion_bytes:
        return ""
    return f"  {row.fusion_bytes / 1e6:.2f} MB, Allreduce {row.allreduce_bytes / 1e6:.2f} MB"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="3 pairs instead of 9")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--hosts", type=int, default=0, help="virtual hosts, of one rank each")
    asked = parser.parse_args()
    if asked.hosts:
        between_hosts(asked.hosts)
        return
    transport = Transport.connect()
    found, repeats = [], 3 if asked.quick else 9
    apart = transport.node_size < transport.size
    for table in TABLES:
        for shared, everything in ((True, False), (True, True), (False, False), (False, True)):
            if not (apart and shared or everything and table == "256 pairs"):
                found.append(measure(table, shared, everything, transport, repeats))
    if not apart:
        low, middle, high = count_beside_mean("360 K pairs", transport, repeats)
    if transport.rank == 0 and not asked.json and not apart:
        print(f"count beside mean, 360 K pairs, all: {middle:.2f} ({low:.2f}-{high:.2f})")
    if transport.rank == 0:
        if asked.json:
            print(json.dumps([asdict(row) for row in found]))
        for row in () if asked.json else found:
            print(f"{row.table:<12} {row.way:<14} {row.touched:<4} {row.ranks} ranks  "
                  f"{1e3 * row.fusion_s:9.3f} ms  Allreduce {1e3 * row.allreduce_s:9.3f} ms  "
                  f"{row.ratio:6.2f} x as fast "
                  f"({row.low:.2f}-{row.high:.2f}){told_bytes(row)}")
    transport.close()


if __name__ == "__main__":
    main()
