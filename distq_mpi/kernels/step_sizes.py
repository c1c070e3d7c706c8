"""Step sizes: how a pair's clock ticks with each visit, and the alpha that follows from it.

A clock is one uint32: the low 30 bits count, the top two hold the sign of the last TD error where
the step size asks for it (0 never visited, 1 plus, 2 minus, 3 visited without a sign so far).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from distq_mpi.kernels.elementary import inverse_power

u4, f8 = np.uint32, np.float64

COUNT = u4((1 << 30) - 1)
LIMIT_BIT = u4(29)
CLOCK_LIMIT = u4(1 << 29)
"""The count at which a clock saturates. Where agents are fused, and where an agent is alone, clocks
are limited between rounds, which add less than as much again, so that differences of clocks are
exact; where there is neither (`sharded`), with every tick (`saturating`)."""
SIGN_SHIFT = u4(30)
PLUS, MINUS, NO_SIGN = u4(1), u4(2), u4(3)


def rescaled_linear(clock, discount, alpha):
    """1 / (1 + (1 - discount) k) (Wainwright 2019, equation 6)."""
    return 1.0 / (1.0 + (1.0 - discount) * f8(clock))


def constant(clock, discount, alpha):
    """alpha, whatever the clock."""
    return alpha


def polynomial(clock, discount, alpha):
    """k^-alpha; alpha is the exponent (Even-Dar & Mansour 2003)."""
    return inverse_power(f8(clock), alpha)


def linear(clock, discount, alpha):
    """1 / k: the average of all targets (Watkins & Dayan 1992)."""
    return 1.0 / f8(clock)


def sign_change(clock, discount, alpha):
    """(1 + k)^-alpha, k the changes of sign of the pair's TD error (Kesten 1958)."""
    return inverse_power(f8(clock & COUNT) + 1.0, alpha)


def horizon(clock, discount, alpha):
    """(H + 1) / (H + k), H in alpha (Jin et al. 2018)."""
    return (alpha + 1.0) / (alpha + f8(clock))


def tick_visit(clock, td_error):
    """Count the visit."""
    return clock + u4(1)


def tick_sign(clock, td_error):
    """Count a change of sign; an error of 0 keeps the sign."""
    old = clock >> SIGN_SHIFT
    new = sign_after(old, td_error)
    return (new << SIGN_SHIFT) | ((clock & COUNT) + u4((old > 0) & (old + new == 3)))


def sign_after(old, td_error):
    """The sign that follows `old` with this error."""
    return PLUS if td_error > 0.0 else MINUS if td_error < 0.0 else old if old > 0 else NO_SIGN


def tick_visit_limited(clock, td_error):
    """As `tick_visit`, up to CLOCK_LIMIT; a clock beyond it stays."""
    return clock + u4(clock < CLOCK_LIMIT)


def tick_sign_limited(clock, td_error):
    """As `tick_sign`, up to a count of CLOCK_LIMIT; a count beyond it stays."""
    old = clock >> SIGN_SHIFT
    new = sign_after(old, td_error)
    below = (clock ^ CLOCK_LIMIT) >> LIMIT_BIT  # in bit 0, and cheaper than a comparison
    return (new << SIGN_SHIFT) | ((clock & COUNT) + (u4((old > 0) & (old + new == 3)) & below))


def next_visit(clock):
    """The clock that the next visit's alpha sees."""
    return clock + u4(1)


def next_same_sign(clock):
    """As `next_visit`; without a change of sign nothing is counted."""
    return clock


@dataclass(frozen=True)
class StepSize:
    """One step size.

    Parameters
    ----------
    size : (clock after its tick uint32, discount, alpha) -> alpha float64 in (0, 1].
    tick : (clock, td_error) -> clock.
    upcoming : clock -> what `size` sees at the pair's next visit.
    signed : whether clocks count changes of sign, so that visits are counted apart.
    parameter : the key of `[learn]` that `size` takes as alpha.
    """

    size: Callable[..., Any]
    tick: Callable[..., Any] = tick_visit
    upcoming: Callable[..., Any] = next_visit
    signed: bool = False
    parameter: str = "alpha"


STEP_SIZES = {
    "rescaled_linear": StepSize(rescaled_linear),
    "constant": StepSize(constant),
    "polynomial": StepSize(polynomial, parameter="exponent"),
    "linear": StepSize(linear),
    "horizon": StepSize(horizon, parameter="horizon"),
    "sign_change": StepSize(
        sign_change, tick_sign, next_same_sign, signed=True, parameter="exponent"
    ),
}


def saturating(step_size: StepSize) -> StepSize:
    """The step size with clocks that are limited at every tick, not between rounds."""
    return replace(step_size, tick=tick_sign_limited if step_size.signed else tick_visit_limited)


def by_rounds(step_size: StepSize, n_whole: int) -> StepSize:
    """The step of targets that are frozen for a round, where a clock counts a pair's rounds: 1 in
    the first `n_whole`, then the step size as if from its beginning (as FedQ's second case, Zheng
    et al. 2024, takes all samples of a round at once)."""
    inner, whole = step_size.size, u4(n_whole)

    def size(clock, discount, alpha):
        return 1.0 if clock <= whole else inner(clock - whole, discount, alpha)

    return replace(step_size, size=size)


def step_parameter(learn: Any) -> float:
    """Return what `size` takes as alpha under a resolved `[learn]` configuration. Local."""
    return float(getattr(learn, STEP_SIZES[learn.step_size].parameter))
