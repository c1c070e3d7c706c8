"""Sampled evaluation: episodes of the greedy policy."""

from __future__ import annotations

from typing import Any

import numpy as np

from distq_mpi.kernels import Kernel
from distq_mpi.kernels.draws import EVALUATION, EVALUATION_RESET, threefry
from distq_mpi.kernels.exploration import best_of
from distq_mpi.kernels.loop import learning_parts
from distq_mpi.kernels.storing import exact

u8 = np.uint64

# Stand-ins for the parts.
STRIDE = u8(0)
best, law_step, law_start = best_of(4), exact, exact


def evaluate(q, returns, params, control):
    """Play episodes [first, first + n) with the lowest greedy action; write their returns.

    returns : float64 (n,), undiscounted, in reward units. control : uint64 (3,): first episode,
    seed, longest episode in steps. Every draw is a function of (seed, episode, step).
    """
    for k in range(returns.size):
        episode, total = control[0] + u8(k), 0.0
        s = law_start(threefry(u8(0), episode, control[1], EVALUATION_RESET)[0], params)
        for step in range(control[2]):
            bits = threefry(u8(step), episode, control[1], EVALUATION)[1]
            a = best(q, s * STRIDE)[0]
            s, reward, ended = law_step(s, a, bits, params)
            total += reward
            if ended:
                break
        returns[k] = total


def evaluation_kernel(learn: Any, environment: Any, record: Any) -> dict[str, Kernel]:
    """Return the request for `evaluate` under a resolved `[learn]` configuration. Local."""
    behaviour = learning_parts(learn, environment.n_actions, record)
    parts = {
        "STRIDE": behaviour["STRIDE"],
        "best": behaviour["best"],
        "law_step": environment.law_step,
        "law_start": environment.law_start,
    }
    example = (np.zeros(1, record.dtype), np.zeros(1), environment.params, np.zeros(3, u8))
    return {"evaluate": Kernel(evaluate, parts, example)}
