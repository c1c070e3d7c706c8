"""The run directory: who may use it, and where each of its files lies."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from distq_mpi.errors import ConfigError, FileError
from distq_mpi.files import explain, publish, read_json, write_json

REQUESTS = ("checkpoint", "stop")
FILES = ("provenance.json", "metrics.jsonl", "events.jsonl", "summary.json", "result.h5")


class RunDirectory:
    """One run on disk; made by `create` or `open` on one rank, used by one process at a time.

    Attributes
    ----------
    path : Path
        The directory. Its files are named by the attributes `config`, `provenance`, `metrics`,
        `events`, `run`, `summary`, `result`, `checkpoints` and `control`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.toml"
        self.provenance = path / "provenance.json"
        self.metrics = path / "metrics.jsonl"
        self.events = path / "events.jsonl"
        self.run = path / "run.json"
        self.summary = path / "summary.json"
        self.result = path / "result.h5"
        self.checkpoints = path / "checkpoints"
        self.control = path / "control"
        self._lock = -1

    @classmethod
    def create(
        cls,
        config_toml: str,
        env_id: str,
        directory: str | os.PathLike[str] = "",
        overwrite: bool = False,
    ) -> RunDirectory:
        """Make a run directory, `runs/<env>-<NNNN>` with the next free number if none is named.

        Parameters
        ----------
        config_toml : str
            The resolved configuration, kept as `config.toml`.
        overwrite : bool
            Delete the run that is there. Only files of a run are deleted, and never those of a run
            that a process is working on.

        Raises
        ------
        ConfigError
            If the directory holds a run (or something else), or a run that is going on.
        FileError
            If it cannot be made or written.
        """
        path = Path(directory) if os.fspath(directory) else None
        try:
            run = cls(_next_free(env_id) if path is None else path)
            if path is not None:
                path.mkdir(parents=True, exist_ok=True)
                run._claim(overwrite)
            run.lock()
            run.checkpoints.mkdir(exist_ok=True)
            run.control.mkdir(exist_ok=True)
            with publish(run.config) as temporary:
                temporary.write_text(config_toml, encoding="utf-8")
        except OSError as error:
            raise explain(error, error.filename or path or "runs", "create") from error
        run.write_state("created")
        return run

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> RunDirectory:
        """Open the directory of an earlier run, to resume it or to read it.

        Raises
        ------
        FileError
            If it is not a run directory.
        """
        run = cls(Path(path))
        if not run.path.is_dir():
            raise FileError(f"{run.path}: no such run directory")
        if not run.config.is_file():
            raise FileError(f"{run.path} is not a run directory: it has no config.toml")
        return run

    def lock(self) -> None:
        """Keep other processes from working in this directory until this one ends.

        Raises
        ------
        ConfigError
            If another process works in it.
        FileError
            If the directory is not writable.
        """
        if self._lock >= 0:
            return
        try:
            descriptor = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise explain(error, self.path, "write") from error
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            # File systems without locks answer with other numbers; there nothing is promised.
            if error.errno in (errno.EACCES, errno.EAGAIN):
                os.close(descriptor)
                raise ConfigError(f"{self.path} is in use by another run{self._who()}") from None
        self._lock = descriptor
        with suppress(OSError):
            for leftover in self.path.glob(".*.part"):
                leftover.unlink()

    def release(self) -> None:
        """Let other processes in; a second call does nothing."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def config_toml(self) -> str:
        """Text of `config.toml`.

        Raises
        ------
        FileError
            If it cannot be read.
        """
        try:
            return self.config.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            if isinstance(error, OSError):
                raise explain(error, self.config, "read") from error
            raise FileError(f"{self.config} is not UTF-8 text") from error

    def state(self) -> str:
        """Return created, running, interrupted, finished or failed; "" if `run.json` is unreadable.

        A run that was killed still says running.
        """
        try:
            return str(read_json(self.run)["state"])
        except (FileError, KeyError, TypeError):
            return ""

    def write_state(self, state: str, durable: bool = True, **fields: Any) -> None:
        """Replace `run.json`: state, heartbeat (seconds since 1970), process, host, and `fields`.

        Raises
        ------
        FileError
            If it cannot be written.
        """
        about = {"heartbeat": time.time(), "pid": os.getpid(), "host": socket.gethostname()}
        write_json(self.run, {"state": state, **about, **fields}, durable)

    def requests(self) -> tuple[bool, bool]:
        """Return whether `control/` asks for (a checkpoint, a stop), and delete what asked.

        Raises
        ------
        FileError
            If what asked cannot be deleted.
        """
        try:
            with os.scandir(self.control) as entries:
                asked = {entry.name for entry in entries}
            for name in asked.intersection(REQUESTS):
                os.unlink(self.control / name)
        except FileNotFoundError:
            return False, False
        except OSError as error:
            raise explain(error, self.control, "read") from error
        return bool(asked.intersection(REQUESTS)), "stop" in asked

    def _claim(self, overwrite: bool) -> None:
        """Refuse a directory that is not ours to fill, or empty it if told to."""
        present = set(os.listdir(self.path)) - {".lock"}
        if not present:
            return
        if not (self.config.is_file() or self.run.is_file()):
            raise ConfigError(f"run.dir: {self.path} is not empty and not a run directory")
        if not overwrite:
            if self.state() == "finished":
                raise ConfigError(
                    f"run.dir: {self.path} holds a finished run; choose another directory, "
                    "or overwrite it with --run.overwrite"
                )
            raise ConfigError(
                f"run.dir: {self.path} holds an unfinished run; go on with "
                f"`python -m distq_mpi resume {self.path}`, or overwrite it with --run.overwrite"
            )
        self.lock()
        # The configuration goes last: as long as it is there, this is known to be a run directory.
        for folder in (self.checkpoints, self.control):
            for file in [
                *folder.glob("*.h5"),
                *folder.glob(".*.part"),
                *map(folder.joinpath, REQUESTS),
            ]:
                file.unlink(missing_ok=True)
        for name in (*FILES, "run.json", "config.toml"):
            (self.path / name).unlink(missing_ok=True)

    def _who(self) -> str:
        with suppress(FileError, KeyError, TypeError):
            about = read_json(self.run)
            return f" (process {about['pid']} on {about['host']})"
        return ""


def _next_free(env_id: str) -> Path:
    """Make `runs/<env>-<NNNN>`; whoever loses the race for a number takes the next one."""
    name = Path(env_id).stem if os.sep in env_id else env_id
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-") or "run"
    runs = Path("runs")
    runs.mkdir(exist_ok=True)
    taken = [re.fullmatch(re.escape(name) + r"-(\d+)", entry) for entry in os.listdir(runs)]
    number = max((int(match[1]) for match in taken if match), default=0) + 1
    while True:
        path = runs / f"{name}-{number:04d}"
        try:
            path.mkdir()
            return path
        except FileExistsError:
            number += 1
