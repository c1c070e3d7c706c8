"""Messages between ranks over an owned duplicate of the communicator. The only door to mpi4py.

Every public method is COLLECTIVE unless it says otherwise. Setup may send pickled objects; the
round loop sends buffers only.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
from mpi4py import MPI

from distq_mpi.errors import DistqError, QuorumLost, RanksLost
from distq_mpi.launcher import launched_size, survives_deaths
from distq_mpi.partition import Partition

SHM_RESERVE = 16 << 20
CHUNK_ELEMENTS = 1 << 20
MESSAGE_BYTES, PAGE, HUGE_BYTES = 64 << 20, 4096, 16 << 20
MAIL_TAG, NEIGHBOURS_TAG, POST_TAG, SHIFT_TAG = range(1, 5)
EAGER_TURNS, SHORTEST_NAP_S, LONGEST_NAP_S = 200, 5e-5, 1e-3
"""How often whoever waits for a message looks again at once, and how long it sleeps after that."""
BROKEN = (MPI.Exception, pickle.UnpicklingError, EOFError)
"""What a message raises that a dying rank has part in."""
BEAT_S, BEAT_CALLS = 0.25, 16
FALSE_ALARMS = 2
"""Failures in a row in which nobody is lost before they are taken for mistakes."""


@dataclass(frozen=True)
class Member:
    """A rank as the launcher started it: `number` among all, its host, its process there."""

    number: int
    host: str
    process: int
    born: str
    """When the process began, in the system's own count: its number may be given again."""


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
    wanted : int64, ascending, rows of others that this rank reads.
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
        self._out = np.empty(self._given.size)
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
        np.take(array, self._given, out=out, mode="clip")  # in no other mode without a copy
        requests += [
            self._comm.Isend(out[begin:end], peer, NEIGHBOURS_TAG)
            for peer, begin, end in self._targets
        ]
        MPI.Request.Waitall(requests)


class HostMemory:
    """Memory that all ranks of a host see, where every host has as many ranks.

    Attributes: `common` uint8, of the host; `own`, the parts of the host's ranks in their order,
    uint8 each, zero at first; `ranks`, those of this host, and `across`, the ranks of the run with
    this rank's place on their hosts, one on each host; both in order. Whoever writes and whoever
    reads meet in `barrier`, or in a collective of all ranks and then `seen`, between the one and
    the other.
    """

    def __init__(
        self, node: Any, across: Any, rank: int, common_bytes: int, own_bytes: int
    ) -> None:
        self._node, self._across = node, across
        self.across: list[int] = across.allgather(rank)
        self.ranks: list[int] = node.allgather(rank)
        padded = -(-common_bytes // PAGE) * PAGE if node.rank == 0 else 0
        info = MPI.Info.Create({"alloc_shared_noncontig": "true"})
        self._window = MPI.Win.Allocate_shared(padded + own_bytes, 1, info=info, comm=node)
        info.Free()
        self._window.Lock_all()
        parts = []
        for rank in range(node.size):
            memory: Any = self._window.Shared_query(rank)[0]
            parts.append(np.frombuffer(memory, np.uint8))
        padded = -(-common_bytes // PAGE) * PAGE
        self.common = parts[0][:common_bytes]
        self.own = [parts[0][padded:], *parts[1:]]
        self.own[node.rank][:] = 0  # memory lies near whoever writes to it first
        if node.rank == 0:
            self.common[:] = 0
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
        return _sum_to_owners(self._across, array, partition)

    def allgather_across(self, array: np.ndarray, partition: Partition) -> None:
        """`Transport.allgather_rows` over the ranks in this one's place on their hosts."""
        _allgather_rows(self._across, array, partition)

    def close(self) -> None:
        """Free it; the arrays are gone. COLLECTIVE."""
        self._window.Unlock_all()
        self._window.Free()
        self._across.Free()


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


class Transport:
    """The ranks of a run, as one rank sees them.

    Attributes: `rank`, `size`; `node_rank`, `node_size` among the ranks of this host; `hosts`,
    the host name of every rank; `members`, who the ranks are; `lost`, who was lost so far;
    `survives`, whether ranks that are lost may be recovered from (`losses`, `recover`).
    """

    def __init__(self, comm: MPI.Intracomm) -> None:
        self._begin(comm.rank)
        self._adopt(comm.Dup())
        self._meet()

    def _begin(self, number: int) -> None:
        self.survives = False
        self.lost: list[Member] = []
        self._windows: list[MPI.Win] = []
        self._alarms, self._agreed = 0, False
        name = MPI.Get_processor_name()
        self.me = Member(number, name, os.getpid(), _born(os.getpid()))

    def _meet(self) -> None:
        self.members: list[Member] = self._comm.allgather(self.me)
        self.hosts = [member.host for member in self.members]

    def _adopt(self, comm: MPI.Intracomm) -> None:
        """Make communicators of this host and of the hosts' leaders. COLLECTIVE."""
        self._comm = comm
        self._derived: list[MPI.Comm] = []
        self.rank, self.size = comm.rank, comm.size
        self._node: Any = comm.Split_type(MPI.COMM_TYPE_SHARED, self.rank)
        self._derived.append(self._node)
        self.node_rank, self.node_size = self._node.rank, self._node.size
        leads = 0 if self.node_rank == 0 else MPI.UNDEFINED
        self._leaders = comm.Split(leads, self.rank)
        self._derived.append(self._leaders)

    def survive(self) -> bool:
        """Let ranks be lost from now on, if library and launcher allow it; say if so. Local."""
        self.survives = survives_deaths() and self.has_ulfm()
        return self.survives

    @contextlib.contextmanager
    def losses(self) -> Iterator[None]:
        """Run a block in which a message that fails says that ranks were lost. Local.

        Raises RanksLost for an error of MPI, whatever its class: a death shows as ERR_OTHER or
        ERR_IN_STATUS, too, or as an object that arrives in pieces; or as whatever follows from
        that, where a rank is known to be dead. Where `survives` is False errors stay as they are.
        """
        try:
            yield
        except RanksLost:
            raise
        except Exception as error:
            if not self.survives or not (isinstance(error, BROKEN) or self._knows_of_deaths()):
                raise
            raise RanksLost(str(error)) from error

    def _knows_of_deaths(self) -> bool:
        try:
            return bool(self._comm.Get_failed().size)
        except MPI.Exception:
            return True

    def agree(self) -> None:
        """Pass a point all together, or not at all; to be called in `losses`. COLLECTIVE.

        Raises RanksLost on all ranks where one has gone, or found one gone before it got here.
        """
        if not self.survives:
            return
        self._agreed = True
        if not self._comm.Agree(1):
            raise RanksLost("a rank was lost")
        self._agreed = False

    def recover(self, cause: BaseException) -> list[Member]:
        """Go on with the ranks that are left, in their order; return who was lost. COLLECTIVE.

        Every rank comes here, from wherever it was: communicators are revoked, so that nobody waits
        for the dead. What hung on the old communicators is gone, but memory shared on this host can
        be read. cause : what was raised, to tell where it turns out to be another mistake.

        Raises
        ------
        QuorumLost
            Where those left are no more than half and were on several hosts: others may go on.
        DistqError
            Where messages go on failing, and nobody is lost.
        """
        comm = self._comm
        while True:
            for one in (comm, *self._derived):
                if one != MPI.COMM_NULL:
                    with contextlib.suppress(MPI.Exception):
                        one.Revoke()
            if not self._agreed:  # whoever is in `agree` is told to come along
                with contextlib.suppress(MPI.Exception):
                    comm.Agree(0)
            self._agreed = False
            comm = MPI.Intracomm(comm.Shrink())
            try:
                told = comm.allgather((self.me, self.members))
                members = [me for me, _ in told]
                before = {member.number: member for _, old in told for member in old}
                self._adopt(comm)
                comm.Barrier()
                break
            except MPI.Exception:
                continue
        known = {m.number for m in (*members, *self.lost)}
        gone = [before[number] for number in sorted(set(before) - known)]
        self.members, self.hosts = members, [member.host for member in members]
        self.lost += gone
        self._alarms = 0 if gone else self._alarms + 1
        if self._alarms > FALSE_ALARMS:
            raise DistqError(f"messages between ranks fail, but no rank is lost: {cause}")
        self._bury(gone)
        if 2 * len(members) <= len(before) and len({m.host for m in before.values()}) > 1:
            names = ", ".join(f"{m.number} on {m.host}" for m in gone)
            raise QuorumLost(
                f"{len(members)} of {len(before)} ranks are left (lost: {names}): not more than "
                "half, and others may go on elsewhere; resume from the newest checkpoint"
            )
        return gone

    def respawn(self, n: int, words: list[str]) -> None:
        """Start n processes, `python words`, which `rejoin` behind the ranks there are; to be
        called in `losses`. COLLECTIVE."""
        known = [member.number for member in (*self.members, *self.lost)]
        inter = self._comm.Spawn(sys.executable, words, n, root=0)
        merged = MPI.Intracomm(inter.Merge(high=False))
        merged.Set_errhandler(MPI.ERRORS_RETURN)
        merged.bcast((max(known) + 1, self.size), root=0)
        self._adopt(merged)
        self._meet()

    @classmethod
    def rejoin(cls) -> Transport:
        """Return the transport of a process that `respawn` started. COLLECTIVE with all of them."""
        merged = MPI.Intracomm(MPI.Comm.Get_parent().Merge(high=True))
        merged.Set_errhandler(MPI.ERRORS_RETURN)
        first, n_before = merged.bcast(None, root=0)
        self = cls.__new__(cls)
        self._begin(first + merged.rank - n_before)
        self.survives = True
        self._adopt(merged)
        self._meet()
        threading.Thread(target=_stay_alive, daemon=True).start()
        return self

    def _bury(self, gone: list[Member]) -> None:
        """End processes of this host that are given up but only hang: they hold locks. Local."""
        for member in gone:
            if member.host == self.me.host and _born(member.process) == member.born:
                with contextlib.suppress(OSError):
                    os.kill(member.process, signal.SIGKILL)

    def leave(self, exit_code: int) -> None:
        """End this process without MPI's own end, which hangs after a loss. Does not return."""
        with contextlib.suppress(MPI.Exception):
            self._comm.Barrier()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)

    @classmethod
    def connect(cls) -> Transport:
        """Start MPI and return the transport over all ranks of the job.

        Raises DistqError where the launcher started more ranks than this MPI library sees: a
        launcher of one MPI and the library of another give as many worlds of one rank.
        """
        expected, size = launched_size(), MPI.COMM_WORLD.size
        if expected is not None and expected > 1 and size == 1:
            mistake = DistqError(
                f"the launcher started {expected} ranks, but the MPI library in use ({library()}) "
                "sees one: use the mpirun that belongs to this library"
            )
            mistake.agreed = True
            raise mistake
        transport = cls(MPI.COMM_WORLD)
        if survives_deaths():
            threading.Thread(target=_stay_alive, daemon=True).start()
        return transport

    @property
    def library(self) -> str:
        """Name and version of the MPI library. Local."""
        return library()

    @staticmethod
    def has_ulfm() -> bool:
        """Whether the library has the calls to survive a lost rank (MPI_Comm_revoke). Local."""
        probe = MPI.COMM_SELF.Dup()
        try:
            probe.Revoke()
        except RuntimeError:  # NotImplementedError, or MPI's own
            return False
        finally:
            probe.Free()
        return True

    @property
    def leads_node(self) -> bool:
        """Whether this rank is the first of its host. Local."""
        return self.node_rank == 0

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's object on every rank (pickled; for setup and rare events)."""
        return self._comm.bcast(value, root=0)

    def broadcast_on_node(self, value: Any) -> Any:
        """Return the node leader's object on every rank of the node. COLLECTIVE on the node."""
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
        return _sum_to_owners(self._comm, array, partition)

    def allgather_rows(self, array: np.ndarray, partition: Partition) -> None:
        """Give everybody every block of a contiguous array with `partition.n` rows, in place."""
        _allgather_rows(self._comm, array, partition)

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

    def share_on_node(self, arrays: tuple[np.ndarray, ...] | None) -> tuple[np.ndarray, ...]:
        """Return rank 0's arrays on every rank, stored once per host.

        Owned by the transport until `close`; nobody writes them. Where /dev/shm is too small the
        ranks keep private copies.
        """
        shapes = self.broadcast(arrays and [(a.shape, a.dtype) for a in arrays])
        sizes = [-(-int(np.prod(s, dtype=np.int64)) * t.itemsize // 64) * 64 for s, t in shapes]
        buffer, one_copy = self._node_buffer(sum(sizes))
        shared, offset = [], 0
        for (shape, dtype), size in zip(shapes, sizes, strict=True):
            count = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            shared.append(buffer[offset : offset + count].view(dtype).reshape(shape))
            offset += size
        for source, target in zip(arrays or (), shared, strict=False):
            target[...] = source
        if self.leads_node:
            for start in range(0, buffer.size, 1 << 30):
                self._leaders.Bcast([buffer[start : start + (1 << 30)], MPI.BYTE], root=0)
        if not one_copy:
            for start in range(0, buffer.size, 1 << 30):
                self._node.Bcast([buffer[start : start + (1 << 30)], MPI.BYTE], root=0)
        self._node.Barrier()
        return tuple(shared)

    def _node_buffer(self, size: int) -> tuple[np.ndarray, bool]:
        """Bytes for the ranks of this host, and whether they are the same memory."""
        roomy = _room_in_shm() > size + SHM_RESERVE if self.leads_node else True
        if not self.broadcast_on_node(roomy) or self.node_size == 1:
            return np.zeros(size, np.uint8), False
        window = MPI.Win.Allocate_shared(size if self.leads_node else 0, 1, comm=self._node)
        self._windows.append(window)
        memory: Any = window.Shared_query(0)[0]
        return np.frombuffer(memory, np.uint8), True

    @contextlib.contextmanager
    def same_outcome(self) -> Iterator[None]:
        """Run a block in which a DistqError on any rank is raised on every rank.

        The block itself must not contain collectives that a failed rank would miss.
        """
        error: DistqError | None = None
        try:
            yield
        except DistqError as mistake:
            error = mistake
        errors = [e for e in self._comm.allgather(error) if e is not None]
        if errors:
            errors[0].agreed = True
            raise errors[0]

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Run a block that all ranks leave in the same way, or end the job.

        An exception of one rank alone is printed there and ends all ranks: its peers would wait
        for it for ever. Alone, and for a DistqError that all ranks raise, it goes on as usual.
        """
        try:
            yield
        except BaseException as error:
            if self.size > 1 and not getattr(error, "agreed", False):
                sys.__excepthook__(type(error), error, error.__traceback__)
                sys.stderr.flush()
                self.abort(getattr(error, "exit_code", 1))
            raise

    def from_rank_0(self, work: Callable[[], Any]) -> Any:
        """Return what rank 0 finds on every rank (pickled). Its exception is its own."""
        return self.broadcast(work() if self.rank == 0 else None)

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

    def host_memory(self, common_bytes: int, own_bytes: int) -> HostMemory | None:
        """Return memory that the ranks of a host share, zeroed; the caller closes it. COLLECTIVE.

        None, on all ranks, where hosts differ in their ranks, have one each, or too little
        /dev/shm.
        """
        size = common_bytes + self.node_size * (own_bytes + PAGE)
        fits = self.node_size > 1 and _room_in_shm() > size + SHM_RESERVE
        told = np.array([-self.node_size, self.node_size, not fits], np.int64)
        self.max_int(told)
        if -told[0] != told[1] or told[2]:
            return None
        across = self._comm.Split(self.node_rank, self.rank)
        self._derived.append(across)
        return HostMemory(self._node, across, self.rank, common_bytes, own_bytes)

    def post(self, most: int) -> Post:
        """Return single messages of up to `most` words (see `Post`). Local."""
        return Post(self._comm, most)

    def mail(self, region: int, middle: int, above: int, below: int) -> Mail:
        """Return messages of up to `region` words (see `Mail`). Local; the caller closes it."""
        return Mail(self._comm, region, middle, above, below)

    def neighbours(self, rows: Partition, wanted: np.ndarray) -> Neighbours:
        """Return the way to rows of others (see `Neighbours`)."""
        return Neighbours(self._comm, rows, wanted)

    def abort(self, exit_code: int) -> None:
        """End all ranks at once. Local, and does not return."""
        self._comm.Abort(exit_code)

    def close(self) -> None:
        """Free what the transport owns."""
        for window in self._windows:
            window.Free()
        for comm in (self._leaders, self._node, self._comm):
            if comm != MPI.COMM_NULL:
                comm.Free()


def _stay_alive() -> None:
    """Have MPI send heartbeats while the rank does something else (`give_up_hanging_ranks`)."""
    while True:
        time.sleep(BEAT_S)
        for _ in range(BEAT_CALLS):  # it looks after its own affairs in some calls only
            MPI.COMM_SELF.Iprobe()


def _sparse(n_words: int) -> np.ndarray:
    """Zeros, uint64, of which memory is taken by the page where they are written to; NumPy's are on
    huge pages, of which one word takes 2 MB."""
    if 8 * n_words < HUGE_BYTES or not hasattr(mmap, "MADV_NOHUGEPAGE"):
        return np.zeros(n_words, np.uint64)
    memory = mmap.mmap(-1, 8 * n_words, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, np.uint64)


def _room_in_shm() -> float:
    """Free bytes of /dev/shm; none can be counted where it is missing."""
    with contextlib.suppress(OSError):
        stat = os.statvfs("/dev/shm")
        return float(stat.f_bavail * stat.f_frsize)
    return float("inf")


def _sum_to_owners(comm: MPI.Intracomm, array: np.ndarray, partition: Partition) -> np.ndarray:
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


def _allgather_rows(comm: MPI.Intracomm, array: np.ndarray, partition: Partition) -> None:
    row = array.reshape(partition.n, -1) if partition.n else array.reshape(0, 1)
    if row.size == 0:
        return
    kind = MPI.BYTE.Create_contiguous(row.shape[1] * row.itemsize).Commit()
    counts = (list(partition.counts), list(partition.displacements))
    comm.Allgatherv(MPI.IN_PLACE, [row, counts, kind])
    kind.Free()


def _born(process: int) -> str:
    """When a process of this host began, "" where there is none."""
    try:
        with open(f"/proc/{process}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def library() -> str:
    """Name and version of the MPI library. Local."""
    return " ".join(MPI.Get_library_version().splitlines()[0].strip("\0 ").split())


def abort_on_exception(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Exception hook: print this rank's traceback once, then end the whole job. Local.

    A rank that just leaves would let its peers wait for ever in the next collective.
    """
    from mpi4py.run import set_abort_status

    sys.__excepthook__(kind, error, trace)
    sys.stderr.flush()
    set_abort_status(error)
