"""`median` and `trimmed_mean` where few visits stand behind the agents' values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distq_mpi.architectures import Allreduce
from distq_mpi.config import Config, EnvConfig, LearnConfig, ParallelConfig, check
from distq_mpi.environments import Environment
from distq_mpi.environments.explicit import explicit_model
from distq_mpi.fusion import FUSIONS
from distq_mpi.kernels import fusing
from distq_mpi.kernels.step_sizes import STEP_SIZES
from distq_mpi.preparation import settle, warnings
from distq_mpi.study.running import settings
from tests.stand_in import Alone, compiled

DISCOUNT = 0.5
STATISTICS = ("median", "trimmed_mean")


def rare_rewards(n_states: int, seed: int) -> tuple[Environment, np.ndarray]:
    """A model whose pairs pay much in one of five cases, and its Q*."""
    rng, n = np.random.default_rng(seed), 2 * n_states
    chance, end = np.tile([0.2, 0.8], n), np.arange(0, 2 * n + 1, 2)
    reward = np.where(np.arange(2 * n) % 2 == 0, rng.uniform(2, 6, 2 * n), rng.uniform(0, 1, 2 * n))
    following = rng.integers(0, n_states, 2 * n)
    environment = explicit_model(
        "rare", n_states, 2, end, following, chance, reward, max_episode_steps=20
    )
    optimal = np.zeros((n_states, 2))
    for _ in range(200):
        backup = chance * (reward + DISCOUNT * optimal.max(axis=1)[following])
        optimal = backup.reshape(n, 2).sum(axis=1).reshape(n_states, 2)
    return environment, optimal


def error(n_states: int, n_agents: int, period: Any, fusion: str, **parallel: Any) -> float:
    """Largest |Q - Q*| after half a million steps, with four lanes an agent and pair."""
    environment, optimal = rare_rewards(n_states, seed=1)
    config = settings(
        environment, {"discount": DISCOUNT, "epsilon": 1.0}, agents=n_agents,
        lanes=2 * n_states * n_agents, steps_per_round=period, fusion=fusion, **parallel,
    )  # fmt: skip
    state = Allreduce(config, environment, compiled(Allreduce.requests(config, environment)),
                      Alone())  # fmt: skip
    while state.progress.steps < 500_000:
        state.learn()
        if state.exchange((False, False, False)) is None:
            state.rollback()
        else:
            state.commit()
    found = float(np.abs(state.base.policy_values() - optimal).max())
    print(f"seed 1, {n_states} states, {n_agents} agents, {period} steps: {fusion} {found:.3f}")
    return found


@pytest.mark.parametrize("fusion", STATISTICS)
def test_agents_of_few_visits_make_a_value_together(fusion: str) -> None:
    """64 agents with about one visit each: alone they settle far from Q*, which is near 2.4."""
    assert error(2, 64, 1, fusion) < 0.3
    assert error(2, 64, 4, fusion) < 0.15
    if fusion == "median":  # the other one drops two of 64
        assert error(2, 64, 4, fusion, least_visits=1) > 0.5, "the fixed point of few visits"


@pytest.mark.parametrize("fusion", STATISTICS)
def test_rounds_that_the_run_chooses_see_enough(fusion: str) -> None:
    assert error(2, 4, "auto", fusion) < 0.05
    assert error(6, 4, "auto", fusion) < 0.05


visits_of_agents = st.lists(st.integers(0, 40), min_size=1, max_size=12)


def merged(
    fusion: str, values: list[float], visits: list[int], old: float, trim: int, enough: int
) -> tuple[float, bool]:
    step_size = STEP_SIZES["rescaled_linear"]
    merge = FUSIONS[fusion].merge
    assert merge is not None
    law = merge(fusing.kept_after(step_size), trim, enough)
    return law(
        np.array([values]).T, np.array([visits], np.uint32).T, 0, old, np.uint32(3),
        np.array([0.9, 0.0]), np.zeros(len(visits)),
    )  # fmt: skip


def after(old: float, target: float, visits: int) -> float:
    """The value of an agent whose `visits` targets were all the same."""
    kept = fusing.kept_after(STEP_SIZES["rescaled_linear"])
    return old + (1 - kept(np.uint32(3), visits, 0.9, 0.0)) * (target - old)


@given(
    st.sampled_from(STATISTICS), visits_of_agents, st.integers(0, 2), st.integers(1, 64),
    st.data(),
)  # fmt: skip
def test_as_many_agents_as_before_may_be_wrong(
    fusion: str, visits: list[int], trim: int, enough: int, data: st.DataObject
) -> None:
    """Of honest agents all targets are 5: with `trim` wrong ones the value goes from 2 towards it,
    and a pair is fused exactly where 2 trim + 1 agents have visited it."""
    values = [after(2.0, 5.0, n) for n in visits]
    for k in data.draw(st.permutations(range(len(visits))))[:trim]:
        values[k] = data.draw(st.sampled_from([-1e9, 1e9]))
    value, fused = merged(fusion, values, visits, 2.0, trim, enough)
    assert fused == (sum(n > 0 for n in visits) >= 2 * trim + 1)
    if fused:
        assert 2.0 < value <= 5.0 + 1e-9
    else:
        assert value == 2.0


@given(st.sampled_from(STATISTICS), visits_of_agents, st.integers(0, 2))
def test_values_that_have_seen_enough_stand_for_themselves(
    fusion: str, visits: list[int], trim: int
) -> None:
    values = np.random.default_rng(len(visits)).normal(size=len(visits)).tolist()
    least = min((n for n in visits if n), default=1)
    alone = merged(fusion, values, visits, 2.0, trim, 1)
    enough = merged(fusion, values, visits, 2.0, trim, least)
    if (sum(visits) // (2 * trim + 1)) >= least:
        assert alone == enough
    assert merged(fusion, [7.0] * len(visits), visits, 7.0, trim, 64)[0] == 7.0


def told(id: str, fusion: str = "median", **parallel: Any) -> list[str]:
    config = Config(
        env=EnvConfig(id), parallel=ParallelConfig(agents=4, fusion=fusion, **parallel)  # type: ignore[arg-type]
    )
    config, environment, _ = settle(config, 1)
    return [line for line in warnings(config, environment) if "is taken over values" in line]


@pytest.mark.parametrize("fusion", STATISTICS)
def test_a_run_begins_with_a_warning_where_few_visits_stand_behind_values(fusion: str) -> None:
    (line,) = told("FrozenLake8x8-v1", fusion, steps_per_round=1)
    assert line.startswith(
        f"parallel.fusion: the {fusion} is taken over values of about 1 visit each: where"
    )
    assert "steps_per_round auto, or 96 and more" in line  # 3 x 32 visits, one a step
    (line,) = told("FrozenLake8x8-v1", fusion, least_visits=1)
    assert "parallel.least_visits 32 and" in line
    assert not told("FrozenLake8x8-v1", fusion)
    assert not told("FrozenLake8x8-v1", fusion, steps_per_round=200)
    assert not told("FrozenLake8x8-v1", "pooled", steps_per_round=1)
    assert not told("CliffWalking-v1", fusion, steps_per_round=1), "nothing is random there"


def test_least_visits_has_a_meaning_for_statistics_only() -> None:
    (mistake,) = check(Config(parallel=ParallelConfig(least_visits=4)))
    assert mistake.startswith("parallel.least_visits: 4 has a meaning with parallel.fusion median")
    sarsa = Config(
        env=EnvConfig("CliffWalking-v1"), learn=LearnConfig(rule="sarsa"),
        parallel=ParallelConfig(agents=4, fusion="median"),
    )  # fmt: skip
    assert settle(sarsa, 1)[0].parallel.least_visits == 32, "what it does next is random"
