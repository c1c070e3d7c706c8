"""Spaces of Gymnasium as ranges of whole numbers. Reads spaces only; imports Gymnasium itself."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from distq_mpi.errors import ModelError

LISTED = 1 << 16
"""Elements up to which a table turns an index into an element at once."""
MOST = 1 << 62
"""Elements of a space, and pairs of a state and an action, below which 64 bits count them all."""


@dataclass(frozen=True)
class Range:
    """A space of `n` elements.

    Parameters
    ----------
    index : element -> 0..n-1; raises ValueError for what is not in the space.
    element : 0..n-1 -> element, which belongs to the caller: no other call returns the same arrays
        and dicts.
    sizes : the factors of `n`, one per digit.
    duplicate : element -> an equal one that shares nothing with it; None = elements cannot be
        changed.
    """

    n: int
    index: Callable[[Any], int]
    element: Callable[[int], Any]
    sizes: tuple[int, ...]
    duplicate: Callable[[Any], Any] | None = None


def counted(sizes: Sequence[int]) -> str:
    """A product of sizes in words: `1,440`, or by powers where it is longer, `2^100`. Local."""
    n = math.prod(sizes)
    if n < 10**12:
        return f"{n:,}"
    runs = [(size, len(list(run))) for size, run in itertools.groupby(s for s in sizes if s > 1)]
    if len(runs) > 4:
        return f"about 10^{math.log10(n):.0f}"
    return " x ".join(f"{size:,}^{times}" if times > 1 else f"{size:,}" for size, times in runs)


def whole_numbers(space: Any) -> bool:
    """Whether a Box holds whole numbers only, and so is finite without being cut. Local."""
    return bool(space.dtype.kind in "iub")


def range_of(id: str, name: str, space: Any) -> Range:
    """Return a finite space as a range, in the order of `np.ravel_multi_index`. Local.

    Discrete, MultiDiscrete, MultiBinary, Box of whole numbers, and Tuple and Dict of these.

    Raises
    ------
    ModelError
        Naming the environment, which space (`name`), and what to do where one is continuous or has
        too many elements.
    """
    from gymnasium import spaces

    found = _range_of(id, name, space)
    if found.n >= MOST:
        hint = "; --env.bins N cuts each dimension into N bins"
        raise ModelError(
            f"{id}: its {name} space has {counted(found.sizes)} elements; the limit is 2^62"
            f"{hint if isinstance(space, spaces.Box) else ''}"
        )
    return found


def _range_of(id: str, name: str, space: Any) -> Range:
    from gymnasium import spaces

    if isinstance(space, spaces.Discrete):
        return _discrete(int(space.n), int(space.start))
    if isinstance(space, spaces.MultiDiscrete):
        return _array(space.nvec.ravel().tolist(), space.start.ravel().tolist(), space)
    if isinstance(space, spaces.MultiBinary):
        n = math.prod(space.shape)
        return _array([2] * n, [0] * n, space)
    if isinstance(space, spaces.Box) and whole_numbers(space):
        low, high = (limit.ravel().tolist() for limit in (space.low, space.high))
        sizes = [int(last) - int(first) + 1 for first, last in zip(low, high, strict=True)]
        return _array(sizes, [int(first) for first in low], space)
    if isinstance(space, spaces.Tuple):
        parts = [_range_of(id, name, part) for part in space.spaces]
        return _product(parts, tuple, tuple, _duplicate_of(parts, tuple, tuple))
    if isinstance(space, spaces.Dict):
        keys = list(space.spaces)
        parts = [_range_of(id, name, part) for part in space.spaces.values()]

        def split(x: Any) -> list[Any]:
            return [x[key] for key in keys]

        def join(x: Any) -> dict[Any, Any]:
            return dict(zip(keys, x, strict=True))

        return _product(parts, split, join, _duplicate_of(parts, split, join) or dict)
    hint = "only finite spaces can be learned on"
    if isinstance(space, spaces.Box):
        hint = "a Box within another space is not cut: flatten it with a wrapper of your own"
    raise ModelError(f"{id}: its {name} space holds {space}; {hint}")


def _discrete(n: int, first: int) -> Range:
    def index(x: Any) -> int:
        try:
            i = int(x) - first
        except TypeError:
            if not isinstance(x, np.ndarray) or x.size != 1:
                raise
            x = x.item()
            i = int(x) - first
        if not 0 <= i < n or i + first != x:
            raise ValueError(f"{x!r} is not a whole number from {first} to {first + n - 1}")
        return i

    if first == 0:
        return Range(n, index, int, (n,))
    return Range(n, index, lambda i: i + first, (n,))


def _array(sizes: list[int], starts: list[int], space: Any) -> Range:
    """The range of a space of arrays, of which every digit has a size and a first value."""
    shape, dtype, n = space.shape, space.dtype, len(sizes)

    def split(x: Any) -> list[Any]:
        digits: list[Any] = np.asarray(x).ravel().tolist()
        if len(digits) != n:
            raise ValueError(f"{x!r} has {len(digits)} numbers, not {n}")
        return digits

    found = _product(
        [_discrete(size, first) for size, first in zip(sizes, starts, strict=True)],
        split,
        lambda x: np.array(x, dtype).reshape(shape),
        np.ndarray.copy,
    )
    if found.n > LISTED:
        return found
    listed = [found.element(i) for i in range(found.n)]
    return replace(found, element=lambda i: listed[i].copy())


def _duplicate_of(
    parts: Sequence[Range], split: Callable[[Any], Sequence[Any]], join: Callable[[Any], Any]
) -> Callable[[Any], Any] | None:
    """What copies an element with its parts; None where no part can be changed."""
    copies = [part.duplicate for part in parts]
    if not any(copies):
        return None

    def duplicate(x: Any) -> Any:
        pairs = zip(copies, split(x), strict=True)
        return join([item if copy is None else copy(item) for copy, item in pairs])

    return duplicate


def _product(
    parts: Sequence[Range],
    split: Callable[[Any], Sequence[Any]],
    join: Callable[[list[Any]], Any],
    duplicate: Callable[[Any], Any] | None,
) -> Range:
    """Mixed radix, the last part fastest."""
    sizes = tuple(size for part in parts for size in part.sizes)
    n = math.prod(sizes)
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

    if n > LISTED:
        return Range(n, index, element, sizes, duplicate)
    listed = [element(i) for i in range(n)].__getitem__
    if duplicate is None:
        return Range(n, index, listed, sizes)
    return Range(n, index, lambda i: duplicate(listed(i)), sizes, duplicate)
