"""What one rank does for all: keep the run directory, talk to the user, take requests."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, TextIO

from distq_mpi.errors import DistqError
from distq_mpi.files import plain, write_json
from distq_mpi.monitor.console import Console
from distq_mpi.monitor.metrics import JsonLines
from distq_mpi.monitor.run_directory import RunDirectory

__all__ = ["Monitor", "RunDirectory"]

HEARTBEAT_S = 1.0
REQUESTS_S = 0.2
STATES = {"converged": "finished", "finished": "finished", "interrupted": "interrupted"}


class Monitor:
    """Tells the run directory and the terminal how the run goes; one rank only, local.

    Takes the directory for this process (`RunDirectory.lock`) until `finish` or `fail`.

    Parameters
    ----------
    quiet : bool
        Print nothing; the files are written all the same.
    stream : text file, optional
        In place of standard output.

    Raises
    ------
    FileError
        From every method but `fail`, if a file cannot be written.
    ConfigError
        If another process works in the directory.

    A thread of its own writes a heartbeat every `HEARTBEAT_S`, with the phase that the run is in
    and since when: long rounds and exact values are no silence. `finished` : after `finish`.
    """

    def __init__(
        self, directory: RunDirectory, quiet: bool = False, stream: TextIO | None = None
    ) -> None:
        self.directory = directory
        directory.lock()
        self._metrics = JsonLines(directory.metrics)
        self._events = JsonLines(directory.events)
        self._console = None if quiet else Console(sys.stdout if stream is None else stream)
        self.finished, self._asked_at = False, -1e9
        self._phase, self._since = "start", time.time()
        self._ended, self._writes = threading.Event(), threading.Lock()
        self._beats, self._beating = threading.Thread(target=self._beat, daemon=True), False

    def start(self, lines: Sequence[str], provenance: dict[str, Any]) -> None:
        """Say what runs, keep where it came from, and call the run running."""
        if self.directory.provenance.exists():
            self._events.append({"time": time.time(), "kind": "provenance", **plain(provenance)})
        else:
            write_json(self.directory.provenance, provenance)
        self.directory.summary.unlink(missing_ok=True)
        self.directory.write_state("running")
        if self._console:
            self._console.banner([*lines, f"run directory {self.directory.path}"])

    def report(self, row: dict[str, Any], show: bool = True) -> None:
        """Append one row of numbers to `metrics.jsonl` and, unless told not to, print it.

        The terminal shows `wall_time_s`, `steps`, `steps_per_s`, `round`, `episodes`,
        `mean_return`, `td_rms`, `policy_gap` and `steps_per_round`; the file takes every key.
        """
        row = plain(row)
        self._metrics.append(row)
        if self._console and show:
            self._console.report(row)

    def event(self, kind: str, message: str = "", **fields: Any) -> None:
        """Append one event to `events.jsonl`, and print it if it has a message."""
        self._events.append({"time": time.time(), "kind": kind, "message": message, **fields})
        if message and self._console:
            self._console.event(kind, message)

    def requests(self) -> tuple[bool, bool]:
        """Return what files in `control/` ask for, (checkpoint, stop); cheap at every round."""
        now = time.monotonic()
        if now - self._asked_at < REQUESTS_S:
            return False, False
        self._asked_at = now
        return self.directory.requests()

    def finish(
        self, summary: dict[str, Any], next_commands: Sequence[str] = (), drawing: str = ""
    ) -> None:
        """Keep and print the summary, close the files, and let the directory go."""
        summary = plain(summary)
        write_json(self.directory.summary, summary)
        status = str(summary.get("status"))
        self._silence()
        self.directory.write_state(STATES.get(status, "failed"), status=status)
        self.finished = True
        self._close()
        if self._console:
            self._console.finish(summary, next_commands, drawing)

    def fail(self, message: str, exit_code: int = 1) -> None:
        """Call the run failed as far as the disk allows; prints and raises nothing."""
        with suppress(DistqError):
            self._events.append({"time": time.time(), "kind": "error", "message": message})
        self._silence()
        with suppress(DistqError):
            self.directory.write_state("failed", message=message)
        with suppress(DistqError):
            failed = {"status": "failed", "exit_code": exit_code, "stop_reason": message}
            write_json(self.directory.summary, failed)
        self._close()

    def interrupt(self, message: str) -> None:
        """Call the run interrupted, to be resumed; print nothing, raise nothing."""
        with suppress(DistqError):
            self._events.append({"time": time.time(), "kind": "interrupted", "message": message})
        self._silence()
        with suppress(DistqError):
            self.directory.write_state("interrupted", message=message)
        self._close()

    def enter(self, phase: str) -> None:
        """Say with the next heartbeat what the run does from now on; the first call begins them."""
        self._phase, self._since = phase, time.time()
        if not self._beating:
            self._beating = True
            self._beats.start()

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            with self._writes, suppress(DistqError):
                if not self._ended.is_set():
                    self.directory.write_state(
                        "running", durable=False, phase=self._phase, phase_since=self._since
                    )

    def _silence(self) -> None:
        """No heartbeat after this."""
        with self._writes:
            self._ended.set()

    def _close(self) -> None:
        self._silence()
        self._metrics.close()
        self._events.close()
        self.directory.release()
