"""What a machine can do at best with the memory traffic of learning: nothing here learns."""

from __future__ import annotations

import numpy as np

from distq_mpi.kernels import Kernel
from distq_mpi.kernels.storing import prefetch

u8, u4, i8, f4 = np.uint64, np.uint32, np.int64, np.float32

AHEAD = 64
"""Rows whose cache lines are asked for at once."""
ROW_VALUES, ROW_WORDS = 8, 8
"""float32 values, and words, from one row to the next: the record of 4 actions, 32 bytes."""
HEAD = 1
GOLDEN, MIX1, MIX2 = u8(0x9E3779B97F4A7C15), u8(0xBF58476D1CE4E5B9), u8(0x94D049BB133111EB)
LOW32, SHIFT32 = u8(0xFFFFFFFF), u8(32)
ROWS, UPDATES, FIRST, SIZE, REGION, RANK, INBOX = range(7)


def mixed(number):
    """A pseudo-random word for a number (splitmix64)."""
    x = number * GOLDEN
    x = (x ^ (x >> u8(30))) * MIX1
    x = (x ^ (x >> u8(27))) * MIX2
    return x ^ (x >> u8(31))


def random_rows(q, clock, indices, control):
    """Read 4 values and a count of random rows, write one of each; `AHEAD` rows are under way.

    q : float32 (n,), rows of 8; clock : the same as uint32. indices : uint64 (2 * AHEAD,), scratch.
    control : uint64 (5,): rows, updates (a multiple of AHEAD), number of the first.
    """
    rows, first = control[ROWS], control[FIRST]
    for i in range(AHEAD):
        indices[u8(i)] = ((mixed(first + u8(i)) >> SHIFT32) * rows >> SHIFT32) * u8(ROW_VALUES)
        prefetch(q, indices[u8(i)])
    for batch in range(control[UPDATES] // u8(AHEAD)):
        now, then = u8(batch & 1) * u8(AHEAD), u8(1 - (batch & 1)) * u8(AHEAD)
        following = first + u8(batch + 1) * u8(AHEAD)
        for i in range(AHEAD):
            word = mixed(following + u8(i))
            indices[then + u8(i)] = ((word >> SHIFT32) * rows >> SHIFT32) * u8(ROW_VALUES)
        for group in range(0, AHEAD, 16):
            for i in range(group, group + 16):
                row = indices[now + u8(i)]
                a = q[row] if q[row] > q[row + u8(1)] else q[row + u8(1)]
                b = q[row + u8(2)] if q[row + u8(2)] > q[row + u8(3)] else q[row + u8(3)]
                q[row] = f4(0.5) * (a if a > b else b) + f4(1.0)
                clock[row + u8(4)] += u4(1)
            for i in range(group, group + 16):
                prefetch(q, indices[then + u8(i)])


def fill_updates(mail, counts, control):
    """Sort random updates of 8-byte entries by their owner into messages (`transport.Mail`).

    control : uint64 (7,): entries of each rank, updates, number of the first, ranks, words of a
    region, rank, first word of what came.
    """
    entries, size, region = control[ROWS], control[SIZE], control[REGION]
    for peer in range(size):
        counts[u8(peer)] = u8(0)
    for i in range(control[UPDATES]):
        word = mixed(control[FIRST] + u8(i))
        owner = (word >> SHIFT32) * size >> SHIFT32
        mail[owner * region + u8(HEAD) + counts[owner]] = (word & LOW32) * entries >> SHIFT32
        counts[owner] += u8(1)
    for peer in range(size):
        mail[u8(peer) * region] = counts[u8(peer)]


def apply_updates(table, mail, counts, control):
    """Add 1 to the entries that all messages name, the own one included; `AHEAD` are under way."""
    for peer in range(control[SIZE]):
        message = u8(peer) * control[REGION]
        if u8(peer) != control[RANK]:
            message += control[INBOX]
        n, start = i8(mail[message]), message + u8(HEAD)
        for batch in range(0, n, AHEAD):
            stop = min(batch + AHEAD, n)
            for i in range(batch, stop):
                prefetch(table, mail[start + u8(i)])
            for i in range(batch, stop):
                table[mail[start + u8(i)]] += u8(1)


def triad(a, b, c):
    """a = b + 3 c over float64 arrays."""
    for i in range(a.size):
        a[i] = b[i] + 3.0 * c[i]


def ceiling_kernels() -> dict[str, Kernel]:
    """Return the requests. Local."""
    words, values = np.zeros(1, u8), np.zeros(1)
    return {
        "random_rows": Kernel(random_rows, {}, (np.zeros(1, f4), np.zeros(1, u4), words, words)),
        "fill_updates": Kernel(fill_updates, {}, (words, words, words)),
        "apply_updates": Kernel(apply_updates, {}, (words, words, words, words)),
        "triad": Kernel(triad, {}, (values, values, values)),
    }
