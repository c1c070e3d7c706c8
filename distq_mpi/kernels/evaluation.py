"""Sampled evaluation: episodes of the greedy policy."""

from __future__ import annotations

from typing import Any

import numpy as np

from distq_mpi.kernels import Kernel
from distq_mpi.kernels.draws import EVALUATION, EVALUATION_RESET, threefry
from distq_mpi.kernels.exploration import best_of
from distq_mpi.kernels.loop import learning_parts
from distq_mpi.kernels.storing import exact

u8, i8 = np.uint64, np.int64

# Stand-ins for the parts.
STRIDE = u8(0)
best, law_step, law_start = best_of(4), exact, exact


FIRST, SEED, LONGEST, FIRST_ROW, N_ROWS, PAUSE = range(6)
STATE, STEP, DONE = range(3)
CUT, ENDED = 1, 2
NOT_BEGUN = -1


def evaluate(q, episodes, returns, params, control):
    """Play episodes with the lowest greedy action, each until it ends, leaves this rank's rows or
    has made PAUSE steps; a later call goes on with it.

    q : this rank's rows. episodes : int64 (n, 3): state, steps made (`NOT_BEGUN` at first), 0 or,
    where it is over, `CUT` by the longest episode or `ENDED` by itself; changed. returns : float64
    (n,), undiscounted, in reward units; added to. control : uint64 (6,): number of the first
    episode, seed, longest episode in steps, first row, rows, steps after which episodes wait. Every
    draw is a function of (seed, episode, step).
    """
    longest, first_row, pause = i8(control[LONGEST]), control[FIRST_ROW], i8(control[PAUSE])
    for k in range(returns.size):
        episode, total = control[FIRST] + u8(k), returns[k]
        step, done, s = episodes[k, STEP], episodes[k, DONE], u8(episodes[k, STATE])
        if step == NOT_BEGUN:
            s = law_start(threefry(u8(0), episode, control[SEED], EVALUATION_RESET)[0], params)
            step = 0
        while done == 0 and step < pause and s - first_row < control[N_ROWS]:
            bits = threefry(u8(step), episode, control[SEED], EVALUATION)[1]
            a = best(q, (s - first_row) * STRIDE)[0]
            s, reward, ended = law_step(s, a, bits, params)
            total += reward
            step += 1
            if ended:
                done = ENDED
            elif step >= longest:
                done = CUT
        episodes[k, STATE], episodes[k, STEP], episodes[k, DONE] = i8(s), step, done
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
    example = (
        np.zeros(1, record.dtype), np.zeros((1, 3), i8), np.zeros(1), environment.params,
        np.zeros(6, u8),
    )  # fmt: skip
    return {"evaluate": Kernel(evaluate, parts, example)}
