"""The work that one solve may take, and requests to stop it."""

from __future__ import annotations

from collections.abc import Callable

LEAST_WORK, MOST_PASSES = 3e9, 5000.0
"""Backed-up transitions that any solve may take, and passes over all transitions of a model that
large ones may take instead."""


class Unsolved(Exception):
    """A solve ended without an answer; the message says why. Raised by all planners together.

    stopped : whether it was asked to stop, and might have come to an answer. endless : whether the
    answer is that rewards are added up for ever.
    """

    def __init__(self, why: str, stopped: bool = False, endless: bool = False) -> None:
        super().__init__(why)
        self.stopped, self.endless = stopped, endless


class Budget:
    """Counts the work of one solve, and ends it. COLLECTIVE over the planners.

    Parameters
    ----------
    n_transitions : of the model.
    what : the quantity solved for, in words.
    stop : returns whether this rank was asked to stop; None: it never is.
    any_of : returns whether a condition holds on any planner. COLLECTIVE.
    """

    def __init__(
        self, n_transitions: int, what: str, stop: Callable[[], bool] | None,
        any_of: Callable[[bool], bool],
    ) -> None:  # fmt: skip
        self._left = self._limit = max(LEAST_WORK, MOST_PASSES * n_transitions)
        self._what, self._stop, self._any_of, self._ended = what, stop, any_of, False

    @property
    def ended(self) -> bool:
        """Whether it has ended the solve: others on the same budget need not begin. Local."""
        return self._ended

    def spend(self, n_transitions: float) -> None:
        """Count backed-up transitions; raise Unsolved where too many were, or a rank was asked to
        stop."""
        self._left -= n_transitions
        if self._left < 0:
            self._ended = True
            raise Unsolved(
                f"{self._what} is unknown: {self._limit:.1e} backed-up transitions did not suffice"
            )
        if self._stop is not None and self._any_of(self._stop()):
            self._ended = True
            raise Unsolved(f"{self._what} is unknown: the run was asked to stop", True)
