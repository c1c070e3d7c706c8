"""A model's outcomes as sweeps read them fastest: side by side, without those that end episodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from distq_mpi.table import aligned

if TYPE_CHECKING:
    from distq_mpi.planning import Planner

PAIR_BYTES, OUTCOME_BYTES, ROW_BYTES = 12, 12, 20
"""Of a pair and of an outcome that are copied; and of a row, for the policy that is followed."""
MOST_TRANSITIONS, SPARE = 25_000_000, 1.25
"""Transitions of an environment up to which they are copied, and how many more outcomes a policy
may have, as memory is estimated, than pairs have in the mean."""


def compact_bytes(n_rows: int, n_actions: int, n_outcomes: float) -> int:
    """Bytes of a `Compact` of so many rows and outcomes, about. Local."""
    outcomes = n_outcomes * (1 + SPARE / n_actions)
    return ROW_BYTES * n_rows + PAIR_BYTES * n_rows * n_actions + int(OUTCOME_BYTES * outcomes)


class Path(NamedTuple):
    """The transitions of one policy as sweeps read them; see `kernels.sweeps.follow`.

    begins : uint32 (n_own + 1,), ends : uint32 (n_own,), of each row's transitions. ahead : uint32,
    chances, float64, of transitions. rewards : float64 (n_own,), expected in one step.
    """

    begins: np.ndarray
    ends: np.ndarray
    ahead: np.ndarray
    chances: np.ndarray
    rewards: np.ndarray


class Compact:
    """Outcomes of a planner's pairs, copied side by side; see `kernels.sweeps.compact`. Local.

    Attributes: `model`, the arguments of sweeps over all pairs; `path`, those of the policy that
    was followed last.
    """

    def __init__(self, planner: Planner, cuts: np.ndarray, n_outcomes: int) -> None:
        n_own, n_pairs = planner.mask.size, planner.mask.size * planner.environment.n_actions
        self._followed = np.full(n_own, -1, np.int32)
        self.model = _index(n_pairs + 1), _index(n_outcomes), *map(_floats, (n_outcomes, n_pairs))
        begins = np.empty(n_own + 1, np.uint32)
        planner.call(
            "compact", planner.mask, planner.where, cuts, planner.environment.params, *self.model,
            begins,
        )  # fmt: skip
        room = int(begins[-1])
        self.path = Path(begins, _index(n_own), _index(room), *map(_floats, (room, n_own)))

    def follow(self, policy: np.ndarray, planner: Planner) -> Path:
        """Copy the transitions of a policy; return them, valid until the next call. planner : whose
        outcomes these are."""
        begins, ends, *copies = self.path
        planner.call("follow", policy, self._followed, begins, ends, *self.model, *copies)
        return self.path


def _index(n: int) -> np.ndarray:
    return aligned(4 * n).view(np.uint32)


def _floats(n: int) -> np.ndarray:
    return aligned(8 * n).view(np.float64)
