"""Rows of transitions as somebody wrote them: checked, merged and packed, a run of rows at a time.

A row is a pair of state and action, state * n_actions + action. What is done to a row depends on
that row alone, so any rank makes the same bits of it, whatever run it lies in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from distq_mpi.environments.alias import alias_tables
from distq_mpi.errors import ModelError
from distq_mpi.probabilities import ROUNDED, nonnegative, tolerance_of

u8, i8, f8 = np.uint64, np.int64, np.float64

LIMIT = 1 << 31
"""Transitions of one model: the running sums of the alias tables are 63-bit integers."""

RUN_ROWS, RUN_ENTRIES = 1 << 16, 1 << 18
"""A run has at most so many rows, and so many transitions unless it is one row."""

KINDS: dict[str, tuple[str, Any]] = {
    "indptr": ("iu", i8), "indices": ("iu", i8), "probability": ("iuf", f8), "reward": ("iuf", f8),
    "terminated": ("biu", np.bool_), "start": ("iuf", f8),
}  # fmt: skip
"""What each array may hold, and what it becomes."""

WORDS = {"iu": "integers", "iuf": "numbers", "biu": "booleans"}


class Entries(NamedTuple):
    """Transitions of a run of rows.

    pointers : int64 (n_rows + 1,), from 0. following int64, chances float64, rewards float64,
    ends bool (n,).
    """

    pointers: np.ndarray
    following: np.ndarray
    chances: np.ndarray
    rewards: np.ndarray
    ends: np.ndarray


class Packed(NamedTuple):
    """A run of rows as `explicit.law_step` reads them: pointers from 0, alias uint64 (2 n,), reward
    and probability float64 (n,)."""

    pointers: np.ndarray
    alias: np.ndarray
    reward: np.ndarray
    probability: np.ndarray

    def part(self, low: int, high: int) -> Packed:
        """Rows [low, high) of these; views but for the pointers."""
        first, last = int(self.pointers[low]), int(self.pointers[high])
        return Packed(
            self.pointers[low : high + 1] - first, self.alias[2 * first : 2 * last],
            self.reward[first:last], self.probability[first:last],
        )  # fmt: skip


def cut_into_runs(pointers: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield (first row, row after the last) of runs that cover the rows of these pointers."""
    low, n_rows = 0, pointers.size - 1
    while low < n_rows:
        window = pointers[low : low + RUN_ROWS + 1]
        fit = int(np.searchsorted(window, window[0] + RUN_ENTRIES, side="right")) - 1
        yield low, low + max(fit, 1)
        low += max(fit, 1)


@dataclass(frozen=True)
class Written:
    """A model as somebody wrote it, looked at a part at a time.

    forms : name -> (dtype, shape) of every array there is of `KINDS`. read(name, start, stop) ->
    those elements of it, of its own dtype. given_as : what the probabilities were given in before
    they came into their array; None = as in `forms`.
    """

    id: str
    n_states: int
    n_actions: int
    forms: Mapping[str, tuple[np.dtype, tuple[int, ...]]]
    read: Callable[[str, int, int], np.ndarray]
    given_as: np.dtype | None = None

    @property
    def n_rows(self) -> int:
        """Pairs of state and action."""
        return self.n_states * self.n_actions

    @property
    def n_entries(self) -> int:
        """Transitions, before any are merged."""
        return int(self.forms["indices"][1][0])

    def array(self, name: str, start: int, stop: int) -> np.ndarray:
        """Elements [start, stop) of an array, in their final type; maybe a view."""
        return np.ascontiguousarray(self.read(name, start, stop), KINDS[name][1])

    @property
    def chance_type(self) -> np.dtype:
        """The dtype that decides how exact probabilities are."""
        return self.given_as or self.forms["probability"][0]

    def chances(self, start: int, stop: int) -> np.ndarray:
        """Probabilities of the entries [start, stop), none below 0 by mere rounding."""
        return nonnegative(self.array("probability", start, stop), self.chance_type)

    def rewards(self, start: int, stop: int) -> np.ndarray:
        """Rewards of the entries [start, stop), none of them a negative zero."""
        return self.array("reward", start, stop) + 0.0

    def ends(self, start: int, stop: int) -> np.ndarray:
        """Which of the entries [start, stop) end the episode."""
        if "terminated" not in self.forms:
            return np.zeros(stop - start, np.bool_)
        return self.array("terminated", start, stop)

    def entries(self, pointers: np.ndarray) -> Entries:
        """The entries of the rows between some of the model's pointers."""
        first, last = int(pointers[0]), int(pointers[-1])
        return Entries(
            pointers - first, self.array("indices", first, last),
            self.chances(first, last), self.rewards(first, last), self.ends(first, last),
        )  # fmt: skip

    def normal(self, entries: Entries) -> Entries:
        """The entries with rows divided by their sums where these are not 1, as those of numbers
        of fewer digits than float64 may be; `entries` itself where there are none."""
        sums = np.add.reduceat(entries.chances, entries.pointers[:-1])
        sums[np.abs(sums - 1.0) <= ROUNDED] = 1.0
        if np.all(sums == 1.0):
            return entries
        chances = entries.chances / np.repeat(sums, np.diff(entries.pointers))
        return entries._replace(chances=chances)

    def runs(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (first row, pointers) of runs that cover all rows in order."""
        for start in range(0, self.n_rows, RUN_ROWS):
            pointers = self.array("indptr", start, min(start + RUN_ROWS, self.n_rows) + 1)
            for low, high in cut_into_runs(pointers):
                yield start + low, pointers[low : high + 1]

    def pair(self, row: int) -> str:
        """A row as messages name it."""
        return f"{self.id}: state {row // self.n_actions}, action {row % self.n_actions}"


def check_arrays(written: Written) -> None:
    """Raise ModelError unless the arrays are of the right kinds and sizes, and the rows in order.

    Reads the pointers and the ends; no other array is touched.
    """
    id, forms = written.id, written.forms
    if written.n_states < 1 or written.n_actions < 1:
        raise ModelError(
            f"{id}: a model needs at least one state and one action, "
            f"not {written.n_states} states and {written.n_actions} actions"
        )
    for name in KINDS:
        if name in forms and name != "start":
            check_kind(id, name, *forms[name])
    if "terminated" in forms:
        _check_flags(written)
    sizes = {name: shape[0] for name, (_, shape) in forms.items() if name != "start"}
    if sizes["indptr"] != written.n_rows + 1:
        raise ModelError(
            f"{id}: indptr has {sizes['indptr']} numbers; {written.n_states} states x "
            f"{written.n_actions} actions need {written.n_rows + 1} "
            "(row = state * n_actions + action)"
        )
    for name in ("probability", "reward", "terminated"):
        if name in sizes and sizes[name] != sizes["indices"]:
            raise ModelError(
                f"{id}: {name} has {sizes[name]} numbers and indices has {sizes['indices']}"
            )
    if sizes["indices"] >= LIMIT:
        raise ModelError(f"{id}: {sizes['indices']} transitions; the limit is {LIMIT - 1}")
    _check_pointers(written)


def check_kind(id: str, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    """Raise ModelError unless an array of this dtype and shape can be what its name says."""
    kinds = KINDS[name][0]
    if len(shape) != 1 or dtype.kind not in kinds:
        raise ModelError(
            f"{id}: {name} must be a one-dimensional array of {WORDS[kinds]}, "
            f"not {dtype} of shape {shape}"
        )


def _check_flags(written: Written) -> None:
    (size,) = written.forms["terminated"][1]
    for start in range(0, size, RUN_ENTRIES):
        flags = written.read("terminated", start, min(start + RUN_ENTRIES, size))
        if np.any((flags != 0) & (flags != 1)):
            raise ModelError(f"{written.id}: terminated must hold 0 and 1 only")


def _check_pointers(written: Written) -> None:
    n_rows, n_entries = written.n_rows, written.n_entries
    first = int(written.array("indptr", 0, 1)[0])
    last = int(written.array("indptr", n_rows, n_rows + 1)[0])
    if first != 0 or last != n_entries:
        raise ModelError(
            f"{written.id}: indptr must run from 0 to the {n_entries} entries, "
            f"not from {first} to {last}"
        )
    empty = -1
    for start in range(0, n_rows, RUN_ROWS):
        lengths = np.diff(written.array("indptr", start, min(start + RUN_ROWS, n_rows) + 1))
        if np.any(lengths < 0):
            row = start + int(np.argmax(lengths < 0))
            raise ModelError(f"{written.pair(row)}: indptr decreases")
        if empty < 0 and np.any(lengths == 0):
            empty = start + int(np.argmax(lengths == 0))
    if empty >= 0:
        raise ModelError(
            f"{written.pair(empty)}: no transition, so the probabilities sum to 0, not 1"
        )


class Mistakes:
    """The first mistake of each kind among the runs looked at, in any number of calls."""

    def __init__(self, written: Written) -> None:
        self.written = written
        self._told: dict[int, str] = {}
        self._n_sums = 0
        self.n_inexact = 0
        """Rows whose sum is 1 for numbers of their dtype, but not for float64."""

    def look(self, first_row: int, entries: Entries) -> None:
        """Look at the entries of a run; runs come in the order of their rows."""
        pointers, following, chances, rewards, _ = entries
        pair, n_states = self.written.pair, self.written.n_states
        limits = ("must be finite and not negative", "must be finite")
        for kind, bad, values, told in (
            (0, ~(chances >= 0), chances, f"probability {{}} {limits[0]}"),
            (1, ~np.isfinite(chances), chances, f"probability {{}} {limits[0]}"),
            (2, ~np.isfinite(rewards), rewards, f"reward {{}} {limits[1]}"),
            (3, (following < 0) | (following >= n_states), following,
             f"next state {{}} is not in 0..{n_states - 1}"),
        ):  # fmt: skip
            if kind not in self._told and np.any(bad):
                entry = int(np.argmax(bad))
                row = first_row + int(np.searchsorted(pointers, entry, side="right")) - 1
                self._told[kind] = f"{pair(row)}: {told.format(values[entry])}"
        with np.errstate(invalid="ignore"):
            sums = np.add.reduceat(chances, pointers[:-1])
            off = np.abs(sums - 1.0)
            bad = off > tolerance_of(self.written.chance_type, np.diff(pointers))
            self.n_inexact += int(np.count_nonzero((off > ROUNDED) & ~bad))
        if np.any(bad):
            row = int(np.argmax(bad))
            self._n_sums += int(bad.sum())
            self._told.setdefault(
                4, f"{pair(first_row + row)}: the probabilities sum to {sums[row]:.12g}, not 1"
            )

    def __bool__(self) -> bool:
        return bool(self._told)

    @property
    def note(self) -> str:
        """What was mended, in words for the summary; "" = nothing."""
        if not self.n_inexact:
            return ""
        plural = "s" * (self.n_inexact > 1)
        dtype = self.written.chance_type
        return f", {self.n_inexact:,} row{plural} of {dtype} probabilities divided by their sums"

    def refuse(self) -> None:
        """Raise ModelError with what is worst among what was found, if anything was."""
        if self._told:
            kind = min(self._told)
            more = kind == 4 and self._n_sums > 1
            others = f" (and so for {self._n_sums - 1} more pairs)" if more else ""
            raise ModelError(self._told[kind] + others)


def merged(entries: Entries) -> Entries:
    """Drop impossible entries and add up those that agree in all but their probability.

    Within a row the result ascends by next state, reward and end. Where there is nothing to do it
    is `entries` itself.
    """
    indptr, indices, probability, reward, terminated = entries
    n_rows = indptr.size - 1
    rows, keep = np.repeat(np.arange(n_rows), np.diff(indptr)), probability > 0
    complete = bool(keep.all())
    if not complete:
        rows, indices, probability = rows[keep], indices[keep], probability[keep]
        reward, terminated = reward[keep], terminated[keep]
    same_row = rows[1:] == rows[:-1]
    ascending = bool(np.all((indices[1:] > indices[:-1]) | ~same_row))
    if complete and ascending:
        return entries
    if not ascending:
        order = np.lexsort((terminated, reward, indices, rows))
        rows, indices, probability = rows[order], indices[order], probability[order]
        reward, terminated = reward[order], terminated[order]
        new = np.ones(rows.size, np.bool_)
        new[1:] = (
            (rows[1:] != rows[:-1])
            | (indices[1:] != indices[:-1])
            | (reward[1:] != reward[:-1])
            | (terminated[1:] != terminated[:-1])
        )
        heads = np.flatnonzero(new)
        probability = np.add.reduceat(probability, heads)
        rows, indices, reward, terminated = (
            rows[heads], indices[heads], reward[heads], terminated[heads]
        )
    pointers = np.zeros(n_rows + 1, i8)
    np.cumsum(np.bincount(rows, minlength=n_rows), out=pointers[1:])
    return Entries(pointers, indices, probability, reward, terminated)


def packed(entries: Entries) -> Packed:
    """Return merged entries as they are sampled from: alias[2 i] = threshold << 32 | other, alias[2
    i + 1] = next_state << 1 | terminated."""
    alias = np.empty(2 * entries.following.size, u8)
    alias[0::2] = alias_tables(entries.pointers, entries.chances)
    alias[1::2] = (entries.following.astype(u8) << u8(1)) | entries.ends.astype(u8)
    return Packed(entries.pointers, alias, entries.rewards, entries.chances)


def assembled(runs: Iterable[Packed], n_rows: int, n_entries: int) -> Packed:
    """Return runs that follow each other as one, which belongs to the caller.

    n_rows, n_entries : of all runs together; of entries there may be fewer. Beside the result
    memory holds one run.
    """
    whole = Packed(
        np.zeros(n_rows + 1, i8), np.empty(2 * n_entries, u8), np.empty(n_entries),
        np.empty(n_entries),
    )  # fmt: skip
    row, entry = 0, 0
    for run in runs:
        n, m = run.pointers.size - 1, run.reward.size
        whole.pointers[row : row + n + 1] = run.pointers + entry
        whole.alias[2 * entry : 2 * (entry + m)] = run.alias
        whole.reward[entry : entry + m], whole.probability[entry : entry + m] = run[2:]
        row, entry = row + n, entry + m
    if row != n_rows:
        raise ValueError(f"{row} rows where {n_rows} were to come")
    if entry < n_entries:
        # In place: a copy would hold them twice.
        whole.alias.resize(2 * entry, refcheck=False)
        whole.reward.resize(entry, refcheck=False)
        whole.probability.resize(entry, refcheck=False)
    return whole
