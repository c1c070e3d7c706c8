"""Kills drawn at random, and what comes of them. Open MPI only; no other work on the machine.

    python benchmarks/kill_campaign.py [--kills 300] [--seed N] [CELL ...]

Runs jobs of four ranks in which one, rank 0 or two at once kill themselves with SIGKILL, each in a
phase of a round drawn at random (`tests/faults/campaign.py` has the cells), until so many are
dead.
Prints per cell how many jobs came to their end, and to the bits of the undisturbed run; how long
those left took from noticing a death until they went on; and what was done again.

    python benchmarks/kill_campaign.py --overhead [--repeats 9]

Instead: steps per second with `--with-ft ulfm` over those without, and of `sharded` with
`--parallel.protect partner` over those without, in pairs of jobs.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.faults.campaign import CELLS, draw, losses, mistakes, perform, undisturbed  # noqa: E402
from tests.launching import is_open_mpi, start  # noqa: E402

OVERHEAD = {
    "FrozenLake 8x8": ("--stop.steps", "60000000"),
    "grid 100 x 100": ("--env.id", "grid", "--env.kwargs.rows", "100", "--env.kwargs.columns",
                       "100", "--env.kwargs.slip", "0.2", "--stop.steps", "60000000"),
}  # fmt: skip


def campaign(cells: list[str], n_kills: int, seed: int) -> int:
    """Run jobs in turn over the cells; return how many went wrong."""
    print(f"seed {seed}")
    folder = Path(tempfile.mkdtemp(prefix="kills-"))
    wanted: dict[str, str] = {}
    found: dict[str, dict[str, list[Any]]] = {
        cell: {"kills": [], "bad": [], "seconds": [], "rounds": []} for cell in cells
    }
    rng, n, k = random.Random(seed), 0, 0
    while n < n_kills:
        cell = cells[k % len(cells)]
        k += 1
        (folder / cell).mkdir(exist_ok=True)
        if cell not in wanted:
            wanted[cell] = undisturbed(cell, folder / cell / "whole")
        one, path = draw(rng, cell), folder / cell / f"run-{k}"
        n += len(one.deaths)
        told = found[cell]
        told["kills"] += list(one.deaths.values())
        try:
            ended, _ = perform(one, path)
            wrong = mistakes(one, ended, path, wanted[cell])
        except AssertionError as error:
            wrong = [str(error)]
        if wrong:
            told["bad"].append((one.deaths, wrong))
            print(f"job {k} {cell} {one.deaths}: {wrong[0]}", flush=True)
            continue
        events = losses(path)
        told["seconds"] += [event["seconds"] for event in events]
        told["rounds"] += [event["rounds_replayed"] for event in events]
    for cell, told in found.items():
        seconds = sorted(told["seconds"]) or [float("nan")]
        print(f"{cell:<10} {len(told['kills']):4d} kills, {len(told['seconds']):4d} recoveries, "
              f"{len(told['bad'])} jobs wrong; recovery median {statistics.median(seconds):.3f} s, "
              f"p95 {seconds[int(0.95 * (len(seconds) - 1))]:.3f} s, most {seconds[-1]:.3f} s; "
              f"rounds done again: {sum(told['rounds'])}, most {max(told['rounds'], default=0)}",
              flush=True)  # fmt: skip
    return sum(len(told["bad"]) for told in found.values())


SHARDED = ("--parallel.architecture", "sharded", "--parallel.rebalance", "false",
           "--learn.exploring_starts")  # fmt: skip
PROTECTED = {
    "grid 1000 x 1000": (*SHARDED, "--env.id", "grid", "--env.kwargs.rows", "1000",
                         "--env.kwargs.columns", "1000", "--env.kwargs.slip", "0.2",
                         "--stop.steps", "100000000"),
    "grid 4000 x 4000": (*SHARDED, "--env.id", "grid", "--env.kwargs.rows", "4000",
                         "--env.kwargs.columns", "4000", "--env.kwargs.slip", "0.2",
                         "--stop.steps", "100000000"),
    "garnet 1e6": (*SHARDED, "--env.id", "garnet", "--env.kwargs.states", "1000000",
                   "--env.kwargs.actions", "4", "--env.kwargs.branching", "2",
                   "--stop.steps", "100000000"),
}  # fmt: skip


def rate(options: tuple[str, ...], launcher: tuple[str, ...], folder: Path) -> float:
    """Steps per second of learning and exchange, of a job of two ranks."""
    words = ["-m", "distq_mpi", "train", "--run.dir", "run", "--run.overwrite", "--evaluate.exact",
             "false", "--evaluate.episodes", "0", *options]  # fmt: skip
    ended = start(2, words, folder, launcher).wait(300)
    assert ended.code == 0, ended.err
    told = json.loads((folder / "run" / "summary.json").read_text())
    return float(told["steps"] / (told["learn_time_s"] + told["exchange_time_s"]))


def overhead(repeats: int) -> None:
    """Pairs of jobs, with and without, in changing order."""
    folder = Path(tempfile.mkdtemp(prefix="overhead-"))
    for name, options in OVERHEAD.items():
        ratios = []
        for k in range(repeats):
            rates = {}
            for survives in (True, False) if k % 2 else (False, True):
                launcher = ("--with-ft", "ulfm") if survives else ()
                rates[survives] = rate(options, launcher, folder)
            ratios.append(rates[True] / rates[False])
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"{name:<16} with --with-ft ulfm {middle:.3f} x the steps per second "
              f"({low:.3f}-{high:.3f}), limit 0.97", flush=True)  # fmt: skip
    for name, options in PROTECTED.items():
        ratios = []
        for k in range(repeats):
            rates = {}
            for kept in ("partner", "off") if k % 2 else ("off", "partner"):
                words = (*options, "--parallel.protect", kept)
                rates[kept] = rate(words, ("--with-ft", "ulfm"), folder)
            ratios.append(rates["partner"] / rates["off"])
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"{name:<16} with --parallel.protect partner {middle:.3f} x the steps per second "
              f"({low:.3f}-{high:.3f}), limit 0.9", flush=True)  # fmt: skip


def main() -> int:
    """Run and print; the exit code is the number of jobs that went wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cells", nargs="*", default=list(CELLS))
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--overhead", action="store_true")
    parser.add_argument("--repeats", type=int, default=9)
    asked = parser.parse_args()
    if not is_open_mpi():
        raise SystemExit("needs Open MPI, whose ranks may be lost")
    if asked.overhead:
        overhead(asked.repeats)
        return 0
    return campaign(asked.cells, asked.kills, asked.seed)


if __name__ == "__main__":
    sys.exit(main())
