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
    """

    def __init__(self, first: int, n: int) -> None:
        self.first, self.n = first, n
        for name, kind in FIELDS:
            setattr(self, name, np.zeros(n, kind))

    def arrays(self) -> tuple[np.ndarray, ...]:
        """The fields in the order the kernels take them."""
        return tuple(getattr(self, name) for name, _ in FIELDS)

    def copy_from(self, other: Lanes) -> None:
        """Become equal to `other`, in place."""
        for mine, theirs in zip(self.arrays(), other.arrays(), strict=True):
            mine[...] = theirs

    def pack(self) -> np.ndarray:
        """A new structured array (n,) of LANE_DTYPE, as checkpoints hold it."""
        packed = np.zeros(self.n, LANE_DTYPE)
        for name, _ in FIELDS:
            packed[name] = getattr(self, name)
        return packed

    def unpack(self, packed: np.ndarray) -> None:
        """Take all fields from a structured array (n,), in place."""
        for name, _ in FIELDS:
            getattr(self, name)[...] = packed[name]
