"""The loops of fusion: what an agent contributes to a pair, and what the owner makes of the sums.

Contributions are differences to the base in 64-bit fixed point, so their sum does not depend on
the order or the number of ranks. Free names that are parts: the layout constants, `step_size`,
`share` (an agent's difference to what it contributes), `combine` (sums to the new difference) and
`advance` (sums to the clock's increment).
"""

from __future__ import annotations

import numpy as np

from distq_mpi.kernels.draws import ROUNDING, threefry
from distq_mpi.kernels.step_sizes import rescaled_linear
from distq_mpi.kernels.storing import exact

u8, u4, f8, i8 = np.uint64, np.uint32, np.float64, np.int64

# A clock stops here; a round adds less, so a difference of clocks is exact.
CLOCK_LIMIT = u4(1 << 29)
# Steps of one agent in a round: the squares of visits of 2^13 agents then fit 64 bits.
ROUND_LIMIT = 1 << 24

# Stand-ins for the parts.
N_ACTIONS, STRIDE, CLOCK_STRIDE, CLOCK_OFFSET = 4, 0, 0, 0
step_size, store = rescaled_linear, exact

OVERFLOWS, LARGE, NON_FINITE, LENGTH, VISITS = range(5)
DISCOUNT, ALPHA, SCALE, BOUND = range(4)


def remaining(alpha, n):
    """(1 - alpha)^n by repeated squaring: the same bits with any C library."""
    power, base = 1.0, 1.0 - alpha
    while n > 0:
        if n & 1:
            power *= base
        base *= base
        n >>= 1
    return power


def share_pooled(difference, n, alpha):
    """n (C - base): the target mean seen n times; C undoes the agent's own contraction."""
    if n == 1:
        return difference / alpha
    return f8(n) * difference / (1.0 - remaining(alpha, n))


def share_count(difference, n, alpha):
    """n (Q - base)."""
    return f8(n) * difference


def share_mean(difference, n, alpha):
    """Q - base."""
    return difference


def combine_pooled(total, n, alpha, n_agents):
    """[1 - (1 - alpha)^n] total / n: as if one agent had seen all n targets."""
    return (1.0 - remaining(alpha, n)) * total / f8(n)


def combine_count(total, n, alpha, n_agents):
    """total / n."""
    return total / f8(n)


def combine_mean(total, n, alpha, n_agents):
    """total / K."""
    return total / f8(n_agents)


def advance_pooled(clock, n, squares, lifetime, n_agents):
    """All visits contract the value: clock + n."""
    return clock + n


def advance_count(clock, n, squares, lifetime, n_agents):
    """An average contracts like one visitor: clock + sum k^2 / sum k, rounded half up."""
    return clock + (2 * squares + n) // (2 * n)


def advance_mean(clock, n, squares, lifetime, n_agents):
    """Lifetime visits / K, rounded down: so the fraction is kept."""
    return max(clock, lifetime // n_agents)


share, combine, advance = share_pooled, combine_pooled, advance_pooled
SQUARES = False


def contribute(q, clock, base_q, base_clock, values, visits, squares, rates, found):
    """Add one agent's round to the fixed-point sums.

    q, clock : the agent's replica; base_q, base_clock : the last committed table; same layout.
    values, visits, squares : int64 (S * A,), added to; squares has one element where unused.
    rates : float64 (4,): discount, alpha, the scale 2^f, the bound below which a scaled sum of all
        agents cannot overflow.
    found : float64 (5,), written: contributions at or above the bound (as a count), those above a
        sixteenth of it, non-finite ones, sum of alpha n (n - 1) and of n.
    """
    scale, bound = rates[SCALE], rates[BOUND]
    overflows, large, non_finite, length, total = 0.0, 0.0, 0.0, 0.0, 0.0
    for s in range(values.size // N_ACTIONS):
        row, cell = s * STRIDE, s * CLOCK_STRIDE + CLOCK_OFFSET
        for a in range(N_ACTIONS):
            n = i8(clock[cell + a]) - i8(base_clock[cell + a])
            if n == 0:
                continue
            alpha = step_size(base_clock[cell + a] + u4(1), rates[DISCOUNT], rates[ALPHA])
            x = share(f8(q[row + a]) - f8(base_q[row + a]), n, alpha)
            pair = s * N_ACTIONS + a
            length += alpha * f8(n) * f8(n - 1)
            total += f8(n)
            visits[pair] += n
            if SQUARES:
                squares[pair] += n * n
            size = abs(x)
            if not size < np.inf:
                non_finite += 1.0
            elif size >= bound:
                overflows += 1.0
            else:
                large += f8(size >= bound * 0.0625)
                values[pair] += i8(np.rint(x * scale))
    found[OVERFLOWS], found[LARGE], found[NON_FINITE] = overflows, large, non_finite
    found[LENGTH], found[VISITS] = length, total


def fuse(next_q, next_clock, base_q, base_clock, values, visits, squares, lifetime, control, rates):
    """Write the fused rows [first, first + n) from the sums of all agents.

    next_q, next_clock, base_q, base_clock : whole tables. values, visits, squares : int64 of the
    rows' pairs, element 0 the first pair. lifetime : uint64 of the same pairs, before this round.
    control : uint64 (5,): first row, rows, agents, seed, round.
    """
    first, n_rows, n_agents = i8(control[0]), i8(control[1]), i8(control[2])
    inverse = 1.0 / rates[SCALE]
    for k in range(n_rows):
        row, cell = (first + k) * STRIDE, (first + k) * CLOCK_STRIDE + CLOCK_OFFSET
        for a in range(N_ACTIONS):
            pair, n = k * N_ACTIONS + a, visits[k * N_ACTIONS + a]
            if n == 0:
                next_q[row + a] = base_q[row + a]
                next_clock[cell + a] = base_clock[cell + a]
                continue
            old = base_clock[cell + a]
            alpha = step_size(old + u4(1), rates[DISCOUNT], rates[ALPHA])
            change = combine(f8(values[pair]) * inverse, n, alpha, n_agents)
            number = u8((first + k) * N_ACTIONS + a)
            bits = threefry(control[4], number, control[3], ROUNDING)[1]
            next_q[row + a] = store(base_q[row + a], change, bits)
            square = squares[pair] if SQUARES else 0
            new = advance(i8(old), n, square, i8(lifetime[pair]) + n, n_agents)
            next_clock[cell + a] = u4(min(new, i8(CLOCK_LIMIT)))


def adopt(next_q, next_clock, base_clock, q, clock, visits, found):
    """The fusion of one agent: its replica becomes the table; `found` as in `contribute`."""
    total, non_finite = 0.0, 0.0
    for s in range(visits.size // N_ACTIONS):
        row, cell = s * STRIDE, s * CLOCK_STRIDE + CLOCK_OFFSET
        for a in range(N_ACTIONS):
            n = i8(clock[cell + a]) - i8(base_clock[cell + a])
            next_q[row + a] = q[row + a]
            next_clock[cell + a] = min(clock[cell + a], CLOCK_LIMIT)
            visits[s * N_ACTIONS + a] = n
            total += f8(n)
            non_finite += f8(n > 0 and not abs(q[row + a]) < np.inf)
    found[OVERFLOWS], found[LARGE], found[NON_FINITE] = 0.0, 0.0, non_finite
    found[LENGTH], found[VISITS] = 0.0, total


def contribute_max(q, clock, base_q, base_clock, values, visits, winner, rates, found):
    """As `contribute`, for `max`: the largest value so far, and the winner's visits.

    values : float64 (S * A,), winner : int64 (S * A,) the visits of the agent that holds the
    largest value (the more visited one of equals). Start them at -inf and 0.
    """
    total, length, non_finite = 0.0, 0.0, 0.0
    for s in range(visits.size // N_ACTIONS):
        row, cell = s * STRIDE, s * CLOCK_STRIDE + CLOCK_OFFSET
        for a in range(N_ACTIONS):
            n = i8(clock[cell + a]) - i8(base_clock[cell + a])
            # + 0.0 makes one zero of two, so that equal values have equal bits.
            pair, x = s * N_ACTIONS + a, f8(q[row + a]) + 0.0
            alpha = step_size(base_clock[cell + a] + u4(1), rates[DISCOUNT], rates[ALPHA])
            length += alpha * f8(n) * f8(n - 1)
            if x > values[pair] or (x == values[pair] and n > winner[pair]):
                values[pair], winner[pair] = x, n
            visits[pair] += n
            total += f8(n)
            non_finite += f8(not abs(x) < np.inf)
    found[OVERFLOWS], found[LARGE], found[NON_FINITE] = 0.0, 0.0, non_finite
    found[LENGTH], found[VISITS] = length, total


def fuse_max(next_q, next_clock, base_q, base_clock, values, visits, winner, lifetime, control,
             rates):  # fmt: skip
    """As `fuse`, for `max`: the largest value and its holder's visits."""
    first, n_rows = i8(control[0]), i8(control[1])
    for k in range(n_rows):
        row, cell = (first + k) * STRIDE, (first + k) * CLOCK_STRIDE + CLOCK_OFFSET
        for a in range(N_ACTIONS):
            pair = k * N_ACTIONS + a
            next_q[row + a] = values[pair]
            new = i8(base_clock[cell + a]) + winner[pair]
            next_clock[cell + a] = u4(min(new, i8(CLOCK_LIMIT)))
