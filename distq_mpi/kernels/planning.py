"""Planning with a model that an agent learns: Dyna-Q and prioritized sweeping.

The model is what every pair showed last. It belongs to an agent and lies in its lanes' traces
(`traces`), one memory for all of them: `pairs` and `values` are cut into segments of one word per
pair.

| segment | `pairs` | `values` |
|---|---|---|
| 0 | next_state << 1 + terminated + 1; 0 = never seen | reward |
| 1 | Dyna: the pairs seen, in order; sweeping: the heap, largest first | sweeping: priority |
| 2 | sweeping: place of a pair in the heap + 1; 0 = it is not there | |
| 3 | sweeping: first pair + 1 that leads to a state; 0 = none | |
| 4, 5 | sweeping: next, and last, pair + 1 of those that lead to the same state | |

lengths[0] counts the pairs seen, or those in the heap.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from distq_mpi.kernels.draws import slot_of, threefry

u8, f8 = np.uint64, np.float64
ONE, TWO = u8(1), u8(2)

SEGMENTS = {"dyna_q": 2, "prioritized_sweeping": 6}


def depth_for(rule: str, n_pairs: int, n_lanes: int) -> int:
    """Words per lane for the model of an agent with at least `n_lanes` lanes. Local."""
    return -(-SEGMENTS[rule] * n_pairs // n_lanes)


def dyna_law(learn: Any, record: Any, parts: dict[str, Any], n_states: int) -> Any:
    """Return learn_one(...) of Dyna-Q: a transition is learned from and remembered, then
    `planning_steps` remembered ones, drawn at random, are learned from again (Sutton 1990; Sutton &
    Barto 2018, section 8.2).

    The next action is chosen behind the planning. Draws of planning step j are those of the counter
    (first word, j) under the key (second word, 0) of the lane's own draw.
    """
    width, stride = u8(record.n_actions), u8(record.stride)
    n_pairs = u8(n_states * record.n_actions)
    n_planned = int(learn.planning_steps)
    best, choose, look, update = (parts[name] for name in ("best", "choose", "look", "update"))

    def learn_one(table, q, clock, state, action, reward, next_state, terminated, word, bits,
                  explore, discount, alpha, lane, cut, trace):  # fmt: skip
        lengths, pairs, values = trace
        row = next_state * stride
        _, target, part = look(q, row, reward, terminated, word, bits, explore, discount)
        td_error = update(q, clock, state, action, target, bits, discount, alpha)
        square, pair = td_error * td_error, state * width + action
        if pairs[pair] == u8(0):
            pairs[n_pairs + lengths[0]] = pair
            lengths[0] += ONE
        pairs[pair], values[pair] = ((next_state << ONE) | u8(terminated)) + ONE, reward
        for j in range(n_planned):
            chosen, rounding = threefry(word, u8(j), bits, u8(0))
            again = pairs[n_pairs + slot_of(chosen, lengths[0])[0]]
            code = pairs[again] - ONE
            value = best(q, (code >> ONE) * stride)[1]
            future = 0.0 if (code & ONE) == ONE else discount * f8(value)
            s = again // width
            td_error = update(
                q, clock, s, again - s * width, values[again] + future, rounding, discount, alpha
            )
            square += td_error * td_error
        return choose(q, row, best(q, row)[1], word, explore), square

    return learn_one


def rise(pairs, values, n_pairs, at):
    """Bring the heap's item at place `at` up to where it belongs."""
    pair, priority = pairs[n_pairs + at], values[n_pairs + at]
    while at > u8(0):
        above = (at - ONE) >> ONE
        if values[n_pairs + above] >= priority:
            break
        moved = pairs[n_pairs + above]
        pairs[n_pairs + at], values[n_pairs + at] = moved, values[n_pairs + above]
        pairs[TWO * n_pairs + moved] = at + ONE
        at = above
    pairs[n_pairs + at], values[n_pairs + at] = pair, priority
    pairs[TWO * n_pairs + pair] = at + ONE


def take(pairs, values, n_pairs, n):
    """Take the first pair out of a heap of n; return it."""
    first, last = pairs[n_pairs], n - ONE
    pair, priority = pairs[n_pairs + last], values[n_pairs + last]
    pairs[TWO * n_pairs + first] = u8(0)
    at, below = u8(0), ONE
    while below < last:
        if below + ONE < last and values[n_pairs + below + ONE] > values[n_pairs + below]:
            below += ONE
        if values[n_pairs + below] <= priority:
            break
        moved = pairs[n_pairs + below]
        pairs[n_pairs + at], values[n_pairs + at] = moved, values[n_pairs + below]
        pairs[TWO * n_pairs + moved] = at + ONE
        at, below = below, TWO * below + ONE
    if last > u8(0):
        pairs[n_pairs + at], values[n_pairs + at] = pair, priority
        pairs[TWO * n_pairs + pair] = at + ONE
    return first


def put(lengths, pairs, values, n_pairs, pair, priority):
    """Have a pair in the heap, with this priority or the larger one that it had."""
    at = pairs[TWO * n_pairs + pair] - ONE
    if pairs[TWO * n_pairs + pair] == u8(0):
        at = lengths[0]
        lengths[0] += ONE
    elif values[n_pairs + at] >= priority:
        return
    pairs[n_pairs + at], values[n_pairs + at] = pair, priority
    rise(pairs, values, n_pairs, at)


def lead(pairs, n_pairs, pair, old, new):
    """Note that a pair leads to state `new`, no longer to state `old`; + 1, 0 = it led nowhere."""
    first, after, before = (u8(3) * n_pairs, u8(4) * n_pairs, u8(5) * n_pairs)
    if old != u8(0):
        behind, ahead = pairs[after + pair], pairs[before + pair]
        if ahead == u8(0):
            pairs[first + old - ONE] = behind
        else:
            pairs[after + ahead - ONE] = behind
        if behind != u8(0):
            pairs[before + behind - ONE] = ahead
    behind = pairs[first + new - ONE]
    pairs[after + pair], pairs[before + pair] = behind, u8(0)
    pairs[first + new - ONE] = pair + ONE
    if behind != u8(0):
        pairs[before + behind - ONE] = pair + ONE


def sweeping_law(learn: Any, record: Any, parts: dict[str, Any], n_states: int) -> Any:
    """Return learn_one(...) of prioritized sweeping: a transition is remembered, and its pair waits
    with the size of its TD error where that is above `priority`; then up to `planning_steps` times
    the pair with the largest is learned from, and those that lead to its state wait with theirs
    (Moore & Atkeson 1993; Peng & Williams 1993; Sutton & Barto 2018, section 8.4).

    A pair learns when its turn comes, not when it is visited: its clock ticks then. Draws as in
    `dyna_law`.
    """
    width, stride = u8(record.n_actions), u8(record.stride)
    n_pairs = u8(n_states * record.n_actions)
    n_planned, least = int(learn.planning_steps), f8(learn.priority)
    best, choose, look, update = (parts[name] for name in ("best", "choose", "look", "update"))

    def learn_one(table, q, clock, state, action, reward, next_state, terminated, word, bits,
                  explore, discount, alpha, lane, cut, trace):  # fmt: skip
        lengths, pairs, values = trace
        row, square, pair = next_state * stride, 0.0, state * width + action
        _, target, part = look(q, row, reward, terminated, word, bits, explore, discount)
        old, new = (pairs[pair] + ONE) >> ONE, next_state + ONE
        if old != new:
            lead(pairs, n_pairs, pair, old, new)
        pairs[pair], values[pair] = ((next_state << ONE) | u8(terminated)) + ONE, reward
        error = abs(target - f8(q[state * stride + action]))
        if error > least:
            put(lengths, pairs, values, n_pairs, pair, error)
        for j in range(n_planned):
            if lengths[0] == u8(0):
                break
            rounding = threefry(word, u8(j), bits, u8(0))[1]
            again = take(pairs, values, n_pairs, lengths[0])
            lengths[0] -= ONE
            code, s = pairs[again] - ONE, again // width
            value = best(q, (code >> ONE) * stride)[1]
            future = 0.0 if (code & ONE) == ONE else discount * f8(value)
            td_error = update(
                q, clock, s, again - s * width, values[again] + future, rounding, discount, alpha
            )
            square += td_error * td_error
            value, source = discount * f8(best(q, s * stride)[1]), pairs[u8(3) * n_pairs + s]
            while source != u8(0):
                source -= ONE
                origin = source // width
                if (pairs[source] - ONE) & ONE == u8(0):
                    now = f8(q[origin * stride + source - origin * width])
                    error = abs(values[source] + value - now)
                    if error > least:
                        put(lengths, pairs, values, n_pairs, source, error)
                source = pairs[u8(4) * n_pairs + source]
        return choose(q, row, best(q, row)[1], word, explore), square

    return learn_one


LAWS = {"dyna_q": dyna_law, "prioritized_sweeping": sweeping_law}
