"""Fed-DVR-Q: variance-reduced Q-learning by agents that talk after every step, in few bits.

Salgia & Chi (2024), "The sample-communication complexity trade-off in federated Q-learning",
algorithms 1 to 3, with smaller constants than the theory's: step 0.5, 20 steps in an epoch,
40 samples of a pair in a step and 200 x 4^k in the first of epoch k, of all agents together.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from distq_mpi.environments.base import Environment
from distq_mpi.partition import Partition

if TYPE_CHECKING:
    from distq_mpi.transport import Transport

STEP, N_STEPS, BATCH, FIRST_BATCH, N_EPOCHS = 0.5, 20, 40, 200, 5
N_BITS = 16
"""Of a number that an agent sends."""


class Law:
    """An explicit model as arrays, to draw many transitions of every pair at once. Local."""

    def __init__(self, environment: Environment) -> None:
        n, n_states = environment.n_states * environment.n_actions, environment.n_states
        self.p, self.reward = np.zeros((n, n_states)), np.zeros(n)
        indptr, alias, reward, chance, *_ = environment.params
        for pair in range(n):
            for i in range(int(indptr[pair]), int(indptr[pair + 1])):
                self.reward[pair] += chance[i] * reward[i]
                code = int(alias[2 * i + 1])
                self.p[pair, code >> 1] += chance[i] * (not code & 1)
        self.ends = 1.0 - self.p.sum(axis=1)

    def means(self, rng: np.random.Generator, n: int, v: np.ndarray) -> np.ndarray:
        """Means of v at n next states of every pair, float64 (pairs,); 0 where it ends."""
        chances = np.clip(np.column_stack([self.p, self.ends]), 0.0, 1.0)
        counts = rng.multinomial(n, chances / chances.sum(axis=1, keepdims=True))
        return np.asarray(counts[:, :-1] @ v / n)


def coded(x: np.ndarray, limit: float, rng: np.random.Generator) -> np.ndarray:
    """Return x as int64 of N_BITS, without bias: rounded at random. |x| <= limit is all it can say.
    """
    scaled = np.clip(x / limit, -1.0, 1.0) * (2 ** (N_BITS - 1) - 1)
    low = np.floor(scaled)
    return (low + (rng.random(x.shape) < scaled - low)).astype(np.int64)


def decoded(total: np.ndarray, limit: float, n: int) -> np.ndarray:
    """The mean of n agents' numbers, from the sum of what they sent."""
    return np.asarray(total / (2 ** (N_BITS - 1) - 1) * (limit / n))


def learn(
    environment: Environment, discount: float, n_agents: int, seed: int, transport: Transport,
    n_epochs: int = N_EPOCHS,
) -> tuple[np.ndarray, int, int]:  # fmt: skip
    """Return Q (S, A), transitions of a pair that one agent drew, and rounds of messages.

    COLLECTIVE; agents are spread over the ranks, and integers are summed: the same on any number.
    """
    law, shape = Law(environment), (environment.n_states, environment.n_actions)
    mine = range(*Partition.balanced(n_agents, transport.size).block(transport.rank))
    draws = {k: np.random.default_rng([seed, k]) for k in mine}
    q, drawn, rounds = np.zeros(law.reward.size), 0, 0
    for epoch in range(1, n_epochs + 1):
        limit = 16.0 * 2.0**-epoch / (1.0 - discount)
        n = math.ceil(FIRST_BATCH * 4 ** (epoch - 1) / n_agents)
        centre, v_centre = q.copy(), q.reshape(shape).max(axis=1)
        total = np.zeros(q.size, np.int64)
        for k in mine:
            backup = law.reward + discount * law.means(draws[k], n, v_centre)
            total += coded(backup - centre, limit, draws[k])
        transport.sum_int(total)
        backed = centre + decoded(total, limit, n_agents)
        batch = math.ceil(BATCH / n_agents)
        drawn, rounds = drawn + n, rounds + 1
        for _ in range(N_STEPS):
            change, total = q.reshape(shape).max(axis=1) - v_centre, np.zeros(q.size, np.int64)
            for k in mine:
                moved = discount * law.means(draws[k], batch, change) + backed - q
                total += coded(STEP * moved, limit, draws[k])
            transport.sum_int(total)
            q = q + decoded(total, limit, n_agents)
            drawn, rounds = drawn + batch, rounds + 1
    return q.reshape(shape), drawn, rounds
