"""Error against the number of agents on the hard problem of Li et al. (2024), section 8a of theory.

Synchronous sampling: in a sweep every pair of every agent draws one transition; rounds of tau
sweeps. The published numbers are for constant steps of .05 with live targets, and for frozen ones.
"""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
import pytest

from distq_mpi.architectures import Allreduce
from distq_mpi.environments.base import Environment
from distq_mpi.environments.explicit import explicit_model
from tests.stand_in import Alone, compiled, config

DISCOUNT = 0.9
AGENTS = (1, 4, 16, 64)


def hard() -> Environment:
    """0: stays for 0. 1: either action stays with p for 1, else 0. 2: so does its action 0. 3:
    stays for 1. The second action of 0, 2 and 3 ends with -1: it is no choice."""
    p = (4 * DISCOUNT - 1) / (3 * DISCOUNT)
    rows = [
        ([0], [1.0], 0.0, 0), ([0], [1.0], -1.0, 1), ([1, 0], [p, 1 - p], 1.0, 0),
        ([1, 0], [p, 1 - p], 1.0, 0), ([2, 0], [p, 1 - p], 1.0, 0), ([2], [1.0], -1.0, 1),
        ([3], [1.0], 1.0, 0), ([3], [1.0], -1.0, 1),
    ]  # fmt: skip
    sizes = [len(row[0]) for row in rows]
    following, chances = (np.concatenate([row[k] for row in rows]) for k in range(2))
    rewards, ends = (np.repeat([row[k] for row in rows], sizes) for k in (2, 3))
    return explicit_model(
        "hard", 4, 2, np.cumsum([0, *sizes]), following, chances, rewards, ends.astype(bool)
    )


OPTIMAL = np.array([[0, -1], [7.5, 7.5], [7.5, -1], [10, -1]])


def errors(n_rounds: int, n_runs: int, **changes: Any) -> list[float]:
    """Mean of max |Q - Q*| over runs, for each number of agents."""
    found, environment = [], hard()
    for agents in AGENTS:
        settings = config(
            sampling="generative", discount=DISCOUNT, agents=agents, lanes=agents,
            **{"step_size": "constant", "alpha": 0.05, **changes},
        )  # fmt: skip
        kernels = compiled(Allreduce.requests(settings, environment))
        runs = []
        for seed in range(n_runs):
            settings.run.seed = seed
            state = Allreduce(settings, environment, kernels, Alone())
            while state.progress.round < n_rounds:
                state.learn()
                if state.exchange((False, False, False)) is None:
                    state.rollback()
                else:
                    state.commit()
            runs.append(float(np.abs(state.base.values - OPTIMAL).max()))
        found.append(statistics.mean(runs))
    return found


def slope(found: list[float]) -> float:
    """Of log error against log agents."""
    return float(np.polyfit(np.log(AGENTS), np.log(found), 1)[0])


def test_frozen_targets_speed_up_at_fifty_sweeps_a_round() -> None:
    found = errors(120, 40, target="frozen", frozen_rounds=60, steps_per_round=50,
                   step_size="rescaled_linear")  # fmt: skip
    assert found == pytest.approx([0.454, 0.200, 0.104, 0.053], rel=0.3)
    assert -0.6 < slope(found) < -0.4


def test_frozen_targets_taken_whole_to_the_end() -> None:
    found = errors(120, 40, target="frozen", frozen_rounds=120, steps_per_round=50)
    assert found == pytest.approx([0.887, 0.463, 0.239, 0.107], rel=0.3)


def test_steps_that_fall_from_the_first_round_leave_their_bias() -> None:
    """Exactly 10 / (1 + .1 x 120) for every number of agents, in the state without chance."""
    found = errors(120, 5, target="frozen", frozen_rounds=0, steps_per_round=50,
                   step_size="rescaled_linear")  # fmt: skip
    assert found[-1] == pytest.approx(10 / 13, abs=1e-9)
    assert max(found) < 0.85


def test_live_targets_speed_up_only_where_agents_are_fused_often() -> None:
    often = errors(1500, 10, fusion="mean", steps_per_round=1)
    seldom = errors(30, 20, fusion="mean", steps_per_round=50)
    assert often == pytest.approx([1.159, 0.460, 0.281, 0.141], rel=0.35)
    assert seldom == pytest.approx([1.179, 0.836, 0.774, 0.732], rel=0.35)
    assert -0.6 < slope(often) < -0.4
    assert slope(seldom) > -0.15
