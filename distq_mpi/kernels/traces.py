"""What a lane remembers of its past, and the laws that learn from it: n-step targets, eligibility.

A trace is a lane's own: `lengths[lane]` pairs (state * A + action) with a value each, the oldest
first, from lane * depth on in `pairs` and `values`. It outlives a round, for nothing in it was read
off a table, but where `forgets` says otherwise.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from distq_mpi.kernels.planning import SEGMENTS, depth_for

u8, f8 = np.uint64, np.float64

LEAST_ELIGIBILITY = 1e-4
"""Pairs that are less eligible than this are forgotten."""


def trace_of(learn: Any) -> str:
    """The kind of trace under a `[learn]` configuration; "" = none. Local."""
    if learn.rule in SEGMENTS:
        return "model"
    if learn.rule == "watkins_q_lambda":
        return "eligibility"
    return "n_step" if learn.n_steps > 1 else ""


def depth_in(config: Any, n_states: int, n_actions: int) -> int:
    """As `depth_of`, under a resolved `Config` and for so many states. Local."""
    parallel = config.parallel
    return depth_of(config.learn, n_states * n_actions, parallel.lanes // max(1, parallel.agents))


def depth_of(learn: Any, n_pairs: int = 0, n_lanes: int = 1) -> int:
    """Pairs that a lane remembers at most under a `[learn]` configuration; 0 = none. Local.

    n_pairs, n_lanes : of the table and, at least, of an agent; where it learns a model.
    """
    kind = trace_of(learn)
    if kind == "model":
        return depth_for(learn.rule, n_pairs, n_lanes)
    if kind != "eligibility":
        return int(learn.n_steps) if kind else 0
    decay = learn.discount * learn.trace_decay
    if decay <= LEAST_ELIGIBILITY:
        return 1
    # The pair visited, those of ages at which one is eligible, as lanes multiply, and one more.
    return _eligible_ages(decay) + 2


@functools.lru_cache(maxsize=4)
def _eligible_ages(decay: float) -> int:
    n, eligibility = 0, decay
    while eligibility >= LEAST_ELIGIBILITY:
        n, eligibility = n + 1, eligibility * decay
    return n


def forgets(learn: Any) -> bool:
    """Whether traces end where agents are fused: a pair that is eligible still, but was not visited
    in the next round, would have no part in its fusion. Local."""
    return trace_of(learn) == "eligibility"


def drop(lane, trace):
    """Empty a lane's trace."""
    trace[0][lane] = u8(0)


def nothing_to_drop(lane, trace):
    """drop(...) where there are no traces."""


def nudging_law(record, step_size, store):
    """Return nudge(...): move a pair by a share of another's TD error, without a visit.

    Arguments as of `loop.writing_law`; alpha is that of the pair's last visit.
    """
    stride, clock_stride = u8(record.stride), u8(record.clock_stride)
    clock_offset, size = u8(record.clock_offset), step_size.size

    def nudge(q, clock, state, entry, change, bits, discount, alpha):
        pair, ticked = state * stride + entry, clock[state * clock_stride + clock_offset + entry]
        q[pair] = store(q[pair], size(ticked, discount, alpha) * change, bits)

    return nudge


def n_step_law(learn: Any, record: Any, best: Any, look: Any, update: Any, nudge: Any) -> Any:
    """Return learn_one(...) of n-step targets: r_1 + g r_2 + ... + g^(m - 1) r_m + g^m future.

    SARSA and Expected SARSA: m = n, less only where the episode ends (Sutton & Barto 2018, equation
    7.4 and section 7.2). Q-learning: m ends before the first action that is not greedy, too, for
    what follows says nothing of the greedy policy (Watkins 1989; Precup, Sutton & Singh 2000: every
    factor behind it would be 0). A pair is updated, and its clock ticks, when its target is known;
    where several become known at once, the oldest first, all from the table as it was before.

    `values` hold the rewards.
    """
    depth, width, stride = u8(learn.n_steps), u8(record.n_actions), u8(record.stride)
    off_policy, one = learn.rule == "q_learning", u8(1)

    def learn_one(table, q, clock, state, action, reward, next_state, terminated, word, bits,
                  explore, discount, alpha, lane, cut, trace):  # fmt: skip
        lengths, pairs, values = trace
        row, first, n = next_state * stride, lane * depth, lengths[lane]
        a_next, target, part = look(table, row, reward, terminated, word, bits, explore, discount)
        pairs[first + n], values[first + n] = state * width + action, target
        ends = terminated or cut
        if off_policy:
            ends = ends or table[row + a_next] < best(table, row)[1]
        # Rewards become targets from the newest on.
        future, square = target, 0.0
        if ends or n + one == depth:
            for i in range(n):
                at = first + n - one - u8(i)
                future = values[at] + discount * future
                if ends:
                    values[at] = future
        n += one
        if ends:
            for i in range(n):
                pair = pairs[first + u8(i)]
                td_error = update(
                    q, clock, pair // width, pair % width, values[first + u8(i)], bits, discount,
                    alpha,
                )  # fmt: skip
                square += td_error * td_error
            n = u8(0)
        else:
            values[first + n - one] = reward
            if n == depth:
                pair = pairs[first]
                td_error = update(
                    q, clock, pair // width, pair % width, future, bits, discount, alpha
                )
                square = td_error * td_error
                n -= one
                for i in range(n):
                    at = first + u8(i)
                    pairs[at], values[at] = pairs[at + one], values[at + one]
        lengths[lane] = n
        return a_next, square

    return learn_one


def watkins_law(learn: Any, record: Any, best: Any, look: Any, update: Any, nudge: Any) -> Any:
    """Return learn_one(...) of Watkins's Q(lambda) with replacing traces.

    The pair visited becomes eligible by 1; every eligible pair moves by alpha x eligibility x the
    TD error r + g max Q(s', .) - Q(s, a); then all eligibilities fall by g lambda, or to 0 where
    the next action is not greedy or the episode ends (Watkins 1989; Sutton & Barto 1998, figure
    7.14; replacing: Singh & Sutton 1996). alpha is that of the pair that moves; a clock ticks when
    its pair is visited. Eligibilities below 1e-4 count as 0.

    `values` hold the eligibilities.
    """
    depth, width, stride = u8(depth_of(learn)), u8(record.n_actions), u8(record.stride)
    decay, one = f8(learn.discount * learn.trace_decay), u8(1)

    def learn_one(table, q, clock, state, action, reward, next_state, terminated, word, bits,
                  explore, discount, alpha, lane, cut, trace):  # fmt: skip
        lengths, pairs, values = trace
        row, first, n = next_state * stride, lane * depth, lengths[lane]
        a_next, target, part = look(table, row, reward, terminated, word, bits, explore, discount)
        ends = terminated or cut or table[row + a_next] < best(table, row)[1]
        td_error = update(q, clock, state, action, target, bits, discount, alpha)
        visited, kept = state * width + action, u8(0)
        for i in range(n):
            pair, eligibility = pairs[first + u8(i)], values[first + u8(i)]
            if pair != visited:
                nudge(
                    q, clock, pair // width, pair % width, eligibility * td_error, bits, discount,
                    alpha,
                )  # fmt: skip
                if eligibility * decay >= LEAST_ELIGIBILITY:
                    pairs[first + kept], values[first + kept] = pair, eligibility * decay
                    kept += one
        if decay >= LEAST_ELIGIBILITY:
            pairs[first + kept], values[first + kept] = visited, decay
            kept += one
        lengths[lane] = u8(0) if ends else kept
        return a_next, td_error * td_error

    return learn_one


TRACES = {"n_step": n_step_law, "eligibility": watkins_law}
