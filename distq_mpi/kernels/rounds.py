"""What a round does between learning and fusing, and several kernels in one call from Python.

Calls from Python take longer than the loops of a small table, so what stands between these is
compiled, too: lanes and replica are brought up to date, findings go into the vector that all ranks
agree on, and messages are added up through memory that the ranks of a host have in common.
`ordered_load`, `ordered_store`, `give_way` and `call` are single instructions or calls once
compiled; what stands here is their meaning in plain Python.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

import numpy as np

from distq_mpi.kernels import Kernel
from distq_mpi.kernels.fusing import LARGE, LENGTH, NON_FINITE, OVERFLOWS, VISITS
from distq_mpi.kernels.loop import EPISODES, RETURN_SUM, SQUARE_SUM

i8, u8, f8 = np.int64, np.uint64, np.float64

LIMB = 2.0**40
"""Units of the fraction that a float is split into, of 1."""
MOST_LENGTH = 2.0**52
LINE = 8
"""Words between the flags of ranks: a cache line each."""
RANK, RANKS, MET, LOOKS = range(4)


def ordered_load(array, index):
    """array[index]; what follows is not read before it."""
    return array[index]


def ordered_store(array, index, value):
    """array[index] = value, seen by others after all that was written and read before it."""
    array[index] = value


def give_way():
    """Let another process have this core. Returns 0 (int32)."""
    os.sched_yield()
    return np.int32(0)


def call(entry, words):
    """Call the function of one pointer at address `entry` with address `words`."""
    ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p)(int(entry))(int(words))


def in_turn(calls):
    """Call kernels one after the other. calls : uint64 (2 n,), entry and words of each."""
    for k in range(calls.size // 2):
        call(calls[2 * k], calls[2 * k + 1])


def copy(source, target):
    """Bytes to bytes."""
    for i in range(target.size):
        target[i] = source[i]


def take_up(base, replica, committed, lanes, message, totals):
    """Begin a round where the last one ended: replica and lanes, as bytes, become what was
    committed, `message` and `totals` 0."""
    copy(base, replica)
    copy(committed, lanes)
    for i in range(message.size):
        message[i] = 0
    for i in range(totals.size):
        totals[i] = 0.0


def split_float(x, limit, split, place):
    """Add two integers to split[place], split[place + 1] whose sums over agents are exact to 2^-41.

    limit : that of |x|, beyond which it saturates, so that no sum can overflow. NaN adds nothing,
    for it is counted apart.
    """
    if x == x:
        x = min(max(x, -limit), limit)
        whole = np.floor(x)
        split[place] += i8(whole)
        split[place + 1] += i8(np.rint((x - whole) * LIMB))


def report(found, totals, header, n_agents, unit):
    """Add one of `n_agents` agents' findings to the header, each rounded on its own, in place.

    found : float64 (5,), as written by the `contribute` kernels. totals : float64 (3,), as added up
    by `learn`. header : int64 (10,) or more: contributions that overflow, large ones, agents or
    contributions that are not finite, LENGTH in units of 1 / `unit`, visits, episodes, and the sums
    of returns and of squared errors, each split.
    """
    limit = 2.0**61 / n_agents
    length = min(found[LENGTH] * unit, MOST_LENGTH, limit)
    finite = abs(totals[SQUARE_SUM]) < np.inf and abs(totals[RETURN_SUM]) < np.inf
    header[0] += i8(found[OVERFLOWS])
    header[1] += i8(found[LARGE])
    header[2] += i8(found[NON_FINITE]) + i8(not finite)
    header[3] += i8(np.rint(length))
    header[4] += i8(found[VISITS])
    header[5] += i8(totals[EPISODES])
    split_float(totals[RETURN_SUM], limit, header, 6)
    split_float(totals[SQUARE_SUM], limit, header, 8)


def count_visits(before, visits, after):
    """after = before + visits, of pairs; before, after : uint64, visits : int64."""
    for i in range(visits.size):
        after[i] = before[i] + u8(visits[i])


def sum_in_room(message, room, control):
    """Add the messages of all ranks of a host, in place. COLLECTIVE on the host.

    message : int64 (n,), changed. room : int64, memory of all of them, zero at first: a cache line
    for each rank's count of meetings, then messages of even and of odd meetings. control : uint64
    (4,): this rank, ranks, meetings so far (changed), how often to look before giving way.

    Who comes to a meeting has read all of the one before, so that messages of the one after may
    take its place.
    """
    rank, ranks, now = control[RANK], control[RANKS], control[MET] + u8(1)
    control[MET] = now
    n, line = u8(message.size), u8(LINE)
    places = ranks * line + (now & u8(1)) * ranks * n
    for i in range(message.size):
        room[places + rank * n + u8(i)] = message[i]
    ordered_store(room, rank * line, i8(now))
    for other in range(ranks):
        looks = u8(0)
        while ordered_load(room, u8(other) * line) < i8(now):
            looks += u8(1)
            if looks > control[LOOKS]:
                give_way()
    for other in range(ranks):
        if u8(other) != rank:
            for i in range(message.size):
                message[i] += room[places + u8(other) * n + u8(i)]


def room_bytes(n: int, ranks: int) -> int:
    """Bytes of the room in which `ranks` ranks add up messages of n words. Local."""
    return 8 * ranks * (LINE + 2 * n)


def round_kernels(*names: str) -> dict[str, Kernel]:
    """Return the requests for these, or for all. Local."""
    raw, ints = np.zeros(1, np.uint8), np.zeros(1, i8)
    words, floats = np.zeros(1, u8), np.zeros(1)
    requests: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "in_turn": (in_turn, (words,)),
        "take_up": (take_up, (raw, raw, raw, raw, ints, floats)),
        "report": (report, (floats, floats, ints, 1, 1.0)),
        "count_visits": (count_visits, (words, ints, words)),
        "sum_in_room": (sum_in_room, (ints, ints, words)),
    }
    found = {name: Kernel(template, {}, types) for name, (template, types) in requests.items()}
    return {name: found[name] for name in names or found}
