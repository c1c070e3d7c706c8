"""By how much two stored tables differ. Local; memory is a slice of each, whatever the size."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from distq_mpi.checkpoint import SUFFIXES, Header
from distq_mpi.files import read_slices
from distq_mpi.kernels.rules import RULES


@dataclass
class Largest:
    """The largest |difference| of a value, and where."""

    difference: float = 0.0
    dataset: str = ""
    state: int = -1
    action: int = -1
    first: float = 0.0
    second: float = 0.0


@dataclass
class Comparison:
    """How two tables of one shape and model differ.

    `others` : dataset -> entries that differ, of those that are no values (clocks, visits, lanes);
    a dataset that one file lacks or that has another length counts whole.
    """

    pairs: int
    differing_pairs: int = 0
    largest: Largest = field(default_factory=Largest)
    mean_difference: float = 0.0
    """Mean of |difference| over the pairs where it is finite."""
    not_finite: int = 0
    """Pairs whose difference is no finite number."""
    differing_policy: int = 0
    """States whose greedy action differs."""
    others: dict[str, int] = field(default_factory=dict)
    configuration: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    """Keys that decide the bits and differ: key -> both values."""


def compare(a: Header, b: Header) -> Comparison:
    """Compare two tables of one shape.

    Double Q's two parts are compared each with its own, and with another rule's table as their
    mean, which is what the policy sees.

    Raises
    ------
    FileError
        If a file cannot be read or a checksum is wrong.
    """
    alike = parts_of(a) == parts_of(b)
    names = parts_of(a) if alike else ["q"]
    found = Comparison(a.n_states * a.n_actions * len(names))
    sums: list[float] = []
    for (start, left), (_, right) in zip(_tables(a), _tables(b), strict=True):
        means = [_seen(header, parts) for header, parts in ((a, left), (b, right))]
        compared = zip(left, right, strict=True) if alike else [(means[0], means[1])]
        for name, (values, others) in zip(names, compared, strict=True):
            sums.append(_compare_values(found, name, start, values, others))
        greedy = [mean.argmax(axis=1) for mean in means]
        found.differing_policy += int(np.count_nonzero(greedy[0] != greedy[1]))
    found.mean_difference = math.fsum(sums) / max(1, found.pairs - found.not_finite)
    for name in dict.fromkeys([*a.stored.arrays, *b.stored.arrays]):
        if name not in names:
            found.others[name] = _differing_entries(a, b, name)
    found.configuration = _differing_keys(a, b)
    return found


def parts_of(header: Header) -> list[str]:
    """The parts of the table, q first."""
    return [f"q{suffix}" for suffix in SUFFIXES[: header.n_parts]]


def _seen(header: Header, parts: list[np.ndarray]) -> np.ndarray:
    """What the policy sees: the mean of Double Q's parts, else the first."""
    rule = RULES[tomllib.loads(header.config_toml)["learn"]["rule"]]
    seen: np.ndarray = np.add.reduce(parts) / len(parts) if rule.averages else parts[0]
    return seen


def _tables(header: Header) -> Iterator[tuple[int, list[np.ndarray]]]:
    """Yield (first row, parts as float64 (n, A))."""
    slices = [read_slices(header.stored, name, 0, header.n_states) for name in parts_of(header)]
    for parts in zip(*slices, strict=True):
        yield parts[0][0], [rows.astype(np.float64) for _, rows in parts]


def _compare_values(
    found: Comparison, name: str, start: int, left: np.ndarray, right: np.ndarray
) -> float:
    """Add one slice to what was found; return its sum of |difference|."""
    # Bits, not values: the same NaN twice is no difference, and 0.0 against -0.0 changes the hash.
    differ = left.view(np.uint64) != right.view(np.uint64)
    found.differing_pairs += int(np.count_nonzero(differ))
    with np.errstate(invalid="ignore"):
        gaps = np.where(differ, np.abs(left - right), 0.0)
    finite = np.isfinite(gaps)
    found.not_finite += gaps.size - int(np.count_nonzero(finite))
    gaps = np.where(finite, gaps, np.inf)
    at = np.unravel_index(int(gaps.argmax()), gaps.shape) if gaps.size else (0, 0)
    if gaps.size and gaps[at] > found.largest.difference:
        state, action = start + int(at[0]), int(at[1])
        pair = float(left[at]), float(right[at])
        found.largest = Largest(float(gaps[at]), name, state, action, *pair)
    return float(gaps[finite].sum())


def _differing_entries(a: Header, b: Header, name: str) -> int:
    left, right = a.stored.arrays.get(name), b.stored.arrays.get(name)
    if left is None or right is None or (left.shape, left.dtype) != (right.shape, right.dtype):
        return max(math.prod(array.shape) for array in (left, right) if array is not None)
    slices = (read_slices(header.stored, name, 0, left.shape[0]) for header in (a, b))
    return sum(
        int(np.count_nonzero(_entries(rows) != _entries(others)))
        for (_, rows), (_, others) in zip(*slices, strict=True)
    )


def _entries(rows: np.ndarray) -> np.ndarray:
    """As bytes per entry, so that NaN in a lane equals itself."""
    return rows.reshape(-1).view(f"V{rows.dtype.itemsize}")


def _differing_keys(a: Header, b: Header) -> dict[str, tuple[Any, Any]]:
    sections = [tomllib.loads(header.config_toml) for header in (a, b)]
    flat = [
        {f"{name}.{key}": value for name in ("env", "learn", "parallel")
         for key, value in found.get(name, {}).items()}
        | {"run.seed": found.get("run", {}).get("seed")}
        for found in sections
    ]  # fmt: skip
    keys = dict.fromkeys([*flat[0], *flat[1]])
    return {
        key: (flat[0].get(key), flat[1].get(key))
        for key in keys
        if flat[0].get(key) != flat[1].get(key)
    }
