"""Look at every outcome of a law before any kernel believes it: kernels check no bounds."""

from __future__ import annotations

from typing import Any

import numpy as np

from distq_mpi.kernels import Kernel
from distq_mpi.kernels.storing import exact

i8 = np.int64

# Stand-ins for the parts.
outcomes, outcome = exact, exact

FINE, PROBABILITY, NEXT_STATE, REWARD, SUM = range(5)


def check(params, sizes, where, value):
    """Write the first mistake of outcome(): its kind and place to `where`, the number to `value`.

    sizes : int64 (2,): states, actions. where : int64 (4,): kind (FINE = none), state, action,
    outcome. value : float64 (1,).
    """
    for s in range(sizes[0]):
        for a in range(sizes[1]):
            total, kind = 0.0, FINE
            for i in range(outcomes(i8(s), i8(a), params)):
                probability, new, reward, _ = outcome(i8(s), i8(a), i8(i), params)
                if not (probability >= 0.0 and probability <= 1.0):
                    kind, value[0] = PROBABILITY, probability
                elif i8(new) < 0 or i8(new) >= sizes[0]:
                    kind, value[0] = NEXT_STATE, i8(new)
                elif not abs(reward) < np.inf:
                    kind, value[0] = REWARD, reward
                if kind != FINE:
                    where[0], where[1], where[2], where[3] = kind, s, a, i
                    return
                total += probability
            if not abs(total - 1.0) <= 1e-9:
                where[0], where[1], where[2], value[0] = SUM, s, a, total
                return


def checking_kernel(environment: Any) -> dict[str, Kernel]:
    """Return the request for `check`. Local."""
    parts = {"outcomes": environment.outcomes, "outcome": environment.outcome}
    example = (environment.params, np.zeros(2, i8), np.zeros(4, i8), np.zeros(1))
    return {"check": Kernel(check, parts, example)}
