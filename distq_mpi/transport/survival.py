"""Who the ranks are, how their losses are noticed, and how those left go on."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

from mpi4py import MPI

from distq_mpi.errors import DistqError, QuorumLost, RanksLost
from distq_mpi.launcher import survives_deaths

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


class Survival:
    """What a transport does about ranks that are lost."""

    _comm: MPI.Intracomm
    _derived: list[MPI.Comm]
    size: int
    me: Member
    members: list[Member]
    hosts: list[str]
    lost: list[Member]
    survives: bool
    _alarms: int
    _agreed: bool

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

    def _bury(self, gone: list[Member]) -> None:
        """End processes of this host that are given up but only hang: they hold locks. Local."""
        for member in gone:
            if member.host == self.me.host and born(member.process) == member.born:
                with contextlib.suppress(OSError):
                    os.kill(member.process, signal.SIGKILL)

    def leave(self, exit_code: int) -> None:
        """End this process without MPI's own end, which hangs after a loss. Does not return."""
        with contextlib.suppress(MPI.Exception):
            self._comm.Barrier()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)

    def _adopt(self, comm: MPI.Intracomm) -> None:
        raise NotImplementedError

    def _meet(self) -> None:
        raise NotImplementedError

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


def stay_alive() -> None:
    """Have MPI send heartbeats while the rank does something else (`give_up_hanging_ranks`)."""
    while True:
        time.sleep(BEAT_S)
        for _ in range(BEAT_CALLS):  # it looks after its own affairs in some calls only
            MPI.COMM_SELF.Iprobe()


def born(process: int) -> str:
    """When a process of this host began, "" where there is none."""
    try:
        with open(f"/proc/{process}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[19]
    except OSError:
        return ""
