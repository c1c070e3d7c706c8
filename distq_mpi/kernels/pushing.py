"""What goes between workers and servers: rows that were learned from, and rows that changed.

A push holds, for each row that an agent learned from, its index and a row record in which q is the
difference to the base and the clock the visits. Free names that are parts: those of `fusing`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from distq_mpi.kernels import Kernel
from distq_mpi.kernels.draws import ROUNDING, threefry
from distq_mpi.kernels.fusing import CLOCK_LIMIT
from distq_mpi.kernels.step_sizes import STEP_SIZES, next_visit, rescaled_linear
from distq_mpi.kernels.storing import exact, stochastic

u8, u4, f8, i8 = np.uint64, np.uint32, np.float64, np.int64

# Stand-ins for the parts.
WIDTH, STRIDE, CLOCK_STRIDE, CLOCK_OFFSET, VISITS_AHEAD = 4, 0, 0, 0, 0
size, upcoming, store = rescaled_linear, next_visit, exact

FIRST, STOP = range(2)
OVERFLOWS, LARGE, NON_FINITE, LENGTH, VISITS = range(5)
DISCOUNT, ALPHA, SCALE = range(3)


def gather(q, clock, base_q, base_clock, index, out_q, out_clock, control, rates, found):
    """Write what an agent learned in the rows [FIRST, STOP) of `control`; return how many rows.

    q, clock : its replica; base_q, base_clock : what it began with. index : int64, rows written;
    out_q, out_clock : records of these rows, one after the other: differences and visits.
    rates : as in `fusing.contribute`. found : float64 (5,), added to, as there.
    """
    n_found = 0
    for s in range(i8(control[FIRST]), i8(control[STOP])):
        row, cell = s * STRIDE, s * CLOCK_STRIDE + CLOCK_OFFSET
        touched = False
        for a in range(WIDTH):
            at = cell + VISITS_AHEAD + a
            touched |= clock[at] != base_clock[at]
        if not touched:
            continue
        to_row = n_found * STRIDE
        to_cell = n_found * CLOCK_STRIDE + CLOCK_OFFSET
        index[n_found] = s
        n_found += 1
        for a in range(WIDTH):
            at = cell + VISITS_AHEAD + a
            n = i8(clock[at]) - i8(base_clock[at])
            difference = f8(q[row + a]) - f8(base_q[row + a])
            out_q[to_row + a], out_clock[to_cell + a] = difference, u4(n)
            alpha = size(upcoming(base_clock[cell + a]), rates[DISCOUNT], rates[ALPHA])
            found[LENGTH] += alpha * f8(n) * f8(n - 1)
            found[VISITS] += f8(n)
            found[NON_FINITE] += f8(not abs(difference) < np.inf)
    control[STOP] = u8(n_found)


def apply(q, clock, ticked, versions, index, pushed_q, pushed_clock, control, scale):
    """Add a push, scaled, to a server's rows.

    q, clock : rows [control[0], ...). ticked : float64, of the same pairs: scaled visits so far,
    whose whole part the clock is. versions : uint64, one for each row, written: control[3].
    index, pushed_q, pushed_clock : of the push, control[1] rows. control : uint64 (4,): first row,
    rows pushed, seed, version. scale : float64 (1,).
    """
    first, version = i8(control[0]), control[3]
    for k in range(i8(control[1])):
        s = index[k] - first
        versions[s] = version
        row, cell = s * STRIDE, s * CLOCK_STRIDE + CLOCK_OFFSET
        from_row, from_cell = k * STRIDE, k * CLOCK_STRIDE + CLOCK_OFFSET
        for a in range(WIDTH):
            n = pushed_clock[from_cell + a]
            if n == u4(0):
                continue
            change = f8(pushed_q[from_row + a]) * scale[0]
            bits = threefry(version, u8(index[k] * WIDTH + a), control[2], ROUNDING)[1]
            q[row + a] = store(q[row + a], change, bits)
            pair = s * WIDTH + a
            ticked[pair] += f8(n) * scale[0]
            count = min(max(i8(ticked[pair]), i8(1)), i8(CLOCK_LIMIT))
            clock[cell + a] = u4(count)


def pushing_kernels(learn_config: Any, record: Any) -> dict[str, Kernel]:
    """Return the requests for `gather` and `apply` under a `[learn]` configuration. Local."""
    step_size = STEP_SIZES[learn_config.step_size]
    parts = {
        "WIDTH": record.width,
        "STRIDE": record.stride,
        "CLOCK_STRIDE": record.clock_stride,
        "CLOCK_OFFSET": record.clock_offset,
        "VISITS_AHEAD": record.visits_ahead,
        "size": step_size.size,
        "upcoming": step_size.upcoming,
        "store": exact if record.dtype == np.float64 else stochastic,
    }
    q, clock, index = np.zeros(1, record.dtype), np.zeros(1, u4), np.zeros(1, i8)
    words, floats = np.zeros(4, u8), np.zeros(5)
    return {
        "gather": Kernel(
            gather, parts, (q, clock, q, clock, index, q, clock, words, floats, floats)
        ),
        "apply": Kernel(apply, parts, (q, clock, floats, words, index, q, clock, words, floats)),
    }
