"""What this machine does at best: every rate is the median of several repeats of all ranks."""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from distq_mpi.kernels.ceilings import AHEAD, HEAD, INBOX, ROW_VALUES
from distq_mpi.table import aligned

if TYPE_CHECKING:
    from distq_mpi.transport import Mail, Transport

REPEATS = 5
UPDATES = 1 << 21
EXCHANGED = 1 << 19
ROW_BYTES = 4 * ROW_VALUES


def rate(transport: Transport, work: Callable[[], None], amount: float, takes_part: bool) -> float:
    """Median of `amount` per second of the slowest rank; COLLECTIVE.

    amount : of one repeat, over all ranks. takes_part : whether this rank works, or waits.
    """
    found = []
    for _ in range(REPEATS):
        transport.sum_int(np.zeros(1, np.int64))  # all begin together
        begin = time.perf_counter()
        if takes_part:
            work()
        took = np.array([time.perf_counter() - begin if takes_part else 0.0])
        transport.max_float(took)
        found.append(amount / float(took[0]))
    return statistics.median(found)


class RandomRows:
    """Updates of random rows of a table of this rank: one cache line each, 64 under way."""

    def __init__(self, kernels: dict[str, Any], table_bytes: int) -> None:
        raw = aligned(table_bytes)
        raw[::4096] = 0  # memory is given when it is first written to
        self._rows = table_bytes // ROW_BYTES
        self._control = np.array([self._rows, UPDATES, 0, 0, 0], np.uint64)
        self._call = kernels["random_rows"].bind(
            raw.view(np.float32), raw.view(np.uint32), np.zeros(2 * AHEAD, np.uint64),
            self._control,
        )  # fmt: skip
        self.run()

    def run(self) -> None:
        """Update `UPDATES` rows. Local."""
        self._call()
        self._control[2] += np.uint64(UPDATES)

    def per_s(self, transport: Transport, alone: bool) -> float:
        """Rows per second of one rank, with the others idle (`alone`) or at it, too. COLLECTIVE."""
        return rate(transport, self.run, UPDATES, not alone or transport.rank == 0)


class BucketedExchange:
    """Random 8-byte updates of a table cut over the ranks, sorted into one message per peer."""

    def __init__(
        self, kernels: dict[str, Any], transport: Transport, table_bytes: int, n_updates: int
    ) -> None:
        table = aligned(table_bytes).view(np.uint64)
        table[::512] = 0
        self._transport, self._n = transport, n_updates
        region = HEAD + n_updates
        self._mail: Mail = transport.mail(region, HEAD, 1, 1)
        size = transport.size
        first = np.uint64(transport.rank) << np.uint64(48)
        self._control = np.array(
            [table.size, n_updates, first, size, region, transport.rank, 0], np.uint64
        )
        mail = self._mail
        self._fill = kernels["fill_updates"].bind(mail.words, mail.counts, self._control)
        self._apply = kernels["apply_updates"].bind(table, mail.words, mail.counts, self._control)
        self.run()

    def run(self) -> None:
        """Make some `EXCHANGED` updates a rank. COLLECTIVE."""
        for _ in range(max(1, EXCHANGED // self._n)):
            self._mail.expect()
            self._fill()
            self._control[2] += np.uint64(self._n)
            self._mail.exchange()
            self._control[INBOX] = self._mail.inbox
            self._apply()

    @property
    def amount(self) -> int:
        """Updates that all ranks make in a `run`."""
        return self._transport.size * self._n * max(1, EXCHANGED // self._n)

    def per_s(self) -> float:
        """Updates per second of all ranks. COLLECTIVE."""
        return rate(self._transport, self.run, self.amount, True)

    def close(self) -> None:
        """Free the messages. Local."""
        self._mail.close()


def triad_bytes_per_s(transport: Transport, kernels: dict[str, Any], n_bytes: int) -> float:
    """Bytes per second that one rank reads and writes while all do a = b + 3 c. COLLECTIVE."""
    a, b, c = (np.ones(n_bytes // 24) for _ in range(3))
    return rate(transport, kernels["triad"].bind(a, b, c), 24 * a.size, True)


def reduced_bytes_per_s(transport: Transport, n_bytes: int) -> float:
    """Bytes per second of a sum of int64 over all ranks, of one rank's array. COLLECTIVE."""
    array = np.zeros(n_bytes // 8, np.int64)
    n = max(1, (1 << 22) // n_bytes)

    def work() -> None:
        for _ in range(n):
            transport.sum_int(array)

    return rate(transport, work, n * array.nbytes, True)


def moved_bytes_per_s(transport: Transport, n_bytes: int) -> float:
    """Bytes per second that one rank sends while all send so many to every other (Alltoallv).
    COLLECTIVE."""
    size, rank = transport.size, transport.rank
    counts = np.full(size, n_bytes // 64)
    counts[rank] = 0
    rows, received = (np.zeros((int(counts.sum()), 64), np.uint8) for _ in range(2))
    starts = np.cumsum(counts) - counts

    def work() -> None:
        transport.move_rows(rows, starts, counts, received, counts)

    return rate(transport, work, rows.nbytes, True)


def host_memory_bytes_per_s(transport: Transport, n_bytes: int) -> float | None:
    """Bytes per second that one rank copies into memory its host's ranks have in common while all
    do; None where there is none. COLLECTIVE."""
    memory = transport.host_memory(64, n_bytes)
    if memory is None:
        return None
    source, target = np.ones(n_bytes, np.uint8), memory.own[transport.node_rank][:n_bytes]

    def work() -> None:
        target[:] = source

    found = rate(transport, work, n_bytes, True)
    memory.close()
    return found


def disk_bytes_per_s(transport: Transport, folder: str, n_bytes: int) -> float | None:
    """Bytes per second that rank 0 writes into a folder until they are safe there; None where it
    may not write. COLLECTIVE."""
    block, fails = np.random.default_rng(1).bytes(n_bytes), np.zeros(1, np.int64)
    path = os.path.join(folder, f".distq_mpi-probe-{os.getpid()}")

    def work() -> None:
        try:
            with open(path, "wb", buffering=0) as file:
                file.write(block)
                os.fsync(file.fileno())
        except OSError:
            fails[0] = 1

    found = rate(transport, work, n_bytes, transport.rank == 0)
    if transport.rank == 0:
        with contextlib.suppress(OSError):
            os.unlink(path)
    transport.max_int(fails)
    return None if fails[0] else found
