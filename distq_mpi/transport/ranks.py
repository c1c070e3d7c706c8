"""The ranks of a run, as one rank sees them."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import numpy as np
from mpi4py import MPI

from distq_mpi.errors import DistqError
from distq_mpi.launcher import launched_size, survives_deaths
from distq_mpi.partition import Partition
from distq_mpi.transport.collectives import Collectives
from distq_mpi.transport.mail import Mail, Neighbours, Post
from distq_mpi.transport.memory import PAGE, SHM_RESERVE, HostMemory, room_in_shm
from distq_mpi.transport.survival import Member, Survival, born, stay_alive


class Transport(Collectives, Survival):
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
        self.me = Member(number, name, os.getpid(), born(os.getpid()))

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
        self.crowded = self.node_size > (os.cpu_count() or 1)
        leads = 0 if self.node_rank == 0 else MPI.UNDEFINED
        self._leaders = comm.Split(leads, self.rank)
        self._derived.append(self._leaders)

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
        threading.Thread(target=stay_alive, daemon=True).start()
        return self

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
            threading.Thread(target=stay_alive, daemon=True).start()
        return transport

    @classmethod
    def alone(cls) -> Transport:
        """Return the transport of a run of this rank alone, beside the one it is in. Local."""
        return cls(MPI.COMM_SELF)

    @property
    def library(self) -> str:
        """Name and version of the MPI library. Local."""
        return library()

    @property
    def leads_node(self) -> bool:
        """Whether this rank is the first of its host. Local."""
        return self.node_rank == 0

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
        roomy = room_in_shm() > size + SHM_RESERVE if self.leads_node else True
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
        errors = [e for e in self.gather_everywhere(error) if e is not None]
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

    def host_memory(
        self, common_bytes: int, own_bytes: int, replica_bytes: int = 0
    ) -> HostMemory | None:
        """Return memory that the ranks of a host share, zeroed; the caller closes it. COLLECTIVE.

        replica_bytes : more of what is common, for ranks that each write to a part of it first.

        None, on all ranks, where hosts differ in their ranks, have one each, or too little
        /dev/shm.
        """
        size = common_bytes + replica_bytes + self.node_size * (own_bytes + PAGE)
        fits = self.node_size > 1 and room_in_shm() > size + SHM_RESERVE
        told = np.array([-self.node_size, self.node_size, not fits], np.int64)
        self.max_int(told)
        if -told[0] != told[1] or told[2]:
            return None
        across = self._comm.Split(self.node_rank, self.rank)
        self._derived.append(across)
        return HostMemory(
            self._node, across, self.rank, common_bytes, own_bytes, replica_bytes
        )

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
