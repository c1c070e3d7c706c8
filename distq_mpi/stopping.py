"""When a run ends, and what that means for its exit code."""

from __future__ import annotations

import functools
import math
from bisect import bisect_right
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from distq_mpi.finite import at_least, at_most

TARGETS = ("policy_gap", "policy_loss", "policy_loss_bound", "mean_return")
EXACT_TARGETS = ("policy_gap", "policy_loss", "policy_loss_bound")
CHECK_GROWTH = 1.25
STILL_GROWTH, STILL_SHARE = 8, 0.9
STILL_VISITS, STILL_LEAST = 1000, 0.05
FIRST_SHARE = 0.1
MOST_STEPS = 1 << 63
EXIT_CODES = {"converged": 0, "finished": 0, "interrupted": 75, "diverged": 3, "failed": 1}


@dataclass(frozen=True)
class Verdict:
    """How a run ended: `status` of the summary, the reason in words, the exit code, the rule."""

    status: str
    reason: str
    exit_code: int
    rule: str = ""
    """The key of `[stop]` that held; "" where none did."""


def is_check_round(progress: Any, n_pairs: int) -> bool:
    """Whether the certificate is due after a committed round: a function of its steps alone.

    Checks fall where the steps pass the next power of `CHECK_GROWTH`. (By the number of rounds
    they would be too rare: rounds grow longer as agents agree.) None is due while fewer than
    `FIRST_SHARE` of the pairs can have been tried: on large tables it would cost more than to
    learn until then.
    """
    before = progress.steps - progress.round_steps
    if progress.steps < max(1, FIRST_SHARE * n_pairs):
        return False
    checks = _checks(CHECK_GROWTH)
    return bisect_right(checks, progress.steps) > bisect_right(checks, before)


@functools.lru_cache(maxsize=1)
def _checks(growth: float) -> list[int]:
    """Powers of `growth`, from 1 on, rounded up, as far as steps can go; the same on any host."""
    found, power = list[int](), Fraction(1)
    while power < MOST_STEPS:
        found.append(math.ceil(power))
        power *= Fraction(growth)
    return found


def verdict(stop: Any, progress: Any, agreement: Any, certificate: Any) -> Verdict | None:
    """Return how the run ends after a committed round, None to go on. Local, same on all ranks.

    stop : `[stop]` configuration. progress, agreement : of the round (agreement None on resume).
    certificate : of this round's table, None where none was due.
    """
    if agreement is not None and agreement.non_finite:
        text = f"{agreement.non_finite} numbers learned in round {progress.round} are not finite"
        return Verdict("diverged", text, EXIT_CODES["diverged"])
    for name in TARGETS:
        limit = getattr(stop, name)
        if limit is None:
            continue
        if name == "mean_return":
            value, sign = progress.mean_return, ">="
            reached = at_least(value, limit)
        else:
            value, sign = getattr(certificate, name, None), "<="
            reached = at_most(value, limit)
        if reached:
            return Verdict("converged", f"{name} {value:.3g} {sign} {limit:g}", 0, name)
    for name in ("steps", "rounds", "episodes"):
        limit = getattr(stop, name)
        value = progress.round if name == "rounds" else getattr(progress, name)
        if limit is not None and value >= limit:
            return _budget(stop, name, f"{name} {value} >= {limit}")
    if agreement is not None and agreement.want_stop:
        return Verdict("interrupted", "asked to stop", EXIT_CODES["interrupted"])
    if agreement is not None and agreement.want_time:
        return _budget(stop, "wall_time_s", f"wall_time_s >= {stop.wall_time_s:g}")
    return None


def _budget(stop: Any, rule: str, reason: str) -> Verdict:
    missed = [name for name in TARGETS if getattr(stop, name) is not None]
    if missed:
        return Verdict("finished", f"{reason}, short of {' and '.join(missed)}", 3, rule)
    return Verdict("finished", reason, 0, rule)


class Standstill:
    """Notices that learning no longer gets better, from one certificate to the next. Local.

    While the steps have grown by `STILL_GROWTH` the best `policy_gap` has not fallen to
    `STILL_SHARE` of what it was, is above `STILL_LEAST`, and there were steps for `STILL_VISITS`
    visits of every pair. Where there is one action, so that no policy has a gap, the same of
    `q_error` over the value range.

    Parameters
    ----------
    n_pairs, n_actions : of the environment. value_range : of V*, None where it is not known.
    """

    def __init__(self, n_pairs: int, n_actions: int, value_range: float | None) -> None:
        self.n_pairs, self.n_actions, self.value_range = n_pairs, n_actions, value_range
        self.best: list[tuple[int, float]] = []
        """Steps and the best measure until then, of all certificates that had one."""

    def measure(self, certificate: Any) -> float | None:
        """What should fall: 0 is optimal. None where it is not known."""
        value = certificate.policy_gap
        if self.n_actions == 1:
            value = certificate.q_error
            if value is not None:
                value = value / self.value_range if self.value_range else None
        return value if value is not None and math.isfinite(value) else None

    def notice(self, steps: int, certificate: Any) -> str:
        """Look at a certificate after so many steps; say what stands still, or ""."""
        value = self.measure(certificate)
        if value is None:
            return ""
        best = min(value, self.best[-1][1]) if self.best else value
        self.best.append((steps, best))
        then = [one for one in self.best if one[0] * STILL_GROWTH <= steps]
        enough = steps >= STILL_VISITS * self.n_pairs
        if not then or not enough or best <= STILL_LEAST or best < STILL_SHARE * then[-1][1]:
            return ""
        what = "policy_gap" if self.n_actions > 1 else "q_error / value range"
        return (
            f"the best {what} was {then[-1][1]:.3g} after {then[-1][0]:.3g} steps and is "
            f"{best:.3g} after {steps:.3g}: learning stands still, or is too slow; "
            "docs/learning.md, \"Where the defaults do not learn\", says what helps: a constant "
            "learn.alpha, other starts, learn.sampling generative, optimism with a bound"
        )
