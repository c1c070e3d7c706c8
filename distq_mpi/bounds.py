"""How far values are from the fixed point of a backup, and which sweeps bring them nearer."""

from __future__ import annotations

import math

import numpy as np

from distq_mpi.kernels.elementary import logarithm

EPSILON = float(np.finfo(float).eps)
RETRIED = 8
"""Checks after which the other order of sweeps is tried again."""
MIXES_FAST = float(logarithm(2.0)) / 3
"""Decline of the bounds' logarithm per sweep with which Jacobi sweeps alone are good enough: three
halve them."""

PATIENCE, TOO_MANY = 60, 150
"""Sweeps over a policy's pairs after which, and beyond which, its values are solved for."""


def beyond(change: float, mass: float, discount: float) -> float:
    """The sum of change k + change k^2 + ..., k = discount x mass: what further backups can add."""
    k = discount * mass
    return change * k / (1.0 - k) if k < 1.0 else (0.0 if change == 0.0 else change * np.inf)


def offsets(
    rise: float, fall: float, most: float, least: float, discount: float
) -> tuple[float, float]:
    """Return (lower, upper): the fixed point of T lies in TV + [lower, upper] in every state.

    rise, -fall : largest and smallest of TV - V. most, least : bounds on the probability of going
    on; both are 1 where nothing terminates. MacQueen (1966), Porteus (1971).
    """
    lower = beyond(-fall, most if fall > 0 else least, discount)
    upper = beyond(rise, most if rise > 0 else least, discount)
    return lower, upper


def safe_offsets(
    rise: float, fall: float, most: float, least: float, discount: float
) -> tuple[float, float]:
    """Return `offsets`, widened by their rounding: 1 / (1 - discount x mass) cancels."""
    lower, upper = offsets(rise, fall, most, least, discount)
    rounding = 4 * EPSILON * max(abs(lower), abs(upper))
    rounding += beyond(rounding, most, discount)
    return lower - rounding, upper + rounding


class Orders:
    """Whether Jacobi sweeps alone close the bounds faster than Gauss-Seidel ones and then as many.

    Where episodes mix fast, as on random models, what is left of the error is the same in all
    states after some Jacobi sweeps, and the bounds need no more; on grids values must travel.
    Where Jacobi sweeps are slow both are tried in turn, and judged by what a sweep has closed: the
    same on any number of ranks.
    """

    def __init__(self) -> None:
        self.smooths_only = True
        self._gains: list[float | None] = [None, None]
        self._width, self._n, self._n_sweeps, self._decline = math.inf, 0, 0, 0.0
        self._n_swept, self._gain, self._solving = 0, 0.0, False

    def swept(self, n_sweeps: int, before: float, after: float) -> None:
        """Note sweeps over a policy's pairs; before, after : the unevenness of TV - V."""
        self._n_sweeps, self._n_swept = n_sweeps, self._n_swept + n_sweeps
        if self.smooths_only and 0.0 < after < before < math.inf:
            self._decline = float(logarithm(before) - logarithm(after)) / n_sweeps

    def too_slow(self, share: float, many: int = TOO_MANY, patience: int = PATIENCE) -> bool:
        """Whether `patience` sweeps over a policy's pairs were made, and more than `many` would be
        needed until bounds are `share` of what they are now."""
        if self._n_swept < patience:
            return False
        closing = self._gain > 0.0 and share > 0.0
        return not closing or -float(logarithm(share)) / self._gain > many

    def solved(self) -> None:
        """Note that something else took the place of sweeps before the next check."""
        self._solving = True

    def told(self, width: float) -> None:
        """Decide on the next sweeps. width : of the bounds now; the first say little, for values
        begin at 0."""
        if self._solving:
            self._solving = False
        elif self._n > 1 and 0.0 < width < math.inf and self._width < math.inf:
            closed = float(logarithm(self._width) - logarithm(width))
            self._gain = closed / max(1, self._n_sweeps)
            self._gains[self.smooths_only] = self._gain
        self._width, self._n = width, self._n + 1
        mixed, smooth = self._gains
        if smooth is None or self._decline > MIXES_FAST:
            self.smooths_only = True
        elif mixed is None or self._n % RETRIED == 0:
            self.smooths_only = not self.smooths_only
        else:
            self.smooths_only = smooth > mixed
