"""Periods and exploration rates: hand cases and bounds."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distq_mpi.architectures.progress import Agreement, Progress
from distq_mpi.architectures.schedules import (
    GROWN_PERIOD,
    LENGTH_UNIT,
    LONE_PERIOD,
    LONE_STEPS,
    MAX_PERIOD,
    exploration_at,
    lone_period,
    next_period,
)
from distq_mpi.fusion import FixedPoint
from distq_mpi.kernels.exploration import epsilon_threshold


@pytest.mark.parametrize(
    ("period", "n_visits", "drift", "n_agents", "kappa", "expected"),
    [
        (1, 64, 0.0, 1, 1.0, 2),  # no pair met twice: double
        (256, 64, 0.0, 64, 1.0, 512),
        (400, 64, 0.0, 8, 1.0, 512),  # never above 512
        (8, 1000, 500.0, 1, 1.0, 16),  # 8 * 1000 / 500
        (8, 1000, 500.0, 2, 1.0, 8),
        (8, 1000, 500.0, 4, 1.0, 4),
        (8, 1000, 500.0, 4, 2.0, 8),
        (8, 1000, 500.0, 4, 0.5, 2),
        (8, 1000, 301.0, 4, 1.0, 6),  # 6.64 rounds down
        (8, 1000, 1.0, 1, 1.0, 16),  # at most double
        (8, 10, 1e6, 64, 1.0, 1),  # at least one
        (3, 0, 0.0, 8, 1.0, 6),
    ],
)
def test_period_by_hand(
    period: int, n_visits: int, drift: float, n_agents: int, kappa: float, expected: int
) -> None:
    length = round(drift * LENGTH_UNIT)
    assert next_period(period, n_visits, length, n_agents, kappa) == expected


counts = st.integers(0, 2**50)


@given(
    st.integers(1, MAX_PERIOD), counts, counts, st.integers(1, 4096), st.sampled_from([0.5, 1.0, 2])
)
def test_period_stays_in_its_bounds(
    period: int, n_visits: int, length: int, n_agents: int, kappa: float
) -> None:
    found = next_period(period, n_visits, length, n_agents, kappa)
    assert isinstance(found, int)
    assert 1 <= found <= min(2 * period, MAX_PERIOD)
    more = next_period(period, n_visits, length, n_agents + 1, kappa)
    assert more <= found


@given(st.integers(1, 10**9), st.integers(1, 10**6), st.integers(0, 2**40))
def test_a_lone_agent_steps_over_the_table_within_seconds(
    n_pairs: int, n_lanes: int, n_made: int
) -> None:
    period, first = lone_period(n_pairs, n_lanes, n_made), lone_period(n_pairs, n_lanes)
    assert period >= first >= LONE_PERIOD
    assert period == first or period <= min(GROWN_PERIOD, n_made // 64)
    assert period * n_lanes <= max(LONE_STEPS, LONE_PERIOD * n_lanes)
    enough = period * n_lanes >= 8 * n_pairs
    assert enough or period == max(LONE_PERIOD, LONE_STEPS // n_lanes)


def learn(schedule: str, **changes: float) -> SimpleNamespace:
    settings = {"epsilon": 0.8, "epsilon_final": 0.2, "epsilon_steps": 1000, **changes}
    return SimpleNamespace(
        exploration="epsilon_greedy", epsilon_schedule=schedule, **settings
    )


@pytest.mark.parametrize("n_steps", [0, 1, 10**12])
def test_constant_epsilon(n_steps: int) -> None:
    assert exploration_at(learn("constant"), n_steps) == 0.8


@pytest.mark.parametrize(
    ("n_steps", "expected"), [(0, 0.8), (250, 0.65), (500, 0.5), (1000, 0.2), (10**9, 0.2)]
)
def test_linear_epsilon(n_steps: int, expected: float) -> None:
    assert exploration_at(learn("linear"), n_steps) == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize(
    ("n_steps", "expected"), [(0, 0.8), (500, 0.4), (1000, 0.2), (10**9, 0.2)]
)
def test_exponential_epsilon(n_steps: int, expected: float) -> None:
    assert exploration_at(learn("exponential"), n_steps) == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize("schedule", ["linear", "exponential"])
def test_a_schedule_of_no_steps_is_at_its_end(schedule: str) -> None:
    assert exploration_at(learn(schedule, epsilon_steps=0), 0) == pytest.approx(0.2)


@given(st.integers(0, 2000), st.integers(0, 2000), st.sampled_from(["linear", "exponential"]))
def test_epsilon_falls_and_stays_between_its_ends(a: int, b: int, schedule: str) -> None:
    early, late = (exploration_at(learn(schedule), n) for n in sorted((a, b)))
    assert 0.8 + 1e-15 >= early >= late >= 0.2 - 1e-15


def test_epsilon_as_a_threshold() -> None:
    assert [epsilon_threshold(x) for x in (0.0, 0.5, 1.0)] == [0, 2**31, 2**32]
    assert epsilon_threshold(0.3) / 2**32 == pytest.approx(0.3, abs=2**-32)


def test_a_window_of_episodes_closes_at_a_hundred() -> None:
    def after(progress: Progress, episodes: int, returns: float) -> Progress:
        agreed = Agreement(episodes=episodes, return_sum=returns)
        return progress.after(2, 128, agreed, 4, FixedPoint(1))

    progress = after(Progress(), 60, 30.0)
    assert (progress.round, progress.steps, progress.lane_steps, progress.period) == (1, 128, 2, 4)
    assert progress.mean_return is None and progress.episodes == 60
    progress = after(progress, 60, 90.0)
    assert progress.mean_return == 1.0
    assert (progress.window_episodes, progress.window_return) == (0, 0.0)
    progress = after(progress, 99, -1.0)
    assert progress.mean_return == 1.0 and progress.episodes == 219


def test_progress_survives_json() -> None:
    progress = Progress(
        round=3, lane_steps=7, steps=70, mean_return=0.1, window_return=1 / 3, square_sum=2.5,
        round_steps=10,
    )  # fmt: skip
    assert Progress.from_json(progress.to_json()) == progress
    assert progress.td_rms == 0.5
    assert Progress().td_rms is None


def test_temperature_has_a_schedule_of_its_own() -> None:
    settings = SimpleNamespace(
        exploration="softmax", temperature=2.0, temperature_final=0.5, temperature_steps=100,
        temperature_schedule="exponential", epsilon=0.3, epsilon_schedule="constant",
    )  # fmt: skip
    assert exploration_at(settings, 0) == 2.0
    assert exploration_at(settings, 50) == pytest.approx(1.0)
    assert exploration_at(settings, 1000) == pytest.approx(0.5)
