"""The state of lanes: one environment each, with its trajectory."""

from __future__ import annotations

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
LANE_DTYPE = np.dtype([(name, kind) for name, kind in FIELDS])


class Lanes:
    """Lanes [first, first + n) of the job, one array per field; the kernels change them in place.

    A lane holds the transition (state, action, reward, next_state, terminated) that it has made
    but not yet learned from, its steps in the episode (`age`) and the episode's return so far
    (`gain`).

    Attributes: `raw`, uint8, all fields one after the other.
    """

    def __init__(self, first: int, n: int) -> None:
        self.first, self.n = first, n
        # One buffer, so that a commit is one copy; the widest fields first keep all aligned.
        self.raw = np.zeros(n * LANE_DTYPE.itemsize, np.uint8)
        views: dict[str, np.ndarray] = {}
        offset = 0
        for name, kind in sorted(FIELDS, key=lambda field: -np.dtype(field[1]).itemsize):
            size = n * np.dtype(kind).itemsize
            views[name] = self.raw[offset : offset + size].view(kind)
            offset += size
        self._arrays = tuple(views[name] for name, _ in FIELDS)

    def arrays(self) -> tuple[np.ndarray, ...]:
        """The fields in the order the kernels take them, views of this object's memory."""
        return self._arrays

    def copy_from(self, other: Lanes) -> None:
        """Become equal to `other`, in place."""
        self.raw[:] = other.raw

    def pack(self) -> np.ndarray:
        """A new structured array (n,) of LANE_DTYPE, as checkpoints hold it."""
        packed = np.zeros(self.n, LANE_DTYPE)
        for (name, _), array in zip(FIELDS, self._arrays, strict=True):
            packed[name] = array
        return packed

    def unpack(self, packed: np.ndarray) -> None:
        """Take all fields from a structured array (n,), in place."""
        for (name, _), array in zip(FIELDS, self._arrays, strict=True):
            array[...] = packed[name]
