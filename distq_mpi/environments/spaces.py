"""Spaces of Gymnasium as ranges of whole numbers. Reads spaces only; imports Gymnasium itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from distq_mpi.errors import ModelError

LISTED = 1 << 16
"""Elements up to which a table turns an index into an element at once."""


@dataclass(frozen=True)
class Range:
    """A space of `n` elements.

    Parameters
    ----------
    index : element -> 0..n-1; raises ValueError for what is not in the space.
    element : 0..n-1 -> element.
    """

    n: int
    index: Callable[[Any], int]
    element: Callable[[int], Any]


def range_of(id: str, name: str, space: Any) -> Range:
    """Return a finite space as a range, in the order of `np.ravel_multi_index`. Local.

    Discrete, MultiDiscrete, MultiBinary, and Tuple and Dict of these.

    Raises
    ------
    ModelError
        Naming the environment, which space (`name`), and what to do where one is continuous.
    """
    from gymnasium import spaces

    if isinstance(space, spaces.Discrete):
        return _discrete(int(space.n), int(space.start))
    if isinstance(space, spaces.MultiDiscrete):
        sizes, starts = space.nvec.ravel().tolist(), space.start.ravel().tolist()
        parts = [_discrete(n, first) for n, first in zip(sizes, starts, strict=True)]
        shape, dtype = space.nvec.shape, space.dtype
        return _product(
            parts,
            lambda x: np.asarray(x).ravel().tolist(),
            lambda x: np.array(x, dtype).reshape(shape),
        )
    if isinstance(space, spaces.MultiBinary):
        shape = space.shape
        return _product(
            [_discrete(2, 0)] * int(np.prod(shape)),
            lambda x: np.asarray(x).ravel().tolist(),
            lambda x: np.array(x, np.int8).reshape(shape),
        )
    if isinstance(space, spaces.Tuple):
        return _product([range_of(id, name, part) for part in space.spaces], tuple, tuple)
    if isinstance(space, spaces.Dict):
        keys = list(space.spaces)
        return _product(
            [range_of(id, name, part) for part in space.spaces.values()],
            lambda x: [x[key] for key in keys],
            lambda x: dict(zip(keys, x, strict=True)),
        )
    hint = "only finite spaces can be learned on"
    if isinstance(space, spaces.Box):
        hint = "a Box within another space is not cut: flatten it with a wrapper of your own"
    raise ModelError(f"{id}: its {name} space holds {space}; {hint}")


def _discrete(n: int, first: int) -> Range:
    def index(x: Any) -> int:
        i = int(x) - first
        if not 0 <= i < n or i + first != x:
            raise ValueError(f"{x!r} is not a whole number from {first} to {first + n - 1}")
        return i

    if first == 0:
        return Range(n, index, int)
    return Range(n, index, lambda i: i + first)


def _product(
    parts: Sequence[Range], split: Callable[[Any], Sequence[Any]], join: Callable[[list[Any]], Any]
) -> Range:
    """Mixed radix, the last part fastest."""
    n = 1
    for part in parts:
        n *= part.n
    steps = [(part.index, part.n) for part in parts]

    def index(x: Any) -> int:
        i = 0
        for (of, size), item in zip(steps, split(x), strict=True):
            i = i * size + of(item)
        return i

    def element(i: int) -> Any:
        found = []
        for part in reversed(parts):
            i, digit = divmod(i, part.n)
            found.append(part.element(digit))
        return join(found[::-1])

    if n <= LISTED:
        return Range(n, index, [element(i) for i in range(n)].__getitem__)
    return Range(n, index, element)
