"""The greedy policy of a grid as text."""

from __future__ import annotations

from collections.abc import Sequence

PLAIN_MARKS = "SF. "
MAX_ROWS, MAX_COLUMNS = 32, 64


def draw_policy(
    greedy_actions: Sequence[int], grid: tuple[int, int] | None, arrows: str, marks: str
) -> str:
    """Draw one arrow per cell; local, pure.

    Parameters
    ----------
    greedy_actions : sequence of int, (S,)
        Greedy action per state; negative where no action is ever taken (unreachable, terminal).
    grid : (rows, columns) or None
        Shape of the grid, states row-major.
    arrows : str
        One character per action; "" draws the number of the action.
    marks : str
        One character per state, "" for none. All but S, F, dot and space are shown in place of an
        arrow (holes, walls, goals); without such a mark a cell where no action is taken is a dot.

    Returns
    -------
    str
        Lines without a newline at the end; "" if there is no grid or it is too large to draw.
    """
    if grid is None:
        return ""
    rows, columns = grid
    if rows > MAX_ROWS or columns > MAX_COLUMNS or rows * columns != len(greedy_actions):
        return ""
    names = arrows or "0123456789"
    cells = []
    for state, action in enumerate(greedy_actions):
        if marks and marks[state] not in PLAIN_MARKS:
            cells.append(marks[state])
        else:
            cells.append(names[action] if 0 <= action < len(names) else ".")
    return "\n".join(" ".join(cells[r * columns : (r + 1) * columns]) for r in range(rows))
