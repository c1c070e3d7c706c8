"""The program with a fault built in: rank 1 raises in round 5 (`commit`) or stalls the disk."""

from __future__ import annotations

import os
import sys

from distq_mpi.__main__ import main
from distq_mpi.architectures import Allreduce

real_commit = Allreduce.commit


def commit(self: Allreduce) -> None:
    if self.transport.rank == int(os.environ["FAULT_RANK"]) and self.pending.round == 5:
        raise ZeroDivisionError("a fault on one rank")
    real_commit(self)


Allreduce.commit = commit  # type: ignore[method-assign]

if __name__ == "__main__":
    sys.exit(main())
