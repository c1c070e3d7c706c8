"""Explicit models in files, npz and HDF5: read whole, or looked over and read row by row."""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np

from distq_mpi.environments.arguments import suggestion, time_limit
from distq_mpi.environments.base import Environment
from distq_mpi.environments.explicit import Facts, environment_of, explicit_model, model_id
from distq_mpi.environments.rows import (
    KINDS,
    RUN_ENTRIES,
    Entries,
    Mistakes,
    Packed,
    Written,
    assembled,
    check_arrays,
    merged,
    packed,
)
from distq_mpi.environments.starts import checked_starts
from distq_mpi.errors import FileError, ModelError
from distq_mpi.files import ForeignArrays, open_arrays, write_arrays

SUFFIXES = (".npz", ".h5", ".hdf5")
REQUIRED = ("n_states", "n_actions", "indptr", "indices", "probability", "reward")
OPTIONAL = ("terminated", "start", "max_episode_steps")

u8, i8 = np.uint64, np.int64


@dataclass(frozen=True)
class Source:
    """Rows of a model in an HDF5 file, which any rank that sees the file can read; picklable.

    path : absolute. forms : types and shapes of its arrays. rows int64 (n_runs + 1,): borders of
    the runs of rows it was looked over in. entries int64 (n_runs,): transitions of each, merged.
    crc32 uint32 (n_runs,): of these.
    """

    path: str
    n_states: int
    n_actions: int
    forms: dict[str, tuple[np.dtype, tuple[int, ...]]] = field(repr=False)
    rows: np.ndarray = field(repr=False)
    entries: np.ndarray = field(repr=False)
    crc32: np.ndarray = field(repr=False)

    def visible(self) -> bool:
        """Whether this host has such a file. Local."""
        return os.path.isfile(self.path)

    def most_entries(self, low: int, high: int) -> int:
        """A bound on the transitions of the states [low, high): those of all runs they touch."""
        first, last = self._runs(low, high)
        return int(self.entries[first:last].sum())

    def read(self, low: int, high: int) -> Iterator[Packed]:
        """Yield the rows of the states [low, high) in order, a run at a time. Local.

        Raises
        ------
        ModelError
            If the file cannot be read, or is no longer what rank 0 saw when it looked it over.
        """
        first_row, last_row = low * self.n_actions, high * self.n_actions
        with _opened(self.path) as (file, _, _):
            if _forms(file) != self.forms:
                raise ModelError(self._changed(0))
            written = Written("", self.n_states, self.n_actions, self.forms, file.part)
            for k in range(*self._runs(low, high)):
                start, stop = int(self.rows[k]), int(self.rows[k + 1])
                pointers = written.array("indptr", start, stop + 1)
                if not _in_order(pointers, written.n_entries):
                    raise ModelError(self._changed(start))
                entries = merged(written.normal(written.entries(pointers)))
                if _checksum(entries) != self.crc32[k]:
                    raise ModelError(self._changed(start))
                first, last = max(first_row - start, 0), min(last_row, stop) - start
                yield packed(entries).part(first, last)

    def _changed(self, row: int) -> str:
        return (
            f"{self.path}: state {row // self.n_actions}, action {row % self.n_actions} or one "
            f"soon after it is not what it was when the file was checked: on host "
            f"{os.uname().nodename} it is another file, or it was changed meanwhile"
        )

    def _runs(self, low: int, high: int) -> tuple[int, int]:
        """Numbers of the runs [first, last) that the states [low, high) touch."""
        if low >= high:
            return 0, 0
        first = int(np.searchsorted(self.rows, low * self.n_actions, side="right")) - 1
        return first, int(np.searchsorted(self.rows, high * self.n_actions))


def read_model(path: str, max_episode_steps: int | None = None) -> Environment:
    """Read an explicit model from an npz or HDF5 file.

    The file holds `n_states`, `n_actions` (scalars, or attributes), `indptr`, `indices`,
    `probability`, `reward` and, optionally, `terminated`, `start` and `max_episode_steps`, as
    `explicit_model` takes them. `max_episode_steps` overrides what the file says. Nothing in the
    file is executed, and no other file is opened.

    Raises
    ------
    ModelError
        If the file is missing, is of another kind, lacks or has foreign arrays, or is no valid
        model.
    """
    with _opened(path) as (file, n_states, n_actions):
        limit = _time_limit(path, file, max_episode_steps)
        arrays = [file.get(name) for name in (*REQUIRED[2:], "terminated", "start")]
    return explicit_model(
        path,
        n_states,
        n_actions,
        *arrays,  # type: ignore[arg-type]
        max_episode_steps=limit,
        verb="read",
    )


def look_over(least: int, path: str, /, max_episode_steps: int | None = None) -> Environment:
    """`read_model`, but of an HDF5 file of at least so many transitions no rows are kept.

    All of them are checked, a run at a time, with the same messages and for the same `model_id`;
    `rows` of the environment is then (0, 0), and `source` reads those that somebody wants.
    """
    with _opened(path) as (file, n_states, n_actions):
        if file.in_parts and math.prod(file.form("indices")[1]) >= least:
            written = Written(path, n_states, n_actions, _forms(file), file.part)
            return _looked_over(written, file, _time_limit(path, file, max_episode_steps))
    return read_model(path, max_episode_steps)


def whole(environment: Environment) -> Environment:
    """Return an environment whose rows are all held, whatever it held before. Local."""
    source: Source | None = environment.source
    if source is None:
        return environment
    n_rows, n_entries = int(source.rows[-1]), environment.n_transitions
    rows = assembled(source.read(0, environment.n_states), n_rows, n_entries)
    params = (*rows, *environment.params[4:])
    return replace(environment, params=params, rows=None, source=None)


def _looked_over(written: Written, file: ForeignArrays, max_episode_steps: int) -> Environment:
    check_arrays(written)
    mistakes, facts, untouched = Mistakes(written), Facts(), True
    borders, counts, sums = [0], [], []
    for row, pointers in written.runs():
        entries = written.entries(pointers)
        mistakes.look(row, entries)
        if mistakes:
            continue
        run = merged(written.normal(entries))
        untouched = untouched and run is entries
        facts.add(run.rewards, run.ends)
        borders.append(row + pointers.size - 1)
        counts.append(run.rewards.size)
        sums.append(_checksum(run))
    mistakes.refuse()
    starts = checked_starts(written.id, written.n_states, file.get("start"))
    columns = _columns(written, untouched)
    source = Source(
        os.path.abspath(written.id), written.n_states, written.n_actions, dict(written.forms),
        np.array(borders, i8), np.array(counts, i8), np.array(sums, np.uint32),
    )  # fmt: skip
    return environment_of(
        written,
        assembled((), 0, 0),
        starts,
        facts,
        model_id(written, columns, starts, max_episode_steps),
        verb="read",
        note=mistakes.note,
        max_episode_steps=max_episode_steps,
        rows=(0, 0),
        source=source,
    )


def _columns(written: Written, untouched: bool) -> list[Iterator[np.ndarray]]:
    """Pointers, next states, probabilities, rewards and ends of the merged entries, in parts.

    untouched : nothing is there to be merged, so each array is read once more as it stands; else
    every column takes a pass over all of them.
    """

    def pointers() -> Iterator[np.ndarray]:
        yield np.zeros(1, i8)
        last = 0
        for run in runs():
            yield run.pointers[1:] + last
            last += int(run.pointers[-1])

    def runs() -> Iterator[Entries]:
        for _, borders in written.runs():
            yield merged(written.normal(written.entries(borders)))

    def column(number: int) -> Iterator[np.ndarray]:
        return (run[number] for run in runs())

    def stored(name: str) -> Iterator[np.ndarray]:
        read = {
            "probability": written.chances, "reward": written.rewards, "terminated": written.ends,
        }.get(name, lambda start, stop: written.array(name, start, stop))  # fmt: skip
        size = written.n_rows + 1 if name == "indptr" else written.n_entries
        for start in range(0, size, RUN_ENTRIES):
            yield read(start, min(start + RUN_ENTRIES, size))

    if untouched:
        return [stored(name) for name in KINDS if name != "start"]
    return [pointers(), *(column(number) for number in range(1, 5))]


def _checksum(entries: Entries) -> int:
    found = 0
    for array in entries:
        found = zlib.crc32(np.ascontiguousarray(array).data, found)
    return found


def _in_order(pointers: np.ndarray, n_entries: int) -> bool:
    """Whether a run can have such pointers, so that what they point to may be read."""
    n = int(pointers[-1] - pointers[0])
    inside = pointers[0] >= 0 and pointers[-1] <= n_entries
    small = n <= RUN_ENTRIES or pointers.size == 2
    return bool(inside and small and np.all(np.diff(pointers) > 0))


@contextmanager
def _opened(path: str) -> Iterator[tuple[ForeignArrays, int, int]]:
    """Open a model; yield its arrays, n_states and n_actions.

    Raises ModelError where it cannot be read, here or while it is open, or is no model by its names
    and sizes.
    """
    if not os.path.isfile(path):
        raise ModelError(f"env.id: there is no file {path}")
    try:
        with open_arrays(path) as file:
            _check_names(path, file)
            n_states, n_actions = (_scalar(path, name, file) for name in ("n_states", "n_actions"))
            yield file, n_states, n_actions
    except FileError as error:
        raise ModelError(str(error)) from error


def _forms(file: ForeignArrays) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    return {name: file.form(name) for name in KINDS if name in file}


def _time_limit(path: str, file: ForeignArrays, asked: int | None) -> int:
    if asked is None and "max_episode_steps" in file:
        asked = _scalar(path, "max_episode_steps", file)
    return time_limit(asked or 0)


def write_model(path: str | os.PathLike[str], environment: Environment) -> None:
    """Write an explicit model (of whatever origin) so that `read_model` gives it back bit for bit.

    path : ends in .npz, .h5 or .hdf5, which decides the format; replaced as a whole.

    Raises
    ------
    ModelError
        If the environment is no explicit model, or the name has another end.
    FileError
        If the file cannot be written.
    """
    path = os.fspath(path)
    if environment.kind != "explicit":
        raise ModelError(f"{environment.id} is a {environment.kind}, not a table of transitions")
    if environment.rows is not None:
        raise ModelError(f"{environment.id} is cut, and its rows {environment.rows} are no model")
    if not path.endswith(SUFFIXES):
        raise ModelError(f"{path}: the name of a model must end in {', '.join(SUFFIXES)}")
    indptr, alias, reward, probability, start_state, _, start_probability, shape = (
        environment.params
    )
    code, start = alias[1::2], np.full(environment.n_states, start_probability[0])
    if start_state.size:
        start[:] = 0.0
        start[start_state] = start_probability
    arrays = {
        "n_states": shape[0],
        "n_actions": shape[1],
        "indptr": indptr,
        "indices": (code >> u8(1)).astype(np.int64),
        "probability": probability,
        "reward": reward,
        "terminated": (code & u8(1)).astype(np.bool_),
        "start": start,
        "max_episode_steps": np.int64(environment.max_episode_steps),
    }
    write_arrays(path, {name: np.asarray(array) for name, array in arrays.items()})


def _check_names(path: str, file: ForeignArrays) -> None:
    if {"format", "shape", "data"} <= set(file.names):
        raise ModelError(
            f"{path} is one sparse matrix of scipy, not a model: name the matrices of all actions "
            "at once, as P_{action}.npz, with env.kwargs.reward"
        )
    missing = [name for name in REQUIRED if name not in file]
    if missing:
        raise ModelError(
            f"{path} is not a model: it lacks {', '.join(missing)}"
            f" (it holds {', '.join(file.names) or 'nothing'})"
        )
    for name in file.names:
        if name not in REQUIRED + OPTIONAL:
            close = suggestion(name, OPTIONAL)
            raise ModelError(f"{path}: an array {name!r} has no meaning in a model{close}")


def _scalar(path: str, name: str, file: ForeignArrays) -> int:
    array = file[name]
    if array.size != 1 or array.dtype.kind not in "iu":
        raise ModelError(
            f"{path}: {name} must be one integer, not {array.dtype} of shape {array.shape}"
        )
    return int(array.reshape(-1)[0])
