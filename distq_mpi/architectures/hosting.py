"""An agent on the rank that hosts it: its lanes, and how they move through a round."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from distq_mpi.environments.silence import silence
from distq_mpi.environments.stepped import open_worlds
from distq_mpi.environments.vector import VectorWorlds
from distq_mpi.environments.worlds import Worlds
from distq_mpi.kernels import loop
from distq_mpi.kernels.traces import depth_in
from distq_mpi.lanes import Lanes
from distq_mpi.partition import Partition

NO_LIMIT = 2**32 - 1


class Hosted:
    """Working and committed lanes of agent `number`, and its kernels' arguments.

    Where the environment is stepped in Python, `worlds` hold one environment per lane, else None.
    """

    def __init__(self, number: int, lanes: Partition, config: Any, environment: Any) -> None:
        first, stop = lanes.block(number)
        n, seed = stop - first, config.run.seed
        depth = depth_in(config, environment.n_states, environment.n_actions)
        self.lanes, self.committed = Lanes(first, n, depth), Lanes(first, n, depth)
        self.control = np.zeros(7, np.uint64)
        self.control[loop.FIRST_LANE], self.control[loop.N_LANES] = first, n
        self.control[loop.SEED] = seed
        self.control[loop.LIMIT] = environment.max_episode_steps or NO_LIMIT
        self.totals, self.found = np.zeros(3), np.zeros(5)
        self.generative = config.learn.sampling == "generative"
        stepped = environment.kind == "stepped"
        self.worlds: Worlds | VectorWorlds | None = None
        if stepped:
            with silence():
                self.worlds = open_worlds(environment.worlds, first, n, seed)

    def begin(self, kernel: Any, q: np.ndarray, params: Any) -> None:
        """Put all lanes at their starts, with their first transition made, and commit them."""
        if self.generative:
            return
        if self.worlds is None:
            kernel(q, *self.committed.arrays(), params, self.control)
            return
        with silence():
            self.worlds.begin()
            kernel(q, *self.committed.arrays(), self.worlds.start, self.control)
            self.worlds.step(self.committed, 0)
        self.worlds.commit()

    def learn(self, call: Callable[[], None], first_step: int, n_steps: int) -> None:
        """Step every lane `n_steps` times; `call` runs the kernel `learn` over these arrays."""
        self.totals[:] = 0.0
        self.control[loop.N_STEPS], self.control[loop.FIRST_STEP] = n_steps, first_step
        if self.worlds is None:
            call()
            return
        with silence():
            for now in range(first_step, first_step + n_steps):
                self.control[loop.FIRST_STEP] = now
                call()
                self.worlds.step(self.lanes, now)

    def learning_arrays(self, draws: np.ndarray, params: Any) -> tuple[Any, ...]:
        """What the kernel `learn` takes between the table and `control`; draws : its scratch."""
        if self.generative:
            return draws, params
        if self.worlds is None:
            return (*self.lanes.arrays(), self.lanes.trace(), draws, params)
        worlds, mine = self.worlds, (*self.lanes.arrays(), self.lanes.trace())
        return (*mine, worlds.truncated, worlds.start, worlds.idle)

    def commit(self) -> None:
        """Take the working lanes for good."""
        self.committed.copy_from(self.lanes)
        if self.worlds is not None:
            self.worlds.commit()

    def rewind(self, n_steps: int, again: bool) -> None:
        """Return to the committed lanes, after `n_steps` steps of each; they are copied when the
        round begins, but environments must be brought back, or what they showed be shown again
        where the round will be run `again` as it was."""
        if self.worlds is not None:
            with silence():
                self.worlds.rewind(self.committed, n_steps, again)

    def resume(
        self, lanes: np.ndarray, worlds: tuple[np.ndarray, np.ndarray] | None, n_steps: int
    ) -> None:
        """Take committed lanes of a checkpoint, after `n_steps` steps of each, as `Lanes.pack`
        gave them; worlds : as the worlds' `pack` gave them, where there are any."""
        self.committed.unpack(lanes)
        if self.worlds is not None and worlds is not None:
            with silence():
                self.worlds.unpack(*worlds, self.committed, n_steps)

    def close(self) -> None:
        """Close the environments. Local."""
        if self.worlds is not None:
            self.worlds.close()
            self.worlds = None
