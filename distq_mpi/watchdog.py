"""A thread that finds out when this rank hangs in its own work, says where, and ends it.

Ranks that wait for it would wait for ever. A rank that the system has stopped cannot do this: MPI's
failure detector gives it up (`launcher.give_up_hanging_ranks`), or `supervise` does.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distq_mpi.trainer import Run

LOOKS, ROUNDS = 10, 10
"""Looks within the limit; times of a round that another one may take."""
FILE = "hung-rank-{}.txt"


class Watchdog:
    """Watches one rank of a run from a thread of its own. Local.

    A rank hangs that is in LEARN, does not wait for others, and has come to no new step of an
    environment or message for `parallel.hang_s` seconds; where environments are compiled, and
    nothing shows that they step, for ten times its longest round beside that. Its stack goes to
    stderr and into `hung-rank-N.txt` of the run directory; then it ends itself: those left go on
    without it where MPI lets them, else the launcher ends the job.
    """

    def __init__(self, run: Run) -> None:
        self._run, self._limit = run, run.config.parallel.hang_s
        self._ended = threading.Event()
        if self._limit:
            threading.Thread(target=self._watch, daemon=True).start()

    def end(self) -> None:
        """Watch no more."""
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(min(1.0, self._limit / LOOKS)):
            run, limit = self._run, self._limit
            since = max(run.phase_since, run.architecture.busy_since)
            if run.environment.kind != "stepped":
                if not run.longest_s:
                    continue
                limit += ROUNDS * run.longest_s
            if run.phase == "learn" and time.perf_counter() - since > limit:
                self._give_up(time.perf_counter() - since)

    def _give_up(self, seconds: float) -> None:
        run = self._run
        me = run.transport.me
        told = (
            f"error: rank {me.number} on {me.host} hangs in {run.phase} of round "
            f"{run.architecture.progress.round} for {seconds:.0f} s (parallel.hang_s: "
            f"{self._limit:g}) and is given up; its stack:\n"
        )
        with suppress(OSError), open(Path(run.prepared.place) / FILE.format(me.number), "w") as at:
            at.write(told)
            at.flush()
            faulthandler.dump_traceback(at)
        sys.stderr.write(told)
        sys.stderr.flush()
        faulthandler.dump_traceback(sys.__stderr__ or 2)
        if run.transport.survives:
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(1)
