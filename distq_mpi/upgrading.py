"""`upgrade`: bring files of an older format to the newest. Local, no MPI.

A step per version, each a function of what the file holds; a file passes all that it lacks.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from distq_mpi import checkpoint
from distq_mpi.checkpoint import FORMAT, FORMAT_VERSION
from distq_mpi.errors import ConfigError, FileError
from distq_mpi.files import Stored, create_hdf5, explain, flush, open_hdf5, read_slices
from distq_mpi.monitor import RunDirectory


@dataclass(frozen=True)
class Array:
    """An array on its way from one version to the next; `slices` begins anew at every call.

    Slices are of `files.SLICE_ROWS` rows, the last one shorter: (first row, rows).
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    slices: Callable[[], Iterator[tuple[int, np.ndarray]]]


@dataclass(frozen=True)
class Contents:
    """What a file holds: attributes of the root, texts, arrays. Nothing of an array is read yet."""

    attributes: dict[str, Any]
    texts: dict[str, str]
    arrays: dict[str, Array]


STEPS: dict[int, Callable[[Contents], Contents]] = {}
"""Version -> function that makes the contents of the next version, `format_version` aside."""


def upgrade(operand: str, output: str = "") -> list[str]:
    """Upgrade a file, or all files of a run directory; return what was done, a line each.

    A file's place is taken by the new one when that is whole; the old one stays beside it as
    `<name>.v<version>.h5`. With `output` the new one goes there, and the old one stays as it is.

    Raises
    ------
    FileError
        If a file cannot be read or written, is damaged, or is newer than this program.
    ConfigError
        If `output` exists or is given for a run directory, or the run is being worked on.
    """
    path = Path(operand)
    if not path.is_dir():
        return [_upgrade_file(path, Path(output) if output else path)]
    if output:
        raise ConfigError(f"--output: {operand} is a run directory; its files change in place")
    run = RunDirectory.open(path)
    files = [*checkpoint.paths(run.checkpoints), *[run.result] * run.result.is_file()]
    if not files:
        raise FileError(f"{path} holds no checkpoint and no result")
    run.lock()
    done: list[str] = []
    faults: list[str] = []
    for file in files:
        try:
            done.append(_upgrade_file(file, file))
        except FileError as error:
            faults.append(str(error))
    run.release()
    if faults:
        raise FileError("\n".join(faults + done))
    return done


def _upgrade_file(path: Path, target: Path) -> str:
    stored = open_hdf5(path, "checkpoint", FORMAT, FORMAT_VERSION)
    version = int(stored.attributes["format_version"])
    if version == FORMAT_VERSION:
        return f"{path}: already format {version}, nothing to do"
    if target != path and target.exists():
        raise ConfigError(f"--output: {target} exists")
    fresh = target.with_name(f".{target.name}.v{FORMAT_VERSION}.{os.getpid()}.part")
    try:
        _write(_upgraded(stored, version), fresh)
        checkpoint.verify(fresh)
        kept = _keep(path, version) if target == path else path
        os.replace(fresh, target)
        flush(target.parent)
    except OSError as error:
        raise explain(error, target, "write") from error
    finally:
        with suppress(OSError):
            fresh.unlink()
    return f"{target}: format {version} -> {FORMAT_VERSION}; the old file is {kept}"


def _upgraded(stored: Stored, version: int) -> Contents:
    def slices_of(name: str, n_rows: int) -> Callable[[], Iterator[tuple[int, np.ndarray]]]:
        return lambda: read_slices(stored, name, 0, n_rows)

    arrays = {
        name: Array(array.shape, array.dtype, slices_of(name, array.shape[0]))
        for name, array in stored.arrays.items()
    }
    contents = Contents(dict(stored.attributes), dict(stored.texts), arrays)
    while version < FORMAT_VERSION:
        if version not in STEPS:
            raise FileError(
                f"{stored.path} has format {version}, which no release of distq_mpi has written"
            )
        contents = STEPS[version](contents)
        version += 1
        contents = replace(contents, attributes={**contents.attributes, "format_version": version})
    return contents


def _write(contents: Contents, path: Path) -> None:
    with create_hdf5(path) as file:
        for name, text in contents.texts.items():
            file.text(name, text)
        for name, array in contents.arrays.items():
            file.create(name, array.shape, array.dtype)
            for start, rows in array.slices():
                file.put(name, start, rows)
        file.finish(contents.attributes)


def _keep(path: Path, version: int) -> Path:
    """Give the old file its second name, under which it stays."""
    kept = path.with_name(f"{path.stem}.v{version}{path.suffix}")
    if kept.exists() and not kept.samefile(path):
        raise FileError(f"{kept} exists; the old {path.name} would be kept under this name")
    try:
        os.link(path, kept)
    except FileExistsError:
        pass  # an upgrade that was killed between this and the rename
    except OSError:  # a file system without second names
        shutil.copy2(path, kept)
        flush(kept)
    return kept
