"""The committed table as everything above the architectures sees it: the rows that a rank holds,
and how those of others reach it, a slice at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from distq_mpi.files import SLICE_ROWS
from distq_mpi.partition import Partition
from distq_mpi.table import Rows, slice_sha256, table_sha256

if TYPE_CHECKING:
    from distq_mpi.transport import Transport


@dataclass(frozen=True)
class Slice:
    """Consecutive rows as kernels take them; valid until the next slice is asked for.

    Parameters
    ----------
    start, stop : states.
    q : flat policy values; those of state s begin at (s - start) * stride.
    visited : uint32 (stop - start, A), 0 where never learned from.
    """

    start: int
    stop: int
    q: np.ndarray
    stride: int
    visited: np.ndarray


class Holding:
    """What one rank holds of a table, and its way to the rest.

    Parameters
    ----------
    rows : this rank's rows, changed by whoever owns them; its first is state `first`.
    blocks : which rank holds what; None where every rank holds the whole table.
    transport : over all ranks.
    """

    def __init__(
        self, rows: Rows, first: int, blocks: Partition | None, transport: Transport
    ) -> None:
        self.rows, self.first, self.blocks, self.transport = rows, first, blocks, transport

    @property
    def n_states(self) -> int:
        """Rows of the whole table."""
        return self.rows.n_rows if self.blocks is None else self.blocks.n

    def slices(self, wanted: Partition) -> Iterator[Slice]:
        """Yield slices that cover this rank's block of `wanted`, in order; COLLECTIVE.

        Every rank must exhaust it. Nothing is sent and nothing copied where every rank holds all.
        """
        for start, rows in self._pieces(wanted):
            if rows.n_rows:
                q, stride = rows.policy_table()
                yield Slice(start, start + rows.n_rows, q, stride, rows.visited())

    def stream(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yield (start, q, clock), (n, width) each, of all rows in slices of 65,536; on rank 0, and
        empty elsewhere. COLLECTIVE: exhaust it everywhere."""
        wanted = Partition([0, *[self.n_states] * self.transport.size])
        for start, rows in self._pieces(wanted, SLICE_ROWS):
            yield start, rows.values, rows.clock

    def sha256(self) -> str:
        """`table_sha256` of the whole, on every rank. COLLECTIVE.

        Every rank hashes the slices that begin in its block.
        """
        if self.blocks is None:
            return table_sha256(self.rows.part_slices())
        slices = Partition(-(-self.blocks.starts // SLICE_ROWS))
        wanted = Partition(np.minimum(slices.starts * SLICE_ROWS, self.n_states))
        n_parts = self.rows.record.n_parts
        found = [
            b"".join(slice_sha256(rows.part(k)) for k in range(n_parts))
            for _, rows in self._pieces(wanted)
            if rows.n_rows
        ]
        digests = np.frombuffer(b"".join(found), np.uint8).reshape(-1, n_parts, 32)
        gathered = self.transport.gather_rows(digests, slices)
        told = None
        if gathered is not None:
            told = hashlib.sha256(gathered.transpose(1, 0, 2).tobytes()).hexdigest()
        return str(self.transport.broadcast(told))

    def take(self, start: int, stop: int, stored: Any) -> None:
        """Write rows [start, stop) on those that hold them, where blocks are. COLLECTIVE.

        stored : on rank 0 their q and clock, (stop - start, width) each; None elsewhere.
        """
        assert self.blocks is not None
        rank, record = self.transport.rank, self.rows.record
        rows = Rows(record, stop - start if rank == 0 else 0)
        if rank == 0:
            rows.values[...], rows.clock[...] = stored[0], stored[1]
        borders = np.clip(self.blocks.starts, start, stop)
        counts, coming = np.diff(borders), np.zeros(self.transport.size, np.int64)
        coming[0] = counts[rank]
        if rank > 0:
            counts = np.zeros_like(counts)
        low = int(borders[rank]) - self.first if coming[0] else 0
        mine = self.rows.raw.reshape(-1, record.row_bytes)[low : low + int(coming[0])]
        self.transport.move_rows(
            rows.raw.reshape(-1, record.row_bytes), borders[:-1] - start, counts, mine, coming
        )

    def values_of(self, states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return policy values, float64 (n, A), and `visited`, (n, A), of states, int64 (n,).

        COLLECTIVE where not every rank holds all; every rank asks for states of its own, or none.
        """
        if self.blocks is None:
            return self.rows.policy_values(states), self.rows.visited()[states]
        size, n_actions = self.transport.size, self.rows.record.n_actions
        owners = self.blocks.owner(states)
        order = np.argsort(owners, kind="stable")
        asked = np.empty((len(states), 2), np.int64)
        asked[:, 0], asked[:, 1] = states[order], self.transport.rank
        came = self._sent(asked, np.bincount(owners, minlength=size))
        local = came[:, 0] - self.first
        answer = np.empty((len(came), 2 * n_actions), np.int64)
        values = np.ascontiguousarray(self.rows.policy_values(local), np.float64)
        answer[:, :n_actions] = values.view(np.int64)
        answer[:, n_actions:] = self.rows.visited()[local]
        found = np.empty((len(states), 2 * n_actions), np.int64)
        found[order] = self._sent(answer, np.bincount(came[:, 1], minlength=size))
        values = np.ascontiguousarray(found[:, :n_actions]).view(np.float64)
        return values, found[:, n_actions:].astype(np.uint32)

    def _sent(self, rows: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Send int64 (n, w) to the peers in turn; return what comes, in their order."""
        told = rows.view(np.uint8).reshape(len(rows), 8 * rows.shape[1])
        came = self.transport.redistribute(told, np.cumsum(counts) - counts, counts)
        return came.view(np.int64).reshape(-1, rows.shape[1])

    def _pieces(
        self, wanted: Partition, n_rows: int = SLICE_ROWS
    ) -> Iterator[tuple[int, Rows]]:
        """Yield (first state, rows) that cover this rank's block of `wanted`; COLLECTIVE.

        Where others hold rows they travel as they lie in memory, all ranks' k-th pieces at once;
        ranks that want less get empty pieces, or none where every rank holds all.
        """
        rank, record = self.transport.rank, self.rows.record
        if self.blocks is None:
            yield from self._views(*wanted.block(rank), n_rows)
            return
        starts, stops = wanted.starts[:-1], wanted.starts[1:]
        row_bytes = record.row_bytes
        raw = self.rows.raw.reshape(-1, row_bytes)
        most = int(wanted.counts.max(initial=0))
        scratch = np.zeros((min(n_rows, most), row_bytes), np.uint8)
        for k in range(0, most, n_rows):
            lows, highs = np.minimum(starts + k, stops), np.minimum(starts + k + n_rows, stops)
            mine = self.blocks.block(rank)
            begins, ends = np.clip(lows, *mine), np.clip(highs, *mine)
            borders = np.clip(self.blocks.starts, lows[rank], highs[rank])
            here = int(highs[rank] - lows[rank])
            self.transport.move_rows(
                raw, begins - self.first, ends - begins, scratch[:here], np.diff(borders)
            )
            yield int(lows[rank]), Rows(record, here, scratch[:here].reshape(-1))

    def _views(self, start: int, stop: int, n_rows: int) -> Iterator[tuple[int, Rows]]:
        for first in range(start, stop, n_rows):
            yield first, self.rows.between(first, min(first + n_rows, stop))
