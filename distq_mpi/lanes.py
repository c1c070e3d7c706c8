"""The state of lanes: one environment each, with its trajectory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

FIELDS = (
    ("state", np.uint64),
    ("action", np.uint64),
    ("next_state", np.uint64),
    ("reward", np.float64),
    ("terminated", np.bool_),
    ("age", np.uint32),
    ("gain", np.float64),
)
TRACE_FIELDS = (("trace_pairs", np.uint64), ("trace_values", np.float64))
TRACE_LENGTH = ("trace_length", np.uint64)


def lane_dtype(depth: int) -> np.dtype:
    """A lane as checkpoints hold it, with a trace of up to `depth` pairs; none where it is 0."""
    fields: list[tuple[Any, ...]] = list(FIELDS)
    if depth:
        fields += [TRACE_LENGTH, *((name, kind, (depth,)) for name, kind in TRACE_FIELDS)]
    return np.dtype(fields)


LANE_DTYPE = lane_dtype(0)


class Lanes:
    """Lanes [first, first + n) of the job, one array per field; the kernels change them in place.

    A lane holds the transition (state, action, reward, next_state, terminated) that it has made
    but not yet learned from, its steps in the episode (`age`) and the episode's return so far
    (`gain`).

    Attributes: `raw`, uint8, all fields one after the other. depth : pairs of its past that a lane
    remembers (`kernels.traces`); 0 = none.
    """

    def __init__(self, first: int, n: int, depth: int = 0) -> None:
        self.first, self.n, self.depth = first, n, depth
        self.dtype = lane_dtype(depth)
        # One buffer, so that a commit is one copy; the widest fields first keep all aligned.
        self.raw = np.zeros(n * self.dtype.itemsize, np.uint8)
        views: dict[str, np.ndarray] = {}
        offset = 0
        kinds = {name: self.dtype[name] for name in self.dtype.names or ()}
        for name, kind in sorted(kinds.items(), key=lambda item: -item[1].base.itemsize):
            size = n * kind.itemsize
            views[name] = self.raw[offset : offset + size].view(kind.base)
            offset += size
        self._arrays = tuple(views[name] for name, _ in FIELDS)
        unused = (np.zeros(1, np.uint64), np.zeros(1, np.uint64), np.zeros(1))
        names = [TRACE_LENGTH[0], *(name for name, _ in TRACE_FIELDS)]
        self._trace = tuple(views[name] for name in names) if depth else unused

    def arrays(self) -> tuple[np.ndarray, ...]:
        """The fields in the order the kernels take them, views of this object's memory."""
        return self._arrays

    def trace(self) -> tuple[np.ndarray, ...]:
        """Lengths uint64 (n,), pairs uint64 (n * depth,) and values float64 (n * depth,) of the
        lanes' traces, views; one element each where there are none."""
        return self._trace

    def forget(self) -> None:
        """Empty all traces, in place."""
        self._trace[0][:] = 0

    def copy_from(self, other: Lanes) -> None:
        """Become equal to `other`, in place."""
        self.raw[:] = other.raw

    def pack(self) -> np.ndarray:
        """A new structured array (n,) of `dtype`, as checkpoints hold it."""
        packed = np.zeros(self.n, self.dtype)
        for name, array in self._fields():
            packed[name] = array
        return packed

    def unpack(self, packed: np.ndarray) -> None:
        """Take all fields from a structured array (n,), in place."""
        for name, array in self._fields():
            array[...] = packed[name]

    def _fields(self) -> Iterator[tuple[str, np.ndarray]]:
        arrays = (*self._arrays, *(self._trace if self.depth else ()))
        for name, array in zip(self.dtype.names or (), arrays, strict=True):
            yield name, array.reshape(self.n, *self.dtype[name].shape)
