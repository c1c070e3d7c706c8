"""Owners of rows answer lanes that stay at home, where their environments are stepped in Python.

A request is a lane's record as in `crossing`: a pending transition to learn from, looked at in
next_state's row, or none, and the first action of an episode is asked for. The answer is one word,
number of the lane << 32 | FIRST where it is a first action | the action. Targets go as in lockstep.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from distq_mpi.kernels import Kernel
from distq_mpi.kernels.crossing import (
    ACTIONS,
    BORDERS,
    DISCOUNT,
    EXPLORE,
    HEAD,
    INBOX,
    LEARNED,
    LOW32,
    MIDDLE,
    N_LANES,
    NON_FINITE,
    NONE,
    ONE,
    RANK,
    RECORD,
    REGION,
    SCRATCH,
    SEED,
    SENT_TICK,
    SHIFT32,
    SIZE,
    SQUARES,
    STATE_SHIFT,
    TAG_SHIFT,
    TARGET,
    crossing_parts,
    owner_of,
)
from distq_mpi.kernels.draws import RESET, TRANSITION, threefry
from distq_mpi.kernels.storing import bits_of, exact, prefetch, single_of

u8, u4, i8, f8 = np.uint64, np.uint32, np.int64, np.float64

FIRST = u8(1 << 31)
ANSWER = 1
"""Words of an answer."""

# Stand-ins for the parts.
STRIDE = u8(0)
look, deliver, collect, apply, choose_first = (exact,) * 5


def answer(q, clock, asked, asked_counts, told, told_counts, slots, draws, control, rates, totals):
    """Look at the rows that lanes ask for; write answers and what others must learn.

    asked : uint64, the words of the requests' `transport.Mail`, asked_counts its counts; told,
    told_counts : of the answers, above, and targets, below; written. Both have regions of the same
    size. control, slots, draws, rates, totals : as in `crossing.travel`; control[SENT_TICK] is this
    tick, control[INBOX] where requests of peers lie.
    """
    size, me, region = control[SIZE], control[RANK], control[REGION]
    seed, explore, now = control[SEED], control[EXPLORE], control[SENT_TICK]
    first_row = control[u8(BORDERS) + me]
    n_rows = control[u8(BORDERS) + me + ONE] - first_row
    for peer in range(2 * size):
        told_counts[u8(peer)] = u8(0)
    for source in range(size):
        peer = u8(source)
        start, n = peer * region + control[MIDDLE], i8(asked_counts[peer])
        if peer != me:
            start = control[INBOX] + peer * region
            n = i8(asked[start] & LOW32)
            start += u8(HEAD)
        for i in range(n):
            prefetch(q, (asked[start + u8(RECORD) * u8(i)] - first_row) * STRIDE)
        for i in range(n):
            record = start + u8(RECORD) * u8(i)
            where, pending, tail = asked[record], asked[record + ONE], asked[record + u8(3)]
            number, row = tail & LOW32, (where - first_row) * STRIDE
            word, bits = threefry(now, number, seed, TRANSITION)
            found = number << SHIFT32
            if pending == NONE:
                first = threefry(now, number, seed, RESET)[1]
                found |= FIRST | choose_first(q, row, word, first, explore)
            else:
                reward, ended = single_of(u4(tail >> SHIFT32)), (pending & ONE) == ONE
                a, target, part = look(
                    q, row, f8(reward), ended, word, bits, explore, rates[DISCOUNT]
                )
                found |= a
                totals[LEARNED] += 1
                state = pending >> STATE_SHIFT
                entry = part + ((pending >> ONE) & ACTIONS)
                if state - first_row < n_rows:
                    deliver(
                        q, clock, slots, control[N_LANES], number, state - first_row, entry,
                        target, bits, rates,
                    )  # fmt: skip
                else:
                    owner = owner_of(state, control)
                    told_counts[size + owner] += ONE
                    at = owner * region + control[MIDDLE]
                    at -= u8(TARGET) * told_counts[size + owner]
                    index = (state - control[u8(BORDERS) + owner]) * STRIDE + entry
                    told[at], told[at + ONE] = (index << TAG_SHIFT) | number, bits_of(target)
            told[peer * region + control[MIDDLE] + told_counts[peer]] = found
            told_counts[peer] += ONE
    for peer in range(size):
        at = u8(peer) * region + control[MIDDLE] - u8(TARGET) * told_counts[size + u8(peer)]
        if u8(peer) != me:
            told[at - ONE] = told_counts[u8(peer)] | (told_counts[size + u8(peer)] << SHIFT32)


def learn(q, clock, told, slots, draws, control, rates, totals):
    """Apply all targets of the tick in the order of their lanes; control[INBOX] is where the
    answers of peers lie."""
    for peer in range(control[SIZE]):
        message = control[INBOX] + u8(peer) * control[REGION]
        if u8(peer) != control[RANK]:
            more, bad = collect(
                q, clock, told, message + u8(HEAD), told[message] >> SHIFT32, slots, draws,
                control[SENT_TICK], control, rates,
            )  # fmt: skip
            totals[SQUARES] += more
            totals[NON_FINITE] += bad
    more, bad = apply(q, clock, slots, control[N_LANES], rates)
    totals[SQUARES] += more
    totals[NON_FINITE] += bad


def answering_kernels(
    learn_config: Any, n_actions: int, record: Any, undoes: bool = False
) -> dict[str, Kernel]:
    """Return the requests for `answer` and `learn` under a `[learn]` configuration. Local.

    undoes : as in `crossing.crossing_parts`.
    """
    parts = crossing_parts(learn_config, n_actions, record, lockstep=True, undoes=undoes)
    q, clock, words = np.zeros(1, record.dtype), np.zeros(1, u4), np.zeros(1, u8)
    rates, totals, draws = np.zeros(6), np.zeros(6, i8), np.zeros(SCRATCH, u8)
    return {
        "answer": Kernel(
            answer, parts, (q, clock, *(words,) * 5, draws, words, rates, totals)
        ),
        "learn": Kernel(learn, parts, (q, clock, words, words, draws, words, rates, totals)),
    }
