"""Seconds until the policy gap is 1 %, two ranks beside one. No other work.

    python benchmarks/gap.py [--repeats 9] [--ranks 2] [--size 100] [--fusion hogwild,pooled]

Grid of size x size, slip 0.2. For every seed a job of one rank with one agent, and one for each
fusion, with an agent a rank; in changing order. Learning and exchange count, as `summary.json` has
them, not certificates. Both are looked at whenever their steps have grown by a quarter, so one look
more is a quarter more of steps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.launching import distq  # noqa: E402


def job(n_ranks: int, fusion: str, seed: int, size: int, folder: Path) -> dict[str, Any]:
    """The summary of a run to its target."""
    options = ["--parallel.fusion", fusion] if n_ranks > 1 else []
    if fusion == "hogwild" and n_ranks > 1:
        options += ["--parallel.reproducible", "false"]
    ended = distq(
        n_ranks, "train", "--env.id", "grid", "--env.kwargs.rows", str(size),
        "--env.kwargs.columns", str(size), "--env.kwargs.slip", "0.2", "--stop.policy_gap", "0.01",
        "--stop.steps", "1e9", "--run.seed", str(seed), "--run.dir", "run", "--run.overwrite",
        "--parallel.agents", str(n_ranks), "--evaluate.episodes", "0", *options,
        cwd=folder, limit_s=600,
    )  # fmt: skip
    assert ended.code == 0, ended.err
    told: dict[str, Any] = json.loads((folder / "run" / "summary.json").read_text())
    return told


def seconds(told: dict[str, Any]) -> float:
    """Of learning and exchange."""
    return float(told["learn_time_s"] + told["exchange_time_s"])


def main() -> None:
    """Run the jobs, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--size", type=int, default=100)
    parser.add_argument("--fusion", default="hogwild,pooled")
    asked = parser.parse_args()
    fusions, rng = asked.fusion.split(","), np.random.default_rng(0)
    ratios: dict[str, list[float]] = {fusion: [] for fusion in fusions}
    steps: dict[str, list[float]] = {fusion: [] for fusion in fusions}
    with tempfile.TemporaryDirectory() as folder:
        for fusion in ("one", *fusions):  # compiles
            job(1 if fusion == "one" else asked.ranks, fusion, 0, asked.size, Path(folder))
        for seed in range(asked.repeats):
            told = {}
            for fusion in rng.permutation(["one", *fusions]):
                n_ranks = 1 if fusion == "one" else asked.ranks
                told[fusion] = job(n_ranks, fusion, seed, asked.size, Path(folder))
            for fusion in fusions:
                ratios[fusion].append(seconds(told["one"]) / seconds(told[fusion]))
                steps[fusion].append(told[fusion]["steps"] / told["one"]["steps"])
    for fusion in fusions:
        low, middle, high = statistics.quantiles(ratios[fusion], n=4)
        more = statistics.median(steps[fusion])
        print(f"{fusion:9} {asked.ranks} ranks: {middle:.2f} x as fast as one "
              f"({low:.2f}-{high:.2f}), with {more:.2f} x the steps")  # fmt: skip


if __name__ == "__main__":
    main()
