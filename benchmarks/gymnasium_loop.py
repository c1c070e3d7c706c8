"""Q-learning over Gymnasium's own loop: what a user writes who has no product."""

from __future__ import annotations

import random
import time
from typing import Any

import gymnasium
import numpy as np


class GymnasiumLoop:
    """The product's default rule in plain Python over `gymnasium.make(id)`. `run` times a slice.

    The table is a list of lists: indexing single numbers of a NumPy array is slower.
    """

    def __init__(self, id: str, values: np.ndarray, learn: Any) -> None:
        self._env = gymnasium.make(id)
        self.q = values.tolist()
        self.visits = [[0] * len(row) for row in self.q]
        self._learn = learn
        self._random = random.Random(0)
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
                action = draw.choice([a for a, value in enumerate(row) if value == best])
            next_state, reward, terminated, truncated, _ = env.step(action)
            visits[state][action] += 1
            alpha = 1.0 / (1.0 + (1.0 - discount) * visits[state][action])
            target = reward + (0.0 if terminated else discount * max(q[next_state]))
            row[action] += alpha * (target - row[action])
            self._gain += reward
            state = next_state
            if terminated or truncated:
                self.n_episodes += 1
                self.return_sum += self._gain
                self._gain = 0.0
                state = int(env.reset()[0])
        self._state = state
        return n_steps / (time.perf_counter() - begin)
