"""The built-in law `grid`: a slippery grid of any size, with walls and pits."""

from __future__ import annotations

import numpy as np

from distq_mpi.environments.arguments import real_number, time_limit, whole_number
from distq_mpi.errors import ModelError

u8, f8 = np.uint64, np.float64

DRAWN = 40
"""Largest side of a grid whose walls and pits are drawn."""


def open_outcome(state, action, i, params):  # type: ignore[no-untyped-def]
    """Move on a grid without obstacles; outcome 0 is the intended move, 1 and 2 slip sideways."""
    rows, columns, slip, step_reward, goal_reward = params
    move = (action + i + (i >> 1)) & 3
    row = state // columns
    column = state - row * columns
    row = row + (move == 2) - (move == 0)
    column = column + (move == 1) - (move == 3)
    row = min(max(row, 0), rows - 1)
    column = min(max(column, 0), columns - 1)
    cell = row * columns + column
    goal = cell == rows * columns - 1
    probability = 1.0 - slip if i == 0 else slip * 0.5
    return probability, cell, goal_reward if goal else step_reward, goal


def layout_draw(cell, seed):  # type: ignore[no-untyped-def]
    """Return a number in [0, 1) that is fixed for (cell, seed): the finaliser of splitmix64."""
    x = (u8(cell) + u8(1)) * u8(0x9E3779B97F4A7C15) + u8(seed) * u8(0xD1B54A32D192ED03)
    x = (x ^ (x >> u8(30))) * u8(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> u8(27))) * u8(0x94D049BB133111EB)
    x = x ^ (x >> u8(31))
    return f8(x >> u8(11)) * 2.0**-53


def obstacle_outcome(state, action, i, params):  # type: ignore[no-untyped-def]
    """Move as `open_outcome` does; walls stop the move, pits end the episode with reward 0."""
    rows, columns, slip, step_reward, goal_reward, wall_density, pit_density, seed = params
    plain = (rows, columns, slip, step_reward, goal_reward)
    probability, cell, reward, goal = open_outcome(state, action, i, plain)
    draw = layout_draw(cell, seed)
    free = goal | (cell == 0)
    wall = (draw < wall_density) & (not free)
    pit = (draw >= wall_density) & (draw < wall_density + pit_density) & (not free)
    reward = 0.0 if pit else reward
    return probability, state if wall else cell, reward, goal | pit


def origin(i, params):  # type: ignore[no-untyped-def]
    """Start in the first cell."""
    return 1.0, 0


class Grid:
    """A grid walked in four directions (up, right, down, left) from the first to the last cell.

    Parameters
    ----------
    rows, columns : sides; the states are the cells, row-major.
    slip : probability of leaving the intended direction, half of it to either side.
    step_reward, goal_reward : reward of a step and of the step that reaches the goal, which ends
        the episode. Moving against the border or a wall is a step that stays.
    wall_density, pit_density : share of cells that are walls and pits; a pit ends the episode
        with reward 0. First and last cell are free.
    layout_seed : decides which cells.
    max_episode_steps : time limit, 0 = none; walls may close off the goal.

    Nothing is stored per cell, so there is no limit on the size but 2^62 states.
    """

    n_actions = 4
    arrows = "↑→↓←"
    start = staticmethod(origin)

    def __init__(
        self,
        rows: int,
        columns: int,
        slip: float = 0.0,
        step_reward: float = -1.0,
        goal_reward: float = 0.0,
        wall_density: float = 0.0,
        pit_density: float = 0.0,
        layout_seed: int = 0,
        max_episode_steps: int = 0,
    ) -> None:
        rows = whole_number("rows", rows, 1, 2**31 - 1)
        columns = whole_number("columns", columns, 1, 2**31 - 1)
        slip = real_number("slip", slip, 0.0, 1.0)
        step_reward = real_number("step_reward", step_reward)
        goal_reward = real_number("goal_reward", goal_reward)
        wall_density = real_number("wall_density", wall_density, 0.0, 1.0)
        pit_density = real_number("pit_density", pit_density, 0.0, 1.0)
        layout_seed = whole_number("layout_seed", layout_seed, 0, 2**63 - 1)
        if rows * columns < 2:
            raise ModelError("rows x columns must be at least 2 cells, not 1")
        if wall_density + pit_density >= 1.0:
            raise ModelError(
                f"wall_density + pit_density must be below 1, not {wall_density + pit_density:g}"
            )
        self.n_states = rows * columns
        self.n_outcomes = 3 if slip > 0 else 1
        self.max_episode_steps = time_limit(max_episode_steps)
        # Without positive rewards on the way, only the last step can raise the return.
        self.return_bound = max(0.0, goal_reward) if step_reward <= 0 else None
        self.grid = (rows, columns)
        self.params: tuple[int | float, ...] = (rows, columns, slip, step_reward, goal_reward)
        self.outcome = open_outcome
        self.marks = ""
        if wall_density > 0 or pit_density > 0:
            self.params += (wall_density, pit_density, layout_seed)
            self.outcome = obstacle_outcome
        if max(rows, columns) <= DRAWN:
            self.marks = "S" + "".join(
                self._mark(cell, wall_density, pit_density, layout_seed)
                for cell in range(1, self.n_states - 1)
            ) + "G"

    @staticmethod
    def _mark(cell: int, wall_density: float, pit_density: float, seed: int) -> str:
        with np.errstate(over="ignore"):
            draw = layout_draw(cell, seed)
        return "#" if draw < wall_density else "O" if draw < wall_density + pit_density else "."
