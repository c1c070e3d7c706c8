"""What `allreduce` keeps twice, so that no rank takes it along when it is lost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from distq_mpi.files import SLICE_ROWS
from distq_mpi.partition import Partition
from distq_mpi.table import Rows

if TYPE_CHECKING:
    from distq_mpi.architectures.allreduce import Allreduce
    from distq_mpi.transport import Transport


@dataclass(frozen=True)
class Copies:
    """Of all agents after a committed round, on every rank.

    lanes : int64, every agent's `Lanes.raw` in their order, each padded to whole words.
    worlds : agent -> what its environments are brought back from, where they are stepped.
    """

    lanes: np.ndarray
    worlds: dict[int, Any]


@dataclass(frozen=True)
class Rescued:
    """Table and visits of the last common round, as they lie where they were before the loss.

    members : numbers of the ranks that had the blocks, in their order. own, next_to : visits of
    this rank's block and of the block of the rank before, None where all ranks have all.
    """

    base: Rows
    members: list[int]
    blocks: Partition
    place: int
    own: np.ndarray
    next_to: np.ndarray | None
    whole: bool

    @classmethod
    def of(cls, state: Allreduce) -> Rescued:
        """Of an architecture, at its last committed round. Local."""
        number = state.transport.me.number
        return cls(
            state.base, state.members, state.blocks, state.members.index(number), state.lifetime,
            state.guarded[state.current] if state.guards else None, state.whole,
        )  # fmt: skip

    def lost_rows(self, transport: Transport) -> bool:
        """Whether the visits of a block are on no rank that is left. The same on all; local."""
        if self.whole:
            return False
        left = {member.number for member in transport.members}
        n = len(self.members)
        return any(
            self.members[k] not in left and (n == 1 or self.members[(k + 1) % n] not in left)
            for k in range(n)
        )

    def bring_visits(
        self, transport: Transport, visits: np.ndarray, owned: tuple[int, int], width: int
    ) -> None:
        """Fill in the visits of the rows [owned), uint64, that this rank has from now on.

        COLLECTIVE, in slices, so that nobody needs room for all of them.
        """
        if self.whole and visits.size == self.own.size:
            visits[:] = self.own
            return
        left = {member.number for member in transport.members}
        n_states, n = self.blocks.n, len(self.members)
        held = [(self.blocks.block(self.place), self.own)]
        before = (self.place - 1) % n
        if self.next_to is not None and self.members[before] not in left:
            held.append((self.blocks.block(before), self.next_to))
        for start in range(0, n_states, SLICE_ROWS):
            stop = min(start + SLICE_ROWS, n_states)
            slice_ = np.zeros((stop - start, width), np.int64)
            for (first, last), array in held:
                low, high = max(first, start), min(last, stop)
                if low < high:
                    rows = array.view(np.int64).reshape(-1, width)
                    slice_[low - start : high - start] = rows[low - first : high - first]
            transport.sum_int(slice_)  # of one rank's numbers and zeros
            low, high = max(owned[0], start), min(owned[1], stop)
            if low < high:
                mine = visits.view(np.int64).reshape(-1, width)
                mine[low - owned[0] : high - owned[0]] = slice_[low - start : high - start]
