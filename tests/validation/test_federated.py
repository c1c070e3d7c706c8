"""T9: fusions on the synthetic problem of Woo, Joshi & Chi (2023), where no agent sees it all."""

from __future__ import annotations

import statistics
from typing import Any
from unittest import mock

import numpy as np
import pytest

from distq_mpi.environments.base import Environment
from distq_mpi.environments.explicit import explicit_model
from distq_mpi.kernels import exploration, fusing
from distq_mpi.kernels.exploration import Exploration, epsilon_greedy_mean
from tests.driving import Fuser, Learner
from tests.stand_in import config

N_ACTIONS, N_AGENTS, PERIOD, N_STEPS, DISCOUNT = 20, 20, 50, 2000, 0.9
N_RUNS = 40


def always(n_actions: int, at: Any) -> Any:
    """A behaviour that plays one action: `explore` is its number."""

    def choose(q, row, value, word, explore):  # type: ignore[no-untyped-def]
        return explore

    return choose


def two_states(seed: int) -> Environment:
    """Reward 1 in state 1; an action stays in state 0 or 1 with a probability of .4 to .6."""
    rng = np.random.default_rng(seed)
    stay = rng.uniform(0.4, 0.6, (2, N_ACTIONS))
    zero = np.array([stay[0], 1 - stay[1]]).reshape(-1)
    chances = np.stack([zero, 1 - zero], axis=1).reshape(-1)
    rewards = np.repeat([0.0, 1.0], 2 * N_ACTIONS)
    n = 2 * N_ACTIONS
    return explicit_model(
        "woo", 2, N_ACTIONS, np.arange(0, 2 * n + 1, 2), np.tile([0, 1], n), chances, rewards
    )


def optimal(environment: Environment) -> np.ndarray:
    """Q* (2, A) by value iteration."""
    _, alias, reward, probability, *_ = environment.params
    following = (alias[1::2] >> np.uint64(1)).astype(int)
    v = np.zeros(2)
    for _ in range(400):
        q = (probability * (reward + DISCOUNT * v[following])).reshape(2, N_ACTIONS, 2).sum(2)
        v = q.max(axis=1)
    return q


def error(fusion: str, seed: int, shared: dict[str, Any]) -> float:
    """(1 - discount) max |Q - Q*| after N_STEPS steps of every agent; agent k plays action k.

    shared : kernels from an earlier run of the same fusion, empty before the first.
    """
    settings = config(
        fusion=fusion, agents=N_AGENTS, step_size="constant", alpha=0.05, discount=DISCOUNT,
        exploration="always",
    )  # fmt: skip
    environment = two_states(seed)
    fuser = Fuser(settings, 2, N_ACTIONS, True, exponent=14)
    fuser.base.values[...] = np.random.default_rng(seed + 1000).uniform(0, 10, (2, N_ACTIONS))
    learners = []
    for k in range(N_AGENTS):
        learners.append(
            Learner(environment, settings.learn, 1, k, k, seed, True, shared.get("learner"))
        )
        shared["learner"] = learners[-1].kernels
    for learner in learners:
        learner.begin()
    for number in range(N_STEPS // PERIOD):
        for array in fuser.sums.values():
            array[:] = 0
        fuser.each = []
        fuser.control[4] = number
        for learner in learners:
            learner.rows.raw[:] = fuser.base.raw
            learner.learn(PERIOD)
            assert not fuser.contribute(learner.rows)[fusing.OVERFLOWS]
        fuser.fuse()
        fuser.lifetime += fuser.visits.view(np.uint64)
        fuser.base, fuser.next = fuser.next, fuser.base
    return float((1 - DISCOUNT) * np.abs(fuser.base.values - optimal(environment)).max())


@pytest.mark.parametrize(
    ("fusion", "expected"), [("count", 0.098), ("importance", 0.224), ("mean", 0.328)]
)
def test_T9_unequal_coverage(fusion: str, expected: float) -> None:
    behaviour = Exploration(always, epsilon_greedy_mean, "epsilon", int)
    with mock.patch.dict(exploration.EXPLORATIONS, {"always": behaviour}):
        shared: dict[str, Any] = {}
        found = statistics.mean(error(fusion, seed, shared) for seed in range(N_RUNS))
    assert found == pytest.approx(expected, rel=0.1)
