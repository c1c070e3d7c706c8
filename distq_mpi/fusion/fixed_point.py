"""Sums that do not depend on the order: 64-bit fixed point.

The scale must be known before an agent's contribution is rounded, and must not depend on which
rank hosts which agent. It is therefore predicted from the rounds before; the reduction itself
carries how many contributions did not fit, and the rare round in which one did not is rolled back
and run again with a larger bound. This saves the separate reduction of the largest difference.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

START_EXPONENT = 4
RAISE = 8
DEPTH = 24


@dataclass(frozen=True)
class FixedPoint:
    """The scale of a round: |contribution| < 2^exponent, for `n_agents` of them.

    Parameters
    ----------
    n_agents : K, never the number of ranks.
    exponent : of the bound on one contribution.
    peak : the largest exponent so far; the bound never falls more than `DEPTH` below it.
    """

    n_agents: int
    exponent: int = START_EXPONENT
    peak: int = START_EXPONENT

    @cached_property
    def bound(self) -> float:
        """Contributions must stay below this."""
        return math.ldexp(1.0, self.exponent)

    @cached_property
    def scale(self) -> float:
        """2^f with f = 62 - ceil(log2 K) - exponent: K contributions cannot overflow int64."""
        return math.ldexp(1.0, 62 - (self.n_agents - 1).bit_length() - self.exponent)

    def raised(self) -> FixedPoint:
        """The scale for running a round again in which a contribution did not fit."""
        exponent = self.peak if self.exponent < self.peak else self.peak + RAISE
        return replace(self, exponent=exponent, peak=max(self.peak, exponent))

    def after(self, n_large: int) -> FixedPoint:
        """The scale for the next round; `n_large` contributions came within 16 x of the bound."""
        if n_large or self.exponent <= self.peak - DEPTH:
            return self
        return replace(self, exponent=self.exponent - 1)
