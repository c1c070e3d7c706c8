"""From what a user names, a run directory or a file, to the file that holds the table."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from distq_mpi import checkpoint
from distq_mpi.checkpoint import Header
from distq_mpi.errors import FileError
from distq_mpi.files import read_json
from distq_mpi.monitor import RunDirectory


def table_file(operand: str | os.PathLike[str]) -> Path:
    """Return the file itself; of a run directory its result, or its newest checkpoint if later.

    Whether the file is whole is not looked at. Local.

    Raises
    ------
    FileError
        If a directory is no run directory, or holds no table yet.
    """
    path = Path(operand)
    if not path.is_dir():
        return path
    run = RunDirectory.open(path)
    newest = checkpoint.paths(run.checkpoints)[-1:]
    if run.result.is_file():
        # A run that was resumed and interrupted has gone on beyond its result.
        with suppress(FileError):
            name = checkpoint.file_name(checkpoint.read_header(run.result).round)
            if newest and newest[0].name > name:
                return newest[0]
        return run.result
    if newest:
        return newest[0]
    raise FileError(f"{path} holds no table yet: neither result.h5 nor a checkpoint")


def summary_of(header: Header) -> dict[str, Any] | None:
    """Return the summary of the run that a file lies in, if it speaks of this very round. Local."""
    folder = header.path.absolute().parent
    run = RunDirectory(folder.parent if folder.name == "checkpoints" else folder)
    with suppress(FileError):
        summary = read_json(run.summary)
        if isinstance(summary, dict) and summary.get("rounds") == header.round:
            return summary
    return None
