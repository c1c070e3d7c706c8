"""An agent on the rank that hosts it: its lanes, and how they move through a round."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from distq_mpi.architectures.progress import Progress
from distq_mpi.architectures.schedules import Exploring
from distq_mpi.environments.silence import silence
from distq_mpi.environments.stepped import open_worlds
from distq_mpi.environments.vector import VectorWorlds
from distq_mpi.environments.worlds import WORLD_DTYPE, Worlds
from distq_mpi.kernels import loop
from distq_mpi.kernels.traces import depth_in
from distq_mpi.lanes import Lanes, lane_dtype
from distq_mpi.partition import Partition

NO_LIMIT = 2**32 - 1


def lane_bytes(depth: int) -> int:
    """Memory that a lane with a trace of `depth` pairs takes: working, committed, and as words
    while it learns. Local."""
    return 2 * lane_dtype(depth).itemsize + 8 * int(loop.BATCH_WORDS) // loop.BATCH


class Hosted:
    """Working and committed lanes of agent `number`, and its kernels' arguments.

    `exploring` : how much it explores in which step. Where the environment is stepped in Python,
    `worlds` hold one environment per lane, else None; `stepped_at` : when their last step began.
    """

    def __init__(
        self, number: int, lanes: Partition, config: Any, environment: Any, exploring: Exploring
    ) -> None:
        self.exploring = exploring
        first, stop = lanes.block(number)
        self.number, n, seed = number, stop - first, config.run.seed
        depth = depth_in(config, environment.n_states, environment.n_actions)
        self.lanes, self.committed = Lanes(first, n, depth), Lanes(first, n, depth)
        self.control = np.zeros(7, np.uint64)
        self.control[loop.FIRST_LANE], self.control[loop.N_LANES] = first, n
        self.control[loop.SEED] = seed
        self.control[loop.LIMIT] = environment.max_episode_steps or NO_LIMIT
        self.totals, self.found, self.stepped_at = np.zeros(3), np.zeros(5), 0.0
        self.generative = config.learn.sampling == "generative"
        stepped = environment.kind == "stepped"
        self.worlds: Worlds | VectorWorlds | None = None
        if stepped:
            with silence():
                self.worlds = open_worlds(environment.worlds, first, n, seed)

    def begin(self, kernel: Any, q: np.ndarray, params: Any, step: int = 0) -> None:
        """Put all lanes at their starts, with their first transition made, and commit them.

        step : whose draws decide it; those of later steps follow. 0, or one that the agent has not
        made yet.
        """
        if self.generative:
            return
        self.control[loop.FIRST_STEP] = step
        self.control[loop.EXPLORE] = self.exploring.code(step)
        if self.worlds is None:
            kernel(q, *self.committed.arrays(), params, self.control)
            return
        with silence():
            self.worlds.begin(step)
            kernel(q, *self.committed.arrays(), self.worlds.start, self.control)
            self.worlds.step(self.committed, step)
        self.worlds.commit()

    def learn(self, call: Callable[[], None], first_step: int, n_steps: int) -> None:
        """Step every lane `n_steps` times; `call` runs the kernel `learn` over these arrays."""
        self.totals[:] = 0.0
        for first, n, explore in self.exploring.pieces(first_step, n_steps):
            self.set_out(first, n, explore)
            if self.worlds is None:
                call()
            else:
                self._step_worlds(call, first, n)

    def _step_worlds(self, call: Callable[[], None], first_step: int, n_steps: int) -> None:
        assert self.worlds is not None
        with silence():
            for now in range(first_step, first_step + n_steps):
                self.control[loop.FIRST_STEP] = now
                self.stepped_at = time.perf_counter()
                call()
                self.worlds.step(self.lanes, now)

    def set_out(self, first_step: int, n_steps: int, explore: int) -> None:
        """Say which steps `learn` is to make, and how."""
        self.control[loop.N_STEPS], self.control[loop.FIRST_STEP] = n_steps, first_step
        self.control[loop.EXPLORE] = explore

    def learning_arrays(self, work: np.ndarray, params: Any) -> tuple[Any, ...]:
        """What the kernel `learn` takes between the table and `control`; work : its scratch."""
        if self.generative:
            return work, params
        if self.worlds is None:
            return (*self.lanes.arrays(), self.lanes.trace(), work, params)
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
        self._resume_worlds(worlds, n_steps)

    def resume_raw(
        self, raw: np.ndarray, worlds: tuple[np.ndarray, np.ndarray] | None, n_steps: int
    ) -> None:
        """As `resume`, of lanes as `Lanes.raw` has them; bytes behind them are not read."""
        self.committed.raw[:] = raw[: self.committed.raw.size]
        self._resume_worlds(worlds, n_steps)

    def _resume_worlds(self, worlds: tuple[np.ndarray, np.ndarray] | None, n_steps: int) -> None:
        if self.worlds is not None and worlds is not None:
            with silence():
                self.worlds.unpack(*worlds, self.committed, n_steps)

    def close(self) -> None:
        """Close the environments. Local."""
        if self.worlds is not None:
            self.worlds.close()
            self.worlds = None


class Host:
    """What an architecture with agents does for those on this rank.

    Attributes that whoever derives from it sets: `config`, `transport`, `progress`, `pending`,
    `stepped`, `followed`, `depth` of lanes' traces. `goes_back`, whether `recover` may return to
    rounds before the last two; `lost`, what it could not bring back, in words.
    """

    goes_back, lost = False, ""

    config: Any
    transport: Any
    depth = 0
    progress: Any
    pending: Any
    stepped: bool
    followed: bool

    @property
    def busy_since(self) -> float:
        """When this rank last came to something new in LEARN; infinite while it waits. Local."""
        return max((agent.stepped_at for agent in self.agents), default=0.0)

    def take_agents(self, environment: Any, hosting: Partition) -> None:
        """Make this rank's agents, `hosting` of all ranks. Local."""
        lanes = Partition.balanced(self.config.parallel.lanes, self.config.parallel.agents)
        self.lanes_of_agents = lanes
        first, stop = hosting.block(self.transport.rank)
        self.agents = [
            Hosted(k, lanes, self.config, environment, self._exploring_of(k))
            for k in range(first, stop)
        ]
        self.lane_blocks = Partition(np.array([int(lanes.starts[k]) for k in hosting.starts]))

    @property
    def exploration(self) -> tuple[str, float]:
        """`epsilon` or `temperature`, and its value in the next step. Local."""
        exploring = self._exploring_of(0)
        return exploring.key, exploring.value(self.progress.lane_steps)

    def _exploring_of(self, number: int) -> Exploring:
        """How much an agent explores in which step. Local."""
        return Exploring(self.config.learn, self.config.parallel.lanes)

    def gather_lanes(self) -> np.ndarray | None:
        """Return all committed lanes, packed in order, on rank 0; None elsewhere. COLLECTIVE."""
        mine = [agent.committed.pack() for agent in self.agents]
        none = np.zeros(0, lane_dtype(self.depth))
        block = np.concatenate([none, *mine])
        return self.transport.gather_rows(block, self.lane_blocks)

    def gather_worlds(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Return what checkpoints hold of environments that are stepped, and the actions of all
        open episodes, in the order of the lanes; on rank 0, where there are any. COLLECTIVE."""
        if not self.stepped:
            return None
        mine = [agent.worlds.pack() for agent in self.agents if agent.worlds is not None]
        rows = np.concatenate([np.zeros(0, WORLD_DTYPE), *(rows for rows, _ in mine)])
        actions = np.concatenate([np.zeros(0, np.uint32), *(actions for _, actions in mine)])
        lengths = self.transport.gather(len(actions)) or [0]
        blocks = Partition(np.cumsum([0, *lengths]))
        all_rows = self.transport.gather_rows(rows, self.lane_blocks)
        all_actions = self.transport.gather_rows(actions, blocks)
        return None if all_rows is None or all_actions is None else (all_rows, all_actions)

    def restore(self, progress: Progress, lanes: np.ndarray, worlds: Any = None) -> None:
        """Take counters and all lanes of a checkpoint; rows come through `restore_rows`. Local.

        worlds : as `gather_worlds` gave it, for environments that are stepped.
        """
        self.progress = self.pending = progress
        stops = None if worlds is None else np.cumsum([0, *worlds[0]["n_actions"]])
        for agent in self.agents:
            first, stop = agent.committed.first, agent.committed.first + agent.committed.n
            mine = None
            if stops is not None:
                mine = worlds[0][first:stop], worlds[1][stops[first] : stops[stop]]
            agent.resume(lanes[first:stop], mine, progress.steps_of(agent.number))

    def abandon(self) -> None:
        """Close what belongs to this rank alone, where others were lost and memory stays. Local."""
        for agent in self.agents:
            agent.close()

    def reproducible(self) -> bool:
        """Whether the bits so far follow from the configuration alone. COLLECTIVE."""
        worlds = [agent.worlds for agent in self.agents if agent.worlds is not None]
        astray = np.array([sum(not world.matched for world in worlds)], np.int64)
        self.transport.max_int(astray)
        return self.followed and not astray[0]

