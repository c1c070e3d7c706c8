"""Sums over the ranks of one host, through memory that they have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from distq_mpi.kernels.objects import LoadedKernel
from distq_mpi.kernels.rounds import room_bytes
from distq_mpi.launcher import survives_deaths

if TYPE_CHECKING:
    from distq_mpi.transport import HostMemory, Transport

ROOM_BYTES = 1 << 20
"""Of the messages of all ranks: each reads those of all others, which takes longer than messages of
the library where there are many ranks, or much to say."""
LOOKS = 2000
"""At the others, some microseconds, before a rank that waits lets others have its core."""


class Room:
    """Where all ranks of a run meet to add up a message of each, in one compiled call.

    Attributes: `sum`, a bound kernel (`rounds.sum_in_room`) which adds up the message in place.
    COLLECTIVE.
    """

    def __init__(
        self, memory: HostMemory, transport: Transport, message: np.ndarray, kernel: LoadedKernel
    ) -> None:
        self._memory = memory
        looks = 0 if transport.crowded else LOOKS
        control = np.array([transport.rank, transport.size, 0, looks], np.uint64)
        self.sum = kernel.bind(message, memory.common.view(np.int64), control)

    @classmethod
    def of(
        cls, transport: Transport, message: np.ndarray, kernel: LoadedKernel
    ) -> Room | None:
        """Return the room for this array, int64 and of the same size everywhere; None where ranks
        are on several hosts, have no memory in common or may be lost: nobody would say that one is.
        COLLECTIVE.
        """
        alone = transport.node_size < transport.size or transport.size == 1
        if alone or survives_deaths() or message.nbytes * transport.size > ROOM_BYTES:
            return None
        memory = transport.host_memory(room_bytes(message.size, transport.size), 0)
        return None if memory is None else cls(memory, transport, message, kernel)

    def close(self) -> None:
        """Free it. COLLECTIVE."""
        self._memory.close()
