"""`supervise`: start a job, watch what it says of itself, and start it again where MPI gave up.

What MPI cannot survive (a host or a daemon that is lost, a launcher that hangs, a library without
ULFM) ends a job in ways that no exit code tells. The run directory does: a verdict in summary.json,
a heartbeat in run.json. Only one of all tries can work in a run directory at a time (its lock), so
what may be left of an earlier one elsewhere cannot write into it.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from distq_mpi.checkpoint import newest_good
from distq_mpi.errors import ConfigError, DistqError, FileError
from distq_mpi.files import read_json
from distq_mpi.monitor import RunDirectory
from distq_mpi.monitor.metrics import JsonLines

LOOK_S, GRACE_S, PAUSE_S = 0.2, 10.0, 1.0
START_S = 900.0
"""Seconds until the first heartbeat: starting ranks, compiling, reading models."""
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
CODE_USAGE, CODE_INTERRUPTED = 2, 75


@dataclass(frozen=True)
class Limits:
    """tries : starts in all. silent_s : seconds without a heartbeat, stuck_s : seconds in one phase
    of one round, after which a job is taken for hanging. hosts_from : a command that prints the
    hosts to use, one `host:slots` a line, before every start; "" for none."""

    tries: int = 5
    silent_s: float = 60.0
    stuck_s: float = 1800.0
    hosts_from: str = ""

    @classmethod
    def of(cls, options: dict[str, str]) -> Limits:
        """From checked options of the command line."""
        plain = cls()
        return cls(
            int(float(options.get("tries", plain.tries))),
            float(options.get("silent-s", plain.silent_s)),
            float(options.get("stuck-s", plain.stuck_s)),
            options.get("hosts-from", ""),
        )


class Supervisor:
    """One run, however many jobs it takes. words : the launcher's command line."""

    def __init__(self, words: list[str], limits: Limits) -> None:
        self.limits, self.words = limits, list(words)
        self._command = _place_of_command(self.words)
        self.directory = self._directory()
        self._mark = f"DISTQ_SUPERVISED={uuid.uuid4().hex}"
        self._asked = ""

    def run(self) -> int:
        """Start until there is a verdict, or tries are used up; return the run's exit code. Local.

        TERM, INT and USR2 ask the run to save and stop, USR1 to save and go on.
        """
        for number in (*STOPS, signal.SIGUSR1):
            signal.signal(number, self._on_signal)
        before, code = self._newest(), 1
        for k in range(1, self.limits.tries + 1):
            begun = time.time()
            code, why = self._one_try(k, begun)
            if why == "":
                return code
            newest = self._newest()
            self._tell("failed", k, f"{why}; newest good checkpoint: {newest or 'none'}")
            if self._asked:
                return CODE_INTERRUPTED if newest is not None else 1
            if k > 1 and newest == before:
                self._tell("gave_up", k, "two starts in a row have not come to a new checkpoint")
                return code or 1
            before = newest
            time.sleep(PAUSE_S)
        self._tell("gave_up", self.limits.tries, f"{self.limits.tries} starts were made")
        return code or 1

    def _one_try(self, k: int, begun: float) -> tuple[int, str]:
        """One job: the run's exit code, and why it must be started again ("" = it need not be)."""
        words = self._words_now()
        self._tell("start", k, shlex.join(words))
        name, value = self._mark.split("=")
        try:
            job = subprocess.Popen(
                words, env={**os.environ, name: value}, start_new_session=True,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except OSError as error:
            raise FileError(f"cannot start {words[0]}: {error.strerror}") from error
        hangs = ""
        while job.poll() is None and not hangs:
            time.sleep(LOOK_S)
            hangs = self._hangs(begun) or self._has_ended(begun)
        self._end(job)
        verdict, code = self._verdict(begun), int(job.returncode)
        if verdict == CODE_INTERRUPTED and code != verdict and not self._asked:
            # A launcher that loses a host asks the ranks to stop before it kills them.
            return verdict, f"it was interrupted by what ended its launcher with code {code}"
        if verdict is not None:
            return verdict, ""
        if code == CODE_USAGE and k == 1 and self._state(begun) == {}:
            return code, ""  # a mistake in the command; it has been told
        return code, hangs or f"the job ended with code {code} and no verdict"

    def _words_now(self) -> list[str]:
        """The command line of the next start: `resume` where there is something to resume."""
        words, place = list(self.words), self._command
        if self._newest() is not None:
            words[place:] = ["resume", str(self.directory)]
        elif words[place] == "train" and self.directory.exists():
            words.append("--run.overwrite")
        if not self.limits.hosts_from:
            return words
        told = subprocess.run(
            self.limits.hosts_from, shell=True, capture_output=True, text=True, check=False
        )
        hosts = told.stdout.split()
        if told.returncode or not hosts:
            raise FileError(
                f"--hosts-from {self.limits.hosts_from}: code {told.returncode}, "
                f"{len(hosts)} hosts {told.stderr.strip()}"
            )
        slots = sum(int(host.partition(":")[2] or 1) for host in hosts)
        return [
            word.replace("{hosts}", ",".join(hosts)).replace("{ranks}", str(slots))
            for word in words
        ]

    def _directory(self) -> Path:
        """The run directory of the command, which is given one where it has none."""
        words, place = self.words, self._command
        if words[place] == "resume":
            if len(words) < place + 2:
                raise ConfigError("supervise: resume takes one run directory")
            return Path(words[place + 1])
        for k, word in enumerate(words):
            if word == "--run.dir" and k + 1 < len(words):
                return Path(words[k + 1])
            if word.startswith("--run.dir="):
                return Path(word.partition("=")[2])
        number = 1
        while Path(f"runs/supervised-{number:04d}").exists():
            number += 1
        words += ["--run.dir", f"runs/supervised-{number:04d}"]
        return Path(words[-1])

    def _newest(self) -> str | None:
        """The name of the newest checkpoint that is whole."""
        with suppress(DistqError):
            path, _ = newest_good(RunDirectory.open(self.directory).checkpoints)
            return None if path is None else path.name
        return None

    def _state(self, begun: float) -> dict[str, Any]:
        """run.json, where it was written since this start."""
        state: dict[str, Any] = {}
        with suppress(DistqError):
            state = read_json(RunDirectory(self.directory).run)
        return state if state.get("heartbeat", 0.0) >= begun else {}

    def _verdict(self, begun: float) -> int | None:
        """The exit code that the run itself gave since this start; None where it must go on.

        A run that failed is started again: what failed may have been a rank's host.
        """
        with suppress(DistqError, OSError):
            path = RunDirectory(self.directory).summary
            if path.stat().st_mtime >= begun:
                summary = read_json(path)
                if summary.get("status") != "failed":
                    return int(summary["exit_code"])
        return None

    def _has_ended(self, begun: float) -> str:
        """Whether a job that has given its verdict is still there, long after that."""
        with suppress(OSError):
            ended = RunDirectory(self.directory).summary.stat().st_mtime
            if ended >= begun and time.time() - ended > GRACE_S + self.limits.silent_s:
                return "the launcher has not ended"
        return ""

    def _hangs(self, begun: float) -> str:
        state, now = self._state(begun), time.time()
        if not state:
            late = now - begun > START_S
            return f"no heartbeat within {START_S:g} s of the start" if late else ""
        if state.get("state") not in ("running", "created"):
            return ""
        if now - state["heartbeat"] > self.limits.silent_s:
            return f"no heartbeat for {self.limits.silent_s:g} s"
        if now - state.get("phase_since", now) > self.limits.stuck_s:
            return f"in {state.get('phase')} for {self.limits.stuck_s:g} s"
        return ""

    def _end(self, job: subprocess.Popen[bytes]) -> None:
        """End what is left of a job on this host, by the mark that its processes carry."""
        if job.poll() is None:
            job.terminate()
            with suppress(subprocess.TimeoutExpired):
                job.wait(GRACE_S)
        for pid in self._left():
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        job.wait()

    def _left(self) -> list[int]:
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdigit() and int(entry) != os.getpid():
                with suppress(OSError):
                    if self._mark.encode() in Path("/proc", entry, "environ").read_bytes():
                        found.append(int(entry))
        return found

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """Ask as a user would, by a file: it goes past whatever the launcher makes of signals."""
        what = "checkpoint" if number == signal.SIGUSR1 else "stop"
        self._asked = self._asked or what if what == "stop" else self._asked
        with suppress(OSError):
            (RunDirectory(self.directory).control / what).touch()

    def _tell(self, kind: str, k: int, message: str) -> None:
        """One line for the user, and one into supervision.jsonl where there is a directory."""
        print(f"supervise: {kind} {k} of {self.limits.tries}: {message}", file=sys.stderr)
        if self.directory.is_dir():
            log = JsonLines(self.directory / "supervision.jsonl")
            log.append({"time": time.time(), "kind": kind, "try": k, "message": message})
            log.close()


def _place_of_command(words: list[str]) -> int:
    """Where `train` or `resume` stands; `train` is put in where the program has no command."""
    for k, word in enumerate(words):
        if word in ("train", "resume"):
            return k
    for k, word in enumerate(words):
        if word == "distq_mpi":
            words.insert(k + 1, "train")
            return k + 1
    raise ConfigError(
        "supervise: what follows -- must start `python -m distq_mpi train` or `resume`, not "
        + (shlex.join(words) or "nothing")
    )


def supervise(operands: tuple[str, ...], limits: Limits) -> int:
    """Run the command `operands` to a verdict; return the run's exit code. Local."""
    return Supervisor(list(operands), limits).run()
