"""Checkpoint schema 1: one HDF5 file with the table in global row order, for any number of ranks.

Described field by field in docs/checkpoint.md. Everything here is local: one rank writes, any rank
reads the rows it owns.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from distq_mpi import __version__
from distq_mpi.errors import FileError
from distq_mpi.files import SLICE_ROWS, Stored, create_hdf5, explain, open_hdf5, read_slices

FORMAT = "distq_mpi/checkpoint"
FORMAT_VERSION = 1
TABLES = {"q": None, "clock": np.dtype("<u4"), "visits": np.dtype("<u8")}
SUFFIXES = ("", "2", "3")
"""Of the datasets of a table's parts: under Double Q there are /q2, /clock2 and /visits2, too."""

Rows = Iterable[tuple[int, np.ndarray, np.ndarray, np.ndarray | None]]


@dataclass(frozen=True)
class Header:
    """What a checkpoint says about itself; picklable, so that one rank reads it for all.

    `attributes` are those given to `write`, `round` and `model_id` included; `stored` says where
    the arrays lie, so that `read_rows(header, ...)` needs no h5py and no second look at the header.
    """

    path: Path
    round: int
    model_id: str
    n_states: int
    n_actions: int
    n_lanes: int
    dtype: np.dtype
    config_toml: str
    format_version: int
    creator: str
    created: str
    size_bytes: int
    attributes: dict[str, Any]
    stored: Stored

    @property
    def n_parts(self) -> int:
        """Values per pair: two under Double Q."""
        return sum(f"q{suffix}" in self.stored.arrays for suffix in SUFFIXES)


def file_name(round: int) -> str:
    """Name of the checkpoint of a round: names sort as rounds do."""
    return f"round-{round:012d}.h5"


def write(
    path: str | os.PathLike[str],
    *,
    rows: Rows,
    n_states: int,
    n_actions: int,
    dtype: Any,
    lanes: np.ndarray,
    config_toml: str,
    attributes: dict[str, Any],
    worlds: tuple[np.ndarray, np.ndarray] | None = None,
) -> None:
    """Write one checkpoint; it appears under `path` whole and durable, or not at all.

    Parameters
    ----------
    rows : iterable of (start, q, clock, visits)
        Slices in ascending order, each of 65,536 rows (the last one shorter), (n, A), or (n, 2 A)
        where the table has two parts side by side: q of `dtype`, clock uint32, visits uint64 or
        None where no lifetime visits are kept. Each is written
        before the next is asked for, so its arrays may be reused.
    lanes : structured array (L,)
        Every field a lane needs to go on.
    worlds : structured array (L,) and uint32 array, optional
        Of environments stepped in Python: what else a lane needs, and the actions of all open
        episodes.
    attributes : dict
        Numbers and texts; `round` (int) and `model_id` (str) must be among them.

    Raises
    ------
    FileError
        If it cannot be written, a full disk included; nothing is left behind.
    ValueError
        If slices are missing, out of order or misshapen.
    """
    own = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "creator": f"distq_mpi {__version__}",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "n_states": n_states,
        "n_actions": n_actions,
    }
    if clash := own.keys() & attributes.keys():
        raise ValueError(f"attributes that the checkpoint sets itself: {sorted(clash)}")
    types = {**TABLES, "q": np.dtype(dtype).newbyteorder("<")}
    lanes = _packed(lanes)
    row_bytes = n_actions * sum(t.itemsize for t in types.values())
    needed_bytes = n_states * row_bytes + lanes.nbytes + len(config_toml)
    with create_hdf5(path, needed_bytes) as file:
        file.text("config", config_toml)
        pieces = {"lanes": lanes}
        if worlds is not None:
            pieces |= {"worlds": _packed(worlds[0]), "actions": worlds[1]}
        for name, array in pieces.items():
            file.create(name, array.shape, array.dtype)
            for start in range(0, len(array), SLICE_ROWS):
                file.put(name, start, array[start : start + SLICE_ROWS])
        expected = 0
        for start, *parts in rows:
            if start != expected:
                raise ValueError(f"expected the slice at row {expected}, got the one at {start}")
            for name, both in zip(TABLES, parts, strict=True):
                if both is None:
                    continue
                for suffix, part in zip(SUFFIXES, _parts(both, n_actions), strict=False):
                    if start == 0:
                        file.create(name + suffix, (n_states, n_actions), types[name])
                    file.put(name + suffix, start, part)
            expected = min(start + SLICE_ROWS, n_states)
        if expected != n_states:
            raise ValueError(f"rows ended at {expected} of {n_states}")
        file.finish({**own, **attributes})


def read_header(path: str | os.PathLike[str], model_id: str | None = None) -> Header:
    """Read and check everything but the arrays.

    Parameters
    ----------
    model_id : str, optional
        The environment the checkpoint must belong to; None accepts any.

    Raises
    ------
    FileError
        If it is truncated, damaged, foreign, too new, too old, or of another model.
    """
    stored = open_hdf5(path, "checkpoint", FORMAT, FORMAT_VERSION)
    given = dict(stored.attributes)
    if given["format_version"] < FORMAT_VERSION:
        raise FileError(
            f"{path} is of format {given['format_version']}, older than {FORMAT_VERSION}: bring it "
            f"up to date with python -m distq_mpi upgrade {path}"
        )
    try:
        own = {name: given.pop(name) for name in ("format_version", "creator", "created")}
        given.pop("format")
        q = stored.arrays["q"]
        shape = (given.pop("n_states"), given.pop("n_actions"))
        tables = [stored.arrays[name] for name in _names(stored)]
        if any(array.shape != shape for array in tables):
            raise FileError(f"{path} is damaged: its tables are not of the shape {shape}")
        header = Header(
            path=Path(path),
            round=given["round"],
            model_id=given["model_id"],
            n_states=shape[0],
            n_actions=shape[1],
            n_lanes=stored.arrays["lanes"].shape[0],
            dtype=q.dtype,
            config_toml=stored.texts["config"],
            size_bytes=stored.size_bytes,
            attributes=given,
            stored=stored,
            **own,
        )
        stored.arrays["clock"]
    except KeyError as error:
        raise FileError(f"{path} is damaged: it has no {error.args[0]}") from error
    if model_id is not None and header.model_id != model_id:
        raise FileError(
            f"{path} was learned on another environment: its model_id is "
            f"{header.model_id[:12]}, this environment's is {model_id[:12]}"
        )
    return header


def iter_rows(
    source: Header | str | os.PathLike[str], start: int = 0, stop: int | None = None
) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray | None]]:
    """Yield checked (first row, q, clock, visits) that cover rows [start, stop), a slice at a time.

    Raises
    ------
    FileError
        If the file cannot be read or a checksum is wrong.
    """
    header = source if isinstance(source, Header) else read_header(source)
    stop = header.n_states if stop is None else stop
    kept = _names(header.stored)
    slices = [read_slices(header.stored, name, start, stop) for name in kept]
    for parts in zip(*slices, strict=True):
        arrays = {name: rows for name, (_, rows) in zip(kept, parts, strict=True)}
        yield parts[0][0], *_joined(arrays)


def read_rows(
    source: Header | str | os.PathLike[str], start: int, stop: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Read rows [start, stop) of q, clock and visits, each (stop - start, A), or (stop - start,
    2 A) where the table has two parts.

    `visits` is None where none were kept. The checksums of all slices touched are
    verified. The arrays belong to the caller.

    Raises
    ------
    FileError
        If the file cannot be read or a checksum is wrong.
    """
    header = source if isinstance(source, Header) else read_header(source)
    whole = {
        name: np.empty((stop - start, header.n_actions), header.stored.arrays[name].dtype)
        for name in _names(header.stored)
    }
    for name, out in whole.items():
        for first, rows in read_slices(header.stored, name, start, stop):
            out[first - start : first - start + len(rows)] = rows
    return _joined(whole)


def read_lanes(source: Header | str | os.PathLike[str]) -> np.ndarray:
    """Read the lanes, a structured array (L,), checked; it belongs to the caller.

    Raises
    ------
    FileError
        If the file cannot be read or a checksum is wrong.
    """
    header = source if isinstance(source, Header) else read_header(source)
    return _whole(header.stored, "lanes")


def read_worlds(
    source: Header | str | os.PathLike[str],
) -> tuple[np.ndarray, np.ndarray] | None:
    """Read what `write` took as `worlds`, checked; None where there was none.

    Raises
    ------
    FileError
        If the file cannot be read or a checksum is wrong.
    """
    header = source if isinstance(source, Header) else read_header(source)
    if "worlds" not in header.stored.arrays:
        return None
    return _whole(header.stored, "worlds"), _whole(header.stored, "actions")


def _whole(stored: Stored, name: str) -> np.ndarray:
    array = stored.arrays[name]
    out = np.empty(array.shape, array.dtype)
    for first, rows in read_slices(stored, name, 0, array.shape[0]):
        out[first : first + len(rows)] = rows
    return out


def verify(path: str | os.PathLike[str], model_id: str | None = None) -> Header:
    """Check every checksum of a checkpoint; memory is one slice.

    Raises
    ------
    FileError
        At the first thing that is wrong.
    """
    header = read_header(path, model_id)
    for array in header.stored.arrays.values():
        for _ in read_slices(header.stored, array.name, 0, array.shape[0]):
            pass
    return header


def paths(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the checkpoints of a folder, the newest last; none where there is no folder.

    Raises
    ------
    FileError
        If the folder cannot be read.
    """
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise explain(error, folder, "read") from error
    return [Path(folder) / name for name in names if re.fullmatch(r"round-\d{12,}\.h5", name)]


def newest_good(
    folder: str | os.PathLike[str], model_id: str | None = None
) -> tuple[Path | None, list[str]]:
    """Return the newest checkpoint of a folder that verifies, and why newer ones were refused."""
    refusals: list[str] = []
    for path in reversed(paths(folder)):
        try:
            return verify(path, model_id).path, refusals
        except FileError as error:
            refusals.append(str(error))
    return None, refusals


def prune(folder: str | os.PathLike[str], keep: int) -> None:
    """Delete all but the `keep` newest checkpoints (at least one stays) and what dead writers left.

    Raises
    ------
    FileError
        If a file cannot be deleted.
    """
    for path in [*paths(folder)[: -max(keep, 1)], *Path(folder).glob(".round-*.part")]:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise explain(error, path, "delete") from error


def describe(path: str | os.PathLike[str]) -> str:
    """Describe a checkpoint for people: header, sizes, checksums, range of q; memory is one slice.

    Raises
    ------
    FileError
        If the header cannot be trusted; damage of the arrays is described, not raised.
    """
    header = read_header(path)
    lines = [
        f"{header.path}: checkpoint, format {header.format_version}, {header.size_bytes:,} bytes",
        f"  written     {header.created} by {header.creator}",
        f"  table       {header.n_states:,} states x {header.n_actions} actions, {header.dtype}",
        f"  lanes       {header.n_lanes:,}",
    ]
    for name, value in sorted(header.attributes.items()):
        text = str(value)
        lines.append(f"  {name:<11} {text if len(text) <= 80 else text[:77] + '...'}")
    faults = []
    for array in header.stored.arrays.values():
        with suppress(FileError):
            for _ in read_slices(header.stored, array.name, 0, array.shape[0]):
                pass
            continue
        faults.append(f"/{array.name}")
    if faults:
        lines.append(f"  checksums   BAD in {', '.join(faults)}: this checkpoint will be refused")
        return "\n".join(lines)
    lines.append("  checksums   ok")
    low, high, visited, not_finite = np.inf, -np.inf, 0, 0
    for _, q, clock, visits in iter_rows(header):
        finite = np.isfinite(q)
        not_finite += q.size - int(finite.sum())
        low = min(low, float(q.min(initial=np.inf, where=finite)))
        high = max(high, float(q.max(initial=-np.inf, where=finite)))
        # Clocks of the default fusion may lag behind visits, never lead them.
        visited += int(np.count_nonzero(clock & 0x3FFFFFFF if visits is None else visits))
    pairs = header.n_states * header.n_actions * header.n_parts
    lines.append(f"  q           {low:.6g} to {high:.6g}, {not_finite:,} not finite")
    lines.append(f"  visited     {visited:,} of {pairs:,} pairs ({visited / max(pairs, 1):.1%})")
    return "\n".join(lines)


def _names(stored: Stored) -> list[str]:
    """The tables that a file holds."""
    names = [name + suffix for suffix in SUFFIXES for name in TABLES]
    return [name for name in names if name in stored.arrays]


def _parts(both: np.ndarray, n_actions: int) -> list[np.ndarray]:
    return [both[:, start : start + n_actions] for start in range(0, both.shape[1], n_actions)]


def _joined(arrays: dict[str, np.ndarray]) -> tuple[Any, Any, Any]:
    """q, clock and visits, the parts of each side by side; None for what was not kept."""
    found = []
    for name in TABLES:
        parts = [arrays[name + suffix] for suffix in SUFFIXES if name + suffix in arrays]
        both = np.concatenate(parts, axis=1) if len(parts) > 1 else None
        found.append(both if len(parts) > 1 else parts[0] if parts else None)
    return found[0], found[1], found[2]


def _packed(lanes: np.ndarray) -> np.ndarray:
    """Little endian without holes: padding bytes would be checksummed but not kept by HDF5."""
    names = lanes.dtype.names or ()
    packed = np.dtype([(name, lanes.dtype[name].newbyteorder("<")) for name in names])
    out = np.empty(lanes.shape, packed)
    for name in names:
        out[name] = lanes[name]
    return out
