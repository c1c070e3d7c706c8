"""Schedules are functions of the step: how long rounds are, and on how many ranks, has no say."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tests.worlds  # noqa: F401  (registers them)
from distq_mpi import environments
from distq_mpi.architectures import Allreduce, Sharded
from distq_mpi.architectures.asking import ShardedStepped
from distq_mpi.architectures.in_place import InPlace
from distq_mpi.architectures.schedules import (
    PIECES,
    Exploring,
    exploration_at,
    lone_period,
)
from distq_mpi.config import EnvConfig
from distq_mpi.environments import Environment
from distq_mpi.kernels.exploration import EXPLORATIONS
from tests.driving import Job
from tests.stand_in import Alone, compiled, config, random_model, together

N_STEPS = 120
EPSILON = {"epsilon": 1.0, "epsilon_final": 0.05, "epsilon_schedule": "linear"}
TEMPERATURE = {
    "exploration": "softmax", "temperature": 3.0, "temperature_final": 0.1,
    "temperature_schedule": "exponential",
}  # fmt: skip


def schedule(kind: dict[str, Any], length: int, **changes: Any) -> dict[str, Any]:
    key = "temperature_steps" if kind is TEMPERATURE else "epsilon_steps"
    return {**kind, key: length, **changes}


def rounds(kind: Any, settings: Any, environment: Environment, size: int, n: int) -> list[Any]:
    """Tables, lanes and steps of a run of `n` rounds, on each of `size` ranks."""
    kernels = compiled(kind.requests(settings, environment))

    def work(transport: Any) -> Any:
        this = kind(settings, environment, kernels, transport)
        for _ in range(n):
            this.learn()
            this.exchange((False, False, False))
            this.commit()
        rows = b"".join(part.tobytes() for row in this.iter_rows() for part in row[1:3])
        lanes = this.gather_lanes()
        found = rows, None if lanes is None else lanes.tobytes(), this.progress.steps
        this.close()
        return found

    return together(size, work)


def of_lengths(
    kind: Any, environment: Environment, sizes: tuple[int, ...] = (1,), **changes: Any
) -> list[Any]:
    """What `N_STEPS` steps of a lane come to, in rounds of one step, of some, and all in one."""
    found = []
    for size in sizes:
        for period in (1, 24, N_STEPS):
            given = config(seed=2, steps_per_round=period, **changes)
            found.append(rounds(kind, given, environment, size, N_STEPS // period)[0])
    return found


RULES = [
    {}, {"rule": "sarsa", "dtype": "float32"}, {"rule": "expected_sarsa"}, {"rule": "double_q"},
    {"rule": "watkins_q_lambda"}, {"n_steps": 3}, {"rule": "dyna_q"},
    {"rule": "prioritized_sweeping"}, {"rule": "ucb_discounted", "step_size": "horizon",
                                       "horizon": 10.0}, {"step_size": "sign_change"},
]  # fmt: skip


@pytest.mark.parametrize("kind", [EPSILON, TEMPERATURE])
@pytest.mark.parametrize("changes", RULES)
def test_a_lone_agent_follows_its_schedule_within_a_round(
    changes: dict[str, Any], kind: dict[str, Any]
) -> None:
    """One fusion of nothing is like another: so bits do not depend on the length of rounds."""
    given = schedule(kind, 70 * 5, lanes=5, agents=1, **changes)
    environment = random_model(9, 3)
    once, some, whole = of_lengths(Allreduce, environment, **given)
    assert once == some == whole
    constant = given | {"epsilon_schedule": "constant", "temperature_schedule": "constant"}
    assert of_lengths(Allreduce, environment, **constant)[0] != once, "the schedule has no effect"


@pytest.mark.parametrize("kind", [EPSILON, TEMPERATURE])
def test_so_it_does_on_a_table_in_place(kind: dict[str, Any]) -> None:
    given = schedule(kind, 70 * 5, lanes=5, agents=1)
    once, some, whole = of_lengths(InPlace, random_model(9, 3), **given)
    assert once == some == whole


@pytest.mark.parametrize("kind", [EPSILON, TEMPERATURE])
def test_so_do_lanes_that_cross_between_ranks(kind: dict[str, Any]) -> None:
    given = schedule(kind, 70 * 13, lanes=13, agents=0, rebalance=False)
    first, *rest = of_lengths(Sharded, random_model(11, 3), (1, 3), **given)
    assert all(one == first for one in rest)


@pytest.mark.parametrize("kind", [Allreduce, ShardedStepped])
def test_so_do_environments_stepped_in_python(kind: Any) -> None:
    environment = environments.make(EnvConfig("tests.worlds:HiddenLake-v0"))
    agents = 1 if kind is Allreduce else 0
    given = schedule(EPSILON, 70 * 4, lanes=4, agents=agents, rebalance=False)
    first, *rest = of_lengths(kind, environment, **given)
    assert all(one == first for one in rest)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_several_agents_follow_it_alike_on_any_ranks(size: int) -> None:
    given = config(
        seed=2, steps_per_round=40, lanes=12, agents=3, **schedule(EPSILON, 70 * 12)
    )
    environment = random_model(9, 3)
    kernels = compiled(Allreduce.requests(given, environment))
    found = together(size, lambda ranks: Job(given, environment, kernels).run(ranks, 3))
    alone = Job(given, environment, kernels).run(Alone(), 3)
    assert all(one["table"] == alone["table"] for one in found)


@given(
    st.integers(1, 10**7), st.integers(1, 10**4), st.integers(1, 10**6), st.integers(1, 5000),
    st.sampled_from(["linear", "exponential"]),
)  # fmt: skip
def test_pieces_cover_a_round_and_differ_little_from_the_schedule(
    length: int, per_step: int, first: int, n: int, shape: str
) -> None:
    learn = config(**schedule(EPSILON, length, epsilon_schedule=shape)).learn
    exploring = Exploring(learn, per_step)
    encode = EXPLORATIONS["epsilon_greedy"].encode
    at = first
    for start, steps, code in exploring.pieces(first, n):
        assert start == at and steps >= 1
        at += steps
        assert code == exploring.code(start - 1) == exploring.code(start + steps - 2)
        assert code == encode(exploring.value(start - 1))
    assert at == first + n
    for made in (first - 1, first + n - 2):
        wanted = exploration_at(learn, made * per_step)
        before = exploration_at(learn, max(0, made - exploring.piece + 1) * per_step)
        assert wanted - 1e-14 <= exploring.value(made) <= before + 1e-14
        assert exploring.piece * per_step <= max(per_step, length // PIECES)
    assert exploring.value(length) == pytest.approx(0.05, rel=1e-14)


def test_what_does_not_change_is_one_piece() -> None:
    exploring = Exploring(config().learn, 64)
    assert exploring.pieces(7, 10**9) == ((7, 10**9, round(0.3 * 2**32)),)
    settled = Exploring(config(**schedule(EPSILON, 10**6)).learn, 64)
    assert len(settled.pieces(10**6, 10**9)) == 1
    assert PIECES <= len(settled.pieces(1, 10**9)) <= 2 * PIECES + 1


def test_a_long_round_of_a_large_grid_goes_through_the_whole_schedule() -> None:
    """grid 200 x 200, one agent: a round has 1.28e6 steps, more than the schedule."""
    n_ticks = lone_period(200 * 200 * 4, 64)
    exploring = Exploring(config(**schedule(EPSILON, 10**6)).learn, 64)
    seen = {code for _, _, code in exploring.pieces(1, n_ticks)}
    assert n_ticks * 64 == 1_280_000 and len(seen) > 900
    assert max(seen) == 2**32 and min(seen) == round(0.05 * 2**32)
