"""Optimism: targets raised by a bonus that falls with a pair's visits, so that being greedy
explores.

With rewards from 0 to 1 the bonus of Hoeffding's inequality is c sqrt(H^3 iota / k); here H of
these three is the range of values, and `learn.bonus` is c sqrt(iota).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

u8, f8 = np.uint64, np.float64

OPTIMISTIC = ("ucb_hoeffding", "ucb_discounted")


def bonus_scale(learn: Any) -> float:
    """The bonus of a pair's first visit under a resolved `[learn]` configuration. Local."""
    return float(learn.bonus * (learn.value_high - learn.value_low) * math.sqrt(learn.horizon))


def capped(bootstrap, most):
    """Return bootstrap(...) that gives `most` at most."""

    def limited(q, row, a_next, value, explore, part, word):
        return min(bootstrap(q, row, a_next, value, explore, part, word), most)

    return limited


def hoeffding_law(learn: Any, record: Any, step_size: Any, store: Any) -> Any:
    """Return update(...) of UCB-Hoeffding: Q += a (r + V(s') + b_k - Q), V = min(H, max Q), with
    a = (H + 1) / (H + k) and b_k = c sqrt(H^3 iota / k) (Jin et al. 2018, algorithm 1)."""
    stride, clock_stride = u8(record.stride), u8(record.clock_stride)
    clock_offset, size, scale = u8(record.clock_offset), step_size.size, bonus_scale(learn)
    tick = step_size.tick

    def update(q, clock, state, entry, target, bits, discount, alpha):
        pair, cell = state * stride + entry, state * clock_stride + clock_offset + entry
        ticked = tick(clock[cell], 0.0)
        clock[cell] = ticked
        td_error = target + scale / np.sqrt(f8(ticked)) - q[pair]
        q[pair] = store(q[pair], size(ticked, discount, alpha) * td_error, bits)
        return td_error

    return update


def discounted_law(learn: Any, record: Any, step_size: Any, store: Any) -> Any:
    """Return update(...) of UCB for discounted problems (Dong, Wang, Chen & Wang 2019, algorithm
    1): Q += a (r + b_k + g V(s') - Q), then Q^ = min(Q^, Q); V = max Q^, on which the policy is
    greedy.

    The first part is Q^, the second Q. H = ln(2 / ((1 - g) accuracy)) / ln(1 / g).
    """
    stride, clock_stride, width = u8(record.stride), u8(record.clock_stride), u8(record.n_actions)
    clock_offset, size, scale = u8(record.clock_offset), step_size.size, bonus_scale(learn)
    tick = step_size.tick

    def update(q, clock, state, entry, target, bits, discount, alpha):
        least = state * stride + entry
        pair, cell = least + width, state * clock_stride + clock_offset + entry
        ticked = tick(clock[cell], 0.0)
        clock[cell] = ticked
        clock[cell + width] = ticked
        td_error = target + scale / np.sqrt(f8(ticked)) - q[pair]
        q[pair] = store(q[pair], size(ticked, discount, alpha) * td_error, bits)
        q[least] = min(q[least], q[pair])
        return td_error

    return update


LAWS = dict(zip(OPTIMISTIC, (hoeffding_law, discounted_law), strict=True))
