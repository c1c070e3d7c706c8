"""What `allreduce` keeps twice, so that no rank takes it along when it is lost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from distq_mpi.files import SLICE_ROWS
from distq_mpi.partition import Partition
from distq_mpi.table import Rows

if TYPE_CHECKING:
    from distq_mpi.architectures.survivable import Survivable
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

    members : numbers of the ranks as they were, in their order. blocks : of rows, one of each.
    visits : those of blocks that can be read here, uint64, by the rank they belonged to. whole :
    whether every rank has the visits of all rows.
    """

    base: Rows
    members: list[int]
    blocks: Partition
    visits: dict[int, np.ndarray]
    whole: bool

    @classmethod
    def of(cls, state: Survivable) -> Rescued:
        """Of an architecture, at its last committed round. Local."""
        return cls(state.base, state.members, state.blocks, state.held_visits(), state.whole)

    def _given(self, transport: Transport) -> tuple[dict[int, np.ndarray], np.ndarray]:
        """The blocks of visits that this rank hands out, and who does, per block. COLLECTIVE.

        Of those that can, the last: who has it is no matter.
        """
        givers = np.full(len(self.members), -1, np.int64)
        givers[list(self.visits)] = transport.rank
        transport.max_int(givers)
        return {k: v for k, v in self.visits.items() if givers[k] == transport.rank}, givers

    def complete(self, transport: Transport) -> bool:
        """Whether the visits of every block are on some rank that is left. COLLECTIVE."""
        return self.whole or bool(self._given(transport)[1].min() >= 0)

    def bring_visits(
        self, transport: Transport, visits: np.ndarray, owned: tuple[int, int], width: int
    ) -> None:
        """Fill in the visits of the rows [owned), uint64, that this rank has from now on.

        COLLECTIVE, in slices, so that nobody needs room for all of them.
        """
        if self.whole:
            (visits[:],) = self.visits.values()
            return
        given, _ = self._given(transport)
        for start in range(0, self.blocks.n, SLICE_ROWS):
            stop = min(start + SLICE_ROWS, self.blocks.n)
            found = np.zeros((stop - start, width), np.int64)
            for owner, array in given.items():
                first, last = self.blocks.block(owner)
                low, high = max(first, start), min(last, stop)
                if low < high:
                    rows = array.view(np.int64).reshape(-1, width)
                    found[low - start : high - start] = rows[low - first : high - first]
            transport.sum_int(found)  # of one rank's numbers and zeros
            low, high = max(owned[0], start), min(owned[1], stop)
            if low < high:
                mine = visits.view(np.int64).reshape(-1, width)
                mine[low - owned[0] : high - owned[0]] = found[low - start : high - start]
