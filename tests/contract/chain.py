"""A user's own law in 20 lines: a walk on a line whose last state ends the episode."""


class Chain:
    """`length` states in a row; action 1 goes right, 0 left, and either may slip and stay."""

    n_actions = 2
    n_outcomes = 2

    def __init__(self, length: int = 7, slip: float = 0.1) -> None:
        self.n_states = length
        self.params = (length, slip)

    @staticmethod
    def outcome(state, action, i, params):  # type: ignore[no-untyped-def]
        length, slip = params
        step = (2 * action - 1) * (1 - i)
        new = min(max(state + step, 0), length - 1)
        return (1 - slip if i == 0 else slip), new, -1.0, new == length - 1

    @staticmethod
    def start(i, params):  # type: ignore[no-untyped-def]
        return 1.0, 0
