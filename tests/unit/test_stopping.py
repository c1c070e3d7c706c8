"""When a run ends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distq_mpi.architectures import Agreement, Progress
from distq_mpi.certificate import Certificate
from distq_mpi.config import StopConfig
from distq_mpi.stopping import CHECK_GROWTH, Standstill, is_check_round, verdict

QUIET = Agreement()
PROGRESS = Progress(round=7, steps=1000, episodes=20, mean_return=0.5, round_steps=100)


@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=50))
def test_checks_are_never_farther_apart_than_they_must(rounds: list[int]) -> None:
    steps, checked = 0, 1
    for n in rounds:
        steps += n
        due = is_check_round(Progress(steps=steps, round_steps=n), 1)
        # Never later than a factor of 1.25^2 after the last, whatever the rounds.
        assert due or steps < checked * CHECK_GROWTH**2
        checked = steps if due else checked


def test_check_rounds_become_rare() -> None:
    progress = [Progress(steps=64 * n, round_steps=64) for n in range(1, 100_000)]
    due = [one.steps for one in progress if is_check_round(one, 1)]
    assert 40 < len(due) < 80
    large = [one.steps for one in progress if is_check_round(one, 10_000_000)]
    assert large == [steps for steps in due if steps >= 1_000_000]


@pytest.mark.parametrize(
    ("stop", "status", "code"),
    [
        (StopConfig(steps=1000), "finished", 0),
        (StopConfig(steps=1001), None, None),
        (StopConfig(rounds=7), "finished", 0),
        (StopConfig(episodes=20), "finished", 0),
        (StopConfig(mean_return=0.5), "converged", 0),
        (StopConfig(mean_return=0.51), None, None),
        (StopConfig(policy_gap=0.01), "converged", 0),
        (StopConfig(policy_gap=0.009), None, None),
        (StopConfig(policy_gap=0.009, steps=1000), "finished", 3),
        (StopConfig(policy_loss=0.2), "converged", 0),
        (StopConfig(policy_loss_bound=2.9), None, None),
        (StopConfig(policy_loss_bound=3.0), "converged", 0),
    ],
)
def test_rules(stop: StopConfig, status: str | None, code: int | None) -> None:
    certificate = Certificate(policy_gap=0.01, policy_loss=0.2, policy_loss_bound=3.0)
    found = verdict(stop, PROGRESS, QUIET, certificate)
    assert (found and found.status, found and found.exit_code) == (status, code)


def test_no_certificate_no_verdict() -> None:
    assert verdict(StopConfig(policy_gap=1.0), PROGRESS, QUIET, None) is None


def test_wishes() -> None:
    stop = StopConfig(wall_time_s=1.0)
    asked = verdict(stop, PROGRESS, QUIET._replace(want_stop=True), None)
    late = verdict(stop, PROGRESS, QUIET._replace(want_time=True), None)
    assert asked is not None and (asked.status, asked.exit_code) == ("interrupted", 75)
    assert late is not None and (late.status, late.exit_code) == ("finished", 0)


def test_numbers_that_are_not_finite_end_the_run() -> None:
    found = verdict(StopConfig(), PROGRESS, QUIET._replace(non_finite=1), None)
    assert found is not None and (found.status, found.exit_code) == ("diverged", 3)


def noticed(
    measures: list[float | None], n_actions: int = 2, value_range: float | None = 2.0
) -> list[bool]:
    """Whether a standstill is noticed at each of some certificates, each at twice the steps."""
    name = "policy_gap" if n_actions > 1 else "q_error"
    watch = Standstill(10, n_actions, value_range)
    return [
        bool(watch.notice(10_000 * 2**k, Certificate(**{name: value})))
        for k, value in enumerate(measures)
    ]


def test_a_gap_that_does_not_fall_is_noticed_after_three_doublings() -> None:
    assert noticed([0.4] * 5) == [False, False, False, True, True]
    assert noticed([0.4, 0.4, 0.4, 0.37]) == [False] * 3 + [True], "not to nine tenths"
    assert noticed([0.4, 0.5, 0.9, 0.6]) == [False] * 3 + [True], "the best one counts"


def test_what_gets_better_or_is_good_is_not() -> None:
    assert not any(noticed([0.4 * 0.95**k for k in range(12)]))
    assert not any(noticed([0.4, 0.04] + [0.04] * 9))
    assert not any(noticed([0.4, 0.04] + [0.9] * 9)), "it was there"


def test_what_is_not_known_says_nothing() -> None:
    nan = float("nan")
    assert not any(noticed([None] * 6))
    assert not any(noticed([nan, float("inf")] * 6))
    assert noticed([0.4, nan, None, 0.4]) == [False] * 3 + [True]
    watch = Standstill(10_000, 2, 1.0)
    assert not any(watch.notice(n, Certificate(policy_gap=0.4)) for n in (100, 10_000, 9_000_000))


def test_of_one_action_the_error_of_its_values_is_looked_at() -> None:
    assert noticed([0.4] * 4, 1) == [False] * 3 + [True]
    assert not any(noticed([0.09] * 4, 1)), "4.5 % of the value range"
    assert not any(noticed([0.4] * 4, 1, None)) and not any(noticed([0.4] * 4, 1, 0.0))
