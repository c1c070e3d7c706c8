"""The program with a fault built in, in round 5 of rank FAULT_RANK: `raise` or `fsize`."""

from __future__ import annotations

import os
import resource
import sys

from distq_mpi.__main__ import main
from distq_mpi.architectures import Allreduce

real_commit = Allreduce.commit


def commit(self: Allreduce) -> None:
    if self.transport.rank == int(os.environ["FAULT_RANK"]) and self.pending.round == 5:
        if os.environ["FAULT"] == "raise":
            raise ZeroDivisionError("a fault on one rank")
        # From here on no file can grow beyond 100 kB, as on a disk that has no more.
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    real_commit(self)


Allreduce.commit = commit  # type: ignore[method-assign]

if __name__ == "__main__":
    sys.exit(main())
