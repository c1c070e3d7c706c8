"""How many samples each step size needs: the study behind the default of `learn.step_size`.

    python benchmarks/step_sizes.py [--quick] [--json] [TASK ...]

Samples of all agents until the learned table meets the task's target, median (smallest, largest)
over seeds; "-" where a seed had not met it within the budget. Discount .99, 64 lanes an agent,
epsilon .3, initial values at the declared bound on the return, fusion pooled. The target is a loss
of 1 % of the value range: the largest over reachable states where all is deterministic (Cliff,
Taxi), the mean where one rare state decides the largest (the lake, the grids).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import dataclass
from typing import Any

from distq_mpi.architectures import Allreduce
from distq_mpi.certificate import Solver
from distq_mpi.certificate import requests as certificate_requests
from distq_mpi.config import Config, from_dict
from distq_mpi.kernels.objects import load
from distq_mpi.preparation import settle
from distq_mpi.transport import Transport

SHARE, GROWTH = 0.01, 1.08


@dataclass(frozen=True)
class Task:
    """An environment, the loss that must fall, the steps it may take, and how many seeds."""

    env: dict[str, Any]
    target: str
    budget: float
    n_seeds: int


def grid(side: int) -> dict[str, Any]:
    """A slippery grid."""
    return {"id": "grid", "kwargs": {"rows": side, "columns": side, "slip": 0.2}}


TASKS = {
    "cliff": Task({"id": "CliffWalking-v1"}, "policy_loss", 1e6, 20),
    "taxi": Task({"id": "Taxi-v4"}, "policy_loss", 5e6, 20),
    "lake": Task({"id": "FrozenLake8x8-v1"}, "policy_loss_mean", 4e7, 20),
    "grid40": Task(grid(40), "policy_loss_mean", 4e7, 5),
    "grid100": Task(grid(100), "policy_loss_mean", 2e8, 3),
}
STEP_SIZES: dict[str, dict[str, Any]] = {
    "rescaled_linear": {"step_size": "rescaled_linear"},
    "sign_change .6": {"step_size": "sign_change", "exponent": 0.6},
    "sign_change .7": {"step_size": "sign_change", "exponent": 0.7},
    "polynomial .8": {"step_size": "polynomial"},
}


def samples(task: Task, learn: dict[str, Any], n_agents: int, seed: int, transport: Any) -> float:
    """Steps of all agents until the target is met; infinity where the budget does not do."""
    parallel: dict[str, Any] = {"agents": n_agents}
    if n_agents == 1:
        parallel["steps_per_round"] = 1  # one agent learns the same whatever its rounds
    config: Config = from_dict(
        {"env": task.env, "learn": learn, "parallel": parallel, "run": {"seed": seed},
         "stop": {"steps": int(task.budget)}}
    )  # fmt: skip
    config, environment, _ = settle(config, 1)
    wanted = Allreduce.requests(config, environment)
    kernels = load(wanted | certificate_requests(environment, config.learn.dtype), transport)
    architecture = Allreduce(config, environment, kernels, transport)
    solver = Solver(environment, config.learn.discount, kernels, transport)
    solver.solve()
    assert solver.value_range is not None
    check_at = 64.0
    while architecture.progress.steps < task.budget:
        architecture.learn()
        if architecture.exchange((False, False, False)) is None:
            architecture.rollback()
            continue
        architecture.commit()
        if architecture.progress.steps >= check_at:
            check_at = architecture.progress.steps * GROWTH
            found = solver.certify(architecture.holding)
            if getattr(found, task.target) <= SHARE * solver.value_range:
                return float(architecture.progress.steps)
    return float("inf")


def main() -> None:
    """Print one row per task, number of agents and step size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="*", default=list(TASKS), metavar="TASK")
    parser.add_argument("--quick", action="store_true", help="three seeds")
    parser.add_argument("--agents", default="1,8", help="numbers of agents (1,8)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    transport = Transport.connect()
    rows = []
    for name in options.tasks:
        task = TASKS[name]
        seeds = range(100, 100 + (min(3, task.n_seeds) if options.quick else task.n_seeds))
        for n_agents in map(int, options.agents.split(",")):
            for step_size, learn in STEP_SIZES.items():
                found = sorted(samples(task, learn, n_agents, s, transport) for s in seeds)
                median = statistics.median(found)
                row = {"task": name, "agents": n_agents, "step_size": step_size,
                       "median": median, "least": found[0], "most": found[-1],
                       "failed": sum(x == float("inf") for x in found)}  # fmt: skip
                rows.append(row)
                if not options.json:
                    print(f"{name:<8} K={n_agents:<3} {step_size:<16} {median:8.2g}"
                          f"  ({found[0]:.2g} to {found[-1]:.2g})"
                          f"  failed {row['failed']} of {len(found)}", flush=True)  # fmt: skip
    if options.json:
        json.dump(rows, sys.stdout)


if __name__ == "__main__":
    main()
