"""The program with a fault built in, on rank FAULT_RANK.

FAULT: `raise` and `distq` raise in round 5, `fsize` lets no file grow from then on; `stop` asks to
stop before the first round.
"""

from __future__ import annotations

import os
import resource
import sys

from distq_mpi.__main__ import main
from distq_mpi.architectures import Allreduce
from distq_mpi.errors import DistqError
from distq_mpi.signals import Signals

real_commit, real_take = Allreduce.commit, Signals.take


def commit(self: Allreduce) -> None:
    at_fault = self.transport.rank == int(os.environ["FAULT_RANK"])
    if at_fault and self.pending.round == 5:
        if os.environ["FAULT"] == "raise":
            raise ZeroDivisionError("a fault on one rank")
        if os.environ["FAULT"] == "distq":
            raise DistqError("a mistake on one rank")
        # From here on no file can grow beyond 100 kB, as on a disk that has no more.
        limit = int(os.environ.get("FAULT_BYTES", "100000"))
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    real_commit(self)


def take(self: Signals) -> tuple[bool, bool]:
    Signals.take = real_take  # type: ignore[method-assign]
    return True, True


if os.environ["FAULT"] == "stop":
    Signals.take = take  # type: ignore[method-assign]
else:
    Allreduce.commit = commit  # type: ignore[method-assign]

if __name__ == "__main__":
    sys.exit(main())
