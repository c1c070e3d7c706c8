"""Look at every outcome of a law before any kernel believes it: kernels check no bounds."""

from __future__ import annotations

from typing import Any

import numpy as np

from distq_mpi.kernels import Kernel
from distq_mpi.kernels.storing import exact
from distq_mpi.probabilities import TOLERANCE

i8 = np.int64

# Stand-ins for the parts.
outcomes = outcome = start = exact

FINE, PROBABILITY, NEXT_STATE, REWARD, SUM, START_PROBABILITY, START_STATE, START_SUM = range(8)
END = 8
STATES, ACTIONS, STARTS, CHECKED_STATES = range(4)


def check(params, sizes, where, value):
    """Write a law's first mistake: its kind and place to `where`, the number to `value`.

    Starts are looked at here too: integers wrap in compiled code, but not in Python.

    sizes : int64 (4,): states, actions, starts (0: not looked at), and the states whose outcomes
        are looked at.
    where : int64 (4,): kind (FINE = none), state, action, outcome or start. value : float64 (1,).
    """
    total = 0.0
    for i in range(sizes[STARTS]):
        probability, first = start(i8(i), params)
        if not (probability >= -TOLERANCE and probability <= 1.0 + TOLERANCE):
            where[0], where[3], value[0] = START_PROBABILITY, i, probability
            return
        if i8(first) < 0 or i8(first) >= sizes[STATES]:
            where[0], where[3], value[0] = START_STATE, i, i8(first)
            return
        total += probability
    if sizes[STARTS] > 0 and not abs(total - 1.0) <= TOLERANCE:
        where[0], value[0] = START_SUM, total
        return
    for s in range(sizes[CHECKED_STATES]):
        for a in range(sizes[ACTIONS]):
            total, kind = 0.0, FINE
            for i in range(outcomes(i8(s), i8(a), params)):
                probability, new, reward, ended = outcome(i8(s), i8(a), i8(i), params)
                if not (probability >= -TOLERANCE and probability <= 1.0 + TOLERANCE):
                    kind, value[0] = PROBABILITY, probability
                elif i8(new) < 0 or i8(new) >= sizes[STATES]:
                    kind, value[0] = NEXT_STATE, i8(new)
                elif not abs(reward) < np.inf:
                    kind, value[0] = REWARD, reward
                elif ended != 0 and ended != 1:
                    kind, value[0] = END, ended
                if kind != FINE:
                    where[0], where[1], where[2], where[3] = kind, s, a, i
                    return
                total += probability
            if not abs(total - 1.0) <= TOLERANCE:
                where[0], where[1], where[2], value[0] = SUM, s, a, total
                return


def checking_kernel(environment: Any) -> dict[str, Kernel]:
    """Return the request for `check`. Local."""
    parts = {
        "outcomes": environment.outcomes,
        "outcome": environment.outcome,
        "start": environment.start,
    }
    example = (environment.params, np.zeros(4, i8), np.zeros(4, i8), np.zeros(1))
    return {"check": Kernel(check, parts, example)}
