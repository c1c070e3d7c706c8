"""Bounds from fresh samples: what an average of backups says of one snapshot of a table."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from distq_mpi.kernels import Kernel
from distq_mpi.kernels.draws import CERTIFICATE, threefry
from distq_mpi.kernels.storing import exact

u8, i8, f8 = np.uint64, np.int64, np.float64

# Stand-ins for the parts.
N_ACTIONS = 0
outcomes, outcome, law_step = exact, exact, exact

FIRST, STRIDE, N_SAMPLES, SEED, CHECK = range(5)
DISCOUNT, RANGE, LOG_PAIRS, LEAST, MOST = range(5)
RISE, FALL, FLOOR, OUTSIDE = range(4)
LOG_4, LOG_8 = 1.3862943611198906, 2.0794415416798357
CHECK_SHIFT = u8(40)
"""Samples of a pair that a check may draw, as a power of two."""


def half_width(n, variance, extent, log_pairs):
    """Return h with |mean of n samples - expectation| <= h but for a probability of d / pairs.

    The smaller of Hoeffding's and the empirical Bernstein bound (Maurer & Pontil 2009, theorem 4),
    each two-sided at half of that probability. n : >= 2. extent : largest minus smallest value that
    a sample can have. log_pairs : log(pairs / d).
    """
    hoeffding = extent * math.sqrt((log_pairs + LOG_4) / (2.0 * n))
    logged = log_pairs + LOG_8
    bernstein = math.sqrt(2.0 * variance * logged / n) + 7.0 * extent * logged / (3.0 * (n - 1.0))
    return min(hoeffding, bernstein)


def note(found, mean, variance, n, value, rates):
    """Enter one pair's samples into what is found."""
    width = half_width(n, variance, rates[RANGE], rates[LOG_PAIRS])
    residual = mean - value
    found[RISE] = max(found[RISE], residual + width)
    found[FALL] = max(found[FALL], width - residual)
    found[FLOOR] = max(found[FLOOR], abs(residual) - width)


def certify(q, v, inside, params, control, rates, found):
    """Draw fresh transitions of the pairs of a slice, and enter what they say of b = TQ - Q.

    q : flat values of the slice; v : float64 (S,), max Q of all states. inside : uint8 (S,), 0 for
    states that are left out. control : uint64 (5,):
    first state, stride of q, samples of a pair, seed, number of the check. rates : float64 (5,):
    discount, range of a sample, log(pairs / d), least and largest reward that the range allows.
    found : float64 (4,), raised where less: largest b + h, largest h - b, largest |b| - h, samples
    with a reward outside the range. Draw k of a pair is a function of (seed, check, pair, k).
    """
    n_states, stride = q.size // i8(control[STRIDE]), i8(control[STRIDE])
    n, first = i8(control[N_SAMPLES]), control[FIRST]
    count = control[CHECK] << CHECK_SHIFT
    for s in range(n_states):
        state = first + u8(s)
        if inside[state] == 0:
            continue
        for a in range(N_ACTIONS):
            pair = state * u8(N_ACTIONS) + u8(a)
            origin, total, squares = 0.0, 0.0, 0.0
            for k in range(n):
                bits = threefry(count + u8(k), pair, control[SEED], CERTIFICATE)[1]
                ahead, reward, terminated = law_step(state, u8(a), bits, params)
                if not (rates[LEAST] <= reward <= rates[MOST]):
                    found[OUTSIDE] += 1.0
                sample = reward + (0.0 if terminated else rates[DISCOUNT] * v[ahead])
                if k == 0:
                    origin = sample
                total += sample - origin
                squares += (sample - origin) * (sample - origin)
            variance = max(0.0, (squares - total * total / n) / (n - 1))
            value = f8(q[s * stride + a])
            note(found, origin + total / n, variance, f8(n), value, rates)


def rewards(params, inside, states, found):
    """Raise found, float64 (3,), to the largest reward, minus the least, and whether (1.0) any
    transition terminates, of the pairs of states [first, stop) that are inside; states : int64
    (2,)."""
    for s in range(states[0], states[1]):
        if inside[s] == 0:
            continue
        for a in range(N_ACTIONS):
            for i in range(outcomes(i8(s), i8(a), params)):
                probability, _, reward, terminated = outcome(i8(s), i8(a), i8(i), params)
                if probability > 0.0:
                    found[0] = max(found[0], reward)
                    found[1] = max(found[1], -reward)
                    found[2] = max(found[2], 1.0 if terminated else 0.0)


def fresh_kernels(environment: Any, q_dtype: Any) -> dict[str, Kernel]:
    """Return the requests for `certify` and `rewards`; q_dtype : of policy tables. Local."""
    parts = {"N_ACTIONS": environment.n_actions}
    sampled = {**parts, "law_step": environment.law_step}
    listed = {**parts, "outcomes": environment.outcomes, "outcome": environment.outcome}
    params, inside = environment.params, np.zeros(1, np.uint8)
    return {
        "certify": Kernel(
            certify, sampled,
            (np.zeros(1, q_dtype), np.zeros(1), inside, params, np.zeros(5, u8), np.zeros(5),
             np.zeros(4)),
        ),
        "rewards": Kernel(rewards, listed, (params, inside, np.zeros(2, i8), np.zeros(3))),
    }  # fmt: skip
