"""Messages between two ranks, again and again, through memory of their own."""

from __future__ import annotations

import itertools
import mmap
import os
import time

import numpy as np
from mpi4py import MPI

from distq_mpi.partition import Partition

HUGE_BYTES = 16 << 20
MAIL_TAG, NEIGHBOURS_TAG, POST_TAG = range(1, 4)
EAGER_TURNS, SHORTEST_NAP_S, LONGEST_NAP_S = 200, 5e-5, 1e-3
"""How often whoever waits for a message looks again at once, and how long it sleeps after that."""


class Mail:
    """One message to and from every peer, again and again, through memory of its own.

    A region of `region` words is written outwards from its word `middle`: items of `above` words
    from there on, items of `below` words before it, and before these a head of one word. What came
    lies at the beginning of its region, head first.

    Attributes: `words`, uint64: P regions for what goes to each rank, then twice P for what came,
    which take turns, so that the next messages have their place before anybody works on the last;
    memory is touched only as far as messages reach. `counts`, uint64 (2 P,): items above to each
    rank, items below to each. `inbox`: first word of what came last. `sent_bytes`, handed to peers.
    """

    def __init__(
        self, comm: MPI.Intracomm, region: int, middle: int, above: int, below: int
    ) -> None:
        self._comm, self._region, self._middle = comm, region, middle
        self._above, self._below, self.sent_bytes, self._turn = above, below, 0, 0
        size = comm.size
        self.words = _sparse(3 * size * region)
        self.counts = np.zeros(2 * size, np.uint64)
        self._peers = [(comm.rank + d) % size for d in range(1, size)]
        self._receives = [
            [
                comm.Recv_init(
                    [self.words[(turn * size + p) * region :][:region], MPI.UINT64_T], p, MAIL_TAG
                )
                for p in self._peers
            ]
            for turn in (1, 2)
        ]

    @property
    def inbox(self) -> int:
        """First word of what came last."""
        return (1 + self._turn) * self._comm.size * self._region

    def expect(self) -> None:
        """Give the next messages their place, beside those that are being read. Local."""
        MPI.Prequest.Startall(self._receives[1 - self._turn])

    def exchange(self) -> None:
        """Send what stands in the regions of peers; `inbox` holds what came. COLLECTIVE."""
        sends, counts = [], self.counts.tolist()
        size = self._comm.size
        for peer in self._peers:
            begin = peer * self._region + self._middle - self._below * counts[size + peer] - 1
            n = 1 + self._below * counts[size + peer] + self._above * counts[peer]
            self.sent_bytes += 8 * n
            message = [self.words[begin : begin + n], MPI.UINT64_T]
            sends.append(self._comm.Isend(message, peer, MAIL_TAG))
        self._turn = 1 - self._turn
        MPI.Request.Waitall([*self._receives[self._turn], *sends])

    def close(self) -> None:
        """Free the requests. Local."""
        for requests in self._receives:
            for request in requests:
                request.Free()


class Neighbours:
    """What this rank reads of the rows of others, fetched from their owners again and again.

    Constructing it is COLLECTIVE.

    Parameters
    ----------
    rows : which rank owns what.
    wanted : int64, rows of others that this rank reads, each larger than the one before.
    """

    def __init__(self, comm: MPI.Intracomm, rows: Partition, wanted: np.ndarray) -> None:
        self._comm = comm
        first, last = rows.block(comm.rank)
        places = np.searchsorted(wanted, rows.starts)
        counts = np.diff(places)
        asked = np.empty_like(counts)
        comm.Alltoall([counts, MPI.INT64_T], [asked, MPI.INT64_T])
        begins = np.concatenate([np.zeros(1, np.int64), np.cumsum(asked)])
        self._given = np.empty(begins[-1], np.int64)
        comm.Alltoallv(
            [wanted, (counts.tolist(), places[:-1].tolist()), MPI.INT64_T],
            [self._given, (asked.tolist(), begins[:-1].tolist()), MPI.INT64_T],
        )
        self._given -= first
        # Rows that lie side by side are sent from where they are.
        self._whole = [_run(self._given[k:n]) for k, n in itertools.pairwise(begins)]
        self._out = np.empty(0 if None not in self._whole else self._given.size)
        behind = places + (last - first)
        self._sources = [
            (p, int(behind[p]), int(behind[p + 1])) for p in range(comm.size) if counts[p]
        ]
        self._targets = [
            (p, int(begins[p]), int(begins[p + 1])) for p in range(comm.size) if asked[p]
        ]

    def fetch(self, array: np.ndarray) -> None:
        """Fill in the rows of others. COLLECTIVE, with arrays of one type, float64 or uint8.

        array : this rank's rows, then those of others in the order of `wanted`; changed in place.
        """
        requests = [
            self._comm.Irecv(array[begin:end], peer, NEIGHBOURS_TAG)
            for peer, begin, end in self._sources
        ]
        out = self._out.view(array.dtype)[: self._given.size]
        if out.size:
            np.take(array, self._given, out=out, mode="clip")  # in no other mode without a copy
        for peer, begin, end in self._targets:
            whole = self._whole[peer]
            rows = out[begin:end] if whole is None else array[whole]
            requests.append(self._comm.Isend(rows, peer, NEIGHBOURS_TAG))
        MPI.Request.Waitall(requests)


def _run(rows: np.ndarray) -> slice | None:
    """Rows, each larger than the one before, as a slice; None where some between are left out."""
    if rows.size == 0:
        return slice(0, 0)
    first, last = int(rows[0]), int(rows[-1]) + 1
    return slice(first, last) if last - first == rows.size else None


class Post:
    """Single messages of words between two ranks, of up to `most` words.

    What comes lies in `inbox`, uint64 (most,), until the next call of `wait` or `poll`. Whoever
    waits looks again at once for a while, and lets others have the core in between; then ever less
    often.

    Attributes: `inbox`; `sent_bytes`; `idle_s`, seconds spent waiting; `waits`, whether it does.
    """

    def __init__(self, comm: MPI.Intracomm, most: int) -> None:
        self._comm, self.inbox, self.sent_bytes = comm, _sparse(most), 0
        self._status, self._whole = MPI.Status(), (self.inbox, MPI.UINT64_T)
        self.idle_s, self.waits = 0.0, False

    def send(self, words: np.ndarray, peer: int) -> None:
        """Send uint64 words; they may be changed when it returns. Local, and to the peer."""
        self._comm.Send((words, MPI.UINT64_T), peer, POST_TAG)
        self.sent_bytes += words.nbytes

    def wait(self, peer: int = -1) -> int:
        """Take the next message of a peer, of anyone where it is -1; return whose it is. Local."""
        came = self.poll(peer)
        if came is not None:
            return came
        begin, turn, self.waits = time.perf_counter(), 0, True
        while came is None:
            turn += 1
            if turn < EAGER_TURNS:
                os.sched_yield()
            else:
                time.sleep(min(LONGEST_NAP_S, SHORTEST_NAP_S * (1 + turn // EAGER_TURNS)))
            came = self.poll(peer)
        self.idle_s += time.perf_counter() - begin
        self.waits = False
        return came

    def poll(self, peer: int = -1) -> int | None:
        """As `wait`, where a message has come; None where there is none. Local."""
        source, status = MPI.ANY_SOURCE if peer < 0 else peer, self._status
        if not self._comm.Iprobe(source, POST_TAG, status):
            return None
        source = status.source
        self._comm.Recv(self._whole, source, POST_TAG)
        return source


def _sparse(n_words: int) -> np.ndarray:
    """Zeros, uint64, of which memory is taken by the page where they are written to; NumPy's are on
    huge pages, of which one word takes 2 MB."""
    if 8 * n_words < HUGE_BYTES or not hasattr(mmap, "MADV_NOHUGEPAGE"):
        return np.zeros(n_words, np.uint64)
    memory = mmap.mmap(-1, 8 * n_words, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, np.uint64)
