"""Every outcome of a law is looked at before kernels believe it."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from distq_mpi.environments.checking import CHECK_LIMIT, check_all
from distq_mpi.environments.laws import law_environment
from distq_mpi.errors import ModelError
from distq_mpi.kernels.checking import checking_kernel
from tests.stand_in import compiled, plain

N_STATES = 20_000
BAD = 12_345


class Walk:
    """A walk that goes wrong at one state, in the way `params` say."""

    n_states, n_actions, n_outcomes = N_STATES, 2, 2

    def __init__(self, next_state: int = 0, probability: float = 0.5, reward: float = 0.0) -> None:
        self.params = (next_state, probability, reward)

    @staticmethod
    def outcome(state, action, i, params):  # type: ignore[no-untyped-def]
        next_state, probability, reward = params
        bad = state == BAD and action == 1 and i == 1
        new = next_state if bad else (state + 1) % N_STATES
        return (probability if bad else 0.5), new, (reward if bad else -1.0), False

    @staticmethod
    def start(i, params):  # type: ignore[no-untyped-def]
        return 1.0, 0


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"next_state": N_STATES}, "next_state 20000 is not in 0..19999"),
    ({"next_state": -1}, "next_state -1 is not in 0..19999"),
    ({"probability": 1.5}, "probability 1.5 must be from 0 to 1"),
    ({"probability": -0.5}, "probability -0.5 must be"),
    ({"probability": math.nan}, "probability nan must be"),
    ({"probability": 0.4}, "the probabilities sum to 0.9, not 1"),
    ({"reward": math.inf}, "reward inf must be a finite number"),
    ({"reward": math.nan}, "reward nan must be a finite number"),
]


@pytest.mark.parametrize(("kwargs", "told"), MISTAKES)
def test_one_bad_outcome_among_many_is_found(kwargs: dict[str, Any], told: str) -> None:
    environment = law_environment("walk", Walk, kwargs)
    kernel = compiled(checking_kernel(environment))["check"]
    with pytest.raises(ModelError, match=f"state.?{BAD}, action.?.?1") as caught:
        check_all(environment, kernel)
    assert told in str(caught.value).replace(f"state={BAD}", f"state {BAD}")


def test_a_good_law_passes_compiled_and_plain() -> None:
    environment = law_environment("walk", Walk, {})
    request = checking_kernel(environment)["check"]
    check_all(environment, compiled({"check": request})["check"])
    check_all(environment, plain(request.template, request.parts))


def test_explicit_and_huge_models_are_left_alone() -> None:
    def fail(*arguments: Any) -> None:
        raise AssertionError("looked at")

    for kind, n_transitions in (("explicit", 10), ("law", CHECK_LIMIT + 1)):
        check_all(SimpleNamespace(kind=kind, n_transitions=n_transitions), fail)  # type: ignore[arg-type]
