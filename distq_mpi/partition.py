"""Contiguous blocks of rows, one per owner."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


class Partition:
    """Rows [starts[k], starts[k + 1]) belong to owner k; blocks may be empty.

    Parameters
    ----------
    starts : int64 (parts + 1,), ascending from 0.
    """

    def __init__(self, starts: ArrayLike) -> None:
        self.starts = np.asarray(starts, np.int64)
        if self.starts.size < 2 or self.starts[0] != 0 or np.any(np.diff(self.starts) < 0):
            raise ValueError(f"starts must ascend from 0, not {self.starts}")

    @classmethod
    def balanced(cls, n: int, parts: int) -> Partition:
        """Cut n rows into parts whose sizes differ by at most 1, the larger ones first."""
        base, larger = divmod(n, parts)
        k = np.arange(parts + 1, dtype=np.int64)
        return cls(k * base + np.minimum(k, larger))

    @property
    def n(self) -> int:
        """Rows in all."""
        return int(self.starts[-1])

    @property
    def counts(self) -> np.ndarray:
        """Rows of each owner, int64 (parts,)."""
        return np.diff(self.starts)

    @property
    def displacements(self) -> np.ndarray:
        """First row of each owner, int64 (parts,)."""
        return self.starts[:-1]

    def block(self, owner: int) -> tuple[int, int]:
        """First row of an owner and the row after its last."""
        return int(self.starts[owner]), int(self.starts[owner + 1])

    def owner(self, row: ArrayLike) -> np.ndarray:
        """Owner of each row in [0, n), elementwise."""
        return np.searchsorted(self.starts, row, side="right") - 1
