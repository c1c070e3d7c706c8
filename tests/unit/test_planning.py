"""Dyna-Q and prioritized sweeping against plain-Python loops over dictionaries."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from distq_mpi.architectures import Allreduce
from distq_mpi.config import Config, LearnConfig, ParallelConfig, check
from distq_mpi.kernels.draws import TRANSITION, threefry
from tests.driving import Job, Learner
from tests.stand_in import Alone, compiled, config, random_model, together

u8 = np.uint64
DISCOUNT = 0.8


def seen_by(learner: Learner) -> tuple[Any, ...]:
    """The transition that the lane has made and not learned from."""
    found: tuple[Any, ...] = tuple(learner.lanes.pack()[0].tolist()[:5])
    return found


@pytest.mark.parametrize("use_compiled", [False, True])
def test_dyna_q_is_the_textbooks(use_compiled: bool) -> None:
    model = random_model(9, 3, limit=11)
    learn = config(rule="dyna_q", planning_steps=4, discount=DISCOUNT).learn
    learner = Learner(model, learn, 1, 0, 0.2, 5, use_compiled)
    learner.begin()
    q, clock = np.zeros((9, 3)), np.zeros((9, 3), int)
    known: dict[tuple[int, int], tuple[int, float, bool]] = {}
    n_chosen = n_greedy = 0

    def update(s: int, a: int) -> None:
        ahead, reward, ended = known[s, a]
        target = reward + (0.0 if ended else DISCOUNT * q[ahead].max())
        clock[s, a] += 1
        q[s, a] += (target - q[s, a]) / (1 + (1 - DISCOUNT) * clock[s, a])

    for now in range(1, 401):
        s, a, ahead, reward, ended = seen_by(learner)
        known[s, a] = ahead, reward, ended
        update(s, a)
        with np.errstate(over="ignore"):
            word, bits = threefry(u8(now), u8(0), u8(5), TRANSITION)
            draws = [int(threefry(word, u8(j), bits, u8(0))[0]) >> 32 for j in range(4)]
        for draw in draws:
            update(*list(known)[draw * len(known) >> 32])
        learner.learn()
        assert np.array_equal(learner.rows.clock, clock)
        np.testing.assert_allclose(learner.rows.values, q, rtol=0, atol=1e-12)
        if not ended and learner.lane("age")[0] > 0:
            row, n_chosen = learner.rows.values[ahead], n_chosen + 1
            n_greedy += int(row[int(learner.lane("action")[0])] == row.max())
    assert 0.78 * n_chosen < n_greedy < 0.95 * n_chosen  # one in five is drawn, of three actions
    assert len(known) > 20 and clock.sum() == 2000


def test_dyna_q_without_planning_is_q_learning() -> None:
    model, tables = random_model(9, 3), []
    for case in ({"rule": "q_learning"}, {"rule": "dyna_q", "planning_steps": 0}):
        learner = Learner(model, config(**case).learn, 1, epsilon=1.0, use_compiled=True)
        learner.begin()
        learner.learn(500)
        tables.append(learner.rows.raw.tobytes())
    assert tables[0] == tables[1]


@pytest.mark.parametrize("use_compiled", [False, True])
@pytest.mark.parametrize("priority", [0.0, 0.01])
def test_prioritized_sweeping_is_the_textbooks(use_compiled: bool, priority: float) -> None:
    model = random_model(9, 3, limit=11)
    learn = config(
        rule="prioritized_sweeping", planning_steps=3, discount=DISCOUNT, priority=priority
    ).learn
    learner = Learner(model, learn, 1, 0, 0.5, 5, use_compiled)
    learner.begin()
    q, clock = np.zeros((9, 3)), np.zeros((9, 3), int)
    known: dict[tuple[int, int], tuple[int, float, bool]] = {}
    waiting: dict[tuple[int, int], float] = {}

    def target(pair: tuple[int, int]) -> float:
        ahead, reward, ended = known[pair]
        return reward + (0.0 if ended else DISCOUNT * q[ahead].max())

    def wait(pair: tuple[int, int]) -> None:
        error = abs(target(pair) - q[pair])
        if error > priority:
            waiting[pair] = max(error, waiting.get(pair, 0.0))

    for _ in range(500):
        s, a, ahead, reward, ended = seen_by(learner)
        known[s, a] = ahead, reward, ended
        wait((s, a))
        for _ in range(3):
            if waiting:
                pair = max(waiting, key=lambda pair: waiting[pair])
                del waiting[pair]
                clock[pair] += 1
                q[pair] += (target(pair) - q[pair]) / (1 + (1 - DISCOUNT) * clock[pair])
                for source, (leads, _, over) in known.items():
                    if leads == pair[0] and not over:
                        wait(source)
        learner.learn()
        assert np.array_equal(learner.rows.clock, clock)
        np.testing.assert_allclose(learner.rows.values, q, rtol=0, atol=1e-12)
        assert learner.lanes.trace()[0][0] == len(waiting)
    assert len(known) > 20 and clock.sum() > 500


@pytest.mark.parametrize("rule", ["dyna_q", "prioritized_sweeping"])
def test_models_do_not_depend_on_the_ranks(rule: str) -> None:
    settings = config(
        rule=rule, agents=5, lanes=23, steps_per_round="auto", discount=DISCOUNT, dtype="float32"
    )
    environment = random_model(17, 3)
    job = Job(settings, environment, compiled(Allreduce.requests(settings, environment)))
    alone = job.run(Alone(), 12)
    for size in (2, 3):
        ranks = together(size, lambda transport: job.run(transport, 12))
        assert ranks[0]["table"] == alone["table"] and ranks[0]["lanes"] == alone["lanes"]


@pytest.mark.parametrize("rule", ["dyna_q", "prioritized_sweeping"])
def test_a_rolled_back_round_is_forgotten_by_the_model(rule: str) -> None:
    """From a bound far too small rounds are run again: as if it had been large enough."""
    settings = config(rule=rule, agents=3, lanes=9, steps_per_round=3, discount=DISCOUNT)
    environment = random_model(17, 3)
    job = Job(settings, environment, compiled(Allreduce.requests(settings, environment)))
    tight, roomy = job.run(Alone(), 6, -6), job.run(Alone(), 6, 10)
    assert tight["repeated"] >= 1 and roomy["repeated"] == 0
    assert tight["lanes"] == roomy["lanes"]


@pytest.mark.parametrize("rule", ["dyna_q", "prioritized_sweeping"])
@pytest.mark.parametrize(
    ("learn", "parallel", "message"),
    [
        ({"n_steps": 2}, {}, "a model tells single steps"),
        ({}, {"architecture": "sharded"}, "plans with no other's rows"),
        ({"sampling": "generative"}, {}, "no behaviour"),
        ({"target": "frozen"}, {}, "must be q_learning"),
    ],
)
def test_what_cannot_plan_is_refused(
    rule: str, learn: dict[str, Any], parallel: dict[str, Any], message: str
) -> None:
    given = LearnConfig(rule=rule, **learn)  # type: ignore[arg-type]
    (mistake,) = check(Config(learn=given, parallel=ParallelConfig(**parallel)))
    assert message in mistake
