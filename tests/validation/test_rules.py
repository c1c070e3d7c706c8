"""The rules of learning against published and exact numbers, by the program's own compiled loop.

Maximization bias (Sutton & Barto 2018, example 6.7, figure 6.5) and cliff walking (example 6.6).
Thousands of independent runs are the lanes of one learner: each walks a copy of the world of its
own, so that no table is shared.
"""

from __future__ import annotations

import numpy as np
import pytest

from distq_mpi.config import EnvConfig
from distq_mpi.environments import Environment, make
from distq_mpi.validation.copies import Runs, left_percent
from tests.stand_in import Alone

BIAS = {
    "q_learning": (49.7, 68.5, 86.3, 94.0, 82.6, 46.1, 11.9),
    "double_q": (50.2, 49.8, 44.5, 28.0, 13.7, 9.8, 6.9),
}
EPISODES = (1, 5, 10, 20, 50, 100, 300)


@pytest.mark.parametrize("rule", list(BIAS))
def test_T2_V19_maximization_bias(rule: str) -> None:
    """10,000 runs here and there: each number within four standard errors of the difference."""
    n = 10_000
    found = left_percent(rule, n, Alone())
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
    mean, error = Runs(cliff, 300, 500, 2000, alpha, rule, Alone()).mean_return(100, 500)
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
    runs = Runs(cliff, 300, 3000, 2000, 0.5, "q_learning", Alone())
    edge = slice(24, 37)
    assert runs.values[:, edge] == pytest.approx(np.tile(best[edge], (300, 1, 1)), abs=1e-3)
    assert {path_length(cliff, values.argmax(axis=1)) for values in runs.values} == {13}
    mean, error = runs.mean_return(2000, 3000)
    assert mean == pytest.approx(ties, abs=4.0 * error)


def test_V7_V8_expected_sarsa_finds_the_best_of_soft_policies(cliff: Environment) -> None:
    runs = Runs(cliff, 300, 3000, 2000, 0.5, "expected_sarsa", Alone())
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
    runs = Runs(cliff, 300, 3000, 2000, 0.1, "sarsa", Alone())
    lengths = np.array([path_length(cliff, v.argmax(axis=1)) for v in runs.values])
    assert np.mean(np.isin(lengths, (15, 17))) > 0.97  # it never settles under a constant alpha
    mean, error = runs.mean_return(2000, 3000)
    assert -22.272817 - 4.0 * error < mean < -20.707677 + 4.0 * error
