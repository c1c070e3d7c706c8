"""Samples to a gap of 1 % under `sharded`, beside `allreduce` with one agent. No times.

    mpirun -n 2 python benchmarks/sharded_samples.py [--seeds 7] [--lanes 64] [TASK ...]

Medians over seeds of the steps after which the gap is first at most 1 %. Certificates fall on steps
that grow by a twentieth here, not by a quarter.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

from distq_mpi import QLearning, stopping

TASKS: dict[str, tuple[dict[str, Any], int]] = {
    "lake": ({"env": "FrozenLake8x8-v1"}, 20_000),
    "taxi": ({"env": "Taxi-v4"}, 10_000),
    "grid100": (
        {"env": "grid", "env_kwargs": {"rows": 100, "columns": 100, "slip": 0.2}}, 16_000_000
    ),
}  # fmt: skip
"""What is learned, and steps before the first look."""
LIMITS = {"free running": 1.0, "lockstep": 1.2}


def steps(keywords: dict[str, Any], first: int, seed: int) -> tuple[int, int]:
    """Steps until the gap is 1 %, and the rank. COLLECTIVE."""
    with QLearning(**keywords, seed=seed, policy_gap=0.01) as model:
        n_pairs = model.environment.n_states * model.environment.n_actions
        stopping.FIRST_SHARE = first / n_pairs
        model.learn(None)
        return model.num_timesteps, model.rank


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="*", default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=7)
    parser.add_argument("--lanes", type=int, default=64)
    asked = parser.parse_args()
    stopping.CHECK_GROWTH = 1.05
    sharded = {"architecture": "sharded", "lanes": asked.lanes}
    kinds: dict[str, dict[str, Any]] = {
        "allreduce": {"agents": 1},
        "free running": {**sharded, "reproducible": False},
        "lockstep": sharded,
    }
    for task in asked.tasks:
        found: dict[str, float] = {}
        keywords, first = TASKS[task]
        for kind, options in kinds.items():
            told = [steps({**keywords, **options}, first, seed) for seed in range(asked.seeds)]
            counted = sorted(n for n, _ in told)
            found[kind] = statistics.median(counted)
            limit = f"  (limit {LIMITS[kind]})" if kind in LIMITS else ""
            if told[0][1] == 0:
                print(f"{task:<8} {kind:<13} {found[kind]:9.3g} steps  "
                      f"{found[kind] / found['allreduce']:5.2f}{limit}  "
                      f"{' '.join(f'{n:.3g}' for n in counted)}", flush=True)


if __name__ == "__main__":
    main()
