"""One table that is changed in place: by all agents of a host, or by one that is alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from distq_mpi import environments
from distq_mpi.architectures import Allreduce, schedules
from distq_mpi.architectures.in_place import InPlace
from distq_mpi.config import Config, EnvConfig, LearnConfig, ParallelConfig, check
from distq_mpi.errors import ConfigError
from distq_mpi.kernels import loop, step_sizes
from distq_mpi.preparation import settle
from distq_mpi.table import Rows
from tests.stand_in import Alone, compiled, config, together

GRID = EnvConfig(id="grid", kwargs={"rows": 20, "columns": 21, "slip": 0.2})


def made(transport: Any, **changes: Any) -> InPlace:
    settings = config(
        agents=3, lanes=12, steps_per_round=9, seed=3, fusion="hogwild", reproducible=False,
        **changes,
    )  # fmt: skip
    environment = environments.make(GRID)
    kernels = compiled(InPlace.requests(settings, environment))
    return InPlace(settings, environment, kernels, transport)


def visits_of(state: Allreduce) -> np.ndarray:
    return state._visits_of(*state.owned)


def one_round(state: Allreduce) -> None:
    state.learn()
    assert state.exchange((False, False, False)).non_finite == 0
    state.commit()


def test_on_one_rank_agents_learn_in_turn_on_the_same_table() -> None:
    state = made(Alone())
    begun = Rows(state.record, state.n_states)
    begun.raw[:] = state.base.raw
    lanes = [agent.committed for agent in state.agents]
    for agent, mine in zip(state.agents, lanes, strict=True):
        agent.lanes.copy_from(mine)
        agent.control[loop.EXPLORE] = agent.exploring.code(0)
        agent.control[loop.N_STEPS], agent.control[loop.FIRST_STEP] = 9, 1
        arrays = agent.learning_arrays(state.learning_work, state.params_of(agent.number))
        state.kernels["learn"](
            begun.q, begun.q, begun.clock_words, *arrays, agent.control, state.rates[:2].copy(),
            np.zeros(3),
        )  # fmt: skip
    one_round(state)
    assert state.base.raw.tobytes() == begun.raw.tobytes()
    assert visits_of(state).sum() == state.progress.steps == 12 * 9
    assert not state.reproducible()


def test_a_rollback_forgets_lanes_and_counters_and_says_that_bits_are_others() -> None:
    state = made(Alone())
    one_round(state)
    committed = [agent.committed.raw.tobytes() for agent in state.agents]
    state.followed = True
    state.learn()
    state.exchange((False, False, False))
    assert state.rollback() == 1 and state.progress.steps == 12 * 9
    assert [agent.committed.raw.tobytes() for agent in state.agents] == committed
    assert not state.followed
    state.followed = True
    one_round(state)
    state.rollback()
    assert state.followed, "no round was in progress"
    assert state.progress.steps == 2 * 12 * 9
    assert visits_of(state).sum() == 3 * 12 * 9  # rows stay as they are


LONE = [{}, {"rule": "double_q"}, {"dtype": "float32"}, {"step_size": "constant"}]


@pytest.mark.parametrize("changes", LONE)
def test_a_lone_agent_has_the_bits_of_one_with_a_second_table(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its clocks begin near their limit, and far beyond it, and are looked at in some rounds."""
    limit = int(step_sizes.CLOCK_LIMIT)
    monkeypatch.setattr(schedules, "SETTLE_BITS", 8)
    environment = environments.make(GRID)
    settings = config(agents=1, lanes=12, steps_per_round=9, seed=3, **changes)
    found, beyond = [], list[bool]()
    for kind in (Allreduce, InPlace):
        state = kind(settings, environment, compiled(kind.requests(settings, environment)), Alone())
        shape = state.n_states, state.width
        stored = np.zeros(shape), np.full(shape, limit - 2, np.uint32), np.full(shape, 7, np.uint64)
        stored[1][::3, :4] = [limit + 5, 2 * limit + 5, 4 * limit + 5, 7 * limit]
        for start in (0, 200):
            stop = min(start + 200, state.n_states)
            state.restore_rows(start, stop, [array[start:stop] for array in stored])
        state.restore_rows(400, state.n_states, [array[400:] for array in stored])
        state.restore(state.progress, np.concatenate([a.committed.pack() for a in state.agents]))
        for _ in range(41):
            one_round(state)
            beyond.append(int(state.base.clock.max()) > limit)
        rows = [(start, q.tobytes(), clock.tobytes(), visits.tobytes())
                for start, q, clock, visits in state.iter_rows()]  # fmt: skip
        lanes = b"".join(agent.committed.raw.tobytes() for agent in state.agents)
        found.append((rows, lanes, state.progress._replace(period=0), state.reproducible()))
        assert visits_of(state).max() > 7 + 2
    assert found[0] == found[1]
    assert True in beyond and False in beyond


@pytest.mark.parametrize(
    ("changes", "size", "rows", "expected"),
    [({}, 1, 1024, True), ({}, 2, 1024, False), ({}, 1, 100, False),
     ({"step_size": "sign_change"}, 1, 1024, False), ({"n_steps": 3}, 1, 1024, False),
     ({"rule": "dyna_q"}, 1, 1024, False), ({"agents": 2}, 1, 1024, False)],
)  # fmt: skip
def test_which_lone_agents_learn_in_place(
    changes: dict[str, Any], size: int, rows: int, expected: bool
) -> None:
    settings = config(**{"agents": 1, "lanes": 12, **changes})
    assert InPlace.suits(settings, rows * rows, 4, size, False) == expected
    assert not InPlace.suits(settings, rows * rows, 4, size, True)


def test_ranks_of_a_host_have_one_table_and_count_every_visit_that_it_shows() -> None:
    def run(transport: Any) -> tuple[bytes, int, int, int]:
        state = made(transport)
        for _ in range(5):
            one_round(state)
        ticks = int(state.base.clock.sum(dtype=np.uint64))
        found = state.base.raw.tobytes(), int(visits_of(state).sum()), ticks, state.progress.steps
        state.close()
        return found

    found = together(2, run, [0, 0])
    assert found[0][0] == found[1][0]
    counted, steps = sum(one[1] for one in found), found[0][3]
    assert counted == found[0][2] and 0.5 * steps < counted <= steps == 5 * 12 * 9


def test_ranks_of_several_hosts_are_refused() -> None:
    def run(transport: Any) -> str:
        with pytest.raises(ConfigError, match="needs all ranks on one host") as caught:
            made(transport)
        assert caught.value.agreed
        return str(caught.value)

    assert "2 hosts" in together(2, run, [0, 1])[0]


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"parallel": {"reproducible": True}}, "parallel.reproducible: true must be false"),
     ({"parallel": {"architecture": "server"}}, "parallel.architecture: server must be allreduce"),
     ({"learn": {"rule": "dyna_q"}}, "learn.rule: dyna_q must be q_learning or sarsa"),
     ({"learn": {"step_size": "sign_change"}}, "learn.step_size: sign_change must be another"),
     ({"learn": {"n_steps": 3}}, "learn.n_steps: 3 must be 1"),
     ({"learn": {"target": "frozen"}}, "learn.target: frozen must be live"),
     ({"learn": {"sampling": "generative"}}, "learn.sampling: generative must be")],
)  # fmt: skip
def test_what_it_cannot_do_is_refused(changes: dict[str, Any], told: str) -> None:
    parallel = {"fusion": "hogwild", "reproducible": False, "agents": 2}
    asked = Config(
        learn=LearnConfig(**changes.get("learn", {})),
        parallel=ParallelConfig(**(parallel | changes.get("parallel", {}))),
    )
    assert any(line.startswith(told) for line in check(asked))


@pytest.mark.parametrize(("agents", "fits"), [(64, True), (65, False)])
def test_a_round_on_one_table_fits_clocks_between_two_looks_at_them(
    agents: int, fits: bool
) -> None:
    """Up to 2^29 at first, 2^31 steps until they are limited again, and a round beyond that."""
    parallel = ParallelConfig(
        fusion="hogwild", reproducible=False, agents=agents, lanes=agents, steps_per_round=1 << 24
    )
    mistakes = "" if fits else "parallel.steps_per_round: 16777216 steps of 65 lanes on one table"
    try:
        settle(Config(parallel=parallel), 1)
        found = ""
    except ConfigError as error:
        found = str(error)
    assert found.startswith(mistakes) and bool(found) != fits
    assert step_sizes.CLOCK_LIMIT + (1 << schedules.SETTLE_BITS) + (1 << 30) < 1 << 32
