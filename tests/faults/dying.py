"""The program with deaths built in.

DIE : JSON, number of a rank -> [phase, round, delay in seconds]: there the rank kills itself with
SIGKILL, so long after it has come to the phase; or, with a fourth word, it only stops (`stop`) or
works on something else for six seconds (`busy`).
Phases: learn, move, fuse, share, stage, agree, commit, certificate, checkpoint, write (on the rank
that writes the file), end, recover. HOSTS : names of the ranks' hosts, separated by commas, in
place of the real ones. NO_HOST_MEMORY : ranks of a host have none in common.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import threading
import time
from typing import Any

from distq_mpi.launcher import give_up_hanging_ranks

give_up_hanging_ranks()  # before MPI begins, which it does when it is imported

from distq_mpi import checkpoint, recovery  # noqa: E402
from distq_mpi.__main__ import main  # noqa: E402
from distq_mpi.architectures import Allreduce, Served, Sharded  # noqa: E402
from distq_mpi.architectures.partner import Protection  # noqa: E402
from distq_mpi.architectures.worker import Worker  # noqa: E402
from distq_mpi.trainer import Run  # noqa: E402
from distq_mpi.transport import Transport  # noqa: E402

DEATHS: dict[str, list[Any]] = json.loads(os.environ.get("DIE", "{}"))
NUMBER = {"mine": -1, "round": 0}


def die(phase: str, number: int) -> None:
    """Die if it is time to: in the phase of the round, or of the first one after it."""
    wanted = DEATHS.get(str(NUMBER["mine"]))
    if wanted is None or wanted[0] != phase or number < wanted[1]:
        return
    del DEATHS[str(NUMBER["mine"])]
    if wanted[3:] == ["busy"]:
        time.sleep(6)
        return
    kind = signal.SIGSTOP if wanted[3:] == ["stop"] else signal.SIGKILL
    if wanted[2] == 0:
        os.kill(os.getpid(), kind)
    threading.Timer(wanted[2], os.kill, (os.getpid(), kind)).start()


def before(owner: Any, name: str, phase: str) -> None:
    """Put a death before a method of the architecture."""
    real = getattr(owner, name)

    @functools.wraps(real)
    def method(self: Any, *arguments: Any) -> Any:
        NUMBER["round"] = self.progress.round
        die(phase, NUMBER["round"])
        return real(self, *arguments)

    setattr(owner, name, method)


real_enter, real_init, real_write = Run.enter, Transport.__init__, checkpoint.write


def enter(self: Run, phase: str) -> None:
    real_enter(self, phase)
    NUMBER["round"], NUMBER["pushes"] = self.architecture.progress.round, 0
    if phase in ("learn", "certificate", "checkpoint", "end", "recover"):
        die(phase, self.architecture.progress.round)


def init(self: Transport, comm: Any) -> None:
    real_init(self, comm)
    NUMBER["mine"] = self.me.number
    if "HOSTS" in os.environ:
        names = os.environ["HOSTS"].split(",")
        self.members = [
            type(m)(m.number, names[m.number], m.process, m.born) for m in self.members
        ]
        self.me = self.members[self.rank]
        self.hosts = names


def write(path: Any, *, rows: Any, **rest: Any) -> None:
    def dying_rows() -> Any:
        for row in rows:
            yield row
            die("write", NUMBER["round"])

    real_write(path, rows=dying_rows(), **rest)


real_push = Worker.push


def push(self: Any, *arguments: Any) -> Any:
    """A death instead of the second push of a round."""
    NUMBER["pushes"] = NUMBER.get("pushes", 0) + 1
    if NUMBER["pushes"] > 1:
        die("push", NUMBER["round"])
    return real_push(self, *arguments)


Worker.push = push  # type: ignore[method-assign]
real_stage = Protection.stage


def stage(self: Any) -> None:
    """A death before what changed goes to the partners, or with a delay while it does."""
    die("stage", NUMBER["round"])
    real_stage(self)


Protection.stage = stage  # type: ignore[method-assign]
before(Sharded, "exchange", "move")
before(Sharded, "_lanes_of_all", "agree")
before(Sharded, "commit", "commit")
before(Served, "exchange", "move")
before(Served, "commit", "commit")
before(Allreduce, "exchange", "move")
before(Allreduce, "_fuse_owned", "fuse")
before(Allreduce, "_merge_owned", "fuse")
before(Allreduce, "_fuse_replicas", "fuse")
before(Allreduce, "_call_at_once", "fuse")
before(Allreduce, "_adopt", "fuse")
before(Allreduce, "_share_rows", "share")
before(Allreduce, "_share_on_host", "share")
before(Allreduce, "_share_lone", "share")
before(Allreduce, "_agree", "agree")
before(Allreduce, "commit", "commit")
real_call = Allreduce._call


def call(self: Any, name: str, k: int) -> None:
    if name == "fuse":
        die("fuse", self.progress.round)
    real_call(self, name, k)


Allreduce._call = call  # type: ignore[method-assign]
Run.enter = enter  # type: ignore[method-assign]
Transport.__init__ = init  # type: ignore[method-assign]
checkpoint.write = write
assert recovery.checkpoint.write is write

if "NO_HOST_MEMORY" in os.environ:
    Transport.host_memory = lambda *arguments: None  # type: ignore[method-assign]

if __name__ == "__main__":
    sys.exit(main())
