"""One table that all agents of a host write to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from distq_mpi import environments
from distq_mpi.architectures.hogwild import Hogwild
from distq_mpi.config import Config, EnvConfig, LearnConfig, ParallelConfig, check
from distq_mpi.errors import ConfigError
from distq_mpi.kernels import loop
from distq_mpi.table import Rows
from tests.stand_in import Alone, compiled, config, together

GRID = EnvConfig(id="grid", kwargs={"rows": 20, "columns": 21, "slip": 0.2})


def made(transport: Any, **changes: Any) -> Hogwild:
    settings = config(
        agents=3, lanes=12, steps_per_round=9, seed=3, fusion="hogwild", reproducible=False,
        **changes,
    )  # fmt: skip
    environment = environments.make(GRID)
    kernels = compiled(Hogwild.requests(settings, environment))
    return Hogwild(settings, environment, kernels, transport)


def one_round(state: Hogwild) -> None:
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
        agent.control[loop.EXPLORE] = state._explore_of(agent.number)
        agent.control[loop.N_STEPS], agent.control[loop.FIRST_STEP] = 9, 1
        state.kernels["learn"](
            begun.q, begun.q, begun.clock_words,
            *agent.learning_arrays(state.draws, state.params_of(agent.number)), agent.control,
            state.rates[:2].copy(), np.zeros(3),
        )  # fmt: skip
    one_round(state)
    assert state.base.raw.tobytes() == begun.raw.tobytes()
    assert state.lifetime.sum() == state.progress.steps == 12 * 9
    assert not state.reproducible()


def test_a_rollback_leaves_no_trace() -> None:
    plain, shaken = made(Alone()), made(Alone())
    for state in (plain, shaken):
        for number in range(4):
            if state is shaken:
                state.learn()
                state.exchange((False, False, False))
                assert state.rollback() == number
            one_round(state)
    assert shaken.base.raw.tobytes() == plain.base.raw.tobytes()
    assert shaken.progress == plain.progress


def test_ranks_of_a_host_have_one_table_and_count_every_visit_that_it_shows() -> None:
    def run(transport: Any) -> tuple[bytes, int, int, int]:
        state = made(transport)
        for _ in range(5):
            one_round(state)
        ticks = int(state.base.clock.sum(dtype=np.uint64))
        found = state.base.raw.tobytes(), int(state.lifetime.sum()), ticks, state.progress.steps
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
