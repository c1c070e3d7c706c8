"""Worlds of Sutton & Barto (2018), as explicit models. Local, pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from distq_mpi.environments.base import Environment
from distq_mpi.environments.explicit import explicit_model

Outcome = tuple[float, int, float, bool]
"""probability, next state, reward, terminated."""

MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))
KING = (*MOVES, (-1, -1), (-1, 1), (1, -1), (1, 1))


def model_of(
    id: str,
    n_states: int,
    n_actions: int,
    outcomes: Callable[[int, int], Iterable[Outcome]],
    start: int | None = None,
    max_episode_steps: int = 0,
) -> Environment:
    """Return the model whose pairs have these outcomes; start : None = all states alike."""
    rows = [list(outcomes(s, a)) for s in range(n_states) for a in range(n_actions)]
    probability, following, reward, ends = (
        np.array(column) for column in zip(*(one for row in rows for one in row), strict=True)
    )
    starts = None if start is None else np.arange(n_states) == start
    return explicit_model(
        id, n_states, n_actions, np.cumsum([0, *map(len, rows)]), following, probability, reward,
        ends, None if starts is None else starts.astype(np.float64),
        max_episode_steps=max_episode_steps,
    )  # fmt: skip


def outcomes_of(environment: Environment, state: int, action: int) -> list[Outcome]:
    """Return the outcomes of a pair of an environment that has functions."""
    n = int(environment.outcomes(state, action, environment.params))
    found = (environment.outcome(state, action, i, environment.params) for i in range(n))
    return [(float(p), int(new), float(r), bool(end)) for p, new, r, end in found]


def mixed(environment: Environment, chances: np.ndarray, start: int | None = None) -> Environment:
    """Return the environment whose action m plays action a of the given one with a chance.

    chances : (S, M, A), or (M, A) for all states.
    """
    n_states, n_actions = environment.n_states, environment.n_actions
    table = np.broadcast_to(chances, (n_states, *np.shape(chances)[-2:]))

    def outcomes(state: int, mixture: int) -> Iterable[Outcome]:
        for action in range(n_actions):
            if chance := float(table[state, mixture, action]):
                for p, new, reward, ended in outcomes_of(environment, state, action):
                    yield p * chance, new, reward, ended

    return model_of("mixed", n_states, table.shape[1], outcomes, start)


def gambler(heads: float) -> Environment:
    """Example 4.3: capital 0 to 100, action a stakes a + 1 or what is allowed; 1 for winning."""

    def outcomes(capital: int, action: int) -> Iterable[Outcome]:
        stake = min(action + 1, capital, 100 - capital)
        if stake == 0:
            return [(1.0, capital, 0.0, True)]
        won, lost = capital + stake, capital - stake
        return [
            (heads, won, float(won == 100), won == 100),
            (1.0 - heads, lost, 0.0, lost == 0),
        ]

    return model_of("gambler", 101, 50, outcomes)


def _poisson(mean: float, n: int) -> np.ndarray:
    """Chances of 0 to n - 1 and, last, of n or more."""
    chances = np.array([math.exp(-mean) * mean**k / math.factorial(k) for k in range(n)])
    return np.append(chances, 1.0 - chances.sum())


def _location(rented: float, returned: float) -> tuple[np.ndarray, np.ndarray]:
    """Next numbers of cars (21, 21), and expected rentals (21,), from cars in the morning."""
    chances, rentals = np.zeros((21, 21)), np.zeros(21)
    for cars in range(21):
        for gone, p in enumerate(_poisson(rented, cars)):
            rentals[cars] += p * gone
            left = cars - gone
            for back, q in enumerate(_poisson(returned, 20 - left)):
                chances[cars, left + back] += p * q
    return chances, rentals


def car_rental() -> Environment:
    """Example 4.2: 0 to 20 cars at two places, action a moves a - 5 of them at 2 each.

    What cannot be moved is not, and costs nothing less: the better of such actions is a shorter
    move.
    """
    (one, rent_one), (two, rent_two) = _location(3, 3), _location(4, 2)
    n, n_actions = 441, 11
    probability, reward = np.empty((n, n_actions, n)), np.empty((n, n_actions))
    for state in range(n):
        first, second = divmod(state, 21)
        for action in range(n_actions):
            moved = max(-second, min(action - 5, first))
            a, b = min(first - moved, 20), min(second + moved, 20)
            probability[state, action] = np.outer(one[a], two[b]).reshape(-1)
            reward[state, action] = 10.0 * (rent_one[a] + rent_two[b]) - 2.0 * abs(action - 5)
    probability /= probability.sum(axis=2, keepdims=True)
    n_rows = n * n_actions
    return explicit_model(
        "car-rental", n, n_actions, np.arange(0, n_rows * n + 1, n), np.tile(np.arange(n), n_rows),
        probability.reshape(-1), np.repeat(reward.reshape(-1), n),
    )  # fmt: skip


def jumps() -> Environment:
    """Example 3.8: 5 x 5 cells; from A (0, 1) and B (0, 3) all moves jump down, +10 and +5."""

    def outcomes(state: int, action: int) -> Iterable[Outcome]:
        if state in (1, 3):
            return [(1.0, *((21, 10.0) if state == 1 else (13, 5.0)), False)]
        row, column = (x + d for x, d in zip(divmod(state, 5), MOVES[action], strict=True))
        inside = 0 <= row < 5 and 0 <= column < 5
        return [(1.0, 5 * row + column if inside else state, 0.0 if inside else -1.0, False)]

    return model_of("jumps", 25, 4, outcomes)


def _walk(
    id: str, rows: int, columns: int, start: tuple[int, int], goal: tuple[int, int],
    moves: Sequence[tuple[int, int]], wind: Sequence[int] = (), walls: Iterable[int] = (),
) -> Environment:  # fmt: skip
    """-1 a step until the goal; wind blows up by the column that is left."""
    walls, end = set(walls), columns * goal[0] + goal[1]

    def outcomes(state: int, action: int) -> Iterable[Outcome]:
        row, column = divmod(state, columns)
        up = wind[column] if wind else 0
        row = max(0, min(rows - 1, row + moves[action][0] - up))
        column = max(0, min(columns - 1, column + moves[action][1]))
        new = columns * row + column
        new = state if new in walls else new
        return [(1.0, new, -1.0, new == end)]

    return model_of(id, rows * columns, len(moves), outcomes, columns * start[0] + start[1])


def windy(king: bool) -> Environment:
    """Example 6.5, and exercise 6.9 with king's moves."""
    wind = (0, 0, 0, 1, 1, 1, 2, 2, 1, 0)
    return _walk("windy", 7, 10, (3, 0), (3, 7), KING if king else MOVES, wind)


def dyna_maze() -> Environment:
    """Figure 8.2: 6 x 9 cells, seven of wall."""
    walls = (9 + 2, 18 + 2, 27 + 2, 36 + 5, 7, 9 + 7, 18 + 7)
    return _walk("dyna-maze", 6, 9, (2, 0), (0, 8), MOVES, walls=walls)


def one_state() -> Environment:
    """One state, one action, reward 1 for ever: worth 1 / (1 - discount)."""
    return model_of("one-state", 1, 1, lambda state, action: [(1.0, 0, 1.0, False)])
