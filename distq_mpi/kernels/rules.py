"""Rules: what a transition bootstraps from. Laws for one transition.

Each maker takes (n_actions, expected) and returns bootstrap(q, row, a_next, value, explore, part,
word): the table as a 1-D array, the first index of next_state's row (uint64), the action chosen
there, the largest value the policy sees there, the behaviour's `explore`, which part of the row is
being updated (uint64, first index of it within the row), and the draw's first word.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from distq_mpi.kernels.exploration import best_of, epsilon_greedy

u8, f8 = np.uint64, np.float64

COIN_SHIFT = u8(29)


def q_learning(n_actions, expected):
    """Bootstrap from the best action (Watkins & Dayan 1992)."""

    def bootstrap(q, row, a_next, value, explore, part, word):
        return f8(value)

    return bootstrap


def sarsa(n_actions, expected):
    """Bootstrap from the action that will be executed (Rummery & Niranjan 1994)."""

    def bootstrap(q, row, a_next, value, explore, part, word):
        return f8(q[row + a_next])

    return bootstrap


def expected_sarsa(n_actions, expected):
    """Bootstrap from the mean over the behaviour's actions (van Seijen et al. 2009)."""

    def bootstrap(q, row, a_next, value, explore, part, word):
        return expected(q, row, value, explore)

    return bootstrap


def double_q(n_actions, expected):
    """Bootstrap from the other part's value of this part's best action (van Hasselt 2010).

    Exact ties are broken uniformly, by the bits that break those of the behaviour: where a table
    starts with equal values, always taking the first keeps the bias that the rule is there to avoid
    for longer.
    """
    best, choose, width = best_of(n_actions), epsilon_greedy(n_actions), u8(n_actions)

    def bootstrap(q, row, a_next, value, explore, part, word):
        own = row + part
        a_best = choose(q, own, best(q, own)[1], word, u8(0))
        return f8(q[row + (width - part) + a_best])

    return bootstrap


def only_part(n_actions):
    """Return toss(bits) -> 0, where a row has one part."""

    def toss(bits):
        return u8(0)

    return toss


def coin(n_actions):
    """Return toss(bits) -> first index of the part to update, by bit 29 of a draw's second word."""
    width = u8(n_actions)

    def toss(bits):
        return ((bits >> COIN_SHIFT) & u8(1)) * width

    return toss


@dataclass(frozen=True)
class Rule:
    """One rule.

    Parameters
    ----------
    bootstrap : its maker.
    n_parts : values that a row has for each action.
    averages : whether the policy sees the mean of the parts (Double Q), not the first alone.
    keeps_gap : whether its values are those of an exploring behaviour, not the optimal ones.
    """

    bootstrap: Callable[..., Any]
    n_parts: int = 1
    averages: bool = False
    keeps_gap: bool = False


RULES = {
    "q_learning": Rule(q_learning),
    "sarsa": Rule(sarsa, keeps_gap=True),
    "expected_sarsa": Rule(expected_sarsa, keeps_gap=True),
    "double_q": Rule(double_q, n_parts=2, averages=True),
    "watkins_q_lambda": Rule(q_learning),
    # Which transitions they learn from again is `planning`.
    "dyna_q": Rule(q_learning),
    "prioritized_sweeping": Rule(q_learning),
    # What their targets gain is `optimism`.
    "ucb_hoeffding": Rule(q_learning),
    "ucb_discounted": Rule(q_learning, n_parts=2),
    # Learned in sweeps (`generative`), which take of these the number of parts only.
    "speedy_q": Rule(q_learning, n_parts=2),
    "variance_reduced_q": Rule(q_learning, n_parts=3),
}
