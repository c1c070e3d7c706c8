"""`allreduce` where there is nothing to fuse, on one table that is changed in place.

`hogwild`: all agents of one host write to one table in common memory, without locks. Each sees at
once what the others write, and where two write to a pair at the same time one of them is lost
(Recht et al. 2011): on large tables that is rare. So does an agent that is alone on one rank, where
the passes that a second table wants would go through memory; its bits are those that it has beside
ranks which look on.
"""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np

from distq_mpi.architectures.allreduce import Allreduce, counts_what_it_writes
from distq_mpi.architectures.progress import HEADER, WISHES, Agreement
from distq_mpi.architectures.schedules import settles
from distq_mpi.architectures.tiles import Tiles
from distq_mpi.errors import ConfigError
from distq_mpi.files import SLICE_ROWS
from distq_mpi.fusion import fusion_of
from distq_mpi.kernels import Kernel, fusing
from distq_mpi.kernels.step_sizes import CLOCK_LIMIT, STEP_SIZES
from distq_mpi.table import Rows, record_of

LEAST_BYTES = 1 << 25
"""Of an agent's table that is changed in place: smaller ones stay in caches, and so do copies."""


class InPlace(Allreduce):
    """The learning state of this rank, all of it in one table, of all ranks.

    Rows are changed in place: `rollback` cannot bring them back, so a round that went wrong ends
    the run. A clock counts the visits of its pair; what else there were is kept beside it, where
    there were any. A float32 value that has become infinite shows when it is next looked at.
    Raises ConfigError, on all ranks, where they are on several hosts or memory is short.
    """

    survivable = rolls_back = False

    @staticmethod
    def suits(config: Any, n_states: int, n_actions: int, size: int, stepped: bool) -> bool:
        """Whether a run under a resolved `Config` on `size` ranks learns so. Local."""
        learn, n_agents = config.learn, config.parallel.agents
        if n_agents > 1:
            return fusion_of(config).shared
        large = n_states * record_of(learn, n_actions).row_bytes >= LEAST_BYTES
        plain = counts_what_it_writes(config) and not STEP_SIZES[learn.step_size].signed
        return size == 1 and large and plain and not stepped and learn.sampling != "generative"

    @staticmethod
    def memory_bytes(config: Any, n_states: int, n_actions: int, size: int) -> dict[str, int]:
        """As `Allreduce.memory_bytes`: each rank's share of what the host has once. Local."""
        found = Allreduce.memory_bytes(config, n_states, n_actions, size)
        table = n_states * record_of(config.learn, n_actions).row_bytes
        return {"table": -(-table // size), "lanes": found["lanes"]}

    @staticmethod
    def requests(config: Any, environment: Any) -> dict[str, Kernel]:
        """As `Allreduce.requests`."""
        found = Allreduce.requests(config, environment)
        del found["adopt"]
        record = record_of(config.learn, environment.n_actions)
        parts = {"WIDTH": record.width, "CLOCK_STRIDE": record.clock_stride,
                 "CLOCK_OFFSET": record.clock_offset}  # fmt: skip
        clock, found_most = np.zeros(1, np.uint32), np.zeros(1, np.int64)
        return {**found, "largest": Kernel(fusing.largest, parts, (clock, found_most))}

    def _allocate_sums(self, block: tuple[int, int]) -> None:
        """The table, which every rank takes memory for where its block is."""
        transport = self.transport
        self.whole, self.counts, self.owned = False, False, block
        n_bytes = self.n_states * self.record.row_bytes
        self.memory = transport.host_memory(0, 0, n_bytes) if transport.size > 1 else None
        if transport.size > 1 and (self.memory is None or self.memory.across[1:]):
            hosts = len(set(transport.hosts))
            mistake = ConfigError(
                f"parallel.fusion: hogwild needs all ranks on one host, with room for the table "
                f"({n_bytes} bytes) in /dev/shm; here are {hosts} host{'s' * (hosts > 1)}"
            )
            mistake.agreed = True
            raise mistake
        common = None if self.memory is None else self.memory.common
        self.replica = Rows(self.record, self.n_states, common)
        self.tables = [self.replica] * 2
        self.replica.between(*block).raw[:] = 0  # given now, not page by page while learned on
        self.tiles = Tiles(self.n_states, self.width, False)
        self.agreed, self.parts = np.zeros(HEADER, np.int64), {}
        self.header = self.agreed
        self.uncounted: np.ndarray | None = None
        """Visits of this rank's block, int64 (n, width), that its clocks do not show; None: 0."""
        self._in_round, self._waited_until = False, 0.0

    def _allocate_lifetimes(self) -> None:
        """Clocks count them."""
        self.guards = False

    def learn(self) -> None:
        """LEARN: every hosted agent steps its lanes on the table, beside all others. COLLECTIVE."""
        begin, self._waited_until = time.perf_counter(), math.inf
        self._meet()  # who reads what was committed has done so
        self._waited_until = time.perf_counter()
        self.exchange_time_s += self._waited_until - begin
        self._in_round = True
        self.header[:] = 0
        n_steps = self.steps_of_round()
        for k, agent in enumerate(self.agents):
            agent.lanes.copy_from(agent.committed)
            agent.learn(self._bind("learn", k), self.progress.lane_steps + 1, n_steps)
            self._call("report", k)
        self._n_steps = n_steps

    def exchange(self, wishes: tuple[bool, bool, bool]) -> Agreement:
        """AGREE, after which nobody writes any more. COLLECTIVE."""
        self.header[WISHES] = wishes
        self._sum_agreed()
        agreement = self._agree(Agreement.read(self.header))
        if settles(self.progress.steps, self.pending.steps):
            self._settle()
        return agreement

    def commit(self) -> None:
        """Count the round. Local."""
        for agent in self.agents:
            agent.commit()
        self.progress, self._in_round = self.pending, False

    def rollback(self) -> int:
        """Forget lanes and counters of the round in progress; its rows stay as they are. Local."""
        self.followed, self._in_round = self.followed and not self._in_round, False
        return super().rollback()

    @property
    def busy_since(self) -> float:
        """As `Host.busy_since`."""
        return max(super().busy_since, self._waited_until)

    def reproducible(self) -> bool:
        """Where several write, bits depend on who was faster. COLLECTIVE."""
        return self.n_agents == 1 and super().reproducible()

    def _visits_of(self, first: int, stop: int) -> np.ndarray:
        found = self.base.clock[first:stop].astype(np.int64)
        if self.uncounted is not None:
            found += self.uncounted[first - self.owned[0] : stop - self.owned[0]]
        return found.view(np.uint64)

    def _take_visits(self, first: int, stop: int, visits: np.ndarray) -> None:
        beyond = visits.view(np.int64) - self.base.clock[first:stop]
        if self.uncounted is not None or beyond.any():
            self._beside()[first - self.owned[0] : stop - self.owned[0]] = beyond

    def _settle(self) -> None:
        """Clocks beyond their limit return to it. COLLECTIVE."""
        block, most = self.replica.between(*self.owned), np.zeros(1, np.int64)
        self.kernels["largest"](block.clock_words, most)
        if most[0] > CLOCK_LIMIT:
            self._cut(block)
        self._meet()

    def _cut(self, block: Rows) -> None:
        """Count beside the clocks what is beyond their limit. Local."""
        uncounted = self._beside()
        for start in range(0, block.n_rows, SLICE_ROWS):
            clock = block.clock[start : start + SLICE_ROWS]
            kept = np.minimum(clock, CLOCK_LIMIT)
            if (clock > kept).any():  # what nobody writes to takes no memory
                uncounted[start : start + SLICE_ROWS] += clock - kept
                clock[...] = kept

    def _beside(self) -> np.ndarray:
        """`uncounted`, made where there was none. Local."""
        if self.uncounted is None:
            self.uncounted = np.zeros((self.owned[1] - self.owned[0], self.width), np.int64)
        return self.uncounted

    def _meet(self) -> None:
        if self.memory is not None:
            self.memory.barrier()
