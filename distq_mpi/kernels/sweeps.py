"""Bellman sweeps and what surrounds them, over an environment's own `outcome` function.

Free names that are parts are bound by `planning_kernels`. A mask (uint8 per state) names a set of
states that no transition leaves but by ending; entries of other states are neither read nor
written. Policies are int32 per state; a negative entry means every action.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from distq_mpi.kernels import Kernel

u8, i8, i4, f8 = np.uint64, np.int64, np.int32, np.float64

# Rates of a sweep: a backup is the mean of WEIGHT x reward + BONUS + DISCOUNT x value ahead.
DISCOUNT, SLACK, WEIGHT, BONUS = range(4)
BEGIN, END, ORDER = range(3)
JACOBI, GAUSS_SEIDEL = range(2)
RISE, FALL, CHANGED = range(3)
MOST_MASS, LEAST_MASS, N_FOUND = range(3)
UNSETTLED, REWARDED = range(2)
STRIDE, FIRST, LAST, KNOWN = range(4)
PAIR_RISE, PAIR_FALL, DISTANCE, STATE_RISE, STATE_FALL, POLICY_MASS, POLICY_LEAST = range(7)


def backup_of(outcomes: Any, outcome: Any) -> Any:
    """Return backup(s, a, v, fresh, low, high, rates, params) -> float64.

    The values ahead come from `fresh` for states in [low, high), else from `v`.
    """

    def backup(s, a, v, fresh, low, high, rates, params):
        total, discount, weight, bonus = 0.0, rates[DISCOUNT], rates[WEIGHT], rates[BONUS]
        for i in range(outcomes(s, a, params)):
            probability, ahead, reward, terminated = outcome(s, a, i, params)
            t = i8(ahead)
            value = 0.0
            if not terminated:
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


def reach(mask, stack, policy, chances, firsts, params, found):
    """Mark the states that episodes can be in under a policy; `mask` is zero on entry.

    stack : int64 (S,), scratch. chances float64, firsts int64 (n_starts,): written, the start
    distribution. found : float64 (3,), written: the largest and smallest probability of going on
    over the pairs met, the number of states.
    """
    n, n_found, most, least = 0, 0.0, 0.0, 1.0
    for i in range(chances.size):
        probability, first = start(i, params)
        chances[i], firsts[i] = probability, i8(first)
        if probability > 0 and mask[firsts[i]] == 0:
            mask[firsts[i]] = 1
            stack[n] = firsts[i]
            n += 1
    while n > 0:
        n -= 1
        s = stack[n]
        n_found += 1.0
        for a in range(N_ACTIONS):
            if policy[s] >= 0 and policy[s] != a:
                continue
            for i in range(outcomes(s, a, params)):
                probability, ahead, reward, terminated = outcome(s, a, i, params)
                t = i8(ahead)
                if probability > 0 and not terminated and mask[t] == 0:
                    mask[t] = 1
                    stack[n] = t
                    n += 1
            going_on = mass(s, a, params)
            most, least = max(most, going_on), min(least, going_on)
    found[MOST_MASS], found[LEAST_MASS], found[N_FOUND] = most, least, n_found


def sweep(v, new, policy, greedy, mask, cuts, control, rates, params, found):
    """Back up the states of consecutive blocks several times, from `v` to `new` and back.

    cuts : int64 (n_blocks + 1,), borders of the blocks. control : int64 (3,): numbers of the first
    sweep and of the one after the last; JACOBI, where a backup sees the values before the sweep
    only, or GAUSS_SEIDEL, where it sees those already written in its own block, and sweeps of even
    number run downwards. Either way it does not matter who computes the other blocks.
    greedy : int32 (S,), written: the best action, but a later one only if it is better than the
    one kept so far by more than rates[SLACK].
    found : float64 (3,), written, of the last sweep: largest change, largest change downwards
    (negated smallest change), number of states whose `greedy` changed.
    """
    rise, fall, changed = -np.inf, -np.inf, 0.0
    for k in range(control[BEGIN], control[END]):
        read, write = v, new
        if (k - control[BEGIN]) & 1:
            read, write = new, v
        rise, fall, changed = -np.inf, -np.inf, 0.0
        for block in range(cuts.size - 1):
            first, last = cuts[block], cuts[block + 1]
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
                begin, end = i8(policy[s]), i8(policy[s]) + 1
                if begin < 0:
                    begin, end = 0, N_ACTIONS
                best, kept, action = -np.inf, -np.inf, begin
                for a in range(begin, end):
                    other = backup(s, a, read, write, low, high, rates, params)
                    best = max(best, other)
                    if other > kept + rates[SLACK]:
                        kept, action = other, a
                change = best - read[s]
                write[s] = best
                rise, fall = max(rise, change), max(fall, -change)
                if greedy[s] != action:
                    greedy[s] = i4(action)
                    changed += 1.0
    found[RISE], found[FALL], found[CHANGED] = rise, fall, changed


def settle(settled, policy, mask, params, found):
    """Mark the states from which a policy can end the episode; `settled` is zero on entry.

    settled : uint8 (S,), written: 1 where the end has a positive probability. found : float64
    (2,), written: masked states left unmarked, and the rewarded outcomes met in these.
    """
    n_states, changed, downwards = mask.size, True, True
    while changed:
        changed = False
        for j in range(n_states):
            s = n_states - 1 - j if downwards else j
            if mask[s] == 0 or settled[s] != 0:
                continue
            action = i8(policy[s])
            for i in range(outcomes(s, action, params)):
                probability, ahead, reward, terminated = outcome(s, action, i, params)
                if probability > 0 and (terminated or settled[i8(ahead)] != 0):
                    settled[s] = 1
                    changed = True
                    break
        downwards = not downwards
    unsettled, rewarded = 0.0, 0.0
    for s in range(n_states):
        if mask[s] == 0 or settled[s] != 0:
            continue
        unsettled += 1.0
        action = i8(policy[s])
        for i in range(outcomes(s, action, params)):
            probability, ahead, reward, terminated = outcome(s, action, i, params)
            rewarded += f8(probability > 0 and reward != 0)
    found[UNSETTLED], found[REWARDED] = unsettled, rewarded


def greedy(q, values, policy, mask, control, found):
    """Read value and lowest greedy action of the masked states in [first, last) off a table.

    q : flat, float32 or float64, control[STRIDE] values per state, from state `first` on. values
    float64, policy int32 (S,): written. control : int64 (4,): q values per state, first, last, and
    one not used here. found : float64 (1,), written: values of q that are not finite.
    """
    non_finite, stride, first = 0.0, control[STRIDE], control[FIRST]
    for s in range(first, control[LAST]):
        if mask[s] == 0:
            continue
        row = (s - first) * stride
        best, action = f8(q[row]), 0
        for a in range(N_ACTIONS):
            value = f8(q[row + a])
            non_finite += f8(not abs(value) < np.inf)
            if value > best:
                best, action = value, a
        values[s], policy[s] = best, i4(action)
    found[0] = non_finite


def residual(q, values, optimal, policy, mask, control, rates, params, found):
    """Measure a table against one backup of itself, in the masked states of [first, last).

    q : as in `greedy`. values, policy : what `greedy` read off it. optimal : float64 (S,), V*, read
    if control[KNOWN].
    control : int64 (4,): q values per state, first, last, whether V* is known.
    found : float64 (7,), written: the largest of TQ - Q, of Q - TQ, and of |Q - Q*| over pairs
    (-inf if V* is unknown), of TV - V and of V - T_policy V over states, where V = max Q; the
    largest, and the negated smallest, probability of going on under the policy.
    """
    stride, first = control[STRIDE], control[FIRST]
    pair_rise, pair_fall, distance = -np.inf, -np.inf, -np.inf
    state_rise, state_fall, most, least = -np.inf, -np.inf, -np.inf, -np.inf
    for s in range(first, control[LAST]):
        if mask[s] == 0:
            continue
        row, best = (s - first) * stride, -np.inf
        for a in range(N_ACTIONS):
            target = backup(s, a, values, values, 0, 0, rates, params)
            difference = target - f8(q[row + a])
            pair_rise, pair_fall = max(pair_rise, difference), max(pair_fall, -difference)
            best = max(best, target)
            if a == policy[s]:
                state_fall = max(state_fall, values[s] - target)
            if control[KNOWN]:
                exact = backup(s, a, optimal, optimal, 0, 0, rates, params)
                distance = max(distance, abs(exact - f8(q[row + a])))
        state_rise = max(state_rise, best - values[s])
        going_on = mass(s, i8(policy[s]), params)
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
    control, rates, found = np.zeros(4, i8), np.zeros(4), np.zeros(7)
    return {
        "plan_reach": Kernel(reach, parts, (mask, control, policy, v, control, params, found)),
        "plan_sweep": Kernel(
            sweep, parts, (v, v, policy, policy, mask, control, control, rates, params, found)
        ),
        "plan_settle": Kernel(settle, parts, (mask, policy, mask, params, found)),
        "plan_greedy": Kernel(greedy, parts, (q, v, policy, mask, control, found)),
        "plan_residual": Kernel(
            residual, parts, (q, v, v, policy, mask, control, rates, params, found)
        ),
    }
