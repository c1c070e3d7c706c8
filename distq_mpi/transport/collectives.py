"""What all ranks do together: sums, copies, rows that change their owners."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from mpi4py import MPI

from distq_mpi.partition import Partition

CHUNK_ELEMENTS = 1 << 20
MESSAGE_BYTES = 64 << 20
SHIFT_TAG = 4
NAPS_S = 1e-4, 1e-2
"""The first nap of a rank that waits, and the longest."""


class Collectives:
    """Collectives over `_comm`; every method is COLLECTIVE unless it says otherwise."""

    _comm: MPI.Intracomm
    _node: Any
    rank: int
    size: int
    crowded: bool
    """Whether this host has more ranks than cores."""

    def come_together(self, comm: Any = None) -> None:
        """Leave the cores to those that all wait for, where there are too few of them.

        A rank that waits in a message keeps its core busy: 63 of them would leave the one that
        reads the command line a thirty-second part of two cores.
        """
        if self.crowded:
            request, nap_s = (comm or self._comm).Ibarrier(), NAPS_S[0]
            while not request.Test():
                time.sleep(nap_s)
                nap_s = min(2 * nap_s, NAPS_S[1])

    def barrier(self) -> None:
        """Wait until all ranks have called this.

        As after `sum_int`, `max_int`, `max_float` and `gather_everywhere`, all ranks have then come
        so far. After the other collectives they need not have: the root of a broadcast, and a rank
        that only sends or gets no rows, may leave before another rank has entered.
        """
        self._comm.Barrier()

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's object on every rank (pickled; for setup and rare events)."""
        self.come_together()
        return self._comm.bcast(value, root=0)

    def broadcast_on_node(self, value: Any) -> Any:
        """Return the node leader's object on every rank of the node. COLLECTIVE on the node."""
        self.come_together(self._node)
        return self._node.bcast(value, root=0)

    def gather(self, value: Any) -> list[Any] | None:
        """Return every rank's object on rank 0, None elsewhere (pickled)."""
        return self._comm.gather(value, root=0)

    def broadcast_array(self, array: np.ndarray, root: int = 0) -> None:
        """Copy one rank's contiguous array over everybody's, in place."""
        flat = array.reshape(-1).view(np.uint8)
        for start in range(0, flat.size, 1 << 30):
            self._comm.Bcast([flat[start : start + (1 << 30)], MPI.BYTE], root=root)

    def gather_everywhere(self, value: Any) -> list[Any]:
        """Return every rank's object on every rank (pickled)."""
        self.come_together()
        return self._comm.allgather(value)

    def shift(self, array: np.ndarray, received: np.ndarray, distance: int = 1) -> None:
        """Send a contiguous array to the rank so far on; fill `received` with what comes from the
        one as far back."""
        above, below = (self.rank + distance) % self.size, (self.rank - distance) % self.size
        request = self._comm.Irecv([received.view(np.uint8), MPI.BYTE], below, SHIFT_TAG)
        self._comm.Send([array.view(np.uint8), MPI.BYTE], above, SHIFT_TAG)
        request.Wait()

    def send_array(self, array: np.ndarray, rank: int) -> None:
        """Send a contiguous array to a rank that calls `receive_array`. Local to the two."""
        flat = array.reshape(-1).view(np.uint8)
        for start in range(0, flat.size, MESSAGE_BYTES):
            self._comm.Send([flat[start : start + MESSAGE_BYTES], MPI.BYTE], rank)

    def receive_array(self, array: np.ndarray, rank: int) -> None:
        """Fill a contiguous array of the same size with what a rank sends. Local to the two."""
        flat = array.reshape(-1).view(np.uint8)
        for start in range(0, flat.size, MESSAGE_BYTES):
            self._comm.Recv([flat[start : start + MESSAGE_BYTES], MPI.BYTE], rank)

    def sum_int(self, array: np.ndarray) -> None:
        """Add int64 arrays of all ranks, in place."""
        self._comm.Allreduce(MPI.IN_PLACE, [array, MPI.INT64_T], op=MPI.SUM)

    def max_int(self, array: np.ndarray) -> None:
        """Elementwise maximum of int64 arrays, in place."""
        self._comm.Allreduce(MPI.IN_PLACE, [array, MPI.INT64_T], op=MPI.MAX)

    def max_float(self, array: np.ndarray) -> None:
        """Elementwise maximum of float64 arrays without NaN, in place."""
        self._comm.Allreduce(MPI.IN_PLACE, [array, MPI.DOUBLE], op=MPI.MAX)

    def sum_to_owners(self, array: np.ndarray, partition: Partition) -> np.ndarray:
        """Add int64 arrays of n * w elements; return the sum of this rank's block, a view.

        `array` (n rows of w, flat) is overwritten. Rows are sent in chunks, so that the library's
        temporary stays in cache.
        """
        return sum_to_owners(self._comm, array, partition)

    def allgather_rows(self, array: np.ndarray, partition: Partition) -> None:
        """Give everybody every block of a contiguous array with `partition.n` rows, in place."""
        allgather_rows(self._comm, array, partition)

    def gather_rows(
        self, block: np.ndarray, partition: Partition, root: int = 0
    ) -> np.ndarray | None:
        """Return the rows of all blocks on `root`, None elsewhere; block (n, ...) of any dtype."""
        block = np.ascontiguousarray(block)
        row_bytes = block.dtype.itemsize * int(np.prod(block.shape[1:], dtype=np.int64))
        kind = MPI.BYTE.Create_contiguous(row_bytes).Commit()
        whole, receive = None, None
        if self.rank == root:
            whole = np.empty((partition.n, *block.shape[1:]), block.dtype)
            counts = (list(partition.counts), list(partition.displacements))
            receive = [whole.view(np.uint8), counts, kind]
        self._comm.Gatherv([block.view(np.uint8), len(block), kind], receive, root=root)
        kind.Free()
        return whole

    def redistribute(
        self, rows: np.ndarray, starts: np.ndarray, counts: np.ndarray
    ) -> np.ndarray:
        """Send rows [starts[p], starts[p] + counts[p]) of uint8 (n, w) to every peer p; return what
        came, in the order of the peers."""
        coming = np.empty(self.size, np.int64)
        self._comm.Alltoall([np.ascontiguousarray(counts), MPI.INT64_T], [coming, MPI.INT64_T])
        received = np.empty((int(coming.sum()), rows.shape[1]), np.uint8)
        self.move_rows(rows, starts, counts, received, coming)
        return received

    def move_rows(
        self,
        rows: np.ndarray,
        starts: np.ndarray,
        counts: np.ndarray,
        received: np.ndarray,
        coming: np.ndarray,
    ) -> None:
        """As `redistribute`, where everybody knows how many rows come from each peer: `coming`.

        received : uint8 (sum of coming, w), written.
        """
        kind = MPI.BYTE.Create_contiguous(rows.shape[1]).Commit()
        places = np.cumsum(coming) - coming
        self._comm.Alltoallv(
            [rows, (counts.tolist(), starts.tolist()), kind],
            [received, (coming.tolist(), places.tolist()), kind],
        )
        kind.Free()

    def from_rank_0(self, work: Callable[[], Any]) -> Any:
        """Return what rank 0 finds on every rank (pickled). Its exception is its own."""
        return self.broadcast(work() if self.rank == 0 else None)


def sum_to_owners(comm: MPI.Intracomm, array: np.ndarray, partition: Partition) -> np.ndarray:
    width = array.size // max(1, partition.n)
    out = None
    for rank in range(comm.size):
        start, stop = partition.block(rank)
        block = array[start * width : stop * width]
        for first in range(0, block.size, CHUNK_ELEMENTS):
            chunk = block[first : first + CHUNK_ELEMENTS]
            if rank == comm.rank:
                comm.Reduce(MPI.IN_PLACE, [chunk, MPI.INT64_T], op=MPI.SUM, root=rank)
            else:
                comm.Reduce([chunk, MPI.INT64_T], None, op=MPI.SUM, root=rank)
        if rank == comm.rank:
            out = block
    assert out is not None
    return out


def allgather_rows(comm: MPI.Intracomm, array: np.ndarray, partition: Partition) -> None:
    row = array.reshape(partition.n, -1) if partition.n else array.reshape(0, 1)
    if row.size == 0:
        return
    kind = MPI.BYTE.Create_contiguous(row.shape[1] * row.itemsize).Commit()
    counts = (list(partition.counts), list(partition.displacements))
    comm.Allgatherv(MPI.IN_PLACE, [row, counts, kind])
    kind.Free()
