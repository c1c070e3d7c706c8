"""Exploration: the greedy action of a row, and the behaviour built on it."""

import numpy as np

u8 = np.uint64
LOW32 = u8(0xFFFFFFFF)
SHIFT32 = u8(32)


def best_of_4(q, row):
    """Lowest greedy action and its value, as a tree of selects (no branches)."""
    q0, q1, q2, q3 = q[row], q[row + u8(1)], q[row + u8(2)], q[row + u8(3)]
    i0, m0 = (u8(1), q1) if q1 > q0 else (u8(0), q0)
    i1, m1 = (u8(3), q3) if q3 > q2 else (u8(2), q2)
    return (i1, m1) if m1 > m0 else (i0, m0)


def best_of_6(q, row):
    """As `best_of_4` for 6 actions."""
    i0, m0 = best_of_4(q, row)
    q4, q5 = q[row + u8(4)], q[row + u8(5)]
    i1, m1 = (u8(5), q5) if q5 > q4 else (u8(4), q4)
    return (i1, m1) if m1 > m0 else (i0, m0)


def best_of_8(q, row):
    """As `best_of_4` for 8 actions."""
    i0, m0 = best_of_4(q, row)
    i1, m1 = best_of_4(q, row + u8(4))
    return (i1 + u8(4), m1) if m1 > m0 else (i0, m0)


def best_of(n_actions):
    """Return best(q, row) -> (lowest greedy action uint64, its value) for `n_actions`."""
    trees = {4: best_of_4, 6: best_of_6, 8: best_of_8}
    if n_actions in trees:
        return trees[n_actions]

    def best(q, row):
        index, value = u8(0), q[row]
        for a in range(1, n_actions):
            other = q[row + u8(a)]
            index, value = (u8(a), other) if other > value else (index, value)
        return index, value

    return best


def epsilon_greedy(n_actions):
    """Return choose(q, row, value, word, epsilon) -> action (uint64), epsilon-greedy.

    `value` is the row's largest, `epsilon` a uint64 threshold of 2^32. Exact ties are broken
    uniformly by the bits that would have picked the random action (unused when not exploring):
    from a table of equal values the lowest index alone would never explore. No branches: ties are
    common where a table starts optimistic, and unpredictable.
    """
    count = u8(n_actions)

    def choose(q, row, value, word, epsilon):
        high = word >> SHIFT32
        tied = u8(0)
        for a in range(n_actions):
            tied += u8(q[row + u8(a)] == value)
        wanted = (high * tied) >> SHIFT32
        passed, index = u8(0), u8(0)
        for a in range(n_actions - 1):
            passed += u8(q[row + u8(a)] == value)
            index += u8(passed <= wanted)
        return (high * count) >> SHIFT32 if (word & LOW32) < epsilon else index

    return choose
