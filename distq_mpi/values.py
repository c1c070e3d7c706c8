"""Values of states while they are swept."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from distq_mpi.table import aligned


class Values:
    """Values of own rows and halo, float64 (n_own + n_halo,), swept between two arrays; 0 outside
    the mask.

    most_of : makes an array of float64 the elementwise largest of all planners, in place.

    Attributes: `v`, read by the next sweep, and `other`, written by it, halves of `both`;
    `reads_from`, where `v` begins in it; `top`, `bottom`, largest and smallest value in the mask
    after the last backup.
    """

    def __init__(self, n_own: int, n_halo: int, most_of: Callable[[np.ndarray], None]) -> None:
        self.both = aligned(16 * (n_own + n_halo)).view(np.float64)
        self.v, self.other = self.both[: n_own + n_halo], self.both[n_own + n_halo :]
        self.mask = np.zeros(n_own, np.uint8)
        self._most_of, self.reads_from = most_of, 0
        self.top = self.bottom = 0.0

    def swap(self) -> None:
        """What was written becomes what is read. Local."""
        self.v, self.other = self.other, self.v
        self.reads_from = self.v.size - self.reads_from

    def begin(self, mask: np.ndarray, v: np.ndarray | float = 0.0) -> Values:
        """Take a mask and values, 0 outside it; v : with halo; may be this one's own. Local."""
        self.v[:] = v
        self.other[:] = 0.0
        self.mask = mask
        return self

    def shift(self, amount: float) -> None:
        """Add the same amount to every state's value, where all of the halo is in masks. Local."""
        n_own = self.mask.size
        np.add(self.v[:n_own], amount, out=self.v[:n_own], where=self.mask.view(np.bool_))
        self.v[n_own:] += amount
        self.top, self.bottom = self.top + amount, self.bottom + amount

    def extent(self) -> tuple[float, float]:
        """Largest minus smallest value, and largest absolute value. COLLECTIVE."""
        own, found = self.v[: self.mask.size], np.full(2, -np.inf)
        inside = self.mask.view(np.bool_)
        found[0] = np.max(own, initial=-np.inf, where=inside)
        found[1] = -np.min(own, initial=np.inf, where=inside)
        found[np.isnan(found)] = np.inf  # a NaN has no order, and must not be lost
        self._most_of(found)
        top, bottom = float(found[0]), -float(found[1])
        return (top - bottom, max(abs(top), abs(bottom))) if top >= bottom else (0.0, 0.0)

    @property
    def range(self) -> float:
        """Largest minus smallest value. COLLECTIVE."""
        return self.extent()[0]

    @property
    def size(self) -> float:
        """Largest absolute value. COLLECTIVE."""
        return self.extent()[1]
