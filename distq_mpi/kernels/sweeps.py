"""Bellman sweeps and what surrounds them, over an environment's own `outcome` function.

Free names that are parts are bound by `planning_kernels`. Arrays speak of the rows of one rank, and
those that are read ahead also of its halo: states of other ranks that its own lead to. Row s is
state first + s; `where` says how (see `place`). A mask (uint8 per row) names a set of states that
no transition leaves but by ending; entries of other states are neither read nor written. Policies
are int32 per row.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from distq_mpi.kernels import Kernel
from distq_mpi.kernels.krylov import krylov_kernels

u8, i8, i4, f8 = np.uint64, np.int64, np.int32, np.float64

# Rates of a sweep: a backup is the mean of WEIGHT x reward + BONUS + DISCOUNT x value ahead.
DISCOUNT, SLACK, WEIGHT, BONUS = range(4)
BEGIN, END, ORDER, EVERY, KEEPS, READ = range(6)
JACOBI, GAUSS_SEIDEL = range(2)
RISE, FALL, CHANGED, TOP, BOTTOM = range(5)
MOST_MASS, LEAST_MASS, MOST_CHANCE, MOST_REWARD = range(4)
N_STARTS, EVERY_ACTION, N_STACK, N_OUT, N_MET, FIRST_START, LAST_START, N_KEPT = range(8)
MARKED, UNMARKED, PASSES = range(3)
BY_REWARD, MOST_PASSES = range(2)
SPLIT = 2.0**27 + 1.0
STRIDE, FIRST, LAST, KNOWN = range(4)
NEAR_BIT, PLACE_BITS = np.uint64(31), np.uint64(2**31 - 1)
PAIR_RISE, PAIR_FALL, DISTANCE, STATE_RISE, STATE_FALL, POLICY_MASS, POLICY_LEAST = range(7)


def place(t, where):
    """Return the index of a state in arrays of own rows and, behind them, the halo.

    where : (first, n_own, shift, halo, directory): states [first, first + n_own) are own rows.
    halo : int64, ascending, the others; those of bucket t >> shift are halo[directory[bucket]] to
    halo[directory[bucket + 1]]. A state that is in neither has any index within the arrays.
    Without a directory all other states are the halo.
    """
    first, n_own, shift, halo, directory = where
    own = t - first
    if directory.size == 0:
        return own if 0 <= own < n_own else t + n_own * i8(own < 0)
    if 0 <= own < n_own:
        return own
    low, high = i8(directory[t >> shift]), i8(directory[(t >> shift) + 1])
    while high - low > 1:
        middle = (low + high) >> 1
        if halo[middle] <= t:
            low = middle
        else:
            high = middle
    return n_own + min(low, halo.size - 1)


def backup_of(outcomes: Any, outcome: Any) -> Any:
    """Return backup(s, a, v, fresh, low, high, where, rates, params) -> float64.

    s : a state. The values ahead come from `fresh` for rows in [low, high), else from `v`.
    """

    def backup(s, a, v, fresh, low, high, where, rates, params):
        total, discount, weight, bonus = 0.0, rates[DISCOUNT], rates[WEIGHT], rates[BONUS]
        for i in range(outcomes(s, a, params)):
            probability, ahead, reward, terminated = outcome(s, a, i, params)
            value = 0.0
            if not terminated:
                t = place(i8(ahead), where)
                value = discount * (fresh[t] if low <= t < high else v[t])
            total += probability * (weight * reward + bonus + value)
        return total

    return backup


def mass_of(outcomes: Any, outcome: Any) -> Any:
    """Return mass(s, a, params): the probability (float64) that the episode goes on."""

    def mass(s, a, params):
        total = 0.0
        for i in range(outcomes(s, a, params)):
            probability, ahead, reward, terminated = outcome(s, a, i, params)
            if not terminated:
                total += probability
        return total

    return mass


def _absent(*arguments):
    return 0.0


# Stand-ins for the parts.
N_ACTIONS = 4
outcomes = outcome = start = backup = mass = _absent


def reach(mask, stack, seen, inbox, outbox, policy, where, control, params, found):
    """Mark own states that episodes can be in, until none is left to look at or `outbox` is full.

    mask : uint8 (n_own,), stack : int64 (n_own,), rows marked but not looked at: kept between
    calls. seen : uint8, one bit per state, those of others that were ever written to outbox.
    inbox : int64, own states that others have met. outbox : int64, written: states of others.
    control : int64 (8,): start states to look at (0 after the first call); whether every action is
    taken, or the policy's; changed: height of the stack, states in outbox, own states met so far,
    the range of numbers of own start states, and outcomes met that do not end (some twice).
    found : float64 (4,), raised: the largest and the negated smallest probability of going on over
    the pairs met, the largest chance of a start state, the largest expected |reward| of a pair.
    """
    first, n_own = where[0], where[1]
    n, n_out, met, full = control[N_STACK], 0, control[N_MET], False
    n_kept = control[N_KEPT]
    most, least, chance = found[MOST_MASS], found[LEAST_MASS], found[MOST_CHANCE]
    paid = found[MOST_REWARD]
    for i in range(control[N_STARTS]):
        probability, state = start(i, params)
        s = i8(state) - first
        chance = max(chance, probability)
        if 0 <= s < n_own and probability > 0:
            control[FIRST_START] = min(control[FIRST_START], i)
            control[LAST_START] = max(control[LAST_START], i + 1)
            if mask[s] == 0:
                mask[s] = 1
                stack[n] = s
                n, met = n + 1, met + 1
    for k in range(inbox.size):
        s = inbox[k] - first
        if mask[s] == 0:
            mask[s] = 1
            stack[n] = s
            n, met = n + 1, met + 1
    while n > 0 and not full:
        n -= 1
        s = stack[n]
        for a in range(N_ACTIONS):
            if control[EVERY_ACTION] == 0 and policy[s] != a:
                continue
            going_on, pays = 0.0, 0.0
            for i in range(outcomes(first + s, a, params)):
                probability, ahead, reward, terminated = outcome(first + s, a, i, params)
                pays += probability * abs(reward)
                if terminated or not probability > 0:
                    continue
                going_on += probability
                n_kept += 1
                t = i8(ahead) - first
                if 0 <= t < n_own:
                    if mask[t] == 0:
                        mask[t] = 1
                        stack[n] = t
                        n, met = n + 1, met + 1
                    continue
                t = i8(ahead)
                bit = 1 << (t & 7)
                if seen[t >> 3] & bit == 0:
                    if n_out == outbox.size:
                        full = True
                    else:
                        seen[t >> 3] |= bit
                        outbox[n_out] = t
                        n_out += 1
            most, least, paid = max(most, going_on), max(least, -going_on), max(paid, pays)
        if full:
            stack[n] = s
            n += 1
    control[N_STACK], control[N_OUT], control[N_MET], control[N_KEPT] = n, n_out, met, n_kept
    found[MOST_MASS], found[LEAST_MASS], found[MOST_CHANCE] = most, least, chance
    found[MOST_REWARD] = paid


def sweep(v, new, policy, greedy, mask, cuts, where, control, rates, params, found):
    """Back up the rows of consecutive blocks several times, from `v` to `new` and back.

    v, new : of own rows and halo; that of `v` alone is read in the first sweep, and none written.
    cuts : int64 (n_blocks + 1,), borders of the blocks as rows. control : int64 (6,): numbers of
    the first sweep and of the one after the last; JACOBI, where a backup sees the values before the
    sweep only, or GAUSS_SEIDEL, where it sees those already written in its own block, and sweeps of
    even number run downwards. Either way it does not matter who computes the other blocks. Whether
    every action is tried, or the policy's; whether `greedy` is written; and one not used here.
    greedy : int32, the best action, but a later one only if it is better than the one kept so far
    by more than rates[SLACK].
    found : float64 (5,), written, of the last sweep: largest change, largest change downwards
    (negated smallest change), largest share of a block's masked rows whose `greedy` changed,
    largest value, and the negated smallest.
    """
    first_state, every, keeps = where[0], control[EVERY] != 0, control[KEEPS] != 0
    rise, fall, top, bottom, changed = -np.inf, -np.inf, -np.inf, -np.inf, 0.0
    for k in range(control[BEGIN], control[END]):
        read, write = v, new
        if (k - control[BEGIN]) & 1:
            read, write = new, v
        rise, fall, top, bottom, changed = -np.inf, -np.inf, -np.inf, -np.inf, 0.0
        for block in range(cuts.size - 1):
            first, last, n_met, n_changed = cuts[block], cuts[block + 1], 0.0, 0.0
            for j in range(last - first):
                s, low, high = first + j, first, first
                if control[ORDER] == GAUSS_SEIDEL:
                    if k & 1:
                        high = s
                    else:
                        s = last - 1 - j
                        low, high = s + 1, last
                if mask[s] == 0:
                    continue
                begin, end = 0, N_ACTIONS
                if not every:
                    begin, end = i8(policy[s]), i8(policy[s]) + 1
                best, kept, action = -np.inf, -np.inf, begin
                n_met += 1.0
                for a in range(begin, end):
                    other = backup(
                        first_state + s, a, read, write, low, high, where, rates, params
                    )
                    best = max(best, other)
                    if other > kept + rates[SLACK]:
                        kept, action = other, a
                change = best - read[s]
                write[s] = best
                rise, fall = max(rise, change), max(fall, -change)
                top, bottom = max(top, best), max(bottom, -best)
                if keeps and greedy[s] != action:
                    greedy[s] = i4(action)
                    n_changed += 1.0
            changed = max(changed, n_changed / max(n_met, 1.0))
    found[RISE], found[FALL], found[CHANGED] = rise, fall, changed
    found[TOP], found[BOTTOM] = top, bottom


def compact(mask, where, cuts, params, starts, ahead, chances, rewards, begins):
    """Copy what sweeps need of the outcomes of masked rows, pair after pair.

    cuts : as in `sweep`. starts : uint32 (n_own * N_ACTIONS + 1,), where the outcomes of each pair
    begin that do not end the episode; ahead : uint32, their places (see `place`), and 2^31 more for
    those in the block of the row itself; chances : float64; rewards : float64
    (n_own * N_ACTIONS,), the mean of each pair; begins : uint32 (n_own + 1,), where the outcomes of
    one pair of each row begin, if there is room for as many as any of them has: all written.
    """
    first, n, most = where[0], u8(0), u8(0)
    for block in range(cuts.size - 1):
        low, high = cuts[block], cuts[block + 1]
        for s in range(low, high):
            begins[s], most_here = most, u8(0)
            for a in range(N_ACTIONS):
                pair, begin, mean = u8(s * N_ACTIONS + a), n, 0.0
                starts[pair] = n
                if mask[s] != 0:
                    for i in range(outcomes(first + s, a, params)):
                        probability, t, reward, terminated = outcome(first + s, a, i, params)
                        mean += probability * reward
                        if not terminated and probability > 0:
                            at = place(i8(t), where)
                            ahead[n] = u8(at) | (u8(low <= at < high) << NEAR_BIT)
                            chances[n] = probability
                            n += u8(1)
                rewards[pair] = mean
                most_here = max(most_here, n - begin)
            most += most_here
    starts[u8(mask.size * N_ACTIONS)] = n
    begins[mask.size] = most


def follow(policy, followed, begins, ends, starts, ahead, chances, rewards, own_ahead,
           own_chances, own_rewards):  # fmt: skip
    """Copy a policy's pairs from a compact model, where they are not those copied before.

    followed : int32 (n_own,), the policy copied, changed; rows in which a policy is negative are
    left as they are. begins : uint32 (n_own,), the room of each row; ends : written.
    """
    for s in range(u8(followed.size)):
        action = policy[s]
        if action == followed[s] or action < 0:
            continue
        followed[s] = action
        pair, n = s * u8(N_ACTIONS) + u8(action), u8(begins[s])
        own_rewards[s] = rewards[pair]
        for k in range(u8(starts[pair]), u8(starts[pair + u8(1)])):
            own_ahead[n], own_chances[n] = ahead[k], chances[k]
            n += u8(1)
        ends[s] = n


def sweep_compact(
    both, policy, greedy, mask, cuts, control, rates, starts, ahead, chances, rewards, found
):
    """`sweep` over a compact model.

    both : float64, two arrays of own rows and halo, one after the other; control[READ] : where
    that begins which is read first.
    """
    discount, slack, half = rates[DISCOUNT], rates[SLACK], u8(both.size >> 1)
    weight, bonus = rates[WEIGHT], rates[BONUS]
    every, keeps, fresh = control[EVERY] != 0, control[KEEPS] != 0, control[ORDER] == GAUSS_SEIDEL
    rise, fall, top, bottom, changed = -np.inf, -np.inf, -np.inf, -np.inf, 0.0
    read = u8(control[READ])
    for k in range(control[BEGIN], control[END]):
        write, near = half - read, u8(0)
        if fresh:  # rows of the same block are read where they are written
            near = write - read
            for s in range(u8(mask.size)):
                both[write + s] = both[read + s]
        rise, fall, top, bottom, changed = -np.inf, -np.inf, -np.inf, -np.inf, 0.0
        for block in range(cuts.size - 1):
            n_rows, s, step = u8(cuts[block + 1] - cuts[block]), u8(cuts[block]), u8(1)
            n_met, n_changed = 0.0, 0.0
            if fresh and k & 1 == 0:
                s, step = s + n_rows - u8(1), ~u8(0)
            s -= step
            for _ in range(n_rows):
                s += step
                if mask[s] == 0:
                    continue
                begin, end = u8(0), u8(N_ACTIONS)
                if not every:
                    begin = u8(policy[s])
                    end = begin + u8(1)
                best, kept, action = -np.inf, -np.inf, begin
                n_met += 1.0
                for a in range(begin, end):
                    pair, total = s * u8(N_ACTIONS) + a, 0.0
                    for i in range(u8(starts[pair]), u8(starts[pair + u8(1)])):
                        t = u8(ahead[i])
                        at = (t & PLACE_BITS) + read + (t >> NEAR_BIT) * near
                        total += chances[i] * both[at]
                    other = weight * rewards[pair] + bonus + discount * total
                    best = max(best, other)
                    if other > kept + slack:
                        kept, action = other, a
                change = best - both[read + s]
                both[write + s] = best
                rise, fall = max(rise, change), max(fall, -change)
                top, bottom = max(top, best), max(bottom, -best)
                if keeps and greedy[s] != i4(action):
                    greedy[s] = i4(action)
                    n_changed += 1.0
            changed = max(changed, n_changed / max(n_met, 1.0))
        read = write
    found[RISE], found[FALL], found[CHANGED] = rise, fall, changed
    found[TOP], found[BOTTOM] = top, bottom


def sweep_followed(
    both, mask, cuts, control, rates, begins, ends, ahead, chances, rewards, found
):
    """`sweep_compact` over a policy's pairs: two thirds of the time where nothing is chosen.

    found : float64 (5,), of which the largest changes are written.
    """
    discount, half, fresh = rates[DISCOUNT], u8(both.size >> 1), control[ORDER] == GAUSS_SEIDEL
    weight, bonus = rates[WEIGHT], rates[BONUS]
    rise, fall, read = -np.inf, -np.inf, u8(control[READ])
    for k in range(control[BEGIN], control[END]):
        write, near = half - read, u8(0)
        if fresh:
            near = write - read
            for s in range(u8(mask.size)):
                both[write + s] = both[read + s]
        rise, fall = -np.inf, -np.inf
        for block in range(cuts.size - 1):
            n_rows, s, step = u8(cuts[block + 1] - cuts[block]), u8(cuts[block]), u8(1)
            if fresh and k & 1 == 0:
                s, step = s + n_rows - u8(1), ~u8(0)
            s -= step
            for _ in range(n_rows):
                s += step
                if mask[s] == 0:
                    continue
                total = 0.0
                for i in range(u8(begins[s]), u8(ends[s])):
                    t = u8(ahead[i])
                    at = (t & PLACE_BITS) + read + (t >> NEAR_BIT) * near
                    total += chances[i] * both[at]
                value = weight * rewards[s] + bonus + discount * total
                change = value - both[read + s]
                both[write + s] = value
                rise, fall = max(rise, change), max(fall, -change)
        read = write
    found[RISE], found[FALL] = rise, fall


def settle(marked, policy, mask, where, control, params, found):
    """Mark the rows from which a policy can reach an end, a reward, or a marked state.

    marked : uint8, own rows and halo, raised in own masked rows. control : int64 (2,): whether a
    reward marks a row (else the end of the episode does), and the most passes over all rows.
    found : float64 (3,), written: rows marked in this call, masked rows left unmarked, passes.

    A row is marked where it can lead to its goal with a positive probability. Passes run upwards
    and downwards alternately, until one changes nothing.
    """
    first, n_own = where[0], where[1]
    n_marked, n_left, n_passes = 0.0, 0.0, 0
    changed, downwards = True, True
    while changed and n_passes < control[MOST_PASSES]:
        changed, n_passes = False, n_passes + 1
        for j in range(n_own):
            s = n_own - 1 - j if downwards else j
            if mask[s] == 0 or marked[s] != 0:
                continue
            action = i8(policy[s])
            for i in range(outcomes(first + s, action, params)):
                probability, ahead, reward, terminated = outcome(first + s, action, i, params)
                goal = reward != 0 if control[BY_REWARD] else terminated
                if probability > 0 and (
                    goal or (not terminated and marked[place(i8(ahead), where)] != 0)
                ):
                    marked[s] = 1
                    changed = True
                    n_marked += 1.0
                    break
        downwards = not downwards
    for s in range(n_own):
        n_left += f8(mask[s] != 0 and marked[s] == 0)
    found[MARKED], found[UNMARKED], found[PASSES] = n_marked, n_left, f8(n_passes)


def product(a, b):
    """Return a * b as the sum of two float64 (Dekker 1971; Veltkamp's splitting)."""
    p = a * b
    c, d = SPLIT * a, SPLIT * b
    a_high, b_high = c - (c - a), d - (d - b)
    a_low, b_low = a - a_high, b - b_high
    return p, ((a_high * b_high - p) + a_high * b_low + a_low * b_high) + a_low * b_low


def added(high, low, x):
    """Return high + low + x as the sum of two float64 (Knuth's two-sum)."""
    total = high + x
    part = total - high
    low += (high - (total - part)) + (x - part)
    high = total + low
    return high, low - (high - total)


def pair_change(s, pair, high, low, rates, starts, ahead, chances, rewards):
    """Return TV - V of one pair (uint64) of row s, float64, from values high + low."""
    total, rest = 0.0, 0.0
    for i in range(u8(starts[pair]), u8(starts[pair + u8(1)])):
        at = u8(ahead[i]) & PLACE_BITS
        leading, trailing = product(chances[i], high[at])
        total, rest = added(total, rest, leading)
        rest += trailing + chances[i] * low[at]
    leading, trailing = product(rates[DISCOUNT], total)
    reward = rates[WEIGHT] * rewards[pair] + rates[BONUS]
    total, rest = added(leading, trailing + rates[DISCOUNT] * rest, reward)
    total, rest = added(total, rest, -high[s])
    return total + (rest - low[s])


def residue(
    high, low, policy, mask, control, rates, starts, ahead, chances, rewards, change, found
):
    """Write TV - V of masked rows, computed in twice the precision of float64, V = high + low.

    high, low : float64, own rows and halo. policy : int32 (n_own,), changed where every action is
    tried and another one is better by more than rates[SLACK]. control : int64 (1,): whether every
    action is tried, or the policy's. change : float64 (n_own,), of the best action tried; 0
    outside the mask. found : float64 (3,), written: largest change, negated smallest, and the
    share of masked rows whose policy changed.
    """
    every, rise, fall, n_met, n_changed = control[0] != 0, -np.inf, -np.inf, 0.0, 0.0
    for s in range(mask.size):
        change[s] = 0.0
        if mask[s] == 0:
            continue
        n_met += 1.0
        kept = i8(policy[s])
        action = kept
        pair = u8(s * N_ACTIONS + kept)
        best = pair_change(s, pair, high, low, rates, starts, ahead, chances, rewards)
        if every:
            current = best
            for a in range(N_ACTIONS):
                pair = u8(s * N_ACTIONS + a)
                other = pair_change(s, pair, high, low, rates, starts, ahead, chances, rewards)
                if other > best:
                    best, action = other, a
            if best > current + rates[SLACK]:
                policy[s] = i4(action)
                n_changed += 1.0
        change[s] = best
        # max() would drop a NaN; infinite bounds are noticed.
        known = abs(best) < np.inf
        rise, fall = max(rise, best if known else np.inf), max(fall, -best if known else np.inf)
    found[RISE], found[FALL], found[CHANGED] = rise, fall, n_changed / max(n_met, 1.0)


def nearest(mask, frontier, ahead, where, control, params, found):
    """Count the steps from the start states to the first end or change of reward, every action
    tried.

    mask : uint8 (n_own,), raised: rows met. frontier, ahead : int64 (n_own,), scratch.
    control : int64 (3,): number of start states, most steps; written: steps taken until an outcome
    ended the episode or paid another reward than the first outcome did, or 0 where none has.
    found : float64 (1,), scratch. All rows are own rows.
    """
    first, n, begun = where[0], 0, False
    for i in range(control[0]):
        probability, state = start(i, params)
        if probability > 0 and mask[i8(state) - first] == 0:
            mask[i8(state) - first] = 1
            frontier[n] = i8(state) - first
            n += 1
    control[2] = 0
    for step in range(control[1]):
        here, there = frontier, ahead
        if step & 1:
            here, there = ahead, frontier
        n_ahead = 0
        for k in range(n):
            for a in range(N_ACTIONS):
                for i in range(outcomes(first + here[k], a, params)):
                    probability, t, reward, terminated = outcome(first + here[k], a, i, params)
                    if not probability > 0:
                        continue
                    if not begun:
                        begun, found[0] = True, reward
                    if terminated or reward != found[0]:
                        control[2] = step + 1
                        return
                    if mask[i8(t) - first] == 0:
                        mask[i8(t) - first] = 1
                        there[n_ahead] = i8(t) - first
                        n_ahead += 1
        n = n_ahead
        if n == 0:
            return


def expected(v, where, control, params, terms):
    """Write chance times value of start states [begin, end) to `terms` (float64), 0 for others'.

    control : int64 (2,): begin, end.
    """
    first, n_own = where[0], where[1]
    for i in range(control[BEGIN], control[END]):
        probability, state = start(i, params)
        s = i8(state) - first
        terms[i - control[BEGIN]] = probability * v[s] if 0 <= s < n_own else 0.0


def greedy(q, values, policy, mask, where, control, found):
    """Read value and lowest greedy action of the masked states in [first, last) off a table.

    q : flat, float32 or float64, control[STRIDE] values per state, from state `first` on. values
    float64, policy int32: written. control : int64 (4,): q values per state, first, last, and
    one not used here. found : float64 (2,), written: values of q that are not finite, and the
    largest |q| among the others.
    """
    size = 0.0
    non_finite, stride, origin = 0.0, control[STRIDE], control[FIRST] - where[0]
    for s in range(origin, control[LAST] - where[0]):
        if mask[s] == 0:
            continue
        row = (s - origin) * stride
        best, action = f8(q[row]), 0
        for a in range(N_ACTIONS):
            value = f8(q[row + a])
            if abs(value) < np.inf:
                size = max(size, abs(value))
            else:
                non_finite += 1.0
            if value > best:
                best, action = value, a
        values[s], policy[s] = best, i4(action)
    found[0], found[1] = non_finite, size


def residual(q, values, optimal, policy, mask, where, control, rates, params, found):
    """Measure a table against one backup of itself, in the masked states of [first, last).

    q : as in `greedy`. values, policy : what `greedy` read off it; values and optimal with halo.
    optimal : float64, V*, read if control[KNOWN].
    control : int64 (4,): q values per state, first, last, whether V* is known.
    found : float64 (7,), written: the largest of TQ - Q, of Q - TQ, and of |Q - Q*| over pairs
    (-inf if V* is unknown), of TV - V and of V - T_policy V over states, where V = max Q; the
    largest, and the negated smallest, probability of going on under the policy.
    """
    stride, first, origin = control[STRIDE], where[0], control[FIRST] - where[0]
    pair_rise, pair_fall, distance = -np.inf, -np.inf, -np.inf
    state_rise, state_fall, most, least = -np.inf, -np.inf, -np.inf, -np.inf
    for s in range(origin, control[LAST] - first):
        if mask[s] == 0:
            continue
        row, best = (s - origin) * stride, -np.inf
        for a in range(N_ACTIONS):
            target = backup(first + s, a, values, values, 0, 0, where, rates, params)
            difference = target - f8(q[row + a])
            pair_rise, pair_fall = max(pair_rise, difference), max(pair_fall, -difference)
            best = max(best, target)
            if a == policy[s]:
                state_fall = max(state_fall, values[s] - target)
            if control[KNOWN]:
                exact = backup(first + s, a, optimal, optimal, 0, 0, where, rates, params)
                distance = max(distance, abs(exact - f8(q[row + a])))
        state_rise = max(state_rise, best - values[s])
        going_on = mass(first + s, i8(policy[s]), params)
        most, least = max(most, going_on), max(least, -going_on)
    found[PAIR_RISE], found[PAIR_FALL], found[DISTANCE] = pair_rise, pair_fall, distance
    found[STATE_RISE], found[STATE_FALL] = state_rise, state_fall
    found[POLICY_MASS], found[POLICY_LEAST] = most, least


def planning_kernels(environment: Any, q_dtype: Any) -> dict[str, Kernel]:
    """Return the requests of exact values and certificates. Local.

    environment : `environments.base.Environment`; q_dtype : of the tables certified.
    """
    law = (environment.outcomes, environment.outcome)
    parts = {
        "N_ACTIONS": environment.n_actions,
        "outcomes": environment.outcomes,
        "outcome": environment.outcome,
        "start": environment.start,
        "backup": backup_of(*law),
        "mass": mass_of(*law),
    }
    params, q = environment.params, np.zeros(1, q_dtype)
    v, mask, policy = np.zeros(1), np.zeros(1, np.uint8), np.zeros(1, i4)
    control, rates, found = np.zeros(8, i8), np.zeros(4), np.zeros(7)
    where = (0, 0, 0, control, policy)
    index = np.zeros(1, np.uint32)
    one = index, v, v
    model = (index, *one)
    return {
        **krylov_kernels(),
        "plan_reach": Kernel(
            reach, parts,
            (mask, control, mask, control, control, policy, where, control, params, found),
        ),
        "plan_sweep": Kernel(
            sweep, parts,
            (v, v, policy, policy, mask, control, where, control, rates, params, found),
        ),
        "plan_compact": Kernel(compact, parts, (mask, where, control, params, *model, index)),
        "plan_sweep_compact": Kernel(
            sweep_compact, parts,
            (v, policy, policy, mask, control, control, rates, *model, found),
        ),
        "plan_follow": Kernel(follow, parts, (policy, policy, index, index, *model, *one)),
        "plan_sweep_followed": Kernel(
            sweep_followed, parts, (v, mask, control, control, rates, index, index, *one, found)
        ),
        "plan_settle": Kernel(settle, parts, (mask, policy, mask, where, control, params, found)),
        "plan_residue": Kernel(
            residue, parts, (v, v, policy, mask, control, rates, *model, v, found)
        ),
        "plan_nearest": Kernel(
            nearest, parts, (mask, control, control, where, control, params, found)
        ),
        "plan_expected": Kernel(expected, parts, (v, where, control, params, v)),
        "plan_greedy": Kernel(greedy, parts, (q, v, policy, mask, where, control, found)),
        "plan_residual": Kernel(
            residual, parts, (q, v, v, policy, mask, where, control, rates, params, found)
        ),
    }  # fmt: skip
