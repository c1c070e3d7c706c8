"""A law too large to be looked at whole is watched while it is learned on."""

from __future__ import annotations

import math
import re
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from distq_mpi.config import EnvConfig
from distq_mpi.environments import exploring_starts, make
from distq_mpi.environments.checking import check_all
from distq_mpi.environments.guard import guarded, refuse_noted
from distq_mpi.environments.laws import law_environment
from distq_mpi.environments.sharing import share
from distq_mpi.errors import ModelError
from distq_mpi.kernels import Kernel
from distq_mpi.kernels.checking import checking_kernel
from distq_mpi.kernels.draws import TRANSITION, threefry
from distq_mpi.kernels.storing import exact
from tests.driving import Learner
from tests.stand_in import Alone, compiled, config, plain

u8 = np.uint64
SIDE = 31_623
N_STATES = SIDE * SIDE  # more than 1e9
FAR = 777_777_777
law_step = exact


class Plane:
    """A huge torus walked in four directions that goes wrong in one cell, as `params` say."""

    n_states, n_actions, n_outcomes = N_STATES, 4, 3

    def __init__(
        self, new: int = -1, probability: float = 0.8, reward: float = -1.0, ended: int = -1
    ) -> None:
        self.params = (N_STATES, SIDE, new, probability, reward, ended)

    @staticmethod
    def outcome(state, action, i, params):  # type: ignore[no-untyped-def]
        n_states, side, new, probability, reward, ended = params
        move = (action + i + (i >> 1)) & 3
        step = (1 if move == 0 else -1) * (1 if move % 2 == 0 else side)
        cell, bad = (state + step) % n_states, state == FAR and action == 2 and i == 0
        where = new if bad and new != -1 else cell
        chance = (probability if bad else 0.8) if i == 0 else 0.1
        over = ended if bad and ended != -1 else 1 * (cell == 5)
        return chance, where, reward if bad else -1.0, over

    @staticmethod
    def start(i, params):  # type: ignore[no-untyped-def]
        return 1.0, FAR


class Lonely(Alone):
    """A rank alone whose mistakes are its own."""

    def same_outcome(self) -> Any:
        """Nobody else to agree with."""
        return nullcontext()


def walk(state, action, bits, params, new, reward, ended):  # type: ignore[no-untyped-def]
    """One transition per entry."""
    for k in range(state.size):
        new[k], reward[k], ended[k] = law_step(state[k], action[k], bits[k], params)


def transitions(environment: Any, state: Any, action: Any, bits: Any, use_compiled: bool) -> Any:
    """(new, reward, ended) of many transitions through the environment's law_step."""
    n = len(bits)
    arrays = [np.full(n, state, u8), np.full(n, action, u8), np.asarray(bits, u8)]
    found = np.zeros(n, u8), np.zeros(n), np.zeros(n, np.bool_)
    parts = {"law_step": environment.law_step}
    arguments = (*arrays, environment.params, *found)
    kernel = Kernel(walk, parts, arguments)
    run = compiled({"walk": kernel})["walk"] if use_compiled else plain(walk, parts)
    run(*arguments)
    return found


def huge(**kwargs: Any) -> Any:
    environment = law_environment("plane", Plane, kwargs)
    assert not environment.trusted
    return environment


BITS = [u8(k) << u8(59) | u8(k) for k in range(32)]
MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"new": N_STATES}, f"outcome(state={FAR}, action=2, i=0): next_state {N_STATES} is not in"),
    ({"new": -2}, "next_state -2 is not in 0.."),
    ({"new": 2**62}, "next_state 4611686018427387904 is not in 0.."),
    ({"probability": 0.7}, f"state {FAR}, action 2: the probabilities sum to 0.9, not 1"),
    ({"probability": math.nan}, "the probabilities sum to nan, not 1"),
    ({"probability": -0.5}, "probability -0.5 must be from 0 to 1"),
    ({"ended": 2}, f"outcome(state={FAR}, action=2, i=0): terminated 2 must be a bool"),
    ({"reward": math.nan}, "reward nan must be a finite number"),
    ({"reward": -math.inf}, "reward -inf must be a finite number"),
]


@pytest.mark.parametrize("use_compiled", [False, True])
@pytest.mark.parametrize(("kwargs", "told"), MISTAKES)
def test_a_mistake_in_one_of_a_thousand_million_states_is_noted_not_made(
    kwargs: dict[str, Any], told: str, use_compiled: bool
) -> None:
    environment = guarded(huge(**kwargs))
    check_all(environment, plain(*_check(environment)))  # the starts are fine
    new, reward, ended = transitions(environment, FAR, 2, BITS, use_compiled)
    assert np.all(new < N_STATES) and np.all(np.isfinite(reward))
    assert FAR in new and not ended[new == FAR].any()
    with pytest.raises(ModelError) as caught:
        refuse_noted(environment, Lonely(), 1, 10, range(3))  # type: ignore[arg-type]
    assert str(caught.value).startswith("plane: ") and told in str(caught.value)
    assert "met by" not in str(caught.value)  # these draws were nobody's


def _check(environment: Any) -> Any:
    request = checking_kernel(environment)["check"]
    return request.template, request.parts


def test_a_guard_changes_no_draw_and_no_outcome() -> None:
    bare = huge()
    watched = guarded(bare)
    for state, action in ((FAR, 2), (0, 3), (N_STATES - 1, 0), (4, 0)):
        pair = [transitions(env, state, action, BITS, True) for env in (bare, watched)]
        for one, other in zip(*pair, strict=True):
            assert np.array_equal(one, other)
    refuse_noted(watched, Lonely(), 1, 10, range(3))  # type: ignore[arg-type]
    assert watched.model_id == bare.model_id
    assert watched.outcome(7, 1, 2, watched.params) == bare.outcome(7, 1, 2, bare.params)
    assert watched.start(0, watched.params) == bare.start(0, bare.params)
    assert watched.outcomes(7, 1, watched.params) == 3


class Small(Plane):
    """The same on few states, so that a table fits, under guard all the same."""

    n_states = 64

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.params = (64, 8, *self.params[2:5])

    @staticmethod
    def outcome(state, action, i, params):  # type: ignore[no-untyped-def]
        n_states, side, new, probability, reward = params
        bad = state == 63 and action == 2 and i == 1
        where = (state + action + i) % n_states
        return (0.8 if i == 0 else 0.1), new if bad and new != -1 else where, reward, where == 5

    @staticmethod
    def start(i, params):  # type: ignore[no-untyped-def]
        return 1.0, 7


@pytest.mark.parametrize("n_lanes", [3, 100])
def test_the_lane_and_its_step_are_named(n_lanes: int) -> None:
    whole = law_environment("small", Small, {})
    bad = replace(whole, params=(64, 8, 2**40, 0.8, -1.0), trusted=False)
    environment = guarded(bad)
    learner = Learner(environment, config().learn, n_lanes, epsilon=1.0, use_compiled=True)
    learner.begin()
    learner.learn(4000)
    assert np.all(learner.lane("next_state") < 64) and np.all(learner.lane("state") < 64)
    told = r"state=63, action=2, i=1\): next_state 1099511627776 .*by lane (\d+) in .*step (\d+)"
    with pytest.raises(ModelError, match=told) as caught:
        refuse_noted(environment, Lonely(), 1, n_lanes, range(4001))  # type: ignore[arg-type]
    found = re.search(told, str(caught.value))
    assert found is not None
    lane, step = int(found[1]), int(found[2])
    with np.errstate(over="ignore"):
        bits = threefry(u8(step), u8(lane), u8(1), TRANSITION)[1]
    assert int(bits) == int(environment.params[2][4]) % 2**64


def test_who_is_guarded() -> None:
    grid = make(EnvConfig(id="grid", kwargs={"rows": SIDE, "columns": SIDE, "slip": 0.1}))
    small = law_environment("small", Small, {})
    for environment in (grid, small):
        assert environment.trusted and guarded(environment) is environment
        assert share(environment, None, Alone2()) is environment
        assert "watched" not in environment.summary
    assert share(huge(), None, Alone2()).params[1] == N_STATES


class Alone2(Lonely):
    """Also shares arrays, with nobody."""

    hosts = ("here",)

    def share_on_node(self, arrays: Any) -> Any:
        """The arrays."""
        return tuple(array.copy() for array in arrays)


class Follower(Alone2):
    """A rank that makes nothing; rank 0 told `told` and shares `arrays`."""

    rank, leads_node = 1, False

    def __init__(self, told: Any, arrays: Any = ()) -> None:
        self.told, self.arrays = told, arrays

    def broadcast(self, value: Any) -> Any:
        """What rank 0 told."""
        return self.told

    def share_on_node(self, arrays: Any) -> Any:
        """Rank 0's arrays."""
        assert arrays is None
        return self.arrays


class Teller(Alone2):
    """Rank 0, which keeps what it told and shared."""

    def broadcast(self, value: Any) -> Any:
        """Keep and return."""
        self.told = value
        return value

    def share_on_node(self, arrays: Any) -> Any:
        """Keep and return."""
        self.arrays = arrays
        return arrays


class Mapped:
    """A law that looks into two arrays between its numbers."""

    n_states, n_actions, n_outcomes, n_starts, uniform_starts = 4, 2, 1, 3, True

    def __init__(self) -> None:
        self.params = (2, np.array([3, 2, 1, 0]), 0.5, np.array([[1, 0, 2]], np.int8))

    @staticmethod
    def outcome(state, action, i, params):  # type: ignore[no-untyped-def]
        _, to, reward, _ = params
        return 1.0, to[state], reward, False

    @staticmethod
    def start(i, params):  # type: ignore[no-untyped-def]
        return 1.0 / 3.0, params[3][0, i]


def test_arrays_of_a_law_are_shared_and_never_told() -> None:
    environment, rank0 = law_environment("mapped", Mapped, {}), Teller()
    shared = share(environment, None, rank0)  # type: ignore[arg-type]
    assert not any(isinstance(p, np.ndarray) for p in rank0.told[1])
    follower = share(None, None, Follower(rank0.told, rank0.arrays))  # type: ignore[arg-type]
    for found in (shared, follower):
        assert [type(p) for p in found.params] == [int, np.ndarray, float, np.ndarray]
        assert found.params[0] == 2 and found.params[2] == 0.5
        assert found.params[1].tolist() == [3, 2, 1, 0] and found.params[3].tolist() == [[1, 0, 2]]
    assert follower.outcome is None


def test_uniform_starts_are_drawn_in_one_step_and_believed_only_if_they_are() -> None:
    environment = law_environment("mapped", Mapped, {})
    draws = np.random.Philox(4).random_raw(30_000)
    with np.errstate(over="ignore"):
        drawn = [int(environment.law_start(bits, environment.params)) for bits in draws]
    counts = np.bincount(drawn, minlength=4)
    assert counts[3] == 0 and np.sum((counts[:3] - 1e4) ** 2 / 1e4) < 13.8  # 0.999, 2 degrees

    class Uneven(Mapped):
        @staticmethod
        def start(i, params):  # type: ignore[no-untyped-def]
            return 0.5 * (i != 1), 0

    with pytest.raises(ModelError, match=r"start\(i=0\): probability 0.5, but the law says unif"):
        law_environment("uneven", Uneven, {})


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array(["a"]), r"params\[0\] is an array of <U1"),
        (np.array([None]), r"params\[0\] is an array of object"),
        (np.zeros(2, "f2"), "array of float16"),
        (np.zeros(2, ">i4"), "array of >i4"),
    ],
)
def test_arrays_that_kernels_cannot_take_are_refused(array: Any, message: str) -> None:
    class Holding(Mapped):
        def __init__(self) -> None:
            self.params = (array,)

    with pytest.raises(ModelError, match=message):
        law_environment("holding", Holding, {})


@pytest.mark.parametrize("use_compiled", [False, True])
def test_a_watched_law_that_is_begun_in_any_state_is_the_same_law(use_compiled: bool) -> None:
    law = huge()
    watched = [guarded(one) for one in (law, exploring_starts(law))]
    assert not watched[1].trusted and watched[1].n_starts == N_STATES
    bits = np.random.default_rng(0).integers(0, 2**64, 50, dtype=u8)
    plain_law, begun = (transitions(one, FAR, 2, bits, use_compiled) for one in watched)
    for found, expected in zip(begun, plain_law, strict=True):
        assert np.array_equal(found, expected)
    with np.errstate(over="ignore"):
        starts = [int(watched[1].law_start(word, watched[1].params)) for word in bits]
    assert starts == [int(word) * N_STATES >> 64 for word in bits]
