"""When a run ends, and what that means for its exit code."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

TARGETS = ("policy_gap", "policy_loss", "policy_loss_bound", "mean_return")
EXACT_TARGETS = ("policy_gap", "policy_loss", "policy_loss_bound")
EXIT_CODES = {"converged": 0, "finished": 0, "interrupted": 75, "diverged": 3, "failed": 1}


@dataclass(frozen=True)
class Verdict:
    """How a run ended: `status` of the summary, the reason in words, the exit code."""

    status: str
    reason: str
    exit_code: int


def check_rounds() -> Iterator[int]:
    """The rounds after which the certificate is computed: 1, 2, 3, ..., growing by 1.25 x."""
    number = 1
    while True:
        yield number
        number = max(number + 1, math.ceil(number * 1.25))


def is_check_round(number: int) -> bool:
    """Whether the certificate is due after round `number`: a function of the number alone."""
    return number in _CHECKS


class _Checks:
    """The check rounds, extended as far as asked."""

    def __init__(self) -> None:
        self._rounds = check_rounds()
        self._known: set[int] = set()
        self._largest = 0

    def __contains__(self, number: int) -> bool:
        while self._largest < number:
            self._largest = next(self._rounds)
            self._known.add(self._largest)
        return number in self._known


_CHECKS = _Checks()


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
        value = progress.mean_return if name == "mean_return" else getattr(certificate, name, None)
        if value is None:
            continue
        if value >= limit if name == "mean_return" else value <= limit:
            sign = ">=" if name == "mean_return" else "<="
            return Verdict("converged", f"{name} {value:.3g} {sign} {limit:g}", 0)
    missed = [name for name in TARGETS if getattr(stop, name) is not None]
    for name in ("steps", "rounds", "episodes"):
        limit = getattr(stop, name)
        value = progress.round if name == "rounds" else getattr(progress, name)
        if limit is not None and value >= limit:
            return _budget(f"{name} {value} >= {limit}", missed)
    if agreement is not None and agreement.want_stop:
        return Verdict("interrupted", "asked to stop", EXIT_CODES["interrupted"])
    if agreement is not None and agreement.want_time:
        return _budget(f"wall_time_s >= {stop.wall_time_s:g}", missed)
    return None


def _budget(reason: str, missed: list[str]) -> Verdict:
    if missed:
        return Verdict("finished", f"{reason}, short of {' and '.join(missed)}", 3)
    return Verdict("finished", reason, 0)
