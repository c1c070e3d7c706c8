"""The program with slow workers: SLOW is JSON, rank -> how many times as long its rounds take."""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from typing import Any

from distq_mpi.__main__ import main
from distq_mpi.architectures.worker import Worker
from distq_mpi.launcher import launched_rank

FACTOR = float(json.loads(os.environ.get("SLOW", "{}")).get(str(launched_rank()), 1))
real = Worker.learn


@functools.wraps(real)
def learn(self: Worker, *arguments: Any) -> int:
    begin = time.perf_counter()
    n_steps = real(self, *arguments)
    time.sleep((FACTOR - 1) * (time.perf_counter() - begin))
    return n_steps


Worker.learn = learn  # type: ignore[method-assign]

if __name__ == "__main__":
    sys.exit(main())
