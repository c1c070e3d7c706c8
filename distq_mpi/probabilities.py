"""When numbers are probabilities: one tolerance for all doors that let models in."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

TOLERANCE = 1e-9
"""How far below 0 or above 1 a probability may be, and from 1 a sum of them, given as float64."""

ROUNDED = 1e-12
"""How far a sum of probabilities may be from 1 without being divided by: rounding alone."""


def tolerance_of(dtype: Any, n: Any = 1) -> Any:
    """The tolerance of n numbers that were given in a dtype; n : a number, or an array of them.

    Numbers of fewer digits than float64 are off by a few units of their last place each, and their
    sum by a random walk of those.
    """
    kind = np.dtype(dtype)
    if kind.kind != "f":
        return TOLERANCE + 0.0 * n
    return np.maximum(TOLERANCE, np.finfo(kind).eps * (8.0 + np.sqrt(n)))


def given_as(values: Iterable[Any]) -> np.dtype:
    """The dtype of fewest digits among numbers, each NumPy's or Python's; float64 if none has less.
    """
    found = {value.dtype for value in values if isinstance(value, np.floating)}
    return coarsest(found)


def coarsest(dtypes: Iterable[np.dtype]) -> np.dtype:
    """The dtype of fewest digits of several; float64 where none of the real ones has less."""
    real = [np.dtype(np.float64), *(dtype for dtype in dtypes if dtype.kind == "f")]
    return max(real, key=lambda dtype: float(np.finfo(dtype).eps))


def nonnegative(values: np.ndarray, dtype: Any) -> np.ndarray:
    """The values with 0 for those below it by no more than the tolerance; float64, maybe a view."""
    slightly = (values < 0) & (values >= -tolerance_of(dtype))
    return np.where(slightly, 0.0, values) if slightly.any() else values
