"""The models of published studies, with their exact values. Local, pure."""

from __future__ import annotations

import numpy as np

from distq_mpi.environments.base import Environment
from distq_mpi.environments.explicit import explicit_model

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
