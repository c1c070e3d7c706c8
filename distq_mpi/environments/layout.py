"""Grids that are drawn in a text file."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from distq_mpi.errors import ModelError

FREE, WALL, PIT, GOAL = range(4)
KINDS = {".": FREE, " ": FREE, "S": FREE, "#": WALL, "O": PIT, "H": PIT, "G": GOAL}


@dataclass(frozen=True)
class Layout:
    """What a file draws.

    cells : int8 (rows, columns), FREE, WALL, PIT or GOAL. starts : int64, the cells marked S,
    ascending, row-major. marks : the characters of all cells, a space being a dot.
    """

    cells: np.ndarray
    starts: np.ndarray
    marks: str


def read_layout(path: str) -> Layout:
    """Read a layout: a row per line, `#` wall, `O` or `H` pit, `S` start, `G` goal, `.` free.

    A space is free, too. All rows have the same length; lines left empty at the end are ignored.

    Raises
    ------
    ModelError
        Naming line and column for a character that means nothing, a row of another length, a
        start from which no goal can be reached; or if the file cannot be read, or lacks S or G.
    """
    if not isinstance(path, str):
        raise ModelError(f"layout must be the name of a text file, not {path!r}")
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = file.read().split("\n")
    except OSError as error:
        raise ModelError(f"layout: cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ModelError(f"layout: {path} is not a text file: {error}") from error
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise ModelError(f"layout: {path} is empty")
    columns = len(lines[0])
    for number, line in enumerate(lines, 1):
        if len(line) != columns:
            raise ModelError(
                f"layout: {path}, line {number}: {len(line)} cells, but line 1 has {columns} "
                "(editors drop spaces at the end of a line: write . for a free cell)"
            )
    text = "".join(lines)
    strange = set(text) - set(KINDS)
    if strange:
        at = min(text.index(character) for character in strange)
        raise ModelError(
            f"layout: {path}, line {at // columns + 1}, column {at % columns + 1}: {text[at]!r} "
            "means nothing; # is a wall, O or H a pit, S a start, G a goal, . free"
        )
    for character, name in (("S", "start"), ("G", "goal")):
        if character not in text:
            raise ModelError(f"layout: {path} has no {name} ({character})")
    codes = np.frombuffer(text.encode("ascii"), np.uint8)
    kinds = np.zeros(128, np.int8)
    kinds[[ord(character) for character in KINDS]] = list(KINDS.values())
    cells, starts = kinds[codes].reshape(-1, columns), np.flatnonzero(codes == ord("S"))
    lost = _lost(cells, starts)
    if lost is not None:
        raise ModelError(
            f"layout: {path}, line {lost // columns + 1}, column {lost % columns + 1}: no goal can "
            "be reached from this start"
        )
    return Layout(cells, starts, text.replace(" ", "."))


def _lost(cells: np.ndarray, starts: np.ndarray) -> int | None:
    """Return the first start without a way to a goal, None where all have one.

    Whoever can walk from one free cell to the next can walk back, so what one flood from all goals
    does not meet is lost.
    """
    rows, columns = cells.shape
    width = columns + 2
    open_cells = np.zeros((rows + 2, width), np.uint8)
    open_cells[1:-1, 1:-1] = cells == FREE
    left = bytearray(open_cells.tobytes())  # 1 = free and not met yet
    goals = np.argwhere(cells == GOAL) + 1
    edge = (goals @ [width, 1]).tolist()
    while edge:
        cell = edge.pop()
        for near in (cell - width, cell - 1, cell + 1, cell + width):
            if left[near]:
                left[near] = 0
                edge.append(near)
    padded = (starts // columns + 1) * width + starts % columns + 1
    met = np.frombuffer(left, np.uint8)[padded] == 0
    return None if met.all() else int(starts[np.argmin(met)])
