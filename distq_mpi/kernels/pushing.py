"""What goes between workers and servers: rows that were learned from, and rows that changed.

A message has a head of `HEAD` words, then rows: the number of the state, then its record. In a
push, q is the difference to what the agent began with, and the clock its visits. Free names that
are parts: the layout constants, and `key_of`, which state a row that a worker keeps is of.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from distq_mpi.kernels import Kernel
from distq_mpi.kernels.caching import key_at, same
from distq_mpi.kernels.draws import ROUNDING, threefry
from distq_mpi.kernels.step_sizes import CLOCK_LIMIT, STEP_SIZES, next_visit, rescaled_linear
from distq_mpi.kernels.storing import exact, stochastic

u8, u4, f8, f4, i8 = np.uint64, np.uint32, np.float64, np.float32, np.int64

KIND, AGENT, CLOCK, VERSION, N_ROWS, STEPS, NEXT, NEXT_CLOCK, NEXT_VERSION = range(9)
"""Words of the head. A push is a pull, too, of agent NEXT - 1, where NEXT is not 0."""
HEAD = 10
PUSH, PULL, WANT, DONE, ROWS, PAUSE = range(6)

# Stand-ins for the parts.
WIDTH, STRIDE, CLOCK_STRIDE, CLOCK_OFFSET, ROW_WORDS, Q_PER_WORD = 4, 0, 0, 0, 1, 1
size, upcoming, store, key_of = rescaled_linear, next_visit, exact, same

OVERFLOWS, LARGE, NON_FINITE, LENGTH, VISITS = range(5)
DISCOUNT, ALPHA = range(2)


def gather(q, clock, base_q, base_clock, keys, out, out_q, out_clock, control, rates, found):
    """Write what an agent learned into a push, and take it back from its replica.

    q, clock : its replica; base_q, base_clock : what it began with. keys : uint64, see `key_of`.
    out : uint64, the rows of the message; out_q, out_clock : the same memory. control : uint64
    (5,): rows kept [0], [1) are looked at; states [2], [3) are sent; [4], written: how many were.
    rates : discount, parameter of the step size. found : float64 (5,), added to, as in `fusing`.
    """
    n_found, length, visits, non_finite = 0, 0.0, 0.0, 0.0
    for k in range(i8(control[0]), i8(control[1])):
        s = key_of(keys, u8(k))
        if s < control[2] or s >= control[3]:
            continue
        row, cell = k * STRIDE, k * CLOCK_STRIDE + CLOCK_OFFSET
        touched = False
        for a in range(WIDTH):
            touched |= clock[cell + a] != base_clock[cell + a]
        if not touched:
            continue
        word = n_found * (1 + ROW_WORDS) + 1
        to_row, to_cell = word * Q_PER_WORD, 2 * word + CLOCK_OFFSET
        out[word - 1] = s
        n_found += 1
        for a in range(WIDTH):
            n = i8(clock[cell + a]) - i8(base_clock[cell + a])
            difference = f8(q[row + a]) - f8(base_q[row + a])
            out_q[to_row + a], out_clock[to_cell + a] = difference, u4(n)
            alpha = size(upcoming(base_clock[cell + a]), rates[DISCOUNT], rates[ALPHA])
            length += alpha * f8(n) * f8(n - 1)
            visits += f8(n)
            non_finite += f8(not abs(difference) < np.inf)
            q[row + a], clock[cell + a] = base_q[row + a], base_clock[cell + a]
    control[4] = u8(n_found)
    found[LENGTH] += length
    found[VISITS] += visits
    found[NON_FINITE] += non_finite


def apply(q, clock, over, versions, rows, rows_q, rows_clock, control, scale):
    """Add a push, scaled, to a server's rows.

    q, clock : rows [control[0], ...). over : float32, of the same pairs: how far their scaled
    visits are beyond the clock, which is at least 1 from the first on. versions : uint64, one for
    each row, written: control[3].
    rows : uint64, of the message; rows_q, rows_clock : the same memory. control : uint64 (4,):
    first row, rows pushed, seed, version. scale : float64 (1,).
    """
    first, version = i8(control[0]), control[3]
    for k in range(i8(control[1])):
        word = k * (1 + ROW_WORDS) + 1
        state = rows[word - 1]
        s = i8(state) - first
        versions[s] = version
        row, cell = s * STRIDE, s * CLOCK_STRIDE + CLOCK_OFFSET
        from_row, from_cell = word * Q_PER_WORD, 2 * word + CLOCK_OFFSET
        for a in range(WIDTH):
            n, learned = rows_clock[from_cell + a], f8(rows_q[from_row + a])
            if n == u4(0) or not abs(learned) < np.inf:  # whoever sent it ends the run
                continue
            change = learned * scale[0]
            bits = threefry(version, state * u8(WIDTH) + u8(a), control[2], ROUNDING)[1]
            q[row + a] = store(q[row + a], change, bits)
            pair = s * WIDTH + a
            visits = f8(clock[cell + a]) + f8(over[pair]) + f8(n) * scale[0]
            count = min(max(i8(visits), i8(1)), i8(CLOCK_LIMIT))
            clock[cell + a], over[pair] = u4(count), f4(visits - f8(count))


def collect(table, versions, out, control):
    """Write the rows that changed since version control[1] into a message.

    table : uint64, a server's rows, the first of which is state control[0]; versions : uint64, of
    each. out : uint64, the rows of the message. control[2] : written, how many there are.
    """
    n_found = 0
    for s in range(len(versions)):
        if versions[s] > control[1]:
            word = n_found * (1 + ROW_WORDS)
            out[word] = control[0] + u8(s)
            for i in range(ROW_WORDS):
                out[word + 1 + i] = table[s * ROW_WORDS + i]
            n_found += 1
    control[2] = u8(n_found)


def pick(table, wanted, out, control):
    """Write the rows of the control[1] states `wanted`, uint64, into a message; as `collect`."""
    for k in range(i8(control[1])):
        word, s = k * (1 + ROW_WORDS), i8(wanted[k]) - i8(control[0])
        out[word] = wanted[k]
        for i in range(ROW_WORDS):
            out[word + 1 + i] = table[s * ROW_WORDS + i]


def install(base, replica, places, rows, control):
    """Take the control[0] rows of a message into a worker's tables, uint64.

    places : uint64, the row of each in these tables where control[1] is 1; its state where it is 0.
    """
    for k in range(i8(control[0])):
        word = k * (1 + ROW_WORDS)
        s = i8(places[k] if control[1] == u8(1) else rows[word])
        for i in range(ROW_WORDS):
            base[s * ROW_WORDS + i] = rows[word + 1 + i]
            replica[s * ROW_WORDS + i] = rows[word + 1 + i]


def layout(record: Any) -> dict[str, int]:
    """The parts of these loops that are numbers."""
    return {
        "WIDTH": record.width,
        "STRIDE": record.stride,
        "CLOCK_STRIDE": record.clock_stride,
        "CLOCK_OFFSET": record.clock_offset,
        "ROW_WORDS": record.row_bytes // 8,
        "Q_PER_WORD": 8 // record.dtype.itemsize,
    }


def pushing_kernels(learn_config: Any, record: Any, cached: bool) -> dict[str, Kernel]:
    """Return the requests for these loops under a `[learn]` configuration. Local.

    cached : whether workers keep some rows in slots, or all of them in their order.
    """
    step_size = STEP_SIZES[learn_config.step_size]
    parts: dict[str, Any] = layout(record) | {
        "size": step_size.size,
        "upcoming": step_size.upcoming,
        "store": exact if record.dtype == np.float64 else stochastic,
        "key_of": key_at if cached else same,
    }
    q, clock = np.zeros(1, record.dtype), np.zeros(1, u4)
    words, floats = np.zeros(5, u8), np.zeros(5)
    rows = words, q, clock
    return {
        "gather": Kernel(gather, parts, (q, clock, q, clock, words, *rows, words, floats, floats)),
        "apply": Kernel(
            apply, parts, (q, clock, np.zeros(1, f4), words, *rows, words, floats)
        ),
        "collect": Kernel(collect, parts, (words, words, words, words)),
        "pick": Kernel(pick, parts, (words, words, words, words)),
        "install": Kernel(install, parts, (words, words, words, words, words)),
    }
