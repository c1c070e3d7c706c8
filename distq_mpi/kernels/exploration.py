"""Exploration: the greedy action of a row, and the behaviour built on it.

`at(q, index)` is the value a policy sees at an index of the flat table: the entry itself, or the
mean of a row's two parts under Double Q. Where only the order of values matters their sum will do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from distq_mpi.kernels.elementary import exponential
from distq_mpi.kernels.storing import bits_of, float_of

u8, f8 = np.uint64, np.float64
LOW32 = u8(0xFFFFFFFF)
SHIFT32 = u8(32)


def entry(q, index):
    """The value of a table of one part."""
    return q[index]


def sum_of_parts(n_actions):
    """Return at(q, index) for rows of two parts: their sum, which orders actions as the mean does.
    """
    width = u8(n_actions)

    def at(q, index):
        return q[index] + q[index + width]

    return at


def mean_of_parts(n_actions):
    """Return at(q, index) for rows of two parts: their mean, the value of the policy."""
    width = u8(n_actions)

    def at(q, index):
        return f8(0.5) * (f8(q[index]) + f8(q[index + width]))

    return at


def best_of(n_actions, at=entry):
    """Return best(q, row) -> (lowest greedy action uint64, its value) for `n_actions`.

    For the commonest numbers a tree of selects, without branches.
    """

    def four(q, row):
        q0, q1, q2, q3 = at(q, row), at(q, row + u8(1)), at(q, row + u8(2)), at(q, row + u8(3))
        i0, m0 = (u8(1), q1) if q1 > q0 else (u8(0), q0)
        i1, m1 = (u8(3), q3) if q3 > q2 else (u8(2), q2)
        return (i1, m1) if m1 > m0 else (i0, m0)

    def six(q, row):
        i0, m0 = four(q, row)
        q4, q5 = at(q, row + u8(4)), at(q, row + u8(5))
        i1, m1 = (u8(5), q5) if q5 > q4 else (u8(4), q4)
        return (i1, m1) if m1 > m0 else (i0, m0)

    def eight(q, row):
        i0, m0 = four(q, row)
        i1, m1 = four(q, row + u8(4))
        return (i1 + u8(4), m1) if m1 > m0 else (i0, m0)

    def best(q, row):
        index, value = u8(0), at(q, row)
        for a in range(1, n_actions):
            other = at(q, row + u8(a))
            index, value = (u8(a), other) if other > value else (index, value)
        return index, value

    return {4: four, 6: six, 8: eight}.get(n_actions, best)


def epsilon_greedy(n_actions, at=entry):
    """Return choose(q, row, value, word, explore) -> action (uint64), epsilon-greedy.

    `value` is the row's largest, `explore` epsilon as a threshold of 2^32 (uint64). Exact ties are
    broken uniformly by the bits that would have picked the random action (unused when not
    exploring): from a table of equal values the lowest index alone would never explore. No
    branches: ties are common where a table starts optimistic, and unpredictable.
    """
    count = u8(n_actions)

    def choose(q, row, value, word, explore):
        high = word >> SHIFT32
        tied = u8(0)
        for a in range(n_actions):
            tied += u8(at(q, row + u8(a)) == value)
        wanted = (high * tied) >> SHIFT32
        passed, index = u8(0), u8(0)
        for a in range(n_actions - 1):
            passed += u8(at(q, row + u8(a)) == value)
            index += u8(passed <= wanted)
        return (high * count) >> SHIFT32 if (word & LOW32) < explore else index

    return choose


def epsilon_greedy_mean(n_actions, at=entry):
    """Return expected(q, row, value, explore) -> mean value under `epsilon_greedy`."""

    def expected(q, row, value, explore):
        epsilon, total = f8(explore) * 2.0**-32, 0.0
        for a in range(n_actions):
            total += f8(at(q, row + u8(a)))
        return (1.0 - epsilon) * f8(value) + epsilon * (total / n_actions)

    return expected


def softmax(n_actions, at=entry):
    """Return choose(q, row, value, word, explore): probability proportional to e^(q / temperature).

    `explore` holds the bits of 1 / temperature. The largest value is subtracted first.
    """

    def choose(q, row, value, word, explore):
        inverse, total = float_of(explore), 0.0
        for a in range(n_actions):
            total += exponential((f8(at(q, row + u8(a))) - f8(value)) * inverse)
        wanted = (f8(word >> SHIFT32) + 0.5) * 2.0**-32 * total
        passed, index = 0.0, u8(0)
        for a in range(n_actions - 1):
            passed += exponential((f8(at(q, row + u8(a))) - f8(value)) * inverse)
            index += u8(passed <= wanted)
        return index

    return choose


def softmax_mean(n_actions, at=entry):
    """Return expected(q, row, value, explore) -> mean value under `softmax`."""

    def expected(q, row, value, explore):
        inverse, total, weighted = float_of(explore), 0.0, 0.0
        for a in range(n_actions):
            q_a = f8(at(q, row + u8(a)))
            weight = exponential((q_a - f8(value)) * inverse)
            total += weight
            weighted += weight * q_a
        return weighted / total

    return expected


def one_action(n_actions, at=entry):
    """Return choose(q, row, value, word, explore) of studies: action number `explore`, always."""

    def choose(q, row, value, word, explore):
        return explore

    return choose


def epsilon_threshold(epsilon: float) -> int:
    """Return a probability as kernels compare it: a threshold of 2^32."""
    return round(epsilon * 2**32)


def inverse_bits(temperature: float) -> int:
    """Return a temperature as kernels take it: the bits of its inverse."""
    return int(bits_of(1.0 / temperature))


@dataclass(frozen=True)
class Exploration:
    """One behaviour: makers of `choose` and `expected` for (n_actions, at), and of `explore`.

    Parameters
    ----------
    key : the key of `[learn]` that decides how much is explored; `key`_final, `key`_steps and
        `key`_schedule say how it changes.
    by_value : whether `choose` depends on how far values are apart, not on their order alone.
    """

    choose: Callable[..., Any]
    expected: Callable[..., Any]
    key: str
    encode: Callable[[float], int]
    by_value: bool = False

    def seen(self, averages: bool, n_actions: int) -> Callable[..., Any]:
        """Return the `at` of this behaviour. averages : of the rule, see `rules.Rule`."""
        if not averages:
            return entry
        return mean_of_parts(n_actions) if self.by_value else sum_of_parts(n_actions)


EXPLORATIONS = {
    "epsilon_greedy": Exploration(
        epsilon_greedy, epsilon_greedy_mean, "epsilon", epsilon_threshold
    ),
    "softmax": Exploration(softmax, softmax_mean, "temperature", inverse_bits, by_value=True),
    "one_action": Exploration(one_action, epsilon_greedy_mean, "epsilon", int),
}
