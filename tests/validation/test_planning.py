"""T6: planning in the Dyna maze (Sutton & Barto 2018, example 8.1, figure 8.2)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from distq_mpi.environments.base import Environment
from distq_mpi.environments.explicit import explicit_model
from distq_mpi.kernels import loop
from tests.driving import Learner
from tests.stand_in import config

ROWS, COLUMNS, START, GOAL = 6, 9, (2, 0), (0, 8)
WALLS = {(1, 2), (2, 2), (3, 2), (4, 5), (0, 7), (1, 7), (2, 7)}
N_RUNS = 100


def move(state: int, action: int) -> int:
    """Up, right, down, left; a bump stays."""
    row, column = divmod(state, COLUMNS)
    down, right = ((-1, 0), (0, 1), (1, 0), (0, -1))[action]
    cell = (row + down, column + right)
    inside = 0 <= cell[0] < ROWS and 0 <= cell[1] < COLUMNS and cell not in WALLS
    return cell[0] * COLUMNS + cell[1] if inside else state


def steps_of(q: np.ndarray) -> int:
    """Steps of the greedy path from the start to the goal; 100 where it does not come there."""
    state = START[0] * COLUMNS + START[1]
    for n in range(100):
        if state == GOAL[0] * COLUMNS + GOAL[1]:
            return n
        state = move(state, int(q[state].argmax()))
    return 100


def maze() -> Environment:
    """1 at the goal, which ends."""
    following = [move(state, action) for state in range(ROWS * COLUMNS) for action in range(4)]
    ends = [state == GOAL[0] * COLUMNS + GOAL[1] for state in following]
    n = len(following)
    start = np.zeros(ROWS * COLUMNS)
    start[START[0] * COLUMNS + START[1]] = 1.0
    return explicit_model(
        "maze", ROWS * COLUMNS, 4, np.arange(n + 1), following, np.ones(n), np.array(ends, float),
        ends, start,
    )  # fmt: skip


def episodes(rule: str, n_planned: int, n_episodes: int) -> np.ndarray:
    """Mean length of each episode over runs."""
    environment, kernels = maze(), None
    learn = config(
        rule=rule, planning_steps=n_planned, step_size="constant", alpha=0.1, discount=0.95,
    ).learn  # fmt: skip
    lengths = np.zeros((N_RUNS, n_episodes), int)
    for seed in range(N_RUNS):
        learner = Learner(environment, learn, 1, 0, 0.1, seed, True, kernels)
        kernels = learner.kernels
        learner.begin()
        age = learner.lanes.arrays()[5]
        number = 0
        while number < n_episodes:
            learner.learn()
            lengths[seed, number] += 1
            number += int(age[0] == 0)
        assert learner.totals[loop.EPISODES] == n_episodes
    found: np.ndarray = lengths.mean(axis=0)
    return found


@pytest.mark.parametrize(
    ("n_planned", "third", "tenth"), [(0, 476, 140), (5, 54, 17), (50, 17, 16)]
)
def test_T6_dyna_in_the_maze(n_planned: int, third: float, tenth: float) -> None:
    found: Any = episodes("dyna_q", n_planned, 10)
    assert found[[2, 9]] == pytest.approx([third, tenth], rel=0.15)


def updates_until_shortest(rule: str, seed: int, kernels: Any) -> tuple[int, Any]:
    """Updates until the greedy path from the start takes 14 steps, the fewest there are."""
    environment = maze()
    learn = config(
        rule=rule, planning_steps=5, step_size="constant", alpha=0.5, discount=0.95,
    ).learn  # fmt: skip
    learner = Learner(environment, learn, 1, 0, 0.1, seed, True, kernels)
    learner.begin()
    while True:
        learner.learn(10)
        if steps_of(learner.rows.values) == 14:
            return int(learner.rows.clock.sum()), learner.kernels


def test_T6_prioritized_sweeping_needs_fewer_updates() -> None:
    """Sutton & Barto 2018, example 8.4: 5 to 10 times fewer than Dyna-Q, in mazes like this one."""
    medians = {}
    for rule in ("dyna_q", "prioritized_sweeping"):
        kernels, found = None, []
        for seed in range(15):
            n, kernels = updates_until_shortest(rule, seed, kernels)
            found.append(n)
        medians[rule] = float(np.median(found))
    print(medians)
    assert 3 * medians["prioritized_sweeping"] < medians["dyna_q"]
