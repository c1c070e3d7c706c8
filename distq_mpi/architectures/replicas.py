"""Fusion without sums: owners look at every agent's replica themselves.

Where no rank hosts two agents there is nothing to add up beforehand. An owner reads what every
agent made of its rows, fuses them in cache, and writes the next table. On one host replicas lie in
memory that the ranks have in common. Where every rank has a host of its own, or there is no such
memory, the rows that somebody has touched travel to their owners, and back when they are fused. The
numbers are those of the sums that other ways send, and so are the bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from distq_mpi.architectures.progress import Agreement
from distq_mpi.architectures.schedules import LENGTH_UNIT
from distq_mpi.architectures.survivable import Survivable
from distq_mpi.architectures.tiles import Tiles
from distq_mpi.kernels import chunks
from distq_mpi.kernels.objects import LoadedKernel
from distq_mpi.partition import Partition
from distq_mpi.table import Record, Rows

FEW_BYTES = 1 << 17
"""Sums that are rather reduced whole: a small table's round waits for calls, not for its pairs."""
REPLICA_BYTES = 8 << 20
"""The largest replica in memory that ranks have in common: most often it is on small pages, of
which a core knows some thousand at a time."""
MOST_READ = 2
"""Tables of rows that one owner may get by message; where it would be more, sums are sent."""
LINE_BYTES = 64
NO_TOTALS = np.zeros(3)


def owners_read(hosting: Partition, table_bytes: int, fewest: int, most: int) -> bool:
    """Whether owners read replicas, if hosts have room for memory in common; else sums are made.

    hosting : agents of ranks; fewest, most : ranks of the hosts with fewest and most. Local.
    """
    size = hosting.counts.size
    if size == 1 or hosting.counts.max() > 1:
        return False
    return table_bytes <= REPLICA_BYTES if fewest == size else most == 1


class ReadReplicas(Survivable):
    """The fusion of replicas that owners read; `Allreduce` sets the attributes declared.

    Attributes: `reads`, whether this is how this run fuses now; `replica`, of this rank's agent.
    """

    reads = False
    hosting: Partition
    replica: Rows
    record: Record
    n_states: int
    header: np.ndarray
    agreed: np.ndarray
    control: np.ndarray
    rates: np.ndarray
    unstable: np.ndarray
    marks: np.ndarray
    marking: bool
    sums: np.ndarray
    work: tuple[np.ndarray, np.ndarray]
    kernels: dict[str, LoadedKernel]
    lifetimes: list[np.ndarray]
    _wanted_bytes = 0
    """Of memory in common that was asked for last."""
    _bound: dict[tuple[str, int, int], Any]

    def _allocate_replicas(self, sparse: bool, sums_bytes: int) -> bool:
        """Make room for tables, and for replicas where owners read them; False where sums are
        better, with memory of the host for these if there is any. COLLECTIVE.

        sparse : whether rows that a round changes are those whose visits it counts. sums_bytes : of
        sums that a rank would need.
        """
        transport, n_bytes = self.transport, self.n_states * self.record.row_bytes
        common, padded = None, self._padded_bytes
        if self.hosting.counts.max() > 1:
            return False
        # Hosts as MPI sees them: some have equal names.
        nodes = np.array([-transport.node_size, transport.node_size], np.int64)
        transport.max_int(nodes)
        reads = owners_read(self.hosting, n_bytes, -int(nodes[0]), int(nodes[1]))
        if -nodes[0] == transport.size > 1:
            self._share_memory(self.n_agents if reads else 0, 0 if reads else sums_bytes)
            if self.memory is not None:
                if not reads:
                    return False
                common = self.memory.common
        elif not reads:
            return False
        if common is None and self.n_agents * self.blocks.counts.max() > MOST_READ * self.n_states:
            return False
        slots: list[Any] = [None] * (self.n_agents + 2)
        if common is not None:
            slots = [common[k * padded : k * padded + n_bytes] for k in range(len(slots))]
        self.tables = [Rows(self.record, self.n_states, slot) for slot in slots[:2]]
        mine = self.agents[0].number if self.agents else 0
        self.replica = Rows(self.record, self.n_states, slots[2 + mine])
        self.tiles = Tiles(self.n_states, self.width, sparse)
        self._places = np.zeros(self._n_tiles, np.uint64)
        first, stop = self.blocks.block(transport.rank)
        if common is None:
            self._received = Rows(self.record, (stop - first) * self.n_agents)
        else:
            n_rows = self.n_agents * self._slot_rows
            self._received = Rows(self.record, n_rows, common[2 * padded :])
            if sparse:
                self.tiles.touched = self._touched_of(transport.node_rank)
        self.tiles.renewed = common is not None
        self._found = np.zeros(5)
        return True

    def _share_memory(self, n_replicas: int, sums_bytes: int) -> None:
        """Get memory of the host for two tables and for replicas, and for each rank's sums, visits
        and flags, if there is any. COLLECTIVE."""
        self._sums_words = sums_bytes // 8
        self._visits_words = 2 * int(self.blocks.counts.max()) * self.width * self.protects
        own = sums_bytes + 8 * self._visits_words + -(-self._n_tiles // 8) * 8
        padded = self._padded_bytes
        self._wanted_bytes = (2 + n_replicas) * padded + self.transport.node_size * own
        self.memory = self.transport.host_memory(2 * padded, own, n_replicas * padded)

    @property
    def _padded_bytes(self) -> int:
        """Bytes from one table or replica to the next."""
        return self._slot_rows * self.record.row_bytes

    @property
    def _n_tiles(self) -> int:
        return Tiles.number(self.n_states, self.width)

    @property
    def _slot_rows(self) -> int:
        """Rows from one table or replica to the next, of whole cache lines."""
        each = max(1, LINE_BYTES // self.record.row_bytes)
        return -(-self.n_states // each) * each

    def _touched_of(self, node_rank: int) -> np.ndarray:
        """Flags of the tiles that the agents of a rank of this host have touched."""
        assert self.memory is not None
        flags = self.memory.own[node_rank][8 * (self._sums_words + self._visits_words) :]
        return flags[: self._n_tiles]

    def _contributed(self) -> None:
        """Say which tiles the agent here has touched. Local."""
        if self.tiles.sparse:
            self.tiles.touched[:] = self.marks != 0 if self.marking else 1

    def _fuse_replicas(self) -> Agreement:
        """MOVE, FUSE, SHARE, and AGREE, in which who has fused waits for all. COLLECTIVE."""
        if self.memory is not None:
            self.memory.barrier()  # all have learned
            if self.tiles.sparse:
                ranks = range(self.transport.node_size)
                self.tiles.meet([self._touched_of(rank) for rank in ranks])
        else:
            self._meet_apart()
            self._move_rows()
        self._call_fusion()
        self._share_rows()
        return Agreement.read(self.header)

    def _share_rows(self) -> None:
        """Everybody gets the rows that others have fused, and agrees. COLLECTIVE."""
        if self.memory is None:
            self._share_apart()
        self._sum_agreed()

    def _sum_agreed(self) -> None:
        """AGREE, after which the ranks of a host see what all of them wrote before. COLLECTIVE."""
        if self.memory is not None:
            self.memory.seen()
        self.transport.sum_int(self.agreed)
        if self.memory is not None:
            self.memory.seen()

    def _call_fusion(self) -> None:
        key = ("fuse_replicas", 0, self.current)
        if key not in self._bound:
            fresh, base, read = self.tables[1 - self.current], self.base, self._received
            if self.memory is not None:
                self.control[chunks.SLOT] = self._slot_rows
                self.control[chunks.RENEWS] = 1 if self.tiles.sparse else 2
            fusing = self.kernels["fuse_replicas"].bind(
                fresh.q, fresh.clock_words, base.q, base.clock_words, read.q, read.clock_words,
                self.lifetime, self.lifetimes[1 - self.current], self.control, self.rates,
                self._found, self.unstable, self.tiles.changed, self.tiles.due, self._places,
                *self.work,
            )  # fmt: skip
            reporting = self.kernels["report"].bind(
                self._found, NO_TOTALS, self.header, self.n_agents, LENGTH_UNIT
            )
            self._bound[key] = self.kernels["in_turn"].bind_calls([fusing, reporting])
        self._bound[key]()

    def _meet_apart(self) -> None:
        """Learn which tiles anybody has touched. COLLECTIVE.

        Nobody comes out of this before all have committed the round before: who has no rows to send
        would be waited for by none of the messages that follow, and the table that they lead to is
        the one of two rounds ago, to which those left return when ranks are lost.
        """
        sparse = self.tiles.sparse
        flags = self.tiles.touched.astype(np.int64) if sparse else np.zeros(1, np.int64)
        self.transport.max_int(flags)
        if sparse:
            if 2 * np.count_nonzero(flags) > flags.size:  # copies of them would be half a table
                flags[:] = 1
            self.tiles.meet([flags.astype(np.uint8)])

    def _move_rows(self) -> None:
        """Send what the agent here made of rows to their owners. COLLECTIVE."""
        transport, row_bytes = self.transport, self.record.row_bytes
        counts, packed = self._packed(self.replica)
        mine = int(counts[transport.rank])
        n_hosted = np.minimum(self.hosting.counts, 1)
        sent = counts if self.agents else np.zeros_like(counts)
        transport.move_rows(
            packed, np.cumsum(counts) - counts, sent,
            self._received.raw[: self.n_agents * mine * row_bytes].reshape(-1, row_bytes),
            mine * n_hosted,
        )  # fmt: skip
        self.control[chunks.SLOT] = mine
        place = 0
        for first, stop in self._changed_runs(transport.rank):
            for tile in range(first // self.tiles.rows, -(-stop // self.tiles.rows)):
                low, high = max(first, tile * self.tiles.rows), (tile + 1) * self.tiles.rows
                self._places[tile] = (place - low) % 2**64
                place += min(high, stop) - low

    def _share_apart(self) -> None:
        """Give everybody the rows that are fused here; bring the others of the next table up to
        date. COLLECTIVE."""
        fresh, base, row_bytes = self.tables[1 - self.current], self.base, self.record.row_bytes
        if not self.tiles.sparse:
            self.transport.allgather_rows(fresh.raw, self.blocks)
            return
        stale = self.tiles.due & ~self.tiles.changed & 1
        for first, stop in self.tiles.runs(stale, 0, self.n_states):
            rows = slice(first * row_bytes, stop * row_bytes)
            fresh.raw[rows] = base.raw[rows]
        counts, packed = self._packed(fresh)
        borders = Partition(np.cumsum([0, *counts]))
        self.transport.allgather_rows(packed, borders)
        if borders.n == self.n_states:
            return
        place, table = 0, fresh.raw.reshape(-1, row_bytes)
        for owner in range(self.transport.size):
            for first, stop in self._changed_runs(owner):
                if owner != self.transport.rank:
                    table[first:stop] = packed[place : place + stop - first]
                place += stop - first

    def _changed_runs(self, owner: int) -> list[tuple[int, int]]:
        """Rows of an owner's block that somebody has touched, in runs."""
        found = self.tiles.runs(self.tiles.changed, *self.blocks.block(owner))
        return [(first, stop) for first, stop in found if first < stop]

    def _packed(self, table: Rows) -> tuple[np.ndarray, np.ndarray]:
        """How many rows of each block somebody has touched, and all of these, one after the other:
        the table itself where that is all of them."""
        rows = table.raw.reshape(self.n_states, -1)
        runs = [self._changed_runs(owner) for owner in range(self.transport.size)]
        counts = np.array([sum(stop - first for first, stop in block) for block in runs])
        if counts.sum() == self.n_states:
            return counts, rows
        return counts, np.concatenate(
            [rows[first:stop] for block in runs for first, stop in block] or [rows[:0]]
        )
