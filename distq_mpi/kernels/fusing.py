"""The laws of fusion for one pair: what an agent contributes to it, what the owner makes of the
sums; and the loops of fusions that sum nothing, of one agent and of a maximum.

Makers of parts for the loops in `summing`: `share` (an agent's difference to what it contributes),
`combine` (sums to the new difference) and `advance` (sums to the clock's new count). `power` is
(1 - alpha)^n, what n visits keep of a value. `share` and `combine` have no branches, so that many
pairs are worked on at once.

A pair here is an entry of a row: under Double Q a state has two for each action.
"""

from __future__ import annotations

import math

import numpy as np

from distq_mpi.kernels.step_sizes import (
    CLOCK_LIMIT,
    COUNT,
    MINUS,
    NO_SIGN,
    PLUS,
    SIGN_SHIFT,
    next_visit,
    rescaled_linear,
)

u8, u4, f8, i8 = np.uint64, np.uint32, np.float64, np.int64

# Steps of one agent in a round, and fixed point of gains, each at most 1, as far as sums over the
# agents fit 64 bits: see `round_limit` and `gain_scale`.
ROUND_LIMIT = 1 << 24
# Steps of all agents on one table in a round. Its clocks are limited whenever the steps pass a
# multiple of 2^31 (`schedules.settles`): until then 2^29 + 2^31 + 2^30 fit 32 bits.
SHARED_LIMIT = 1 << 30
GAIN_SCALE = 2.0**48
# Sum of gains from which `delta` moves away from its target.
GAIN_LIMIT = 2.0

# Stand-ins for the parts.
WIDTH, STRIDE, CLOCK_STRIDE, CLOCK_OFFSET, VISITS_AHEAD = 4, 0, 0, 0, 0
SIGNED = False
size, upcoming = rescaled_linear, next_visit

TILE_PAIRS = 1 << 12
"""Pairs of a tile, about: 32 KB of sums."""

OVERFLOWS, LARGE, NON_FINITE, LENGTH, VISITS = range(5)
DISCOUNT, ALPHA, SCALE, BOUND = range(4)

UNIT = 2.0**14
"""Fixed point of LENGTH: its sum over pairs does not depend on who adds them up."""


def round_limit(n_agents):
    """Return the steps that each of so many agents may make in a round: twice the sum of the
    squares of their visits of a pair then fits 63 bits. Local."""
    return min(ROUND_LIMIT, math.isqrt((1 << 61) // max(1, n_agents)))


def gain_scale(n_agents):
    """Return the fixed point of gains of so many agents: their sum then fits 63 bits. Local."""
    return min(GAIN_SCALE, 2.0 ** (62 - (max(1, n_agents) - 1).bit_length()))


def tile_rows(width):
    """Return rows of a tile, a power of two."""
    return 1 << max(0, (TILE_PAIRS // width).bit_length() - 1)


def remaining(alpha, n):
    """(1 - alpha)^n by repeated squaring: the same bits with any C library."""
    power, base = 1.0, 1.0 - alpha
    while n > 0:
        if n & 1:
            power *= base
        base *= base
        n >>= 1
    return power


def kept_after(step_size):
    """Return kept(clock, n, discount, alpha): the product of 1 - alpha over n visits of a pair.

    Under `sign_change`, where the clocks in between are not known, at the first visit's alpha.
    """
    size, upcoming, signed = step_size.size, step_size.upcoming, step_size.signed

    def kept(clock, n, discount, alpha):
        if signed:
            return max(1e-300, remaining(size(upcoming(clock), discount, alpha), n))
        power = 1.0
        for k in range(n):
            power *= 1.0 - size(clock + u4(k + 1), discount, alpha)
            if power < 1e-300:
                return 1e-300
        return power

    return kept


def share_pooled(difference, n, alpha, power):
    """n (C - base): the target mean seen n times; C undoes the agent's own contraction."""
    return f8(n) * difference / (1.0 - power if n > 1 else alpha)


def share_count(difference, n, alpha, power):
    """n (Q - base)."""
    return f8(n) * difference


def share_mean(difference, n, alpha, power):
    """Q - base."""
    return difference


def combine_pooled(total, n, alpha, power, n_agents, gain):
    """[1 - (1 - alpha)^n] total / n: as if one agent had seen all n targets."""
    return (1.0 - power) * total / f8(n)


def combine_frozen(total, n, alpha, power, n_agents, gain):
    """alpha total / n: a step towards the mean of all targets of the round."""
    return alpha * (total / f8(n))


def combine_count(total, n, alpha, power, n_agents, gain):
    """total / n."""
    return total / f8(n)


def combine_mean(total, n, alpha, power, n_agents, gain):
    """total / K."""
    return total / f8(n_agents)


def combine_delta(total, n, alpha, power, n_agents, gain):
    """total: the agents' differences are added."""
    return total


def combine_delta_capped(total, n, alpha, power, n_agents, gain):
    """total / max(1, gain): never further than to a mean of the agents' targets."""
    return total / max(1.0, gain)


def advance_pooled(count, n, ticks, lifetime, n_agents, gain, word):
    """All visits contract the value: the sum of all ticks."""
    return count + ticks


def advance_round(count, n, ticks, lifetime, n_agents, gain, word):
    """A round is one contraction, however many visits it had."""
    return count + 1


def advance_count(count, n, ticks, lifetime, n_agents, gain, word):
    """An average contracts like one visitor: sum n_i ticks_i / sum n_i, rounded half up."""
    return count + (2 * ticks + n) // (2 * n)


def advance_mean(count, n, ticks, lifetime, n_agents, gain, word):
    """Lifetime visits / K, rounded down: so the fraction is kept. At least 1: it was visited."""
    return max(count, lifetime // n_agents, i8(1))


def advance_mean_signed(count, n, ticks, lifetime, n_agents, gain, word):
    """ticks / K, rounded at random with the draw's first word: so the fraction is kept."""
    return count + (ticks + i8((u8(n_agents) * (word >> u8(32))) >> u8(32))) // n_agents


def advance_delta_capped(count, n, ticks, lifetime, n_agents, gain, word):
    """The ticks, divided as the differences are."""
    return count + i8(np.rint(f8(ticks) / max(1.0, gain)))


def sign_of(clock):
    """The sign that a clock holds, as an integer."""
    return i8(clock >> SIGN_SHIFT == PLUS) - i8(clock >> SIGN_SHIFT == MINUS)


def signed_clock(old, count, vote):
    """A clock with this count and the sign of the vote; a tie keeps the old sign."""
    stays = old >> SIGN_SHIFT if old >> SIGN_SHIFT > 0 else NO_SIGN
    sign = PLUS if vote > 0 else MINUS if vote < 0 else stays
    return u4((sign << SIGN_SHIFT) | u4(min(count, i8(CLOCK_LIMIT))))


def limited(clock):
    """A clock whose count is at most CLOCK_LIMIT."""
    return u4((clock >> SIGN_SHIFT << SIGN_SHIFT) | min(clock & COUNT, CLOCK_LIMIT))


def adopt(next_q, next_clock, base_clock, q, clock, visits, control, found):
    """The fusion of one agent: its replica becomes the table; `found` as in `contribute`.

    control : uint64 (1,) or more, not 0 at first where clocks are limited in this round.
    """
    total, non_finite, limits = 0.0, 0.0, control[0] > u8(0)
    for s in range(visits.size // WIDTH):
        row, cell = s * STRIDE, s * CLOCK_STRIDE + CLOCK_OFFSET
        for a in range(WIDTH):
            n = i8(clock[cell + VISITS_AHEAD + a]) - i8(base_clock[cell + VISITS_AHEAD + a])
            next_q[row + a] = q[row + a]
            ticked = clock[cell + a]
            if limits:
                ticked = limited(ticked) if SIGNED else min(ticked, CLOCK_LIMIT)
            next_clock[cell + a] = ticked
            visits[s * WIDTH + a] = n
            total += f8(n)
            non_finite += f8(n > 0 and not abs(q[row + a]) < np.inf)
    found[OVERFLOWS], found[LARGE], found[NON_FINITE] = 0.0, 0.0, non_finite
    found[LENGTH], found[VISITS] = 0.0, total


def largest(clock, most):
    """Write the largest of all clocks to `most`, int64 (1,)."""
    found = u4(0)
    for s in range(clock.size // CLOCK_STRIDE):
        for a in range(WIDTH):
            found = max(found, clock[s * CLOCK_STRIDE + CLOCK_OFFSET + a])
    most[0] = found


def contribute_max(q, clock, base_q, base_clock, values, visits, winner, rates, found):
    """As `contribute`, for `max`: the largest value so far, and the winner's visits and clock.

    values : float64 (S * width,), winner : int64 (S * width,): visits << 32 | clock of the agent
    that holds the largest value (the more visited one of equals). Start them at -inf and 0.
    """
    total, length, non_finite = 0.0, 0.0, 0.0
    for s in range(visits.size // WIDTH):
        row, cell = s * STRIDE, s * CLOCK_STRIDE + CLOCK_OFFSET
        for a in range(WIDTH):
            n = i8(clock[cell + VISITS_AHEAD + a]) - i8(base_clock[cell + VISITS_AHEAD + a])
            # + 0.0 makes one zero of two, so that equal values have equal bits.
            pair, x = s * WIDTH + a, f8(q[row + a]) + 0.0
            alpha = size(upcoming(base_clock[cell + a]), rates[DISCOUNT], rates[ALPHA])
            length += alpha * f8(n) * f8(n - 1)
            code = (n << 32) | i8(clock[cell + a])
            if x > values[pair] or (x == values[pair] and code > winner[pair]):
                values[pair], winner[pair] = x, code
            visits[pair] += n
            total += f8(n)
            non_finite += f8(not abs(x) < np.inf)
    found[OVERFLOWS], found[LARGE], found[NON_FINITE] = 0.0, 0.0, non_finite
    found[LENGTH], found[VISITS] = length, total


def fuse_max(next_q, next_clock, values, winner, control):
    """As `fuse`, for `max`: the largest value and its holder's clock."""
    first, n_rows = i8(control[0]), i8(control[1])
    for k in range(n_rows):
        row, cell = (first + k) * STRIDE, (first + k) * CLOCK_STRIDE + CLOCK_OFFSET
        for a in range(WIDTH):
            pair = k * WIDTH + a
            next_q[row + a] = values[pair]
            next_clock[cell + a] = limited(u4(winner[pair] & 0xFFFFFFFF))
