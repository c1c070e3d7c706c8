"""Learning on a table of which a worker keeps some rows only, each in a slot found by its state.

A step is made once all the rows it reads or writes are there; those that are missing are named.
Free names that are parts are bound by `caching_kernels`: those of `loop`, and `SLOTS`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from distq_mpi.kernels import Kernel, loop
from distq_mpi.kernels.draws import RESET, TRANSITION, threefry
from distq_mpi.kernels.exploration import best_of, epsilon_greedy
from distq_mpi.kernels.storing import exact

u8, u4, f8 = np.uint64, np.uint32, np.float64
SPREAD = u8(0x9E3779B97F4A7C15)
"""2^64 over the golden ratio: its multiples lie far apart."""
PER_LANE = 3
"""Rows that a step of a lane can need: of its state, its next state and a start."""

N_STEPS, FIRST_STEP, FIRST_LANE, N_LANES, SEED, EXPLORE, LIMIT = range(7)
STEPS_DONE, N_KEPT, N_WANTED, MOST, N_CONTROL = range(7, 12)
DISCOUNT, ALPHA = range(2)
RETURN_SUM, SQUARE_SUM, EPISODES = range(3)

# Stand-ins for the parts.
STRIDE = u8(0)
best, choose, law_step, law_start = best_of(4), epsilon_greedy(4), exact, exact
look, update, choose_first = exact, exact, exact


def same(keys, slot):
    """The state of a row, where all rows are kept in their order."""
    return slot


def key_at(keys, slot):
    """The state of the row in a slot; 2^64 - 1 in an empty one."""
    return keys[slot] - u8(1)


def slot_of(keys, s):
    """The slot of state s, or the empty one that it would get. keys : uint64, a power of two."""
    last = u8(len(keys) - 1)
    slot = ((s * SPREAD) >> u8(20)) & last
    while keys[slot] != u8(0) and keys[slot] != s + u8(1):
        slot = (slot + u8(1)) & last
    return slot


def keep(keys, s, wanted, slots, control):
    """Give state s a slot, and name it as wanted, where it has none yet."""
    slot = slot_of(keys, s)
    if keys[slot] == u8(0):
        keys[slot] = s + u8(1)
        wanted[control[N_WANTED]], slots[control[N_WANTED]] = s, slot
        control[N_WANTED] += u8(1)
        control[N_KEPT] += u8(1)


def learn_cached(q, clock, keys, wanted, slots, state, action, next_state, reward, terminated, age,
                 gain, params, control, rates, totals):  # fmt: skip
    """As `loop.learn`, until a step needs rows that are not there, or there may be no room.

    q, clock : records in slots. keys : uint64 (slots,): state + 1, 0 where the slot is empty.
    wanted, slots : uint64 (PER_LANE * lanes,), written: missing states, and where they belong.
    control : uint64 (11,): the first seven as in `loop.learn`, then: steps done, to be gone on
        from; slots in use; states wanted, 0 where all steps are done or room is short; most slots
        to be used, at most half of them.
    """
    n_lanes, explore, seed = control[N_LANES], control[EXPLORE], control[SEED]
    limit, discount, alpha = u4(control[LIMIT]), rates[DISCOUNT], rates[ALPHA]
    control[N_WANTED] = u8(0)
    while control[STEPS_DONE] < control[N_STEPS]:
        now = control[FIRST_STEP] + control[STEPS_DONE]
        if control[N_KEPT] + u8(PER_LANE) * n_lanes > control[MOST]:
            return
        for lane in range(n_lanes):
            keep(keys, state[lane], wanted, slots, control)
            keep(keys, next_state[lane], wanted, slots, control)
            if terminated[lane] or age[lane] + u4(1) >= limit:
                where, first = threefry(now, control[FIRST_LANE] + lane, seed, RESET)
                keep(keys, law_start(where, params), wanted, slots, control)
        if control[N_WANTED] > u8(0):
            return
        for lane in range(n_lanes):
            word, bits = threefry(now, control[FIRST_LANE] + lane, seed, TRANSITION)
            s, ended = next_state[lane], terminated[lane]
            here, there = slot_of(keys, state[lane]), slot_of(keys, s)
            a, target, part = look(
                q, there * STRIDE, reward[lane], ended, word, bits, explore, discount
            )
            td_error = update(q, clock, here, part + action[lane], target, bits, discount, alpha)
            totals[SQUARE_SUM] += td_error * td_error
            total, length = gain[lane] + reward[lane], age[lane] + u4(1)
            if ended or length >= limit:
                totals[EPISODES] += 1.0
                totals[RETURN_SUM] += total
                total, length = 0.0, u4(0)
                where, first = threefry(now, control[FIRST_LANE] + lane, seed, RESET)
                s = law_start(where, params)
                a = choose_first(q, slot_of(keys, s) * STRIDE, word, first, explore)
            gain[lane], age[lane] = total, length
            state[lane], action[lane] = s, a
            next_state[lane], reward[lane], terminated[lane] = law_step(s, a, bits, params)
        control[STEPS_DONE] += u8(1)


def caching_kernels(
    learn_config: Any, environment: Any, record: Any, lanes: Any
) -> dict[str, Kernel]:
    """As `loop.learning_kernels`; `begin` sees one row of zeros in place of a table. Local."""
    parts = loop.learning_parts(learn_config, environment.n_actions, record)
    parts |= {"law_step": environment.law_step, "law_start": environment.law_start}
    q, clock, words = np.zeros(1, record.dtype), np.zeros(1, u4), np.zeros(1, u8)
    arrays, params = lanes.arrays(), environment.params
    rest = np.zeros(N_CONTROL, u8), np.zeros(2), np.zeros(3)
    return {
        "begin": Kernel(loop.begin, parts | {"STRIDE": u8(0)}, (q, *arrays, params, rest[0])),
        "learn": Kernel(
            learn_cached, parts, (q, clock, words, words, words, *arrays, params, *rest)
        ),
    }
