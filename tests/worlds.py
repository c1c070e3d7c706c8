"""Environments of Gymnasium to be stepped in Python: good ones, and each kind of bad one."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.toy_text.frozen_lake import FrozenLakeEnv
from gymnasium.vector import AutoresetMode, VectorEnv

from distq_mpi.launcher import launched_rank

LEAVING = {
    "exits": SystemExit(0), "interrupts": KeyboardInterrupt(), "lacks": KeyError("wheel"),
    "exhausts": MemoryError("no more"),
}  # fmt: skip


class HiddenLake(FrozenLakeEnv):
    """FrozenLake that does not tell its table of transitions."""

    def __init__(self) -> None:
        super().__init__(map_name="4x4", is_slippery=True)
        self.hidden, self.P = self.P, None

    def step(self, action: int) -> Any:
        self.P = self.hidden
        try:
            return super().step(action)
        finally:
            self.P = None


class PacedLake(HiddenLake):
    """A lake whose steps take PACE_S seconds of the environment's, so that a run lasts."""

    def step(self, action: int) -> Any:
        time.sleep(float(os.environ.get("PACE_S", "0")))
        return super().step(action)


class Walk(gymnasium.Env):
    """Eleven cells in a row, seen as (cell // 4, cell % 4); two actions; the last cell ends it.

    trouble : `raises`, `outside`, `hollow` in cell 3; `forgets`, noise that no seed decides;
    `hangs` in cell 9, when the first comes there, which the file `hung` tells; a name of LEAVING
    leaves so in cell 9, on rank 1 alone, unless MENDED is set.
    """

    observation_space = spaces.MultiDiscrete([3, 4])
    action_space = spaces.Discrete(2, start=5)

    def __init__(self, trouble: str = "") -> None:
        self.trouble, self.cell = trouble, 0

    def _seen(self) -> np.ndarray:
        return np.array([self.cell // 4, self.cell % 4])

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.cell = int(self.np_random.integers(3))
        return self._seen(), {}

    def step(self, action: int) -> Any:
        assert action in (5, 6)
        noise = np.random.default_rng() if self.trouble == "forgets" else self.np_random
        back = noise.random() < 0.2
        self.cell = min(max(self.cell + (1 if (action == 6) != back else -1), 0), 10)
        seen, reward = self._seen(), -1.0
        if self.cell == 3 and self.trouble == "raises":
            raise RuntimeError("the wheel came off")
        if self.cell == 9 and self.trouble == "hangs":
            with suppress(FileExistsError):
                Path("hung").touch(exist_ok=False)
                time.sleep(3600)
        alone = launched_rank() == 1 and not os.environ.get("MENDED")
        if self.cell == 9 and self.trouble in LEAVING and alone:
            raise LEAVING[self.trouble]
        if self.cell == 3 and self.trouble == "outside":
            seen = np.array([0, 4])
        if self.cell == 3 and self.trouble == "hollow":
            reward = float("nan")
        return seen, reward, self.cell == 10, False, {}


class Endless(gymnasium.Env):
    """Episodes that never end, and steps that take long once a process has made so many."""

    observation_space = action_space = spaces.Discrete(2)
    n_steps = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return 0, {}

    def step(self, action: int) -> Any:
        Endless.n_steps += 1
        if Endless.n_steps > 300:
            time.sleep(0.05)
        return 1, 1.0, False, False, {}


class Row(VectorEnv):
    """`Walk` without noise, as a vector of walks; truncated after 25 steps."""

    def __init__(self, num_envs: int = 1, mode: str = "NextStep", **_: Any) -> None:
        self.num_envs, self.mode = num_envs, AutoresetMode(mode)
        self.metadata = {"autoreset_mode": self.mode}
        self.single_observation_space = self.observation_space = spaces.Discrete(11)
        self.single_action_space = spaces.Discrete(2)
        self.observation_space = spaces.MultiDiscrete([11] * num_envs)
        self.action_space = spaces.MultiDiscrete([2] * num_envs)
        self.over = np.zeros(num_envs, bool)
        self.cells, self.ages = np.zeros(num_envs, int), np.zeros(num_envs, int)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, bool))
        self.cells[mask], self.ages[mask], self.over[mask] = 0, 0, False
        return self.cells.copy(), {}

    def step(self, actions: np.ndarray) -> Any:
        began = self.over.copy() if self.mode == AutoresetMode.NEXT_STEP else self.over & False
        assert not (self.over & ~began).any(), "stepped beyond the end of an episode"
        self.cells = np.where(began, 0, np.clip(self.cells + 2 * actions - 1, 0, 10))
        self.ages = np.where(began, 0, self.ages + 1)
        # A reward that must never be learned from comes with every reset.
        rewards = np.where(began, 1000.0, -1.0)
        ends = (self.cells == 10) & ~began
        cuts = (self.ages >= 25) & ~ends & ~began
        self.over, info = ends | cuts, {}
        seen = self.cells.copy()
        if self.mode == AutoresetMode.SAME_STEP and self.over.any():
            final = np.array([None] * self.num_envs, object)
            final[self.over] = seen[self.over]
            info = {"final_obs": final, "_final_obs": self.over.copy()}
            self.cells[self.over], self.ages[self.over] = 0, 0
            seen, self.over = self.cells.copy(), self.over & False
        return seen, rewards, ends, cuts, info


gymnasium.register("HiddenLake-v0", HiddenLake, max_episode_steps=100)
gymnasium.register("PacedLake-v0", PacedLake, max_episode_steps=20)
gymnasium.register("Walk-v0", Walk, max_episode_steps=30)
gymnasium.register("Endless-v0", Endless)
gymnasium.register("Row-v0", vector_entry_point=Row)
