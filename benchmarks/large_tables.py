"""Learning on tables beyond the cache, beside random rows in C; every step goes to a random state.

    [mpirun -n 2] python benchmarks/large_tables.py [--megabytes 64,1024] [--repeats 9] [--json]

The learning kernel (float32, 4 actions, the default rule with counts) against the read-modify-write
of as large rows with 64 prefetches under way: slices of 60 ms in turn, medians of their ratios.
`constant` has no count to read, `1 lane` nothing to overlap. Megabytes are those of the values:
with counts the table has twice as many. On several ranks all work at once, each on a table of its
own; a ratio is the slowest rank's. Memory is touched before, and the seconds that took printed.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from textbook_c import compile_c, missing
from uniform import Uniform

from distq_mpi import environments
from distq_mpi.config import EnvConfig, LearnConfig
from distq_mpi.kernels import loop
from distq_mpi.kernels.objects import load
from distq_mpi.kernels.step_sizes import step_parameter
from distq_mpi.lanes import Lanes
from distq_mpi.table import Rows, record_of
from distq_mpi.transport import Transport

LANES, SLICE_S, NO_LIMIT = 64, 0.06, 2**32 - 1
TARGETS = {64: 0.80, 1024: 0.70}
SOURCE = os.path.join(os.path.dirname(__file__), "rows.c")


@dataclass(frozen=True)
class Row:
    """Million steps (rows) per second of one rank, and the ratio's median and quartiles."""

    megabytes: int
    what: str
    against: str
    product: float
    reference: float
    ratio: float
    low: float
    high: float


class Learning:
    """The kernel on a table. Local."""

    def __init__(self, environment: Any, table: Rows, n_lanes: int, step_size: Any,
                 transport: Transport) -> None:  # fmt: skip
        learn = LearnConfig(dtype="float32", step_size=step_size, initial="zeros")
        lanes = Lanes(LANES * transport.rank, n_lanes)
        record = record_of(learn, environment.n_actions)
        requests = loop.learning_kernels(learn, environment, record, lanes)
        kernels, self.lanes = load(requests, transport), lanes
        self.control = np.array(
            [0, 0, lanes.first, n_lanes, 0, round(learn.epsilon * 2**32), NO_LIMIT], np.uint64
        )
        rates = np.array([learn.discount, step_parameter(learn)])
        kernels["begin"](table.q, *lanes.arrays(), environment.params, self.control)
        self.control[loop.FIRST_STEP] = 1
        self._call = kernels["learn"].bind(
            table.q, table.q, table.clock_words, *lanes.arrays(), lanes.trace(),
            np.zeros(loop.work_words(n_lanes), np.uint64), environment.params, self.control, rates,
            np.zeros(3),
        )  # fmt: skip

    def run(self, n_steps: int) -> float:
        """Seconds of so many steps, or a few more."""
        each = -(-n_steps // self.lanes.n)
        self.control[loop.N_STEPS] = each
        begin = time.perf_counter()
        self._call()
        seconds = time.perf_counter() - begin
        self.control[loop.FIRST_STEP] += np.uint64(each)
        return seconds


def per_s(run: Callable[[int], float], n: int, transport: Transport) -> float:
    """Work per second of the slowest rank. COLLECTIVE."""
    transport.sum_int(np.zeros(1, np.int64))
    took = np.array([run(n)])
    transport.max_float(took)
    return n / float(took[0])


def paired(
    mine: Callable[[int], float], theirs: Callable[[int], float], transport: Transport, repeats: int
) -> tuple[float, float, list[float]]:
    """Both rates, and quartiles of their ratio. COLLECTIVE."""
    first = (per_s(run, 1 << 16, transport) for run in (mine, theirs))
    sizes = [1024 * int(max(1, SLICE_S * rate / 1024)) for rate in first]
    sizes = [transport.broadcast(size) for size in sizes]
    rates: list[list[float]] = [[], [per_s(theirs, sizes[1], transport)]]
    for _ in range(repeats):
        rates[0].append(per_s(mine, sizes[0], transport))
        rates[1].append(per_s(theirs, sizes[1], transport))
    ratios = [
        2 * a / (b + c) for a, b, c in zip(rates[0], rates[1], rates[1][1:], strict=False)
    ]
    return (*(statistics.median(one) for one in rates), statistics.quantiles(ratios, n=4))  # type: ignore[return-value]


def measure(megabytes: int, transport: Transport, repeats: int) -> list[Row]:
    """The rows of one size. COLLECTIVE."""
    n_states = (megabytes << 20) // 16
    environment = environments.from_object(Uniform(n_states), EnvConfig("uniform"))
    record = record_of(LearnConfig(dtype="float32"), 4)
    begin = time.perf_counter()
    table = Rows(record, n_states)
    table.raw[::4096] = 0
    if transport.rank == 0:
        print(f"{megabytes} MB of values in {table.raw.nbytes >> 20} MB a rank: memory given in "
              f"{time.perf_counter() - begin:.1f} s", flush=True)  # fmt: skip
    library, done = compile_c([], SOURCE), 0

    def rows(n: int) -> float:
        nonlocal done
        begin = time.perf_counter()
        library.random_rows(
            ctypes.c_void_p(table.raw.ctypes.data), ctypes.c_uint64(n_states),
            ctypes.c_uint64(n), ctypes.c_uint64(done),
        )  # fmt: skip
        done += n
        return time.perf_counter() - begin

    many = Learning(environment, table, LANES, "rescaled_linear", transport)
    bare = Learning(environment, table, LANES, "constant", transport)
    one = Learning(environment, table, 1, "rescaled_linear", transport)
    found = []
    for what, mine, against, theirs in (
        ("rescaled_linear", many.run, "random rows in C", rows),
        ("constant", bare.run, "random rows in C", rows),
        ("64 lanes", many.run, "1 lane", one.run),
    ):
        a, b, (low, middle, high) = paired(mine, theirs, transport, repeats)
        found.append(Row(megabytes, what, against, a / 1e6, b / 1e6, middle, low, high))
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", default="64,1024")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    transport = Transport.connect()
    if missing() is not None:
        raise SystemExit(missing())
    for megabytes in map(int, asked.megabytes.split(",")):
        found = measure(megabytes, transport, asked.repeats)
        if transport.rank > 0:
            continue
        if asked.json:
            print(json.dumps([asdict(row) for row in found], indent=1))
            continue
        for row in found:
            target = TARGETS.get(row.megabytes) if row.what == "rescaled_linear" else None
            goal = f" (target {target})" if target else ""
            print(f"{row.megabytes:5d} MB {row.what:16} {row.product:6.1f} M/s, {row.against:16} "
                  f"{row.reference:6.1f} M/s: {row.ratio:.2f} ({row.low:.2f}-{row.high:.2f}){goal}",
                  flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
