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

from distq_mpi.kernels.draws import threefry

u8, f8 = np.uint64, np.float64
ONE, TWO, SHIFT32 = u8(1), u8(2), u8(32)

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
            again = pairs[n_pairs + (((chosen >> SHIFT32) * lengths[0]) >> SHIFT32)]
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


LAWS = {"dyna_q": dyna_law}
