"""Where sweeps over a policy's pairs lead to, in fewer of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from distq_mpi.values import Values

KRYLOV_BYTES = 64
"""Of a state that is planned: six vectors, and values that are swept."""
ENOUGH = 0.5
"""What may be left (2-norm) of what sweeps change for iterations to have been worth it."""


class Krylov:
    """BiCGSTAB (van der Vorst 1992) on the equation that sweeps solve, x = sweep(x).

    Two Gauss-Seidel sweeps, one down and one up, are an affine map; what they change, sweep(x) - x,
    is the residual, which is what makes them the preconditioner. It takes a fifth of the sweeps
    where values must travel far or a policy goes round in circles.

    Constructing it is local, `solve` COLLECTIVE over the planners; sums are those of blocks, added
    up in one order, so that results are the same on any number of ranks, bit for bit.

    Parameters
    ----------
    cuts : borders of this rank's blocks, as rows. blocks : the number of the first of them, and how
    many there are on all ranks. n : own rows and halo. most_of : see `Values`. fetch : fills in the
    halo of an array of own rows and halo.

    Attributes: `swept`, values of own rows and halo, which `solve` hands to its caller's sweeps.
    """

    def __init__(
        self,
        cuts: np.ndarray,
        blocks: tuple[int, int],
        n: int,
        kernels: dict[str, Any],
        most_of: Callable[[np.ndarray], None],
        fetch: Callable[[np.ndarray], None],
    ) -> None:
        n_own = int(cuts[-1]) if cuts.size else 0
        self.swept = Values(n_own, n - n_own, most_of)
        self._most_of, self._fetch, self._n_own = most_of, fetch, n_own
        self._mine, self._all = np.zeros(2 * max(0, cuts.size - 1)), np.zeros(2 * blocks[1])
        self._place = slice(2 * blocks[0], 2 * blocks[0] + self._mine.size)
        sums = cuts, self._mine
        r, shadow, p, d, w, t = (np.zeros(n_own) for _ in range(6))
        self._r, self._shadow, self._p, self._d, v = r, shadow, p, d, self.swept.v
        self._rates = np.zeros((3, 2))
        self._less, self._sums = kernels["krylov_less"], sums
        # Bound once: a call takes as long as a sweep over a small table where it is not.
        self._along = kernels["krylov_less"].bind(p, v, w, shadow, *sums)
        self._across = kernels["krylov_less"].bind(r, v, t, r, *sums)
        self._half = kernels["krylov_half"].bind(r, w, self._rates[0])
        self._finish = kernels["krylov_finish"].bind(d, r, p, t, shadow, self._rates[1], *sums)
        self._search = kernels["krylov_search"].bind(p, r, w, self._rates[2])

    def solve(
        self,
        values: Values,
        sweep: Callable[[], None],
        sweep_linear: Callable[[], None],
        share: float,
        most: int,
    ) -> tuple[int, bool]:
        """Bring `values` nearer to the fixed point of sweeps, until what these change is `share` of
        what it was (2-norms), in at most `most` iterations; return how many, and whether it was
        worth it. Values stay as they are where it was not.

        sweep : changes `swept.v` as two sweeps do. sweep_linear : the linear part of it, which
        leaves out rewards.
        """
        r, p, rates = self._r, self._p, self._rates
        self.swept.begin(values.mask, values.v)
        sweep()
        self._less(self.swept.v, values.v, r, r, *self._sums)
        _, first = self._added()
        self._shadow[:], p[:], self._d[:] = r, r, 0.0
        rho, left, n = first, first, 0
        while n < most and rho != 0.0 and share * share * first < left < math.inf:
            n += 1
            self._apply(p, sweep_linear)
            self._along()
            along, _ = self._added()
            if not 0.0 < abs(along) < math.inf:
                break
            alpha = rates[0, 0] = rho / along
            self._half()
            self._apply(r, sweep_linear)
            self._across()
            cross, square = self._added()
            omega = cross / square if 0.0 < square < math.inf else 0.0
            rates[1] = alpha, omega
            self._finish()
            after, left = self._added()
            if omega == 0.0 or not abs(after) < math.inf:
                break
            rates[2] = after / rho * (alpha / omega), omega
            rho = after
            self._search()
        if not left <= ENOUGH * ENOUGH * first < math.inf:
            return n, False
        values.v[: self._n_own] += self._d
        self._fetch(values.v)
        return n, True

    def _apply(self, x: np.ndarray, sweep_linear: Callable[[], None]) -> None:
        """Sweep x instead of values."""
        self.swept.v[: self._n_own] = x
        self._fetch(self.swept.v)
        sweep_linear()

    def _added(self) -> tuple[float, float]:
        """The two sums that a kernel has left, over all blocks."""
        self._all[:] = -np.inf
        self._all[self._place] = self._mine
        self._most_of(self._all)
        if not np.isfinite(self._all).all():
            return math.nan, math.nan
        first, second = self._all.reshape(-1, 2).T.tolist()
        return math.fsum(first), math.fsum(second)
