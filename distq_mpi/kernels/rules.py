"""Rules: what a transition bootstraps from. Laws for one transition.

Each takes (q, row, a_next, value): the table as a 1-D array, the first index of next_state's row
(uint64), the action chosen there, and max_a q[row + a]; each returns the bootstrap value.
"""


def q_learning(q, row, a_next, value):
    """Bootstrap from the best action (Watkins & Dayan 1992)."""
    return value


def sarsa(q, row, a_next, value):
    """Bootstrap from the action that will be executed (Rummery & Niranjan 1994)."""
    return q[row + a_next]


RULES = {"q_learning": q_learning, "sarsa": sarsa}
