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
