"""The built-in law `grid`: a slippery grid of any size, with walls and pits."""

from __future__ import annotations

from typing import Any

import numpy as np

from distq_mpi.environments.arguments import real_number, time_limit, whole_number
from distq_mpi.environments.layout import GOAL, PIT, WALL, read_layout
from distq_mpi.errors import ModelError

u8, i8 = np.uint64, np.int64

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
    """Return a number in [0, 2^53) that is fixed for (cell, seed): half of splitmix64."""
    x = (u8(cell) + u8(1)) * u8(0x9E3779B97F4A7C15) + u8(seed) * u8(0xD1B54A32D192ED03)
    x = (x ^ (x >> u8(30))) * u8(0xBF58476D1CE4E5B9)
    return i8((x ^ (x >> u8(32))) >> u8(11))


def obstacle_outcome(state, action, i, params):  # type: ignore[no-untyped-def]
    """Move as `open_outcome` does; walls stop the move, pits end the episode with reward 0.

    A cell whose draw is below `walls` is a wall, below `obstacles` a wall or a pit.
    """
    rows, columns, slip, step_reward, goal_reward, walls, obstacles, seed = params
    plain = (rows, columns, slip, step_reward, goal_reward)
    probability, cell, reward, goal = open_outcome(state, action, i, plain)
    draw = layout_draw(cell, seed)
    inner = (cell > 0) & (cell < rows * columns - 1)
    wall = (draw < walls) & inner
    pit = (draw >= walls) & (draw < obstacles) & inner
    # Arithmetic, not if: the layout is as hard to predict for the processor as it is random.
    return probability, cell + wall * (state - cell), (1 - pit) * reward, goal | pit


def layout_outcome(state, action, i, params):  # type: ignore[no-untyped-def]
    """Move as `obstacle_outcome` does, over cells that are drawn, not seeded; any may be a goal."""
    rows, columns, slip, step_reward, goal_reward, cells, starts = params
    plain = (rows, columns, slip, step_reward, goal_reward)
    probability, cell, _, _ = open_outcome(state, action, i, plain)
    kind = cells[u8(cell)]
    wall, pit, goal = kind == WALL, kind == PIT, kind == GOAL
    reward = goal_reward if goal else step_reward
    return probability, cell + wall * (state - cell), (1 - pit) * reward, goal | pit


def layout_start(i, params):  # type: ignore[no-untyped-def]
    """Start in any of the drawn cells, each as likely."""
    rows, columns, slip, step_reward, goal_reward, cells, starts = params
    return 1.0 / starts.size, starts[i]


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
    layout : a text file that draws the cells instead (see `layout.read_layout`).
    max_episode_steps : time limit, 0 = none; seeded walls may close off the goal.

    Nothing is stored per cell, so there is no limit on the size but 2^62 states; a layout takes a
    byte per cell, once per host.
    """

    n_actions = 4
    arrows = "↑→↓←"

    def __init__(
        self,
        rows: int | None = None,
        columns: int | None = None,
        slip: float = 0.0,
        step_reward: float = -1.0,
        goal_reward: float = 0.0,
        wall_density: float = 0.0,
        pit_density: float = 0.0,
        layout_seed: int = 0,
        max_episode_steps: int = 0,
        layout: str | None = None,
    ) -> None:
        slip = real_number("slip", slip, 0.0, 1.0)
        step_reward = real_number("step_reward", step_reward)
        goal_reward = real_number("goal_reward", goal_reward)
        self.n_outcomes = 3 if slip > 0 else 1
        self.max_episode_steps = time_limit(max_episode_steps)
        # Without positive rewards on the way, only the last step can raise the return.
        self.return_bound = max(0.0, goal_reward) if step_reward <= 0 else None
        if layout is not None:
            seeded = {"rows": rows, "columns": columns, "wall_density": wall_density,
                      "pit_density": pit_density, "layout_seed": layout_seed}  # fmt: skip
            given = [name for name, value in seeded.items() if value]
            if given:
                raise ModelError(f"{given[0]} is what the layout {layout} says: leave it out")
            self._draw(layout, (slip, step_reward, goal_reward))
            return
        if rows is None or columns is None:
            raise ModelError(
                f"missing a required argument: '{'rows' if rows is None else 'columns'}' "
                "(or 'layout', a text file)"
            )
        rows = whole_number("rows", rows, 1, 2**31 - 1)
        columns = whole_number("columns", columns, 1, 2**31 - 1)
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
        self.grid = (rows, columns)
        self.start = origin
        self.params: tuple[Any, ...] = (rows, columns, slip, step_reward, goal_reward)
        self.outcome = open_outcome
        walls = int(wall_density * 2**53)
        obstacles = int((wall_density + pit_density) * 2**53)
        if obstacles > 0:
            self.params += (walls, obstacles, layout_seed)
            self.outcome = obstacle_outcome
        self.marks = ""
        if max(rows, columns) <= DRAWN:
            with np.errstate(over="ignore"):
                draws = [layout_draw(cell, layout_seed) for cell in range(1, self.n_states - 1)]
            inner = ("#" if draw < walls else "O" if draw < obstacles else "." for draw in draws)
            self.marks = f"S{''.join(inner)}G"

    def _draw(self, path: str, rewards: tuple[float, float, float]) -> None:
        layout = read_layout(path)
        rows, columns = self.grid = layout.cells.shape
        self.n_states = rows * columns
        self.n_starts, self.uniform_starts = layout.starts.size, True
        self.params = (rows, columns, *rewards, layout.cells.ravel(), layout.starts)
        self.outcome, self.start = layout_outcome, layout_start
        self.marks = layout.marks if max(rows, columns) <= DRAWN else ""
