"""Every outcome of a law is looked at before kernels believe it."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from distq_mpi.environments.checking import CHECK_LIMIT, check_all
from distq_mpi.environments.laws import law_environment
from distq_mpi.environments.sharing import share
from distq_mpi.errors import ModelError
from distq_mpi.kernels.checking import checking_kernel
from tests.stand_in import Alone, compiled, plain

N_STATES = 20_000
BAD = 12_345


class Walk:
    """A walk that goes wrong at one state, in the way `params` say."""

    n_states, n_actions, n_outcomes = N_STATES, 2, 2
    params: tuple[Any, ...]

    def __init__(
        self, next_state: int = 0, probability: float = 0.5, reward: float = 0.0, ended: int = 0
    ) -> None:
        self.params = (next_state, probability, reward, ended)

    @staticmethod
    def outcome(state, action, i, params):  # type: ignore[no-untyped-def]
        next_state, probability, reward, ended = params
        bad = state == BAD and action == 1 and i == 1
        new = next_state if bad else (state + 1) % N_STATES
        return (probability if bad else 0.5), new, (reward if bad else -1.0), (ended if bad else 0)

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
    ({"ended": 2}, "terminated 2 must be a bool"),
    ({"reward": math.inf}, "reward inf must be a finite number"),
    ({"reward": math.nan}, "reward nan must be a finite number"),
]


def both(environment: Any) -> list[Any]:
    """The check, compiled and as the plain Python it is."""
    request = checking_kernel(environment)["check"]
    return [compiled({"check": request})["check"], plain(request.template, request.parts)]


@pytest.mark.parametrize(("kwargs", "told"), MISTAKES)
def test_one_bad_outcome_among_many_is_found(kwargs: dict[str, Any], told: str) -> None:
    environment = law_environment("walk", Walk, kwargs)
    for kernel in both(environment):
        with pytest.raises(ModelError, match=f"state.?{BAD}, action.?.?1") as caught:
            check_all(environment, kernel)
        assert told in str(caught.value).replace(f"state={BAD}", f"state {BAD}")


def test_a_good_law_passes_compiled_and_plain() -> None:
    environment = law_environment("walk", Walk, {})
    for kernel in both(environment):
        check_all(environment, kernel)


class Starts(Walk):
    """Two starts; what is wrong with the second is in `params`."""

    n_starts = 2

    def __init__(self, first: int = 0, probability: float = 0.5) -> None:
        self.params = (first, probability)

    @staticmethod
    def outcome(state, action, i, params):  # type: ignore[no-untyped-def]
        return 0.5, state, 0.0, True

    @staticmethod
    def start(i, params):  # type: ignore[no-untyped-def]
        return (params[1] if i == 1 else 0.5), (params[0] if i == 1 else 0)


@pytest.mark.parametrize(
    ("params", "told"),
    [
        ((N_STATES, 0.5), "start(i=1): state 20000 is not in 0..19999"),
        ((-1, 0.5), "start(i=1): state -1 is not in"),
        ((0, 1.5), "start(i=1): probability 1.5 must be from 0 to 1"),
        ((0, math.nan), "start(i=1): probability nan must be"),
        ((0, 0.4), "the start probabilities sum to 0.9, not 1"),
    ],
)
def test_bad_starts_are_found_even_beyond_the_limit(params: Any, told: str) -> None:
    good = law_environment("starts", Starts, {})
    for n_transitions in (good.n_transitions, CHECK_LIMIT + 1):
        bad = replace(good, params=params, n_transitions=n_transitions)
        for kernel in both(bad):
            with pytest.raises(ModelError) as caught:
                check_all(bad, kernel)
            assert told in str(caught.value)


class Wrapping(Walk):
    """A start that is 16 in Python, whose integers do not end, and -3 in 64 bits."""

    def __init__(self) -> None:
        self.params = (0, 0.5, 0.0, 4 * 10**9, 4 * 10**9)

    @staticmethod
    def outcome(state, action, i, params):  # type: ignore[no-untyped-def]
        return 0.5, state, 0.0, True

    @staticmethod
    def start(i, params):  # type: ignore[no-untyped-def]
        return 1.0, params[3] * params[4] // 10**18


def test_a_start_that_differs_once_compiled_is_found() -> None:
    environment = law_environment("wrapping", Wrapping, {})
    with pytest.raises(ModelError, match=r"start\(i=0\): state -3 is not in"):
        check_all(environment, both(environment)[0])


def test_explicit_models_are_left_alone_and_huge_ones_looked_at_in_their_starts() -> None:
    def fail(*arguments: Any) -> None:
        raise AssertionError("looked at")

    check_all(SimpleNamespace(kind="explicit", n_transitions=10), fail)  # type: ignore[arg-type]
    bad = law_environment("walk", Walk, {"next_state": N_STATES})
    check_all(replace(bad, n_transitions=CHECK_LIMIT + 1), both(bad)[0])


class Sized(Walk):
    """As many states as asked for."""

    def __init__(self, n: int) -> None:
        self.n_states, self.params = n, (0,)

    @staticmethod
    def outcome(state, action, i, params):  # type: ignore[no-untyped-def]
        return 0.5, state, 0.0, True


def test_the_summary_says_when_only_a_sample_is_checked() -> None:
    n = CHECK_LIMIT // 4
    assert "sample" not in law_environment("sized", Sized, {"n": n}).summary
    larger = law_environment("sized", Sized, {"n": n + 1})
    assert "checked on a sample and watched" in larger.summary


class OtherHost(Alone):
    """The leader of a second host, as `share` sees it; rank 0 made `told`."""

    rank, size, hosts = 1, 2, ("here", "there")

    def __init__(self, told: Any) -> None:
        self.told = told

    def broadcast(self, value: Any) -> Any:
        """What rank 0 told."""
        return self.told

    def same_outcome(self) -> Any:
        """Nobody else to agree with."""
        return nullcontext()


def test_hosts_that_make_different_models_are_refused() -> None:
    here, there = (law_environment("walk", Walk, {"reward": r}) for r in (0.0, 1.0))
    transport: Any = OtherHost((here, here.params, None, 0))
    assert share(None, lambda: here, transport) is here
    with pytest.raises(ModelError) as caught:
        share(None, lambda: there, transport)
    for word in ("here", "there", here.model_id[:12], there.model_id[:12]):
        assert word in str(caught.value)
