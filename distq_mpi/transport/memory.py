"""Memory that the ranks of a host have in common."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from typing import Any

import numpy as np
from mpi4py import MPI

from distq_mpi.partition import Partition
from distq_mpi.transport.collectives import allgather_rows, sum_to_owners

SHM_RESERVE = 16 << 20
PAGE = 4096
HUGE_BYTES = 16 << 20
"""Of memory for which pages of 2 MB are asked: random rows of large tables are found faster."""


class HostMemory:
    """Memory that all ranks of a host see, where every host has as many ranks.

    Attributes: `common` uint8, of the host, the last `replica_bytes` of which are for whoever
    writes there first (fresh memory is zero); `own`, the parts of the host's ranks in their order,
    uint8 each, zero at first; `ranks`, those of this host, and `across`, the ranks of the run with
    this rank's place on their hosts, one on each host; both in order. Whoever writes and whoever
    reads meet in `barrier`, or in a collective of all ranks and then `seen`, between the one and
    the other.
    """

    def __init__(
        self, node: Any, across: Any, rank: int, common_bytes: int, own_bytes: int,
        replica_bytes: int,
    ) -> None:  # fmt: skip
        self._node, self._across = node, across
        self.across: list[int] = across.allgather(rank)
        self.ranks: list[int] = node.allgather(rank)
        whole = common_bytes + replica_bytes
        padded = -(-whole // PAGE) * PAGE if node.rank == 0 else 0
        info = MPI.Info.Create({"alloc_shared_noncontig": "true"})
        self._window = MPI.Win.Allocate_shared(padded + own_bytes, 1, info=info, comm=node)
        info.Free()
        self._window.Lock_all()
        parts = []
        for rank in range(node.size):
            memory: Any = self._window.Shared_query(rank)[0]
            parts.append(np.frombuffer(memory, np.uint8))
            _ask_for_large_pages(parts[-1])
        padded = -(-whole // PAGE) * PAGE
        self.common = parts[0][:whole]
        self.own = [parts[0][padded:], *parts[1:]]
        self.own[node.rank][:] = 0  # memory lies near whoever writes to it first
        if node.rank == 0:
            self.common[:common_bytes] = 0
        self.barrier()

    def seen(self) -> None:
        """See what others wrote before the collective that has just ended. Local."""
        self._window.Sync()

    def barrier(self) -> None:
        """Wait for the ranks of this host; then all see what all wrote. COLLECTIVE on the host."""
        self._window.Sync()
        self._node.Barrier()
        self._window.Sync()

    def sum_across(self, array: np.ndarray, partition: Partition) -> np.ndarray:
        """`Transport.sum_to_owners` over the ranks in this one's place on their hosts."""
        return sum_to_owners(self._across, array, partition)

    def allgather_across(self, array: np.ndarray, partition: Partition) -> None:
        """`Transport.allgather_rows` over the ranks in this one's place on their hosts."""
        allgather_rows(self._across, array, partition)

    def close(self) -> None:
        """Free it; the arrays are gone. COLLECTIVE."""
        self._window.Unlock_all()
        self._window.Free()
        self._across.Free()


def _ask_for_large_pages(memory: np.ndarray) -> None:
    """Have them where /dev/shm is mounted with `huge=advise`; elsewhere nothing changes. Local."""
    if memory.size >= HUGE_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
        first = -(-memory.ctypes.data // PAGE) * PAGE
        size = memory.ctypes.data + memory.size - first
        libc = ctypes.CDLL(None)
        libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(size), mmap.MADV_HUGEPAGE)


def room_in_shm() -> float:
    """Free bytes of /dev/shm; none can be counted where it is missing."""
    with contextlib.suppress(OSError):
        stat = os.statvfs("/dev/shm")
        return float(stat.f_bavail * stat.f_frsize)
    return float("inf")
