"""Q-learning over Gymnasium's own loop: what a user writes who has no product.

Both classes run the product's default rule over `gymnasium.make(id)`, time limit and checkers
included, and have `run(n_steps)`, which returns steps per second.
"""

from __future__ import annotations

import random
import time
from typing import Any

import gymnasium
import numpy as np


class NumpyTable:
    """As tutorials have it: a NumPy table, NumPy's generator."""

    def __init__(self, id: str, values: np.ndarray, learn: Any) -> None:
        self._env = gymnasium.make(id)
        self.q, self.visits = values.copy(), np.zeros(values.shape, np.int64)
        self._learn, self._rng = learn, np.random.default_rng(0)
        self._state = int(self._env.reset(seed=0)[0])
        self.n_episodes, self.return_sum, self._gain = 0, 0.0, 0.0

    def run(self, n_steps: int) -> float:
        """Make `n_steps` steps; return steps per second."""
        q, visits, env, rng = self.q, self.visits, self._env, self._rng
        epsilon, discount = self._learn.epsilon, self._learn.discount
        n_actions, state = q.shape[1], self._state
        begin = time.perf_counter()
        for _ in range(n_steps):
            if rng.random() < epsilon:
                action = int(rng.integers(n_actions))
            else:
                tied = np.flatnonzero(q[state] == q[state].max())
                action = int(tied[0] if tied.size == 1 else tied[rng.integers(tied.size)])
            next_state, gained, terminated, truncated, _ = env.step(action)
            reward = float(gained)
            visits[state, action] += 1
            alpha = 1.0 / (1.0 + (1.0 - discount) * visits[state, action])
            target = reward + (0.0 if terminated else discount * q[next_state].max())
            q[state, action] += alpha * (target - q[state, action])
            self._gain += reward
            state = int(next_state)
            if terminated or truncated:
                self.n_episodes += 1
                self.return_sum += self._gain
                self._gain = 0.0
                state = int(env.reset()[0])
        self._state = state
        return n_steps / (time.perf_counter() - begin)


class ListTable:
    """Tuned as far as plain Python goes: lists of floats, `random`."""

    def __init__(self, id: str, values: np.ndarray, learn: Any) -> None:
        self._env = gymnasium.make(id)
        self.q = values.tolist()
        self.visits = [[0] * len(row) for row in self.q]
        self._learn, self._random = learn, random.Random(0)
        self._state = int(self._env.reset(seed=0)[0])
        self.n_episodes, self.return_sum, self._gain = 0, 0.0, 0.0

    def run(self, n_steps: int) -> float:
        """Make `n_steps` steps; return steps per second."""
        q, visits, env, draw = self.q, self.visits, self._env, self._random
        epsilon, discount = self._learn.epsilon, self._learn.discount
        n_actions, state = len(q[0]), self._state
        begin = time.perf_counter()
        for _ in range(n_steps):
            row = q[state]
            if draw.random() < epsilon:
                action = draw.randrange(n_actions)
            else:
                best = max(row)
                action = row.index(best)
                if row.count(best) > 1:
                    action = draw.choice([a for a, value in enumerate(row) if value == best])
            next_state, gained, terminated, truncated, _ = env.step(action)
            reward = float(gained)
            visits[state][action] += 1
            alpha = 1.0 / (1.0 + (1.0 - discount) * visits[state][action])
            target = reward + (0.0 if terminated else discount * max(q[next_state]))
            row[action] += alpha * (target - row[action])
            self._gain += reward
            state = int(next_state)
            if terminated or truncated:
                self.n_episodes += 1
                self.return_sum += self._gain
                self._gain = 0.0
                state = int(env.reset()[0])
        self._state = state
        return n_steps / (time.perf_counter() - begin)
