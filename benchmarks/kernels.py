"""How fast one rank learns: the product's whole round loop against Gymnasium's loop and against C.

    python benchmarks/kernels.py [--quick] [--json] [NAME ...]

Rates of a shared machine wander, so every figure is paired: a slice of the reference runs right
before and right after each slice of the product, and a ratio is the median over such triples.
docs/benchmarks.md says what each reference does.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from gymnasium_loop import ListTable, NumpyTable
from textbook_c import TextbookC, missing

from distq_mpi import environments
from distq_mpi.architectures.allreduce import Allreduce
from distq_mpi.config import Config, EnvConfig, LearnConfig, ParallelConfig, StopConfig, resolve
from distq_mpi.kernels.objects import load
from distq_mpi.transport import Transport

LANES = 64
TARGETS = {"Gymnasium": 1000.0, "Gym., lists": 1000.0, "better C": 0.8}
WORLDS = {
    "FrozenLake8x8-v1": EnvConfig("FrozenLake8x8-v1"),
    "Taxi-v4": EnvConfig("Taxi-v4"),
    "grid": EnvConfig("grid", {"rows": 1000, "columns": 1000, "slip": 0.2}),
}

Slice = Callable[[int], float]
"""Makes at least that many steps and returns steps per second."""


class Product:
    """One agent of `LANES` lanes on this rank, as a run has it. `run` times whole rounds."""

    def __init__(self, env: EnvConfig, step_size: Any, transport: Transport) -> None:
        config = Config(
            env=env,
            learn=LearnConfig(step_size=step_size),
            parallel=ParallelConfig(agents=1, lanes=LANES),
            stop=StopConfig(wall_time_s=1e9),  # `run` alone decides how long
        )
        self.environment = environments.make(env)
        n_states, n_actions = self.environment.n_states, self.environment.n_actions
        self.config = resolve(config, n_states, n_actions, 1, solvable=False)
        kernels = load(Allreduce.requests(self.config, self.environment), transport)
        self._learner = Allreduce(self.config, self.environment, kernels, transport)
        self.initial = self._learner.base.values.copy()

    def run(self, n_steps: int) -> float:
        """Learn, exchange and commit until `n_steps` steps are made; return steps per second."""
        learner, first = self._learner, self._learner.progress.steps
        begin = time.perf_counter()
        while learner.progress.steps - first < n_steps:
            learner.learn()
            if learner.exchange((False, False, False)) is None:
                learner.rollback()
            else:
                learner.commit()
        return (learner.progress.steps - first) / (time.perf_counter() - begin)


@dataclass(frozen=True)
class Pairing:
    """Paired slices: medians of both rates (steps per second) and quartiles of their ratio."""

    environment: str
    step_size: str
    against: str
    product_steps_per_s: float
    reference_steps_per_s: float
    ratio: float
    ratio_low: float
    ratio_high: float

    @property
    def verdict(self) -> str:
        """The target and whether the median meets it; empty where there is none."""
        target = TARGETS.get(self.against)
        if target is None or self.step_size != "rescaled_linear":
            return ""
        return f"{'meets' if self.ratio >= target else 'MISSES'} {target:g}"


def steps_of(run: Slice, seconds: float) -> int:
    """Return how many steps fill a slice of `seconds`, warming up on the way."""
    n_steps = 1000
    while True:
        took = n_steps / run(n_steps)
        if took >= seconds / 2:
            return math.ceil(n_steps * seconds / took)
        n_steps *= 4


def paired(product: Slice, reference: Slice, repeats: int, seconds: float) -> dict[str, float]:
    """Return the figures of a `Pairing` from `repeats` slices of the product."""
    n_product, n_reference = steps_of(product, seconds), steps_of(reference, seconds)
    mine, theirs = [], [reference(n_reference)]
    for _ in range(repeats):
        mine.append(product(n_product))
        theirs.append(reference(n_reference))
    ratios = [2 * p / (b + a) for p, b, a in zip(mine, theirs, theirs[1:], strict=False)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return {
        "product_steps_per_s": statistics.median(mine),
        "reference_steps_per_s": statistics.median(theirs),
        "ratio": middle,
        "ratio_low": low,
        "ratio_high": high,
    }


def pairings(name: str, step_size: str, transport: Transport, options: Any) -> list[Pairing]:
    """Pair one environment under one step size with every reference there is."""
    product = Product(WORLDS[name], step_size, transport)
    environment, learn, initial = product.environment, product.config.learn, product.initial

    def against(label: str, reference: Slice) -> Pairing:
        figures = paired(product.run, reference, options.repeats, options.seconds)
        return Pairing(name, step_size, label, **figures)

    found = []
    if step_size == "rescaled_linear" and environment.kind == "explicit":
        found += [
            against(label, loop(environment.id, initial, learn).run)
            for label, loop in (("Gymnasium", NumpyTable), ("Gym., lists", ListTable))
        ]
    if missing() is None:
        rivals = [
            against(f"C, {n} lane{'s' * (n > 1)}", TextbookC(environment, initial, learn, n).run)
            for n in (1, LANES)
        ]
        better = asdict(min(rivals, key=lambda rival: rival.ratio)) | {"against": "better C"}
        found += [*rivals, Pairing(**better)]
    return found


def table(rows: list[Pairing]) -> str:
    """Lay the figures out for a terminal, rates in millions of steps per second."""
    lines = [
        f"{'environment':17} {'step size':16} {'against':12} {'product':>9} {'reference':>9} "
        f"{'ratio':>8}  quartiles"
    ]
    for row in rows:
        lines.append(
            f"{row.environment:17} {row.step_size:16} {row.against:12} "
            f"{row.product_steps_per_s / 1e6:9.1f} {row.reference_steps_per_s / 1e6:9.3f} "
            f"{row.ratio:8.4g}  {row.ratio_low:.4g} to {row.ratio_high:.4g}  {row.verdict}".rstrip()
        )
    return "\n".join([*lines, "rates in M steps/s, medians; one rank, one agent, 64 lanes"])


def main() -> int:
    """Print the table, or JSON; return 0 (figures gate nothing: machines differ)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(WORLDS)}")
    parser.add_argument("--quick", action="store_true", help="9 slices of 30 ms, not 11 of 60")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in WORLDS]
    if unknown:
        parser.error(f"NAME {unknown[0]}: must be one of {', '.join(WORLDS)}")
    options.repeats, options.seconds = (9, 0.03) if options.quick else (11, 0.06)
    transport = Transport.connect()
    if missing() is not None:
        print(missing(), file=sys.stderr)
    rows = [
        pairing
        for name in options.names or WORLDS
        for step_size in ("rescaled_linear", "constant")
        for pairing in pairings(name, step_size, transport, options)
    ]
    print(json.dumps([asdict(row) for row in rows], indent=1) if options.json else table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
