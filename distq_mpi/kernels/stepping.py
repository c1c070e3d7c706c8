"""Learning where transitions are made elsewhere: one step of all lanes of an agent per call.

The law of a transition is that of `loop.learn`; only the next transition is not made here.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from distq_mpi.kernels import Kernel
from distq_mpi.kernels.draws import RESET, TRANSITION, threefry
from distq_mpi.kernels.exploration import best_of, epsilon_greedy
from distq_mpi.kernels.loop import (
    ALPHA,
    DISCOUNT,
    EPISODES,
    EXPLORE,
    FIRST_LANE,
    FIRST_STEP,
    N_LANES,
    RETURN_SUM,
    SEED,
    SQUARE_SUM,
    learning_parts,
)
from distq_mpi.kernels.storing import exact

u8, u4 = np.uint64, np.uint32

# Stand-ins for the parts.
STRIDE = u8(0)
best, choose = best_of(4), epsilon_greedy(4)
learn_one, choose_first, drop, FROZEN = exact, exact, exact, False


def begin(q, state, action, next_state, reward, terminated, age, gain, start, control):
    """Put fresh lanes at their start states and choose their first actions; as `loop.begin`."""
    now = control[FIRST_STEP]
    for lane in range(control[N_LANES]):
        number = control[FIRST_LANE] + u8(lane)
        word = threefry(now, number, control[SEED], TRANSITION)[0]
        first = threefry(now, number, control[SEED], RESET)[1]
        age[lane], gain[lane], state[lane] = u4(0), 0.0, start[lane]
        action[lane] = choose_first(q, start[lane] * STRIDE, word, first, control[EXPLORE])


def learn(seen, q, clock, state, action, next_state, reward, terminated, age, gain, trace,
          truncated, start, idle, control, rates, totals):  # fmt: skip
    """Learn from the transition that every lane has made, and choose its next action.

    Arguments as in `loop.learn`, for the one step control[FIRST_STEP], and, per lane: truncated
    bool, the environment ended the episode without terminating it; start uint64, where the next
    episode begins; idle bool, there is nothing to learn from, the episode begins now.
    """
    explore, seed, now = control[EXPLORE], control[SEED], control[FIRST_STEP]
    table = seen if FROZEN else q
    for i in range(control[N_LANES]):
        lane = u8(i)
        number = control[FIRST_LANE] + lane
        word, bits = threefry(now, number, seed, TRANSITION)
        s, a, ended = next_state[lane], u8(0), True
        total, length = 0.0, u4(0)
        if not idle[lane]:
            a, square = learn_one(
                table, q, clock, state[lane], action[lane], reward[lane], s, terminated[lane], word,
                bits, explore, rates[DISCOUNT], rates[ALPHA], lane, truncated[lane], trace,
            )  # fmt: skip
            totals[SQUARE_SUM] += square
            total, length = gain[lane] + reward[lane], age[lane] + u4(1)
            ended = terminated[lane] or truncated[lane]
            if ended:
                totals[EPISODES] += 1.0
                totals[RETURN_SUM] += total
        else:
            drop(lane, trace)
        if ended:
            total, length, s = 0.0, u4(0), start[lane]
            first = threefry(now, number, seed, RESET)[1]
            a = choose_first(table, s * STRIDE, word, first, explore)
        gain[lane], age[lane] = total, length
        state[lane], action[lane] = s, a


def stepping_kernels(
    learn_config: Any, environment: Any, record: Any, lanes: Any
) -> dict[str, Kernel]:
    """Return the requests for `begin` and `learn` under a `[learn]` configuration. Local."""
    parts = learning_parts(learn_config, environment.n_actions, record, environment.n_states)
    q, clock, control = np.zeros(1, record.dtype), np.zeros(1, u4), np.zeros(7, u8)
    flags, states, arrays = np.zeros(1, np.bool_), np.zeros(1, u8), lanes.arrays()
    return {
        "begin": Kernel(begin, parts, (q, *arrays, states, control)),
        "learn": Kernel(
            learn, parts,
            (q, q, clock, *arrays, lanes.trace(), flags, states, flags, control, np.zeros(2),
             np.zeros(3)),
        ),
    }  # fmt: skip
