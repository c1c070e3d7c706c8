"""What fusion does with a chunk of pairs at a time, in arrays that fit the first cache.

One operation after the other, over all pairs and without branches, so that the compiler does eight
at once: three times as fast as pair by pair, and as long a time whatever was visited.

`work` float64 and `counts` int64 have rows of `PAIRS` numbers: differences, alphas, powers and what
they are squares of, values of the base, which become those of the next table; visits of an agent,
clocks of the base, and sums over agents: of contributions, visits, ticks, votes and gains.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from distq_mpi.kernels.draws import ROUNDING, threefry
from distq_mpi.kernels.fusing import (
    ALPHA,
    BOUND,
    DISCOUNT,
    GAIN_LIMIT,
    LARGE,
    LENGTH,
    NON_FINITE,
    OVERFLOWS,
    SCALE,
    UNIT,
    VISITS,
    gain_scale,
    kept_after,
    sign_of,
    signed_clock,
)
from distq_mpi.kernels.step_sizes import CLOCK_LIMIT, COUNT
from distq_mpi.kernels.storing import prefetch, prefetch_read

u8, u4, f8, i8 = np.uint64, np.uint32, np.float64, np.int64

CHUNK = 128
"""Pairs of a chunk, about."""
AHEAD = u8(4)
"""Rows that are asked for ahead. It also keeps the compiler from gathers, which take twice as long
as loads one after the other."""
LONGEST = i8(1 << 34)
"""Of one pair's part of LENGTH, in its units: no sum of an agent's is then beyond 2^49, and those
of all are exact."""

X, STEP, POWER, SQUARE, OLD = range(5)
N, CLOCK, SUM, ALL, TICKS, VOTES, GAIN = range(7)
FIRST, ROWS, AGENTS, SEED, ROUND, SLOT, RENEWS = range(7)
"""Words of `control`: see `summing`."""


def chunk_rows(width: int) -> int:
    """Rows of a chunk."""
    return max(1, CHUNK // width)


def scratch(width: int) -> tuple[np.ndarray, np.ndarray]:
    """The arrays `work` and `counts`; what stands in them means nothing between two calls."""
    n = chunk_rows(width) * width
    return np.zeros((OLD + 1) * n), np.zeros((GAIN + 1) * n, np.int64)


def chunk_parts(
    fusion: Any, record: Any, step_size: Any, store: Any, advance: Any, n_agents: int
) -> dict[str, Any]:
    """Return the parts that work on chunks, and the sizes of these, for so many agents.

    fusion : `strategies.Fusion`; record : `table.Record`; step_size : `step_sizes.StepSize`;
    store : `storing`; advance : of the fusion, under this step size.
    """
    rows, gain_unit = chunk_rows(record.width), gain_scale(n_agents)
    return {
        "WIDTH": record.width, "CHUNK_ROWS": rows, "PAIRS": rows * record.width,
        "TICKED": fusion.weighted or step_size.signed, "SIGNED": step_size.signed,
        "GAINS": fusion.gains,
        **_reading(record),
        **_adding(fusion, record, step_size, gain_unit),
        **_writing(fusion, record, step_size, store, advance, gain_unit),
    }  # fmt: skip


def _reading(record: Any) -> dict[str, Callable[..., Any]]:
    """Parts that read rows [first, end) of tables; `ahead` : rows (uint64, it may wrap) by which
    they stand further on in a replica."""
    width, pairs = record.width, chunk_rows(record.width) * record.width
    stride, clock_stride = u8(record.stride), u8(record.clock_stride)
    offset, visits_ahead = u8(record.clock_offset), u8(record.visits_ahead)
    clocks, olds, steps = u8(CLOCK * pairs), u8(OLD * pairs), u8(X * pairs)

    def visits_of(clock, base_clock, first, end, ahead, counts):
        """Write an agent's visits; return them or-ed."""
        seen = i8(0)
        for k in range(end - first):
            s = u8(first + k)
            cell, base_cell = (s + ahead) * clock_stride + offset, s * clock_stride + offset
            prefetch_read(clock, cell + AHEAD * clock_stride)
            for a in range(width):
                n = i8(clock[cell + visits_ahead + u8(a)])
                n -= i8(base_clock[base_cell + visits_ahead + u8(a)])
                counts[u8(k * width + a)] = n
                seen |= n
        return seen

    def bases(base_q, base_clock, first, end, work, counts):
        """Write values and clocks of the base."""
        for k in range(end - first):
            row, cell = u8(first + k) * stride, u8(first + k) * clock_stride + offset
            prefetch_read(base_q, row + AHEAD * stride)
            for a in range(width):
                work[olds + u8(k * width + a)] = f8(base_q[row + u8(a)])
                counts[clocks + u8(k * width + a)] = i8(base_clock[cell + u8(a)])

    def differences(q, first, end, ahead, work):
        """Write what an agent's values differ from the base's."""
        for k in range(end - first):
            row = (u8(first + k) + ahead) * stride
            prefetch_read(q, row + AHEAD * stride)
            for a in range(width):
                i = u8(k * width + a)
                work[steps + i] = f8(q[row + u8(a)]) - work[olds + i]

    return {"visits_of": visits_of, "bases": bases, "differences": differences}


def _adding(
    fusion: Any, record: Any, step_size: Any, gain_unit: float
) -> dict[str, Callable[..., Any]]:
    """Parts that work on the first n pairs: from clocks and visits to sums over agents."""
    width, pairs = record.width, chunk_rows(record.width) * record.width
    clock_stride, offset = u8(record.clock_stride), u8(record.clock_offset)
    clocks, sums, ticks, votes, gains = (u8(k * pairs) for k in (CLOCK, SUM, TICKS, VOTES, GAIN))
    step, power, square = u8(STEP * pairs), u8(POWER * pairs), u8(SQUARE * pairs)
    every = u8(ALL * pairs)
    size, upcoming, signed = step_size.size, step_size.upcoming, step_size.signed
    share, raises, kept = fusion.share, fusion.powers, kept_after(step_size)
    weighted, ticked, gained = fusion.weighted, fusion.weighted or signed, fusion.gains

    def alphas(work, counts, n, rates):
        """Write the alpha of the first visit after the base's clock."""
        discount, alpha = rates[DISCOUNT], rates[ALPHA]
        for i in range(n):
            work[step + u8(i)] = size(upcoming(u4(counts[clocks + u8(i)])), discount, alpha)

    def powers(work, counts, n, seen, visits):
        """Write (1 - alpha)^visits by repeated squaring; seen : the visits, or-ed; visits : where
        in `counts` they stand."""
        if raises:
            for i in range(n):  # what is raised stays in registers, several bits at a time
                base, bits = 1.0 - work[step + u8(i)], counts[visits + u8(i)]
                raised = base if bits & 1 != 0 else 1.0
                base *= base
                raised = raised * base if bits & 2 != 0 else raised
                base *= base
                raised = raised * base if bits & 4 != 0 else raised
                base *= base
                work[power + u8(i)] = raised * base if bits & 8 != 0 else raised
                work[square + u8(i)] = base * base
            shift = i8(4)
            while seen >> shift > 0:
                for i in range(n):
                    base, raised = work[square + u8(i)], work[power + u8(i)]
                    bits = counts[visits + u8(i)] >> shift
                    raised = raised * base if bits & 1 != 0 else raised
                    base *= base
                    raised = raised * base if bits & 2 != 0 else raised
                    base *= base
                    work[power + u8(i)] = raised * base if bits & 4 != 0 else raised
                    work[square + u8(i)] = base * base
                shift += 3

    def shares(work, counts, n, rates, found, values, first_value, visits, first_visit):
        """Add an agent's contributions in fixed point to `values` and its visits to `visits`, from
        the elements named on; and to `found`, LENGTH in its units."""
        scale, bound = rates[SCALE], rates[BOUND]
        overflows, large, non_finite, length, total = i8(0), i8(0), i8(0), i8(0), i8(0)
        for i in range(n):
            times, alpha = counts[u8(i)], work[step + u8(i)]
            x = share(work[u8(i)], times, alpha, work[power + u8(i)])
            magnitude = abs(x)
            fits, visited = magnitude < bound, times > 0
            finite = magnitude < np.inf
            non_finite += i8(visited & (not finite))
            overflows += i8(visited & finite & (not fits))
            large += i8(visited & fits & (magnitude >= bound * 0.0625))
            length += min(i8(np.rint(alpha * f8(times * (times - 1)) * UNIT)), LONGEST)
            total += times
            visits[first_visit + u8(i)] += times
            values[first_value + u8(i)] += i8(np.rint((x if visited & fits else 0.0) * scale))
        found[OVERFLOWS] += f8(overflows)
        found[LARGE] += f8(large)
        found[NON_FINITE] += f8(non_finite)
        found[LENGTH] += f8(length)
        found[VISITS] += f8(total)

    def clear(counts, n):
        """Begin sums over agents."""
        for i in range(n):
            counts[sums + u8(i)] = 0
            counts[every + u8(i)] = 0
        if ticked or gained:
            for i in range(n):
                counts[ticks + u8(i)] = 0
                counts[votes + u8(i)] = 0
                counts[gains + u8(i)] = 0

    def others(clock, first, end, ahead, counts, rates):
        """Add what else is summed of an agent's pairs."""
        discount, alpha = rates[DISCOUNT], rates[ALPHA]
        for k in range(end - first):
            cell = (u8(first + k) + ahead) * clock_stride + offset
            for a in range(width):
                i = u8(k * width + a)
                old, new, n = u4(counts[clocks + i]), clock[cell + u8(a)], counts[i]
                if ticked:
                    count = i8(new & COUNT) - i8(old & COUNT)
                    counts[ticks + i] += count * n if weighted else count
                if signed:
                    counts[votes + i] += n * sign_of(new)
                if gained and n > 0:
                    gain = 1.0 - kept(old, n, discount, alpha)
                    counts[gains + i] += i8(np.rint(gain * gain_unit))

    return {
        "alphas": alphas, "powers": powers, "clear": clear, "shares": shares,
        "others": others if ticked or gained else no_others,
    }  # fmt: skip


def no_others(clock, first, end, ahead, counts, rates):
    """Where nothing else is summed: shorter to compile."""


def _writing(
    fusion: Any, record: Any, step_size: Any, store: Any, advance: Any, gain_unit: float
) -> dict[str, Callable[..., Any]]:
    """Parts that make the next table's rows [first, end)."""
    width, pairs = record.width, chunk_rows(record.width) * record.width
    stride, clock_stride = u8(record.stride), u8(record.clock_stride)
    clocks, sums, ticks, votes, gains = (u8(k * pairs) for k in (CLOCK, SUM, TICKS, VOTES, GAIN))
    offset = u8(record.clock_offset)
    every, step, power, olds = u8(ALL * pairs), u8(STEP * pairs), u8(POWER * pairs), u8(OLD * pairs)
    combine, ticked, gained = fusion.combine, fusion.weighted or step_size.signed, fusion.gains
    signed = step_size.signed

    def changes(work, counts, n, number, rates, control, unstable):
        """Turn values of the base into those of the next table; number : of the first pair."""
        inverse, n_agents = 1.0 / rates[SCALE], i8(control[AGENTS])
        seed, now, n_unstable = control[SEED], control[ROUND], i8(0)
        for i in range(n):
            visits, old, gain = counts[every + u8(i)], work[olds + u8(i)], 0.0
            if gained:
                gain = f8(counts[gains + u8(i)]) / gain_unit
                n_unstable += i8(gain >= GAIN_LIMIT)
            total = f8(counts[sums + u8(i)]) * inverse
            change = combine(
                total, max(visits, i8(1)), work[step + u8(i)], work[power + u8(i)], n_agents, gain
            )
            bits = threefry(now, number + u8(i), seed, ROUNDING)[1]
            moved = f8(store(old, change, bits))
            work[olds + u8(i)] = moved if visits > 0 else old
        unstable[0] += n_unstable

    def scatter(next_q, next_clock, first, end, pair, lifetime, control, work, counts):
        """Write rows from `work` and `counts`; pair : of `lifetime`, the first."""
        n_agents, seed, now = i8(control[AGENTS]), control[SEED], control[ROUND]
        for k in range(end - first):
            row, cell = u8(first + k) * stride, u8(first + k) * clock_stride + offset
            prefetch(next_q, row + AHEAD * stride)
            for a in range(width):
                i = u8(k * width + a)
                next_q[row + u8(a)] = work[olds + i]
                old, visits = u4(counts[clocks + i]), counts[every + i]
                fresh = old
                if visits > 0:
                    word = threefry(now, u8(first * width) + i, seed, ROUNDING)[0]
                    gain = f8(counts[gains + i]) / gain_unit if gained else 0.0
                    counted = counts[ticks + i] if ticked else visits
                    seen = i8(lifetime[pair + i]) + visits
                    count = advance(i8(old & COUNT), visits, counted, seen, n_agents, gain, word)
                    fresh = u4(min(count, i8(CLOCK_LIMIT)))
                    if signed:
                        fresh = signed_clock(old, count, counts[votes + i])
                next_clock[cell + u8(a)] = fresh

    def still(next_q, next_clock, base_q, base_clock, first, end):
        """Copy rows that nobody has visited."""
        for s in range(first, end):
            row, cell = u8(s) * stride, u8(s) * clock_stride + offset
            prefetch(next_q, row + AHEAD * stride)
            for a in range(width):
                next_q[row + u8(a)] = base_q[row + u8(a)]
                next_clock[cell + u8(a)] = base_clock[cell + u8(a)]

    def renew(q, next_q, first, end, ahead):
        """Copy rows to a replica."""
        n, here = u8(end - first) * stride, u8(first) * stride
        there = (u8(first) + ahead) * stride
        for i in range(n):
            q[there + u8(i)] = next_q[here + u8(i)]

    return {"changes": changes, "scatter": scatter, "still": still, "renew": renew}
