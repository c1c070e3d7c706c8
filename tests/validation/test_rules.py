"""The rules of learning against published and exact numbers, by the program's own compiled loop.

Maximization bias (Sutton & Barto 2018, example 6.7, figure 6.5) and cliff walking (example 6.6).
Thousands of independent runs are the lanes of one learner: each walks a copy of the world of its
own, so that no table is shared.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from distq_mpi.config import EnvConfig
from distq_mpi.environments import Environment, make
from distq_mpi.environments.explicit import explicit_model
from distq_mpi.kernels import Kernel, loop
from distq_mpi.kernels.exploration import best_of, entry, epsilon_greedy, sum_of_parts
from distq_mpi.lanes import Lanes
from distq_mpi.table import record_of
from tests.driving import Learner
from tests.stand_in import compiled, config

u8, i8 = np.uint64, np.int64


def copies(environment: Environment, n: int, n_episodes: int) -> Environment:
    """`n` copies of an environment, one per lane, which keep a record of their episodes.

    `params` are the environment's own, its number of states, and int64 arrays: calls (1,), episode
    (n,), age (n,), and per number of the episode: how many have ended, and how many chose action 0
    first; float64: the return so far (n,), the sum and the sum of squares of returns.
    """
    inner_step, inner_start = environment.law_step, environment.law_start

    def law_start(bits, params):  # type: ignore[no-untyped-def]
        inner, n_states, calls, episode = params[0], params[1], params[2], params[3]
        # The loop takes the lanes in turn, and every lane makes one transition per step.
        return inner_start(bits, inner) + u8(calls[0] % episode.size) * u8(n_states)

    def law_step(state, action, bits, params):  # type: ignore[no-untyped-def]
        inner, n_states, calls, episode, age, ended, first, gain, total, squares = params
        copy = state // u8(n_states)
        new, reward, terminated = inner_step(state - copy * u8(n_states), action, bits, inner)
        calls[0] += 1
        number = u8(episode[copy])
        if number < u8(ended.size):
            if age[copy] == 0 and action == u8(0):
                first[number] += 1
            age[copy] += 1
            gain[copy] += reward
            if terminated:
                ended[number] += 1
                total[number] += gain[copy]
                squares[number] += gain[copy] * gain[copy]
                episode[copy] += 1
                age[copy], gain[copy] = 0, 0.0
        return new + copy * u8(n_states), reward, terminated

    whole = (np.zeros(1, i8), np.zeros(n, i8), np.zeros(n, i8))
    counts = (np.zeros(n_episodes, i8), np.zeros(n_episodes, i8))
    sums = (np.zeros(n), np.zeros(n_episodes), np.zeros(n_episodes))
    return replace(
        environment,
        n_states=n * environment.n_states,
        params=(environment.params, environment.n_states, *whole, *counts, *sums),
        law_step=law_step,
        law_start=law_start,
    )


class Runs:
    """What `n` independent runs of `n_episodes` did."""

    def __init__(
        self, environment: Environment, n: int, n_episodes: int, steps: int, alpha: float,
        rule: str, choose_first: Any = None, seed: int = 1, discount: float = 1.0,
    ) -> None:  # fmt: skip
        world = copies(environment, n, n_episodes)
        learn = config(
            rule=rule, step_size="constant", alpha=alpha, discount=discount, epsilon=0.1
        ).learn
        requests = loop.learning_kernels(
            learn, world, record_of(learn, environment.n_actions), Lanes(0, 1)
        )
        if choose_first is not None:
            requests = {
                name: Kernel(k.template, {**k.parts, "choose_first": choose_first}, k.arguments)
                for name, k in requests.items()
            }
        learner = Learner(world, learn, n, epsilon=0.1, seed=seed, kernels=dict(compiled(requests)))
        learner.begin()
        for _ in range(1000):
            learner.learn(steps)
            if world.params[5][-1] == n:
                break
        _, _, _, _, _, ended, self.first, _, self.total, self.squares = world.params
        assert np.all(ended == n)
        assert np.array_equal(  # every lane has stayed in its copy
            learner.lane("state") // environment.n_states, np.arange(n)
        )
        self.n = n
        self.values = learner.rows.policy_values().reshape(n, environment.n_states, -1)

    def mean_return(self, first: int, stop: int) -> tuple[float, float]:
        """Mean return over episodes [first, stop), and its standard error if all were independent.
        """
        count = self.n * (stop - first)
        mean = self.total[first:stop].sum() / count
        return mean, float(np.sqrt((self.squares[first:stop].sum() / count - mean**2) / count))


# ---- maximization bias

N_REWARDS = 1024
LEFT, B_ACTIONS = 0, 10


def quantiles() -> np.ndarray:
    """Equally likely rewards with mean -0.1 and variance 1 that lie as those of a normal law do."""
    from scipy.stats import norm

    z = norm.ppf((np.arange(N_REWARDS) + 0.5) / N_REWARDS)
    return np.asarray(z / z.std() - 0.1)


def two_states() -> Environment:
    """A (0): action 0 to B (1), any other ends with 0. B: every action ends, reward N(-0.1, 1)."""
    rows = [([1], [1.0], [0.0], [0])] + [([0], [1.0], [0.0], [1])] * (B_ACTIONS - 1)
    reward = quantiles()
    rows += [([1] * N_REWARDS, [1 / N_REWARDS] * N_REWARDS, reward, [1] * N_REWARDS)] * B_ACTIONS
    indptr = np.cumsum([0, *(len(row[0]) for row in rows)])
    following, probability, rewards, ends = (
        np.concatenate([np.asarray(row[k]) for row in rows]) for k in range(4)
    )
    return explicit_model(
        "bias", 2, B_ACTIONS, indptr, following, probability, rewards, ends, [1.0, 0.0]
    )


def left_percent(rule: str, n: int) -> np.ndarray:
    """In how many of `n` runs, %, an episode begins with left, by the episode's number from 0."""
    at = sum_of_parts(B_ACTIONS) if rule == "double_q" else entry
    # In A there are two actions only; the rest of its row is never chosen.
    choose = loop.first_action(best_of(2, at), epsilon_greedy(2, at), 2, False)
    runs = Runs(two_states(), n, 300, 601, 0.1, rule, choose)
    return 100.0 * runs.first / n


BIAS = {
    "q_learning": (49.7, 68.5, 86.3, 94.0, 82.6, 46.1, 11.9),
    "double_q": (50.2, 49.8, 44.5, 28.0, 13.7, 9.8, 6.9),
}
EPISODES = (1, 5, 10, 20, 50, 100, 300)


@pytest.mark.parametrize("rule", list(BIAS))
def test_T2_V19_maximization_bias(rule: str) -> None:
    """10,000 runs here and there: each number within four standard errors of the difference."""
    n = 10_000
    found = left_percent(rule, n)
    for episode, wanted in zip(EPISODES, BIAS[rule], strict=True):
        share = wanted / 100.0
        error = 100.0 * np.sqrt(2.0 * share * (1.0 - share) / n)
        assert found[episode - 1] == pytest.approx(wanted, abs=4.0 * error), episode


# ---- cliff walking

START, GOAL = 36, 47
UP, RIGHT, DOWN, LEFT = range(4)


@pytest.fixture(scope="module")
def cliff() -> Environment:
    """CliffWalking: 4 x 12, -1 a step, -100 and back to the start for a step off the edge."""
    return make(EnvConfig(id="CliffWalking-v1", kwargs={}))


@pytest.mark.parametrize(
    ("rule", "alpha", "wanted"),
    [
        ("q_learning", 0.5, -49.6), ("sarsa", 0.5, -27.9), ("expected_sarsa", 0.5, -21.1),
        ("sarsa", 1.0, -98.0), ("expected_sarsa", 1.0, -20.6),
    ],
)  # fmt: skip
def test_T3_online_return_on_the_cliff(
    cliff: Environment, rule: str, alpha: float, wanted: float
) -> None:
    """Mean return of episodes 100 to 500 with epsilon .1, discount 1."""
    mean, error = Runs(cliff, 300, 500, 2000, alpha, rule).mean_return(100, 500)
    assert mean == pytest.approx(wanted, abs=2.0 + 4.0 * error)


def soft_return(environment: Environment, policy: np.ndarray) -> float:
    """Exact undiscounted return from the start of .1-greedy behaviour around `policy`.

    policy : actions (S,), or their probabilities (S, A).
    """
    n_states, n_actions = environment.n_states, environment.n_actions
    chances = np.eye(n_actions)[policy] if policy.ndim == 1 else policy
    chances = 0.9 * chances + 0.1 / n_actions
    flow, reward = np.zeros((n_states, n_states)), np.zeros(n_states)
    for s in range(n_states):
        for a in range(n_actions):
            _, new, r, ended = environment.outcome(s, a, 0, environment.params)
            reward[s] += chances[s, a] * r
            flow[s, new] += chances[s, a] * (not ended)
    return float(np.linalg.solve(np.eye(n_states) - flow, reward)[START])


def path_length(environment: Environment, policy: np.ndarray) -> int:
    """Steps of `policy` from the start to the goal, 0 if it does not get there."""
    state = START
    for step in range(1, 100):
        _, state, _, ended = environment.outcome(state, int(policy[state]), 0, environment.params)
        if ended:
            return step
    return 0


def optimal_values(environment: Environment) -> np.ndarray:
    """Q* (S, A) without discount; whole numbers here."""
    q = np.zeros((environment.n_states, environment.n_actions))
    for _ in range(100):
        value = q.max(axis=1)
        for s, a in np.ndindex(*q.shape):
            _, new, reward, ended = environment.outcome(s, a, 0, environment.params)
            q[s, a] = reward + (0.0 if ended else value[new])
    return q


def test_V7_V8_q_learning_walks_along_the_edge(cliff: Environment) -> None:
    """Its values are Q*, its greedy path the shortest, and what it earns on the way the less."""
    best = optimal_values(cliff)
    tied = best == best.max(axis=1, keepdims=True)
    assert soft_return(cliff, best.argmax(axis=1)) == pytest.approx(-45.803322, abs=1e-6)
    # Behaviour breaks the ties above the edge at random, and so comes back to it sooner.
    ties = soft_return(cliff, tied / tied.sum(axis=1, keepdims=True))
    runs = Runs(cliff, 300, 3000, 2000, 0.5, "q_learning")
    edge = slice(24, 37)
    assert runs.values[:, edge] == pytest.approx(np.tile(best[edge], (300, 1, 1)), abs=1e-3)
    assert {path_length(cliff, values.argmax(axis=1)) for values in runs.values} == {13}
    mean, error = runs.mean_return(2000, 3000)
    assert mean == pytest.approx(ties, abs=4.0 * error)


def test_V7_V8_expected_sarsa_finds_the_best_of_soft_policies(cliff: Environment) -> None:
    runs = Runs(cliff, 300, 3000, 2000, 0.5, "expected_sarsa")
    policies = runs.values.argmax(axis=2)
    assert {path_length(cliff, policy) for policy in policies} == {15}
    exact = [soft_return(cliff, policy) for policy in policies]
    assert max(exact) == pytest.approx(-20.707677, abs=1e-6)
    assert np.median(exact) == pytest.approx(-20.707677, abs=1e-6)
    mean, error = runs.mean_return(2000, 3000)
    assert mean == pytest.approx(-20.707677, abs=4.0 * error)


def test_V7_V8_sarsa_keeps_away_from_the_edge(cliff: Environment) -> None:
    top = np.full(48, UP)
    top[:12], top[[11, 23, 35]] = RIGHT, DOWN
    assert path_length(cliff, top) == 17
    assert soft_return(cliff, top) == pytest.approx(-22.272817, abs=1e-6)
    runs = Runs(cliff, 300, 3000, 2000, 0.1, "sarsa")
    lengths = np.array([path_length(cliff, v.argmax(axis=1)) for v in runs.values])
    assert np.mean(np.isin(lengths, (15, 17))) > 0.97  # it never settles under a constant alpha
    mean, error = runs.mean_return(2000, 3000)
    assert -22.272817 - 4.0 * error < mean < -20.707677 + 4.0 * error
