"""`hogwild`: all agents of one host write to one table in common memory, without locks.

Nothing is fused. Each sees at once what the others write, and where two write to a pair at the same
time one of them is lost (Recht et al. 2011): on large tables that is rare. At the end of a round
every rank takes over its block, so that a round that broke can be forgotten and what is committed
is whole.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from distq_mpi.architectures.allreduce import Allreduce
from distq_mpi.architectures.progress import HEADER, WISHES, Agreement, Progress, add_agent
from distq_mpi.architectures.replicas import LINE_BYTES
from distq_mpi.architectures.schedules import LENGTH_UNIT
from distq_mpi.architectures.tiles import Tiles
from distq_mpi.errors import ConfigError
from distq_mpi.kernels import loop
from distq_mpi.table import Rows, record_of

NO_TOTALS = np.zeros(3)
NOTHING_FOUND = np.zeros(5)


class Hogwild(Allreduce):
    """The learning state of this rank, most of it in memory that the ranks have in common.

    `replica` is the table that all agents learn on; the bases of even and odd rounds lie beside it.
    Raises ConfigError, on all ranks, where they are on several hosts or memory is short.
    """

    survivable = False

    @staticmethod
    def memory_bytes(config: Any, n_states: int, n_actions: int, size: int) -> dict[str, int]:
        """As `Allreduce.memory_bytes`: each rank's share of what the host has once. Local."""
        record = record_of(config.learn, n_actions)
        found = Allreduce.memory_bytes(config, n_states, n_actions, size)
        table = -(-n_states * record.row_bytes // size)
        visits = -(-2 * n_states * record.width * 8 // size)
        return {"replica": table, "base": 2 * table, "visits": visits, "lanes": found["lanes"]}

    def _allocate_sums(self, block: tuple[int, int]) -> None:
        """The three tables, and the visits of a round to this rank's block."""
        transport = self.transport
        self.whole, self.owned, self._stale = False, block, True
        n_bytes = self.n_states * self.record.row_bytes
        padded = -(-n_bytes // LINE_BYTES) * LINE_BYTES
        self.memory = transport.host_memory(3 * padded, 0) if transport.size > 1 else None
        if transport.size > 1 and (self.memory is None or self.memory.across[1:]):
            hosts = len(set(transport.hosts))
            mistake = ConfigError(
                f"parallel.fusion: hogwild needs all ranks on one host, with room for three tables "
                f"({3 * padded} bytes) in /dev/shm; here are {hosts} host{'s' * (hosts > 1)}"
            )
            mistake.agreed = True
            raise mistake
        parts: list[Any] = [None] * 3
        if self.memory is not None:
            common = self.memory.common
            parts = [common[k * padded : k * padded + n_bytes] for k in range(3)]
        self.replica, *self.tables = (Rows(self.record, self.n_states, part) for part in parts)
        self.tiles = Tiles(self.n_states, self.width, False)
        self.agreed = np.zeros(HEADER, np.int64)
        self.header, self.kept = self.agreed, self.agreed[HEADER:]
        self.found, self.sums = np.zeros(5), self.agreed[HEADER:]
        self._owned_visits = np.zeros((block[1] - block[0]) * self.width, np.int64)
        self.parts: dict[str, np.ndarray] = {}

    def learn(self) -> None:
        """LEARN: every hosted agent steps its lanes on the common table, beside all others."""
        self.header[:] = 0
        if self._stale:
            own = self._own_rows()
            self.replica.raw[own] = self.base.raw[own]
            self._meet()
            self._stale = False
        n_steps = self.steps_of_round()
        for k, agent in enumerate(self.agents):
            agent.lanes.copy_from(agent.committed)
            agent.control[loop.EXPLORE] = self._explore_of(agent.number)
            agent.learn(self._bind("learn", k), self.progress.lane_steps + 1, n_steps)
            add_agent(self.header, NOTHING_FOUND, agent.totals, LENGTH_UNIT, self.n_agents)
        self._n_steps = n_steps

    def exchange(self, wishes: tuple[bool, bool, bool]) -> Agreement:
        """Take over this rank's block of what all have written, and AGREE. COLLECTIVE."""
        self._meet()  # nobody writes any more
        self._call("adopt", 0)
        add_agent(self.header, self.found, NO_TOTALS, LENGTH_UNIT, self.n_agents)
        self.header[WISHES] = wishes
        self.transport.sum_int(self.agreed)
        if self.memory is not None:
            self.memory.seen()
        return self._agree(Agreement.read(self.header))

    def rollback(self) -> int:
        """As `Allreduce.rollback`; the common table is brought back when the next round begins."""
        self._stale = True
        return super().rollback()

    def restore(self, progress: Progress, lanes: np.ndarray, worlds: Any = None) -> None:
        """As `Allreduce.restore`."""
        self._stale = True
        super().restore(progress, lanes, worlds)

    def reproducible(self) -> bool:
        """It depends on who was faster."""
        return False

    def _own_rows(self) -> slice:
        first, stop = (row * self.record.row_bytes for row in self.owned)
        return slice(first, stop)

    def _meet(self) -> None:
        if self.memory is not None:
            self.memory.barrier()

    def _arguments(self, name: str, k: int) -> tuple[Any, ...]:
        if name != "adopt":
            return super()._arguments(name, k)
        n_rows, own = self.owned[1] - self.owned[0], self._own_rows()
        fresh, base, learned = (
            Rows(self.record, n_rows, table.raw[own])
            for table in (self._next, self.base, self.replica)
        )
        return (fresh.q, fresh.clock_words, base.clock_words, learned.q, learned.clock_words,
                self._owned_visits, self.found)  # fmt: skip
