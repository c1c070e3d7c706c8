"""`info`: a file or a run directory, described for people. Local, no MPI."""

from __future__ import annotations

import json
import os
import time
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Any

from distq_mpi import checkpoint
from distq_mpi.config import Config, to_dict
from distq_mpi.errors import FileError
from distq_mpi.files import read_json
from distq_mpi.memory import readable
from distq_mpi.monitor import RunDirectory
from distq_mpi.monitor.console import duration, summary_lines
from distq_mpi.operands import table_file

SILENT_S = 60
"""Seconds without a heartbeat after which a run that says running is probably dead."""


def describe(operand: str | os.PathLike[str]) -> str:
    """Describe a checkpoint or result file; of a run directory the run, and its newest table.

    Raises
    ------
    FileError
        If it is neither, or if what it says cannot be trusted.
    """
    if not Path(operand).is_dir():
        return checkpoint.describe(operand)
    run = RunDirectory.open(operand)
    lines = [f"{run.path}: run directory, {_state(run)}", *_summary(run), *_configuration(run)]
    kept = checkpoint.paths(run.checkpoints)
    size = sum(path.stat().st_size for path in kept)
    lines.append(f"  checkpoints      {len(kept)}, {readable(size)}")
    if kept or run.result.is_file():
        lines.append(checkpoint.describe(table_file(run.path)))
    else:
        lines.append("  no table yet")
    return "\n".join(lines)


def _state(run: RunDirectory) -> str:
    state = run.state() or "run.json is unreadable"
    about: dict[str, Any] = {}
    with suppress(FileError):
        about = read_json(run.run)
    beat = about.get("heartbeat")
    if state != "running" or not isinstance(beat, int | float):
        return state
    silent = max(0.0, time.time() - beat)
    who = f"process {about.get('pid')} on {about.get('host')}"
    told = f"running ({who}, heard of {duration(silent)} ago"
    return told + ("; probably killed: go on with resume)" if silent > SILENT_S else ")")


def _summary(run: RunDirectory) -> list[str]:
    if not run.summary.is_file():
        return []
    summary = read_json(run.summary)
    lines = [f"  {summary.get('status')}: {summary.get('stop_reason')}"]
    if summary.get("steps") is None:
        return lines
    shown = ("steps", "time", "policy gap, loss", "sampled return", "ranks")
    return lines + [f"  {title:<16} {text}" for title, text in summary_lines(summary)
                    if title in shown]  # fmt: skip


def _configuration(run: RunDirectory) -> list[str]:
    """The keys that are not as they are by default."""
    try:
        stored = tomllib.loads(run.config_toml())
    except tomllib.TOMLDecodeError as error:
        raise FileError(f"{run.config} is not TOML: {error}") from error
    usual = to_dict(Config())
    return [
        f"  {section}.{key} = {json.dumps(value, ensure_ascii=False)}"
        for section, keys in stored.items()
        for key, value in keys.items()
        if usual.get(section, {}).get(key) != value or (section, key) == ("env", "id")
    ]
