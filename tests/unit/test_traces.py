"""n-step targets and eligibility traces against textbook loops in plain Python, and by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from distq_mpi.architectures import Allreduce
from distq_mpi.config import Config, LearnConfig, ParallelConfig, check
from distq_mpi.environments.base import Environment
from distq_mpi.environments.explicit import explicit_model
from distq_mpi.kernels.draws import RESET, TRANSITION, threefry
from distq_mpi.kernels.exploration import best_of, epsilon_greedy, epsilon_greedy_mean
from distq_mpi.kernels.traces import depth_of
from tests.driving import Job, Learner
from tests.stand_in import Alone, compiled, config, random_model, together

u8 = np.uint64


class Textbook:
    """One lane over numpy tables: what `Learner` does, with the trace rule written out again."""

    def __init__(self, model: Environment, learn: Any, epsilon: float, seed: int) -> None:
        self.model, self.learn, self.seed = model, learn, seed
        self.epsilon = u8(round(epsilon * 2**32))
        self.q = np.zeros((model.n_states, model.n_actions))
        self.clock = np.zeros_like(self.q, dtype=int)
        self.past: list[tuple[int, int, float]] = []
        self.eligible: dict[tuple[int, int], float] = {}
        self.now, self.age = 0, 0
        self.at, self.n_updates = self._first(0), 0

    def _draw(self, purpose: Any) -> tuple[Any, Any]:
        with np.errstate(over="ignore"):
            return threefry(u8(self.now), u8(0), u8(self.seed), purpose)

    def _act(self, state: int) -> int:
        n, row = self.model.n_actions, u8(0)
        value = best_of(n)(self.q[state], row)[1]
        word = self._draw(TRANSITION)[0]
        return int(epsilon_greedy(n)(self.q[state], row, value, word, self.epsilon))

    def _first(self, step: int) -> tuple[Any, ...]:
        self.now = step
        state = int(self.model.law_start(self._draw(RESET)[0], self.model.params))
        return self._move(state, self._act(state))

    def _move(self, state: int, action: int) -> tuple[Any, ...]:
        bits = self._draw(TRANSITION)[1]
        seen = self.model.law_step(u8(state), u8(action), bits, self.model.params)
        return state, action, int(seen[0]), float(seen[1]), bool(seen[2])

    def alpha(self, pair: tuple[int, int]) -> float:
        if self.learn.step_size == "constant":
            return float(self.learn.alpha)
        return float(1 / (1 + (1 - self.learn.discount) * self.clock[pair]))

    def update(self, pair: tuple[int, int], target: float) -> None:
        self.clock[pair] += 1
        self.n_updates += 1
        self.q[pair] += self.alpha(pair) * (target - self.q[pair])

    def step(self) -> None:
        self.now += 1
        state, action, ahead, reward, ended = self.at
        a_next = self._act(ahead)
        self.age += 1
        over = ended or self.age >= (self.model.max_episode_steps or 2**32)
        greedy = self.q[ahead, a_next] == self.q[ahead].max()
        future = {
            "sarsa": self.q[ahead, a_next],
            "expected_sarsa": float(
                epsilon_greedy_mean(self.model.n_actions)(
                    self.q[ahead], u8(0), self.q[ahead].max(), self.epsilon
                )
            ),
        }.get(self.learn.rule, self.q[ahead].max())
        future = 0.0 if ended else float(future)
        if self.learn.rule == "watkins_q_lambda":
            self._eligibility((state, action), reward, future, not over and bool(greedy))
        else:
            cut = over or (self.learn.rule == "q_learning" and not greedy)
            self._n_step((state, action, reward), future, cut)
        if over:
            self.age = 0
            self.at = self._first(self.now)
        else:
            self.at = self._move(ahead, a_next)

    def _n_step(self, seen: tuple[int, int, float], future: float, cut: bool) -> None:
        self.past.append(seen)
        known = len(self.past) if cut else int(len(self.past) == self.learn.n_steps)
        targets = []
        for k in range(known):
            rewards = [reward for _, _, reward in self.past[k:]]
            gain = sum(self.learn.discount**j * reward for j, reward in enumerate(rewards))
            targets.append(gain + self.learn.discount ** len(rewards) * future)
        for (s, a, _), target in zip(self.past[:known], targets, strict=True):
            self.update((s, a), target)
        self.past = self.past[known:]

    def _eligibility(
        self, pair: tuple[int, int], reward: float, future: float, goes_on: bool
    ) -> None:
        error = reward + self.learn.discount * future - self.q[pair]
        self.clock[pair] += 1
        self.eligible[pair] = 1.0
        for other, eligibility in self.eligible.items():
            self.q[other] += self.alpha(other) * error * eligibility
        decay = self.learn.discount * self.learn.trace_decay
        faded = {k: e * decay for k, e in self.eligible.items() if e * decay >= 1e-4}
        self.eligible = faded if goes_on else {}


CASES = [
    *({"rule": rule, "n_steps": n} for rule in ("q_learning", "sarsa", "expected_sarsa")
      for n in (2, 3, 8)),
    *({"rule": "watkins_q_lambda", "trace_decay": decay} for decay in (0.0, 0.5, 1.0)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("step_size", "use_compiled"), [("constant", False), ("rescaled_linear", True)]
)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_traces_are_the_textbooks(
    case: dict[str, Any], step_size: str, use_compiled: bool
) -> None:
    model = random_model(9, 3, limit=11)
    learn = config(step_size=step_size, discount=0.8, **case).learn
    n_steps = 3000 if use_compiled else 200
    learner = Learner(model, learn, 1, 0, 0.2, 5, use_compiled)
    learner.begin()
    learner.learn(n_steps)
    book = Textbook(model, learn, 0.2, 5)
    for _ in range(n_steps):
        book.step()
    assert np.array_equal(learner.rows.clock, book.clock)
    np.testing.assert_allclose(learner.rows.values, book.q, rtol=1e-9, atol=1e-10)
    assert np.abs(book.q).max() > 0.5
    if case["rule"] != "watkins_q_lambda":
        assert book.n_updates + len(book.past) == n_steps
        assert learner.lanes.trace()[0].tolist() == [len(book.past)]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_trace_of_one_pair_is_q_learning(dtype: str) -> None:
    """lambda = 0: bit for bit, also where lanes share the table."""
    model, tables = random_model(9, 3), []
    for case in ({"rule": "q_learning"}, {"rule": "watkins_q_lambda", "trace_decay": 0.0}):
        learner = Learner(model, config(dtype=dtype, **case).learn, 20, use_compiled=True)
        learner.begin()
        learner.learn(200)
        tables.append(learner.rows.raw.tobytes())
    assert tables[0] == tables[1]


def chain(length: int) -> Environment:
    """One action: 0, 1, ... to the end, which gives 1."""
    ends = np.arange(length) == length - 1
    following = np.minimum(np.arange(1, length + 1), length - 1)
    start = (np.arange(length) == 0).astype(float)
    return explicit_model(
        "chain", length, 1, np.arange(length + 1), following, np.ones(length), ends.astype(float),
        ends, start,
    )  # fmt: skip


def after_one_episode(length: int, **changes: Any) -> list[float]:
    learn = config(step_size="constant", alpha=0.5, discount=0.9, **changes).learn
    learner = Learner(chain(length), learn, 1)
    learner.begin()
    learner.learn(length)
    found: list[float] = learner.rows.values[:, 0].tolist()
    return found


def test_T4_watkins_on_the_chain() -> None:
    found = after_one_episode(5, rule="watkins_q_lambda", trace_decay=0.9)
    assert found == pytest.approx([0.21523361, 0.2657205, 0.32805, 0.405, 0.5], abs=1e-8)
    assert after_one_episode(5, rule="watkins_q_lambda", trace_decay=0.0) == [0, 0, 0, 0, 0.5]


@pytest.mark.parametrize("rule", ["q_learning", "sarsa", "expected_sarsa"])
def test_n_steps_reach_n_states_back(rule: str) -> None:
    found = after_one_episode(6, rule=rule, n_steps=3)
    assert found == pytest.approx([0, 0, 0, 0.5 * 0.81, 0.5 * 0.9, 0.5], abs=1e-15)


def test_the_oldest_traces_fade() -> None:
    """A pair whose eligibility falls below 1e-4 is not moved any more."""
    found = after_one_episode(60, rule="watkins_q_lambda", trace_decay=0.9)
    ages = np.arange(59, -1, -1)
    expected = np.where(0.81**ages >= 1e-4, 0.5 * 0.81**ages, 0.0)
    assert found == pytest.approx(expected.tolist(), rel=1e-12)
    assert 0 < np.count_nonzero(expected) < 60


def test_how_many_pairs_are_remembered() -> None:
    assert depth_of(config().learn) == 0
    assert depth_of(config(n_steps=7).learn) == 7
    assert depth_of(config(rule="watkins_q_lambda", trace_decay=0.0).learn) == 1
    # .81^43 > 1e-4 > .81^44
    assert depth_of(config(rule="watkins_q_lambda", trace_decay=0.9).learn) == 45


def test_n_step_off_policy_targets_end_before_an_exploring_action() -> None:
    """Behaviour that explores always, in a loop where only one action is greedy: m is 1 where the
    next action is the other, and the target bootstraps there from the greedy one."""
    model = explicit_model("loop", 1, 2, [0, 1, 2], [0, 0], [1.0, 1.0], [1.0, 0.0])
    learn = config(n_steps=4, step_size="constant", alpha=1e-9, discount=0.5).learn
    learner = Learner(model, learn, 1, epsilon=1.0)
    learner.rows.values[...] = [[8.0, 2.0]]
    learner.begin()
    seen = []
    for _ in range(200):
        action = int(learner.lane("action")[0])
        before = int(learner.lanes.trace()[0][0])
        learner.learn()
        after, following = int(learner.lanes.trace()[0][0]), int(learner.lane("action")[0])
        seen.append((before, following, after))
        assert action in (0, 1)
    assert all(after == 0 for _, following, after in seen if following == 1)
    assert all(after == min(before + 1, 3) for before, following, after in seen if following == 0)
    assert {before for before, _, _ in seen} == {0, 1, 2, 3}


@pytest.mark.parametrize(
    "case", [{"rule": "sarsa", "n_steps": 3}, {"n_steps": 5}, {"rule": "watkins_q_lambda"}], ids=str
)
def test_fused_traces_do_not_depend_on_the_ranks(case: dict[str, Any]) -> None:
    settings = config(agents=5, lanes=23, steps_per_round="auto", discount=0.95, **case)
    environment = random_model(17, 3)
    work = Job(settings, environment, compiled(Allreduce.requests(settings, environment)))
    alone = work.run(Alone(), 12)
    for size in (2, 3):
        ranks = together(size, lambda transport: work.run(transport, 12))
        assert ranks[0]["table"] == alone["table"] and ranks[0]["lanes"] == alone["lanes"]


def test_a_lone_agents_trace_outlives_its_rounds() -> None:
    for case in ({"rule": "sarsa", "n_steps": 4}, {"rule": "watkins_q_lambda"}):
        found = []
        for steps, n_rounds in ((4, 3), (12, 1)):
            settings = config(agents=1, lanes=9, steps_per_round=steps, discount=0.95, **case)
            environment = random_model(17, 3)
            work = Job(settings, environment, compiled(Allreduce.requests(settings, environment)))
            found.append(work.run(Alone(), n_rounds))
        assert found[0]["table"] == found[1]["table"] and found[0]["lanes"] == found[1]["lanes"]


@pytest.mark.parametrize(
    ("learn", "parallel", "message"),
    [
        ({"rule": "double_q", "n_steps": 2}, {}, "learn.n_steps: 2 must be 1"),
        ({"rule": "watkins_q_lambda", "n_steps": 2}, {}, "learn.n_steps: 2 must be 1"),
        ({"rule": "watkins_q_lambda", "discount": 1.0, "step_size": "polynomial",
          "trace_decay": 1.0}, {}, "never fades"),
        ({"n_steps": 2}, {"architecture": "sharded"}, "learn.n_steps: 2 needs"),
        ({"rule": "watkins_q_lambda"}, {"architecture": "sharded"}, "learn.rule: watkins"),
    ],
)  # fmt: skip
def test_what_no_theory_covers_is_refused(
    learn: dict[str, Any], parallel: dict[str, Any], message: str
) -> None:
    (mistake,) = check(Config(learn=LearnConfig(**learn), parallel=ParallelConfig(**parallel)))
    assert message in mistake
