"""What `parallel.protect = partner` keeps: a log of the rows that change, and a partner's copy.

Every rank keeps the committed rows of another one, on another host where there is one. Rows that
changed since the last commit go there in two phases: the partner puts them aside, and when every
rank has its own (`Transport.agree`), into the copy. Until then the rows of those that are left can
be taken back out of their logs, and those of the dead are in the copies: all as they were at one
commit. Rows are too many to be sent after every round; a commit here comes when the log is nearly
full, or after `COMMIT_STEPS` steps per row, which make it cheap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from distq_mpi.architectures.progress import Agreement, Progress
from distq_mpi.kernels import undoing
from distq_mpi.partition import Partition
from distq_mpi.table import Rows

if TYPE_CHECKING:
    from distq_mpi.transport import Transport

SMALL_BYTES = 64 << 20
"""A log may always be so large: commits of small blocks are rare, then."""
CHUNK_ROWS = 1 << 14
"""Rows that are sent at a time, in cache."""
COMMIT_STEPS = 64
"""Steps per row of the table after which a commit is due: to log, send and copy a row costs up to
eight steps, and what is made again after a loss is at most so many."""


def room_for(n_rows: int, row_bytes: int) -> int:
    """Return rows that the log of a block holds: log, what the partner puts aside and the copy take
    1.5 x the block, or the log of a small one `SMALL_BYTES`. Local."""
    half = n_rows * row_bytes // 2 - n_rows // 8 - CHUNK_ROWS * (row_bytes + 8)
    return min(n_rows, max(SMALL_BYTES // (row_bytes + 8), half // (2 * (row_bytes + 8))))


def memory_bytes(n_rows: int, row_bytes: int) -> dict[str, int]:
    """Bytes that the protection of a block takes, part by part. Local."""
    entry, capacity = row_bytes + 8, room_for(n_rows, row_bytes)
    return {
        "partner's copy": n_rows * row_bytes,
        "log of changed rows": capacity * entry + n_rows // 8,
        "changed rows of the partner": (capacity + min(n_rows, CHUNK_ROWS)) * entry,
    }


def partner_distance(hosts: Sequence[str]) -> int:
    """Return by how many ranks partners are apart: such that most are on another host. Local."""
    size = len(hosts)
    return max(
        range(1, size),
        key=lambda d: (sum(hosts[k] != hosts[(k + d) % size] for k in range(size)), -d),
    )


def slots_with_log(n_slots: int, rows: Rows, capacity: int) -> np.ndarray:
    """Return slots for lanes and, behind `n_slots` words of them, an empty log of rows. Local."""
    n_words = undoing.words_of_log(rows.n_rows, capacity, rows.record.row_bytes)
    slots = np.zeros(n_slots + n_words, np.uint64)
    slots[n_slots + undoing.CAPACITY] = capacity
    slots[n_slots + undoing.ENTRIES] = n_slots + undoing.LOG_HEAD + -(-rows.n_rows // 64)
    return slots


@dataclass(frozen=True)
class Kept:
    """What was committed beside the rows, on every rank.

    lanes, worlds : as checkpoints hold them, of all ranks. agreement : what the round agreed on.
    """

    progress: Progress
    lanes: np.ndarray
    worlds: Any
    agreement: Agreement


@dataclass(frozen=True)
class Rescued:
    """Rows as they were committed, where they lay before ranks were lost.

    number : of the commit (`Protection.number`). members : numbers of the ranks then, in their
    order. blocks : whose rows were whose. rows : this rank's; copy : of the rank `distance` before.
    """

    number: int
    members: list[int]
    blocks: Partition
    distance: int
    rows: Rows
    copy: Rows
    kept: Kept | None

    def _holders(self, transport: Transport) -> list[int]:
        """For every block the rank then that has it now, -1 where nobody does."""
        left = {member.number for member in transport.members}
        size, found = len(self.members), []
        for owner in range(size):
            partner = (owner + self.distance) % size
            here = [k for k in (owner, partner) if self.members[k] in left]
            found.append(here[0] if here else -1)
        return found

    def complete(self, transport: Transport) -> bool:
        """Whether every block is on some rank that is left. Local, and the same on all."""
        counts = self.blocks.counts
        return all(k >= 0 or counts[owner] == 0 for owner, k in enumerate(self._holders(transport)))

    def bring(self, transport: Transport, rows: Rows, blocks: Partition) -> None:
        """Fill in this rank's rows as the table is cut now. COLLECTIVE."""
        now = {member.number: rank for rank, member in enumerate(transport.members)}
        holders, row_bytes = self._holders(transport), rows.record.row_bytes
        first, stop = blocks.block(transport.rank)
        table = rows.raw.reshape(-1, row_bytes)
        for copies in (False, True):
            held: list[int | None] = [None] * transport.size
            for owner, holder in enumerate(holders):
                if (holder != owner) == copies and self.blocks.counts[owner]:
                    held[now[self.members[holder]]] = owner
            mine = held[transport.rank]
            low, high = self.blocks.block(mine) if mine is not None else (0, 0)
            given = (self.copy if copies else self.rows).raw.reshape(-1, row_bytes)
            starts, stops = (np.clip(border, low, high) for border in
                             (blocks.starts[:-1], blocks.starts[1:]))  # fmt: skip
            pieces = [(0, 0) if owner is None else self.blocks.block(owner) for owner in held]
            pieces = [(max(a, first), max(a, first, min(b, stop))) for a, b in pieces]
            coming = np.array([b - a for a, b in pieces])
            came = np.empty((int(coming.sum()), row_bytes), np.uint8)
            transport.move_rows(given, starts - low, stops - starts, came, coming)
            at = 0
            for a, b in pieces:
                table[a - first : b - first] = came[at : at + b - a]
                at += b - a


class Protection:
    """The log of one rank's rows and its copy of another's. Constructing it is local.

    Parameters
    ----------
    rows : this rank's, changed by the kernels, which note them in `log` (`kernels.undoing`); None
    where rows are never taken back, and `changed` is told instead.
    blocks : whose rows are whose. transport : over all ranks, two at least.

    Attributes: `distance` to the rank that has this one's copy; `guarded`, the rank whose rows
    `copy` holds; `number`, of commits so far, 0: none, and nothing is kept; `intact`, whether the
    copy is that of the last; `staged`, whether the next one waits for `commit` alone; `whole`,
    whether it is of all rows; `warnings`; `sent_bytes`.
    """

    def __init__(
        self, rows: Rows, log: np.ndarray | None, blocks: Partition, transport: Transport
    ) -> None:
        if log is None:
            log = slots_with_log(0, rows, 0)
        self._log, self._transport = log, transport
        size = transport.size
        self.distance = partner_distance(transport.hosts)
        self.guarded = (transport.rank - self.distance) % size
        words = rows.record.row_bytes // 8
        self._table = rows.raw.view(np.uint64).reshape(rows.n_rows, words)
        n_guarded = int(blocks.counts[self.guarded])
        self.copy = Rows(rows.record, n_guarded)
        self._copied = self.copy.raw.view(np.uint64).reshape(n_guarded, words)
        room = max(room_for(n_guarded, rows.record.row_bytes), min(n_guarded, CHUNK_ROWS))
        self._aside = np.empty((room, 1 + words), np.uint64)
        self._chunk = np.empty((min(CHUNK_ROWS, rows.n_rows), 1 + words), np.uint64)
        self.number, self.sent_bytes, self._n_aside, self._n_before = 0, 0, 0, 0
        self.intact = self.staged = False
        self.whole, self.warnings = True, list[str]()
        first = undoing.LOG_HEAD + -(-rows.n_rows // 64)
        self._marks = log[undoing.LOG_HEAD : first]
        self._entries = log[first:].reshape(-1, 1 + words)
        self._clear()

    @property
    def can_undo(self) -> bool:
        """Whether the rows can be taken back to the last commit. Local."""
        return self.intact and self.n_changed <= len(self._entries)

    @property
    def n_changed(self) -> int:
        """Rows that changed since the last commit; more than `len(entries)`: some are not kept."""
        return int(self._log[undoing.COUNT])

    def is_due(self, enough: bool) -> bool:
        """Whether to commit after this round: the next could fill the log, somewhere. COLLECTIVE.

        enough : whether steps enough were made, on all ranks alike.
        """
        now, before, room = self.n_changed, self._n_before, len(self._entries)
        self._n_before = now
        fills = room < len(self._table) and 2 * now - before > room
        told = np.array([fills, now > room], np.int64)
        self._transport.max_int(told)
        if told[1] and not self.warnings:
            self.warnings.append(
                f"parallel.protect: a rank changed {now} rows of {len(self._table)} in a round, "
                f"more than the {room} its log holds: ranks lost meanwhile take the run back to "
                "its newest checkpoint; take fewer parallel.steps_per_round"
            )
        self.whole = bool(told[1]) or self.number == 0
        return enough or self.whole or bool(told[0])

    def stage_rows(self, changed: np.ndarray) -> None:
        """As `stage`, of the rows `changed`, uint64, ascending. COLLECTIVE."""
        room = room_for(len(self._table), 8 * self._table.shape[1])
        told = np.array([len(changed) > room], np.int64)
        self._transport.max_int(told)
        self.whole = bool(told[0]) or self.number == 0
        self._stage(changed)

    def stage(self) -> None:
        """Send the changed rows to the partner, and put aside what comes. COLLECTIVE.

        Where a log was too small somewhere all rows go to the copies at once, which are of no use
        meanwhile.
        """
        # As they lie in memory, not as they changed: collected twice, copied six times as fast.
        marked = np.flatnonzero(np.unpackbits(self._marks.view(np.uint8), bitorder="little"))
        self._stage(marked.astype(np.uint64))

    def _stage(self, changed: np.ndarray) -> None:
        self._n_aside = 0
        if self.whole:
            self.intact = False
            self._send(np.arange(len(self._table), dtype=np.uint64), aside=False)
        else:
            self._send(changed, aside=True)
        self.staged = True

    def commit(self) -> None:
        """Take what was put aside into the copy; the log begins anew. Local."""
        aside = self._aside[: self._n_aside]
        self._copied[aside[:, 0]] = aside[:, 1:]
        self.number += 1
        self.intact, self.staged, self._n_aside = True, False, 0
        self._clear()

    def undo(self) -> None:
        """Take the rows back to the last commit. Local."""
        entries = self._entries[: self.n_changed]
        self._table[entries[:, 0]] = entries[:, 1:]
        self._clear()

    def _clear(self) -> None:
        self._marks[:] = 0
        self._log[undoing.COUNT] = 0
        self._n_before = 0

    def _send(self, numbers: np.ndarray, aside: bool) -> None:
        """Send rows to the partner in chunks; what comes is put aside, or into the copy."""
        transport, width = self._transport, self._table.shape[1] + 1
        counts, coming = np.array([len(numbers)]), np.zeros(1, np.int64)
        transport.shift(counts, coming, self.distance)
        most = counts.copy()
        transport.max_int(most)
        for start in range(0, int(most[0]), CHUNK_ROWS):
            here = numbers[start : start + CHUNK_ROWS]
            out = self._chunk[: len(here)]
            out[:, 0] = here
            out[:, 1:] = self._table[here]
            n = min(max(int(coming[0]) - start, 0), CHUNK_ROWS)
            came = self._aside[self._n_aside : self._n_aside + n]
            transport.shift(out, came, self.distance)
            if aside:
                self._n_aside += n
            else:
                self._copied[came[:, 0]] = came[:, 1:]
            self.sent_bytes += 8 * len(here) * width
