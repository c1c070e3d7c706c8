"""A law in 20 lines: swim up a river against the current, or drift down."""


def outcome(state, action, i, params):
    """Outcomes 0, 1, 2: one place up, the same place, one place down."""
    length, up, down, treasure = params
    stay = 1.0 - up - down
    swim = up if i == 0 else stay if i == 1 else down
    place = min(max(state + 1 - i, 0), length - 1)
    found = place == length - 1
    return swim if action == 1 else 1.0 * (i == 2), place, treasure if found else -1.0, found


def start(i, params):
    return 1.0, 0


class River:
    n_actions, n_outcomes, arrows = 2, 3, "↓↑"
    outcome, start = staticmethod(outcome), staticmethod(start)

    def __init__(self, length=6, up=0.35, down=0.05, treasure=10.0):
        self.n_states = length
        self.params = (length, up, down, treasure)
        self.return_bound = treasure
