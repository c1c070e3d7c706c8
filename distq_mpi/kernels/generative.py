"""Synchronous learning from a generative model: in a sweep every pair draws one transition.

There are no trajectories and no behaviour. All targets of a sweep read the values as they stood
before it. The transition of pair p that agent k draws in a sweep is that of the draw (sweep, k x
pairs + p): a function of the configuration, like everything else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from distq_mpi.kernels import Kernel
from distq_mpi.kernels.draws import TRANSITION, threefry
from distq_mpi.kernels.loop import (
    ALPHA,
    DISCOUNT,
    FIRST_LANE,
    FIRST_STEP,
    N_STEPS,
    SEED,
    SQUARE_SUM,
    writing_law,
)
from distq_mpi.kernels.step_sizes import STEP_SIZES
from distq_mpi.kernels.storing import exact, stochastic

u8, u4, i8, f8 = np.uint64, np.uint32, np.int64, np.float64

MOST_SAMPLES = i8(1 << 40)

# Stand-ins for the parts.
STRIDE, N_ACTIONS, N_READ, FROZEN = 0, 0, 1, False
plan, revise, law_step = exact, exact, exact


def learn(seen, q, clock, best, params, control, rates, totals):
    """Sweep all pairs `control[N_STEPS]` times.

    seen, q, clock, params, control, rates, totals : as in `loop.learn`; a step is a sweep, the
    first lane the agent's number. best : float64 (N_READ * S,), scratch: the largest value of a
    state's row, part after part.
    """
    n_states, table = best.size // N_READ, seen if FROZEN else q
    discount, alpha, square_sum = rates[DISCOUNT], rates[ALPHA], 0.0
    first = control[FIRST_LANE] * u8(n_states * N_ACTIONS)
    for step in range(control[N_STEPS]):
        now = control[FIRST_STEP] + u8(step)
        for part in range(N_READ):
            for s in range(n_states):
                at = s * STRIDE + part * N_ACTIONS
                value = f8(table[at])
                for a in range(1, N_ACTIONS):
                    value = max(value, f8(table[at + a]))
                best[part * n_states + s] = value
        phase, k, n = plan(i8(now) - 1)
        for s in range(n_states):
            for a in range(N_ACTIONS):
                number = first + u8(s * N_ACTIONS + a)
                bits = threefry(now, number, control[SEED], TRANSITION)[1]
                ahead, reward, terminated = law_step(u8(s), u8(a), bits, params)
                weight = 0.0 if terminated else discount
                td_error = revise(
                    q, clock, u8(s), u8(a), reward, weight, best, i8(ahead), n_states, phase, k, n,
                    bits, discount, alpha,
                )  # fmt: skip
                square_sum += td_error * td_error
    totals[SQUARE_SUM] += square_sum


def one_phase(config):
    """Return plan(sweep) -> (phase, sweep of the phase from 1, sweeps of the phase), of one phase
    without end. Sweeps count from 0."""

    def plan(sweep):
        return i8(0), sweep + 1, i8(0)

    return plan


def recentred(config):
    """Return plan(sweep) of variance-reduced Q-learning: phase 0 estimates T(reference), phase 1
    learns.

    In epoch m = 1, 2, ... the agents together draw epoch_samples x 4^(m - 1) transitions of a pair
    for the estimate; then come epoch_steps sweeps.
    """
    samples, steps = i8(config.learn.epoch_samples), i8(config.learn.epoch_steps)
    n_agents = i8(config.parallel.agents)

    def plan(sweep):
        start, wanted = i8(0), samples
        n = (wanted + n_agents - 1) // n_agents
        while sweep >= start + n + steps:
            start += n + steps
            wanted = min(4 * wanted, MOST_SAMPLES)
            n = (wanted + n_agents - 1) // n_agents
        if sweep - start < n:
            return i8(0), sweep - start + 1, n
        return i8(1), sweep - start - n + 1, steps

    return plan


def synchronous(record, step_size, store):
    """Return revise(...) -> td_error of synchronous Q-learning: r + g max Q(s', .) for every pair
    (Even-Dar & Mansour 2003; Li et al. 2024, algorithm 1)."""
    update = writing_law(record, step_size, store)

    def revise(q, clock, state, action, reward, weight, best, ahead, n_states, phase, k, n, bits,
               discount, alpha):  # fmt: skip
        target = reward + weight * best[ahead]
        return update(q, clock, state, action, target, bits, discount, alpha)

    return revise


def speedy(record, step_size, store):
    """Return revise(...) of Speedy Q-learning: Q + a (T_k Q' - Q) + (1 - a) (T_k Q - T_k Q') with
    a = 1 / (k + 1), Q' the table of the sweep before (the second part), T_k of both with the same
    transition (Azar, Munos, Ghavamzadeh & Kappen 2011, algorithm 1)."""
    stride, clock_stride = u8(record.stride), u8(record.clock_stride)
    offset, width = u8(record.clock_offset), u8(record.n_actions)
    size = step_size.size

    def revise(q, clock, state, action, reward, weight, best, ahead, n_states, phase, k, n, bits,
               discount, alpha):  # fmt: skip
        pair, cell = state * stride + action, state * clock_stride + offset + action
        newer, older = reward + weight * best[ahead], reward + weight * best[n_states + ahead]
        clock[cell] += u4(1)
        clock[cell + width] += u4(1)
        a, old = size(clock[cell], discount, alpha), q[pair]
        q[pair + width] = old
        q[pair] = store(old, a * (older - old) + (1.0 - a) * (newer - older), bits)
        return newer - old

    return revise


def variance_reduced(record, step_size, store):
    """Return revise(...) of variance-reduced Q-learning (Wainwright 2019b, algorithm 1).

    The second part is the reference R, the third the estimate E of T(R). Phase 0: R = Q at first,
    then E becomes the mean of n samples of T(R). Phase 1: Q += a (T_k Q - T_k R + E - Q), T_k of
    both with the same transition, a = 1 / (1 + (1 - g) k) with k of the epoch.
    """
    stride, clock_stride = u8(record.stride), u8(record.clock_stride)
    offset, width = u8(record.clock_offset), u8(record.n_actions)

    def revise(q, clock, state, action, reward, weight, best, ahead, n_states, phase, k, n, bits,
               discount, alpha):  # fmt: skip
        pair, cell = state * stride + action, state * clock_stride + offset + action
        reference, estimate = pair + width, pair + width + width
        if phase == 0:
            # In the first of these sweeps the reference is what all learned so far.
            target = reward + weight * (best[ahead] if k == 1 else best[n_states + ahead])
            if k == 1:
                q[reference] = q[pair]
                clock[cell + width] += u4(1)
            clock[cell + width + width] += u4(1)
            error = target - q[estimate]
            q[estimate] = store(q[estimate], error / f8(k), bits)
            return error
        clock[cell] += u4(1)
        newer = reward + weight * best[ahead]
        older = reward + weight * best[n_states + ahead]
        error = (newer - older) + (q[estimate] - q[pair])
        q[pair] = store(q[pair], error / (1.0 + (1.0 - discount) * f8(k)), bits)
        return error

    return revise


@dataclass(frozen=True)
class Sweep:
    """One rule of synchronous learning: makers of `revise` and `plan`, parts it takes maxima of."""

    revise: Callable[..., Any]
    plan: Callable[..., Any] = one_phase
    n_read: int = 1


SWEEPS = {
    "q_learning": Sweep(synchronous),
    "speedy_q": Sweep(speedy, n_read=2),
    "variance_reduced_q": Sweep(variance_reduced, recentred, 2),
}


def sweeps_left(config: Any, n_sweeps: int) -> int | None:
    """Sweeps until the phase ends, after `n_sweeps`; None where phases have no end. Local."""
    _, k, n = SWEEPS[config.learn.rule].plan(config)(n_sweeps)
    return int(n - k + 1) if n else None


def scratch_of(learn: Any, n_states: int) -> np.ndarray:
    """The array `best` of `learn` under a `[learn]` configuration. Local."""
    return np.zeros(SWEEPS[learn.rule].n_read * n_states)


def generative_kernels(config: Any, environment: Any, record: Any) -> dict[str, Kernel]:
    """Return the request for `learn` under a resolved `Config`. Local."""
    rule = SWEEPS[config.learn.rule]
    store = exact if record.dtype == np.float64 else stochastic
    frozen = config.learn.target == "frozen"
    step_size = STEP_SIZES["linear" if frozen else config.learn.step_size]
    parts = {
        "STRIDE": record.stride, "N_ACTIONS": environment.n_actions, "N_READ": rule.n_read,
        "plan": rule.plan(config), "law_step": environment.law_step,
        "revise": rule.revise(record, step_size, store), "FROZEN": frozen,
    }  # fmt: skip
    q, clock = np.zeros(1, record.dtype), np.zeros(1, u4)
    example = (
        q, q, clock, np.zeros(1), environment.params, np.zeros(7, u8), np.zeros(2), np.zeros(3),
    )  # fmt: skip
    return {"learn": Kernel(learn, parts, example)}
