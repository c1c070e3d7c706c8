"""The models of published studies, with their exact values. Local, pure."""

from __future__ import annotations

import numpy as np

from distq_mpi.environments.base import Environment
from distq_mpi.environments.explicit import explicit_model
from distq_mpi.environments.variants import mean_model

N_PLAYED = 20
"""Actions of the problem of Woo, Joshi and Chi, and agents that play one each."""


def hard(discount: float) -> tuple[Environment, np.ndarray]:
    """The hard problem of Li, Cai, Chen, Wei & Chi (2024), and Q* (4, 2).

    0: stays, for 0. 1: either action stays with p, for 1, else goes to 0. 2: so does its first
    action. 3: stays, for 1. Other actions end with -1: they are no choice. V* = (0, 3/4, 3/4, 1)
    / (1 - discount); state 1 biases a maximum.
    """
    p = (4 * discount - 1) / (3 * discount)
    rows = [
        ([0], [1.0], 0.0, 0), ([0], [1.0], -1.0, 1), ([1, 0], [p, 1 - p], 1.0, 0),
        ([1, 0], [p, 1 - p], 1.0, 0), ([2, 0], [p, 1 - p], 1.0, 0), ([2], [1.0], -1.0, 1),
        ([3], [1.0], 1.0, 0), ([3], [1.0], -1.0, 1),
    ]  # fmt: skip
    sizes = [len(row[0]) for row in rows]
    following, chances = (np.concatenate([row[k] for row in rows]) for k in range(2))
    rewards, ends = (np.repeat([row[k] for row in rows], sizes) for k in (2, 3))
    model = explicit_model(
        "hard", 4, 2, np.cumsum([0, *sizes]), following, chances, rewards, ends.astype(bool)
    )
    worth = np.array([0.0, 0.75, 0.75, 1.0]) / (1 - discount)
    return model, np.array([[0, -1], [worth[1], worth[1]], [worth[2], -1], [worth[3], -1]])


def two_states(seed: int, discount: float) -> tuple[Environment, np.ndarray]:
    """The synthetic problem of Woo, Joshi & Chi (2023), and Q* (2, 20).

    Reward 1 in state 1; an action stays in state 0 or 1 with a probability of .4 to .6.
    """
    stay = np.random.default_rng(seed).uniform(0.4, 0.6, (2, N_PLAYED))
    zero = np.array([stay[0], 1 - stay[1]]).reshape(-1)
    chances = np.stack([zero, 1 - zero], axis=1).reshape(-1)
    rewards, n = np.repeat([0.0, 1.0], 2 * N_PLAYED), 2 * N_PLAYED
    model = explicit_model(
        "two-states", 2, N_PLAYED, np.arange(0, 2 * n + 1, 2), np.tile([0, 1], n), chances, rewards
    )
    values, q = np.zeros(2), np.zeros((2, N_PLAYED))
    for _ in range(round(40 / (1 - discount))):
        backed = (chances * (rewards + discount * np.tile(values, n))).reshape(2, N_PLAYED, 2)
        q = backed.sum(axis=2)
        values = q.max(axis=1)
    return model, q


def two_chains() -> Environment:
    """The mean of two chains of two states and one action, rewards 0 and 1: one may stay in 0 and
    stays in 1, the other changes state (theory's T17)."""
    parts = [
        explicit_model("chain", 2, 1, [0, 2, 4], [0, 1, 0, 1], p, [0.0, 0.0, 1.0, 1.0])
        for p in ([0.9, 0.1, 0.0, 1.0], [0.0, 1.0, 1.0, 0.0])
    ]
    return mean_model("two chains", parts)


def random_models(n: int, seed: int, n_states: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Chances (n, S, A, S) of n models that share their rewards, (S, A), as many actions as states.

    Rewards and chances are uniform, of which four in five are 0. Jin, Peng, Yang, Wang & Zhang
    (2022), "Federated reinforcement learning with environment heterogeneity", section 6.
    """
    rng, shape = np.random.default_rng(seed), (n_states, n_states)
    rewards = rng.random(shape)
    chances = (rng.random((n, *shape, n_states)) < 0.2) * rng.random((n, *shape, n_states))
    empty = chances.sum(axis=3) == 0
    chances[empty, rng.integers(n_states, size=int(empty.sum()))] = 1.0
    return chances / chances.sum(axis=3, keepdims=True), rewards


def mazes(n: int, seed: int, discount: float, size: int = 5) -> tuple[Environment, np.ndarray]:
    """The mean of n random mazes, in which a third of the moves is blocked and 1 is paid for the
    last cell, which ends an episode; and its Q* (S, 4). After Wang, Yang & Su (2024)."""
    rng, moves, n_cells = np.random.default_rng(seed), ((-1, 0), (0, 1), (1, 0), (0, -1)), size**2
    parts, goal = [], n_cells - 1
    for _ in range(n):
        free = rng.random((n_cells, 4)) > 1 / 3
        ahead = np.empty((n_cells, 4), np.int64)
        for cell, k in np.ndindex(n_cells, 4):
            row, column = cell // size + moves[k][0], cell % size + moves[k][1]
            inside = 0 <= row < size and 0 <= column < size and free[cell, k]
            ahead[cell, k] = row * size + column if inside else cell
        reached = ahead.reshape(-1) == goal
        parts.append(explicit_model(
            "maze", n_cells, 4, np.arange(4 * n_cells + 1), ahead.reshape(-1),
            np.ones(4 * n_cells), reached.astype(float), reached,
        ))  # fmt: skip
    mean = mean_model("mazes", parts)
    rows, code = np.repeat(np.arange(4 * n_cells), np.diff(mean.params[0])), mean.params[1][1::2]
    new, goes_on = (code >> np.uint64(1)).astype(np.int64), (code & np.uint64(1)) == 0
    q = np.zeros((n_cells, 4))
    for _ in range(round(40 / (1 - discount))):
        worth = mean.params[3] * (mean.params[2] + discount * goes_on * q.max(axis=1)[new])
        q[...] = np.bincount(rows, weights=worth, minlength=4 * n_cells).reshape(q.shape)
    return mean, q


def best_policy(p: np.ndarray, rewards: np.ndarray, discount: float) -> np.ndarray:
    """The optimal policy (S,) of chances (S, A, S) and rewards (S, A)."""
    v = np.zeros(len(p))
    for _ in range(round(30 / (1 - discount))):
        v = (rewards + discount * p @ v).max(axis=1)
    return np.asarray((rewards + discount * p @ v).argmax(axis=1))


def policy_worth(p: np.ndarray, rewards: np.ndarray, policy: np.ndarray, discount: float) -> float:
    """The mean over states of a policy's value."""
    states = np.arange(len(p))
    flow = np.eye(len(p)) - discount * p[states, policy]
    return float(np.linalg.solve(flow, rewards[states, policy]).mean())
