"""The loops of fusions that need every agent's value, not a sum: order statistics, importance.

Each agent's values, visits and clocks go to the owner of a pair, which merges them in the order of
the agents: the same bits on any number of ranks. Free names that are parts: the layout constants,
`size`, `upcoming`, `store`, SIGNED, and `merge`.
"""

import numpy as np

from distq_mpi.kernels.draws import ROUNDING, threefry
from distq_mpi.kernels.fusing import (
    LARGE,
    LENGTH,
    NON_FINITE,
    OVERFLOWS,
    VISITS,
    sign_of,
    signed_clock,
)
from distq_mpi.kernels.step_sizes import CLOCK_LIMIT, COUNT, next_visit, rescaled_linear
from distq_mpi.kernels.storing import exact

u8, u4, f8, i8 = np.uint64, np.uint32, np.float64, np.int64

DISCOUNT, ALPHA = range(2)


def importance(kept, trim, enough):
    """Return merge: the mean weighted by 1 / kept, over all agents (Woo, Joshi & Chi 2023, ImAvg).

    An agent that did not visit the pair keeps its old value with weight 1.
    """

    def merge(values, visits, pair, old, clock, rates, scratch):
        n_agents = visits.shape[0]
        least = 1.0
        for k in range(n_agents):
            scratch[k] = kept(clock, i8(visits[k, pair]), rates[DISCOUNT], rates[ALPHA])
            least = min(least, scratch[k])
        weighted, total = 0.0, 0.0
        for k in range(n_agents):
            weight = least / scratch[k]
            total += weight
            if visits[k, pair] > 0:
                weighted += weight * (values[k, pair] - old)
        return old + weighted / total, True

    return merge


def sorting_law(kept, fewest, enough):
    """Return sorted_values(...): write values that `enough` visits stand behind to scratch, in
    ascending order; return their number.

    An agent with fewer visits goes together with those after it: the mean of all their targets,
    contracted as their visits are in the mean, is one value (as in the buckets of Karimireddy, He &
    Jaggi 2022), and an agent that is wrong still spoils one value only. Where there are fewer
    visits than `fewest` such values need, they make as many values.
    """

    def sorted_values(values, visits, pair, old, clock, rates, scratch):
        left, visitors, discount, alpha = i8(0), 0, rates[DISCOUNT], rates[ALPHA]
        for k in range(visits.shape[0]):
            left += i8(visits[k, pair])
            visitors += visits[k, pair] > 0
        aim = min(i8(enough), left // fewest)
        n, n_members, behind, total = 0, 0, i8(0), 0.0
        for k in range(visits.shape[0]):
            visited = i8(visits[k, pair])
            if visited == 0:
                continue
            visitors, left = visitors - 1, left - visited
            n_members, behind, x = n_members + 1, behind + visited, values[k, pair]
            filled = behind >= aim and left >= aim
            closes = filled or visitors == 0 or visitors < fewest - n
            if n_members > 1 or not closes:
                gained = 1.0 - kept(clock, visited, discount, alpha)
                total += f8(visited) * (x - old) / gained
            if closes:
                if n_members > 1:  # else an agent's value as it is
                    gained = 1.0 - kept(clock, behind // n_members, discount, alpha)
                    x = old + gained * total / f8(behind)
                i = n
                while i > 0 and scratch[i - 1] > x:
                    scratch[i] = scratch[i - 1]
                    i -= 1
                scratch[i] = x
                n, n_members, behind, total = n + 1, 0, i8(0), 0.0
        return n

    return sorted_values


def median(kept, trim, enough):
    """Return merge: the median over at least 2 trim + 1 values, of `enough` visits each if there
    are so many (Yin et al. 2018)."""
    fewest = 2 * trim + 1
    sorted_values = sorting_law(kept, fewest, enough)

    def merge(values, visits, pair, old, clock, rates, scratch):
        n = sorted_values(values, visits, pair, old, clock, rates, scratch)
        if n < fewest:
            return old, False
        low, high = scratch[(n - 1) // 2], scratch[n // 2]
        return low if low == high else 0.5 * low + 0.5 * high, True

    return merge


def trimmed_mean(kept, trim, enough):
    """Return merge: the mean of such values but the `trim` at either end (Yin et al. 2018)."""
    fewest = 2 * trim + 1
    sorted_values = sorting_law(kept, fewest, enough)

    def merge(values, visits, pair, old, clock, rates, scratch):
        n = sorted_values(values, visits, pair, old, clock, rates, scratch)
        if n < fewest:
            return old, False
        total = 0.0
        for i in range(trim, n - trim):
            total += scratch[i] - old
        return old + total / f8(n - 2 * trim), True

    return merge


# Stand-ins for the parts.
WIDTH, STRIDE, CLOCK_STRIDE, CLOCK_OFFSET, VISITS_AHEAD = 4, 0, 0, 0, 0
size, upcoming, store = rescaled_linear, next_visit, exact
merge = median(None, 0, 1)
SIGNED = False


def contribute_each(q, clock, base_clock, values, visits, clocks, rates, found):
    """Write one agent's values float64, visits and clocks uint32 of all pairs, (S * width,).

    clocks has one element where they follow from the visits. found : as in `summing.contribute`.
    """
    non_finite, length, total = 0.0, 0.0, 0.0
    for s in range(values.size // WIDTH):
        row, cell = s * STRIDE, s * CLOCK_STRIDE + CLOCK_OFFSET
        for a in range(WIDTH):
            pair = s * WIDTH + a
            n = i8(clock[cell + VISITS_AHEAD + a]) - i8(base_clock[cell + VISITS_AHEAD + a])
            values[pair], visits[pair] = f8(q[row + a]), u4(n)
            if SIGNED:
                clocks[pair] = clock[cell + a]
            alpha = size(upcoming(base_clock[cell + a]), rates[DISCOUNT], rates[ALPHA])
            length += alpha * f8(n) * f8(n - 1)
            total += f8(n)
            non_finite += f8(n > 0 and not abs(values[pair]) < np.inf)
    found[OVERFLOWS], found[LARGE], found[NON_FINITE] = 0.0, 0.0, non_finite
    found[LENGTH], found[VISITS] = length, total


def fuse_each(next_q, next_clock, base_q, base_clock, values, visits, clocks, sums, scratch,
              control, rates):  # fmt: skip
    """Write the merged rows [first, first + n) from the values of all agents.

    values float64, visits uint32, clocks uint32 : (K, pairs of the rows) in the order of the
    agents. sums : int64 (pairs,), written: visits of all. scratch : float64 (K,).
    control : as in `summing.fuse`. A pair that too few visited keeps value and clock.
    """
    first, n_rows, n_agents = i8(control[0]), i8(control[1]), visits.shape[0]
    for k in range(n_rows):
        row, cell = (first + k) * STRIDE, (first + k) * CLOCK_STRIDE + CLOCK_OFFSET
        for a in range(WIDTH):
            pair, old, n = k * WIDTH + a, base_clock[cell + a], i8(0)
            weighted, vote = i8(0), i8(0)
            for i in range(n_agents):
                visited = i8(visits[i, pair])
                ticked = i8(clocks[i, pair] & COUNT) - i8(old & COUNT) if SIGNED else visited
                vote += visited * sign_of(clocks[i, pair]) if SIGNED else 0
                n += visited
                weighted += visited * ticked
            sums[pair] = n
            next_q[row + a], next_clock[cell + a] = base_q[row + a], old
            if n == 0:
                continue
            value, merged = merge(values, visits, pair, f8(base_q[row + a]), old, rates, scratch)
            if not merged:
                continue
            bits = threefry(control[4], u8((first + k) * WIDTH + a), control[3], ROUNDING)[1]
            next_q[row + a] = store(base_q[row + a] * 0.0, value, bits)
            count = i8(old & COUNT) + (2 * weighted + n) // (2 * n)
            if SIGNED:
                next_clock[cell + a] = signed_clock(old, count, vote)
            else:
                next_clock[cell + a] = u4(min(count, i8(CLOCK_LIMIT)))
