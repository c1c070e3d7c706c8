"""Sweeps over all pairs against the same algorithms over numpy tables, and exact numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from distq_mpi.architectures import Allreduce
from distq_mpi.config import Config, LearnConfig, ParallelConfig, check, resolve
from distq_mpi.kernels import generative
from distq_mpi.kernels.draws import TRANSITION, threefry
from distq_mpi.kernels.step_sizes import STEP_SIZES
from distq_mpi.kernels.storing import exact
from distq_mpi.table import Rows, record_of
from tests.driving import Job
from tests.stand_in import Alone, compiled, config, one_state, random_model, together

u8 = np.uint64
STEP = {"q_learning": "rescaled_linear", "speedy_q": "linear",
        "variance_reduced_q": "rescaled_linear"}  # fmt: skip


def settings(rule: str, **changes: Any) -> Any:
    given = {"rule": rule, "sampling": "generative", "step_size": STEP[rule], "fusion": "mean"}
    agents = changes.get("agents", 1)
    return config(**{**given, "lanes": agents, "discount": 0.8, **changes})


def rows_after(given: Any, environment: Any, n_rounds: int, transport: Any = None) -> Any:
    job = Job(given, environment, compiled(Allreduce.requests(given, environment)))
    return job.run(transport or Alone(), n_rounds)


class Sampled:
    """The transitions of every pair in every sweep, averaged over agents, as Bellman backups."""

    def __init__(self, given: Any, environment: Any) -> None:
        self.given, self.environment, self.sweep = given, environment, 0
        self.shape = environment.n_states, environment.n_actions

    def draw(self) -> None:
        """Take the transitions of the next sweep."""
        self.sweep += 1
        n_pairs, agents = np.prod(self.shape), self.given.parallel.agents
        seen = []
        for number in range(agents * n_pairs):
            with np.errstate(over="ignore"):
                bits = threefry(u8(self.sweep), u8(number), u8(self.given.run.seed), TRANSITION)[1]
            pair = number % n_pairs
            state, action = divmod(pair, self.shape[1])
            ahead, reward, ended = self.environment.law_step(
                u8(state), u8(action), bits, self.environment.params
            )
            seen.append((int(ahead), float(reward), not ended))
        shape = (agents, *self.shape)
        self.ahead, self.reward, self.goes_on = (
            np.array([one[k] for one in seen]).reshape(shape) for k in range(3)
        )

    def backup(self, q: np.ndarray) -> np.ndarray:
        """T_k q, from the transitions drawn last."""
        future = self.goes_on * q.max(axis=1)[self.ahead]
        found: np.ndarray = (self.reward + self.given.learn.discount * future).mean(axis=0)
        return found


def expected(given: Any, environment: Any, n_sweeps: int) -> list[np.ndarray]:
    """The parts of the table after so many sweeps, by the papers' formulas."""
    world, rule = Sampled(given, environment), given.learn.rule
    q = np.zeros(world.shape)
    other, estimate = q.copy(), q.copy()
    rescale = 1 - given.learn.discount
    if rule == "variance_reduced_q":
        wanted, agents = given.learn.epoch_samples, given.parallel.agents
        while world.sweep < n_sweeps:
            n, other, drawn = -(-wanted // agents), q.copy(), []
            for _ in range(min(n, n_sweeps - world.sweep)):
                world.draw()
                drawn.append(world.backup(other))
            estimate = np.mean(drawn, axis=0)
            for k in range(1, 1 + min(given.learn.epoch_steps, n_sweeps - world.sweep)):
                world.draw()
                direction = world.backup(q) - world.backup(other) + estimate
                q = q + (direction - q) / (1 + rescale * k)
            wanted *= 4
        return [q, other, estimate]
    for k in range(n_sweeps):
        world.draw()
        if rule == "speedy_q":
            a, old = 1 / (k + 1), q
            newer, older = world.backup(q), world.backup(other)
            q, other = q + a * (older - q) + (1 - a) * (newer - older), old
        else:
            q = q + (world.backup(q) - q) / (1 + rescale * (k + 1))
    return [q, other][: 1 + (rule == "speedy_q")]


@pytest.mark.parametrize("rule", list(STEP))
def test_a_lone_agents_sweeps_are_the_papers(rule: str) -> None:
    environment, given = random_model(7, 3), settings(rule, steps_per_round=9)
    found = rows_after(given, environment, 5)["values"]
    for k, part in enumerate(expected(given, environment, 45)):
        np.testing.assert_allclose(found[:, 3 * k : 3 * k + 3], part, rtol=0, atol=1e-13)


@pytest.mark.parametrize("rule", ["speedy_q", "variance_reduced_q"])
@pytest.mark.parametrize("fusion", ["mean", "count"])
def test_agents_are_more_samples(rule: str, fusion: str) -> None:
    """Fused after every sweep, K agents are one that draws K transitions of each pair."""
    environment, given = random_model(7, 3), settings(rule, agents=3, fusion=fusion)
    found = rows_after(given, environment, 30)["values"]
    for k, part in enumerate(expected(given, environment, 30)):
        np.testing.assert_allclose(found[:, 3 * k : 3 * k + 3], part, rtol=0, atol=1e-11)


@pytest.mark.parametrize("rule", list(STEP))
def test_sweeps_do_not_depend_on_the_ranks(rule: str) -> None:
    given = settings(rule, agents=5, steps_per_round="auto", dtype="float32")
    environment = random_model(17, 3)
    job = Job(given, environment, compiled(Allreduce.requests(given, environment)))
    alone = job.run(Alone(), 15)
    for rank in together(3, lambda transport: job.run(transport, 15)):
        assert rank["table"] == alone["table"] and rank["progress"] == alone["progress"]
    assert alone["progress"].steps == alone["progress"].lane_steps * 5 * 17 * 3


def test_T5_speedy_q_on_one_state() -> None:
    """Errors after 1, 2, 10 and 100 sweeps with discount .9."""
    given = settings("speedy_q", discount=0.9)
    found = [10 - rows_after(given, one_state(), n)["values"][0, 0] for n in (1, 2, 10, 100)]
    assert found == pytest.approx([9.0, 8.55, 5.861894, 0.899976], abs=1e-6)


def test_T10_both_samples_are_the_same() -> None:
    """Where Q is its reference, the direction is E - Q to the last bit, whatever was drawn."""
    learn = config(rule="variance_reduced_q").learn
    rows = Rows(record_of(learn, 3), 2)
    rng = np.random.default_rng(3)
    for _ in range(100):
        rows.values[:, :3] = rows.values[:, 3:6] = rng.normal(size=(2, 3))
        rows.values[:, 6:] = rng.normal(size=(2, 3))
        best = np.tile(rows.values[:, :3].max(axis=1), 2)
        step_size = STEP_SIZES["rescaled_linear"]
        revise = generative.variance_reduced(rows.record, step_size, exact)
        gap = rows.values[1, 7] - rows.values[1, 1]
        error = revise(
            rows.q, rows.clock_words, u8(1), u8(1), rng.normal(), 0.9, best, 0, 2, 1, 1, 9, u8(0),
            0.9, 0.0,
        )  # fmt: skip
        assert error == gap


def test_epochs_of_variance_reduction() -> None:
    given = settings("variance_reduced_q", agents=3)  # 4, 16, ... samples of all, 3 sweeps
    plan = generative.recentred(given)
    epochs = [(0, 2), (1, 3), (0, 6), (1, 3), (0, 22), (1, 3), (0, 86)]
    wanted = [(phase, k + 1, n) for phase, n in epochs for k in range(n)]
    assert [tuple(map(int, plan(i))) for i in range(len(wanted))] == wanted
    left = [generative.sweeps_left(given, i) for i in range(6)]
    assert left == [2, 1, 3, 2, 1, 6]
    assert generative.sweeps_left(settings("speedy_q"), 5) is None


@pytest.mark.parametrize(
    ("learn", "parallel", "message"),
    [
        ({"rule": "speedy_q", "sampling": "trajectories"}, {}, "learn.sampling: trajectories"),
        ({"rule": "speedy_q", "step_size": "constant"}, {}, "learn.step_size: constant"),
        ({"rule": "variance_reduced_q"}, {"agents": 2}, "parallel.fusion: pooled must be mean"),
        ({"rule": "sarsa", "sampling": "generative"}, {}, "no behaviour"),
        ({"n_steps": 2, "sampling": "generative"}, {}, "learn.n_steps: 2"),
        ({"sampling": "generative"}, {"lanes": 5}, "parallel.lanes: 5 must be 0"),
        ({"sampling": "generative"}, {"architecture": "sharded"}, "learns where lanes go"),
    ],
)  # fmt: skip
def test_what_cannot_be_swept_is_refused(
    learn: dict[str, Any], parallel: dict[str, Any], message: str
) -> None:
    given = Config(learn=LearnConfig(**learn), parallel=ParallelConfig(**parallel))
    (mistake,) = check(given)
    assert message in mistake


def test_what_auto_stands_for() -> None:
    cases = (("q_learning", "trajectories", 128), ("speedy_q", "generative", 2))
    for rule, sampling, lanes in cases:
        given = Config(learn=LearnConfig(rule=rule))  # type: ignore[arg-type]
        found = resolve(given, 10, 2, 2, solvable=True)
        assert (found.learn.sampling, found.parallel.lanes) == (sampling, lanes)
        assert resolve(found, 10, 2, 5, solvable=True) == found
    assert found.learn.step_size == "linear" and found.learn.epoch_steps == 1000
