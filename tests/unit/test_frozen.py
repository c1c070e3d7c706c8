"""Targets that are frozen for a round, against means of targets worked out from the draws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from distq_mpi.architectures import Allreduce
from distq_mpi.config import Config, LearnConfig, ParallelConfig, check, resolve
from distq_mpi.kernels.draws import RESET, TRANSITION, threefry
from distq_mpi.kernels.exploration import best_of, epsilon_greedy
from distq_mpi.kernels.step_sizes import STEP_SIZES, by_rounds
from tests.driving import Job
from tests.stand_in import Alone, compiled, config, random_model, together

u8 = np.uint64
N, A, DISCOUNT, WHOLE = 9, 3, 0.8, 2


class Rounds:
    """Rounds of lanes (or of sweeps) on numpy tables: per pair the mean of all its targets."""

    def __init__(self, given: Any, model: Any) -> None:
        self.given, self.model = given, model
        self.q, self.clock = np.zeros((N, A)), np.zeros((N, A), int)
        self.now, self.lanes = 0, []
        for lane in range(given.parallel.lanes):
            state = int(model.law_start(self._draw(lane, RESET)[0], model.params))
            self.lanes.append([self._move(lane, state, self._act(lane, state)), 0])

    def _draw(self, lane: int, purpose: Any) -> tuple[Any, Any]:
        with np.errstate(over="ignore"):
            return threefry(u8(self.now), u8(lane), u8(self.given.run.seed), purpose)

    def _act(self, lane: int, state: int) -> int:
        row, zero = self.q[state], u8(0)
        word, epsilon = self._draw(lane, TRANSITION)[0], u8(round(0.3 * 2**32))
        return int(epsilon_greedy(A)(row, zero, best_of(A)(row, zero)[1], word, epsilon))

    def _move(self, lane: int, state: int, action: int) -> tuple[int, int, int, float, bool]:
        bits = self._draw(lane, TRANSITION)[1]
        ahead, reward, ended = self.model.law_step(u8(state), u8(action), bits, self.model.params)
        return state, action, int(ahead), float(reward), bool(ended)

    def walk(self, n_steps: int) -> None:
        sums, counts = np.zeros((N, A)), np.zeros((N, A), int)
        best = self.q.max(axis=1)
        for _ in range(n_steps):
            self.now += 1
            for number, lane in enumerate(self.lanes):
                state, action, ahead, reward, ended = lane[0]
                sums[state, action] += reward + (0.0 if ended else DISCOUNT * best[ahead])
                counts[state, action] += 1
                lane[1] += 1
                if ended or lane[1] >= self.model.max_episode_steps:
                    ahead = int(self.model.law_start(self._draw(number, RESET)[0],
                                                     self.model.params))  # fmt: skip
                    lane[1] = 0
                lane[0] = self._move(number, ahead, self._act(number, ahead))
        self._fuse(sums, counts)

    def sweep(self, n_sweeps: int) -> None:
        sums, counts = np.zeros((N, A)), np.zeros((N, A), int)
        best, agents = self.q.max(axis=1), self.given.parallel.agents
        for _ in range(n_sweeps):
            self.now += 1
            for number in range(agents * N * A):
                state, action = divmod(number % (N * A), A)
                _, _, ahead, reward, ended = self._move(number, state, action)
                sums[state, action] += reward + (0.0 if ended else DISCOUNT * best[ahead])
                counts[state, action] += 1
        self._fuse(sums, counts)

    def _fuse(self, sums: np.ndarray, counts: np.ndarray) -> None:
        for s, a in zip(*np.nonzero(counts), strict=True):
            self.clock[s, a] += 1
            k = self.clock[s, a] - WHOLE
            alpha = 1.0 if k <= 0 else 1 / (1 + (1 - DISCOUNT) * k)
            self.q[s, a] += alpha * (sums[s, a] / counts[s, a] - self.q[s, a])


def settings(**changes: Any) -> Any:
    return config(target="frozen", frozen_rounds=WHOLE, discount=DISCOUNT,
                  **{"steps_per_round": 6, "lanes": 12, **changes})  # fmt: skip


@pytest.mark.parametrize("agents", [1, 4])
@pytest.mark.parametrize("sampling", ["trajectories", "generative"])
def test_a_round_is_a_step_to_the_mean_of_its_targets(agents: int, sampling: str) -> None:
    model = random_model(N, A)
    lanes = 12 if sampling == "trajectories" else agents
    given = settings(agents=agents, sampling=sampling, lanes=lanes)
    job = Job(given, model, compiled(Allreduce.requests(given, model)))
    book = Rounds(given, model)
    for _ in range(8):
        (book.walk if sampling == "trajectories" else book.sweep)(6)
    found = job.run(Alone(), 8)
    np.testing.assert_allclose(found["values"], book.q, rtol=0, atol=1e-12)
    assert found["clock"] == book.clock[0, 0] and book.clock.max() == 8
    assert np.abs(book.q).max() > 0.5


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_frozen_rounds_do_not_depend_on_the_ranks(dtype: str) -> None:
    model, given = random_model(N, A), settings(agents=5, dtype=dtype, steps_per_round="auto")
    job = Job(given, model, compiled(Allreduce.requests(given, model)))
    alone = job.run(Alone(), 9)
    assert alone["progress"].period == 512  # nothing drifts apart
    for rank in together(3, lambda transport: job.run(transport, 9)):
        assert rank["table"] == alone["table"] and rank["progress"] == alone["progress"]


def test_the_step_falls_after_the_whole_rounds() -> None:
    size = by_rounds(STEP_SIZES["rescaled_linear"], 2).size
    found = [float(size(np.uint32(k), 0.5, 0.0)) for k in (1, 2, 3, 5)]
    assert found == [1.0, 1.0, 1 / 1.5, 1 / 2.5]


@pytest.mark.parametrize(
    ("learn", "parallel", "message"),
    [
        ({"rule": "sarsa"}, {}, "learn.rule: sarsa must be q_learning"),
        ({"n_steps": 2}, {}, "learn.n_steps: 2 must be 1"),
        ({}, {"fusion": "count"}, "parallel.fusion: count must be pooled"),
        ({}, {"architecture": "sharded"}, "parallel.architecture: sharded must be allreduce"),
        ({"step_size": "sign_change"}, {}, "a clock counts rounds"),
        ({"discount": 1.0, "step_size": "polynomial"}, {}, "converges by contraction"),
    ],
)
def test_what_cannot_be_frozen_is_refused(
    learn: dict[str, Any], parallel: dict[str, Any], message: str
) -> None:
    given = Config(
        learn=LearnConfig(target="frozen", **learn), parallel=ParallelConfig(**parallel)
    )
    (mistake,) = check(given)
    assert message in mistake


def test_how_many_rounds_are_whole() -> None:
    given = Config(learn=LearnConfig(target="frozen", discount=0.9))
    found = resolve(given, 5, 2, 1, solvable=True)
    assert found.learn.frozen_rounds == 60
    assert resolve(found, 5, 2, 3, solvable=True) == found
