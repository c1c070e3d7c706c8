"""Grids drawn in a text file: what is read, what is refused, and that they are the grids seeded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distq_mpi.config import EnvConfig
from distq_mpi.environments import Environment, make
from distq_mpi.environments.checking import check_all
from distq_mpi.environments.layout import FREE, GOAL, PIT, WALL, read_layout
from distq_mpi.errors import ModelError
from distq_mpi.kernels.checking import checking_kernel
from distq_mpi.monitor.drawing import draw_policy
from tests.driving import Learner
from tests.stand_in import compiled, config

UP, RIGHT, DOWN, LEFT = range(4)


def made(**kwargs: Any) -> Environment:
    return make(EnvConfig(id="grid", kwargs=kwargs))


@pytest.fixture
def drawn(tmp_path: Path) -> Any:
    """Write a layout and make the grid."""

    def build(text: str | bytes, name: str = "maze.txt", **kwargs: Any) -> Environment:
        path = tmp_path / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return made(layout=str(path), **kwargs)

    return build


def outcomes(env: Environment) -> list[Any]:
    """Every outcome of every pair."""
    with np.errstate(over="ignore"):
        return [
            tuple(env.outcome(np.int64(s), np.int64(a), i, env.params))
            for s in range(env.n_states) for a in range(4)
            for i in range(env.outcomes(s, a, env.params))
        ]  # fmt: skip


MAZE = """S. G
.O#.
H..S
"""


def test_moves_by_hand(drawn: Any) -> None:
    env = drawn(MAZE, step_reward=-0.5, goal_reward=3.0)
    assert (env.n_states, env.n_actions, env.grid, env.kind) == (12, 4, (3, 4), "law")
    assert env.deterministic and env.return_bound == 3.0
    assert env.marks == "S..G.O#.H..S"

    def move(state: int, action: int) -> tuple[Any, ...]:
        return tuple(env.outcome(np.int64(state), np.int64(action), 0, env.params))

    expected = {
        (0, UP): (0, -0.5, False), (0, RIGHT): (1, -0.5, False), (2, DOWN): (2, -0.5, False),
        (1, DOWN): (5, 0.0, True), (4, RIGHT): (5, 0.0, True), (4, DOWN): (8, 0.0, True),
        (7, UP): (3, 3.0, True), (2, RIGHT): (3, 3.0, True), (7, LEFT): (7, -0.5, False),
        (10, UP): (10, -0.5, False), (10, RIGHT): (11, -0.5, False), (11, DOWN): (11, -0.5, False),
    }  # fmt: skip
    for (state, action), (new, reward, ended) in expected.items():
        assert move(state, action) == (1.0, new, reward, ended), (state, action)
    assert [env.start(i, env.params) for i in range(env.n_starts)] == [(0.5, 0), (0.5, 11)]


def test_starts_are_drawn_uniformly(drawn: Any) -> None:
    env = drawn("SSS\nGSS")
    draws = np.random.Philox(2).random_raw(50_000)
    with np.errstate(over="ignore"):
        counts = np.bincount([int(env.law_start(b, env.params)) for b in draws], minlength=6)
    assert counts[3] == 0
    assert np.sum((counts[[0, 1, 2, 4, 5]] - 1e4) ** 2 / 1e4) < 18.5  # 0.999, 4 degrees


SEEDED = dict(rows=12, columns=15, wall_density=0.2, pit_density=0.1, layout_seed=6)


@pytest.mark.parametrize("slip", [0.0, 0.2])
def test_the_cells_of_a_seeded_grid_give_the_same_world(drawn: Any, slip: float) -> None:
    rewards = {"slip": slip, "step_reward": -0.3, "goal_reward": 2.0}
    seeded = made(**SEEDED, **rewards)
    text = "\n".join(seeded.marks[r * 15 : (r + 1) * 15] for r in range(12))
    env = drawn(text, **rewards)
    assert {"#", "O"} < set(seeded.marks)
    assert env.marks == seeded.marks and env.deterministic == seeded.deterministic
    assert outcomes(env) == outcomes(seeded)
    assert env.return_bound == seeded.return_bound
    learned = []
    for world in (env, seeded):  # compiled, the very same bits
        learner = Learner(world, config().learn, 10, use_compiled=True)
        learner.begin()
        learner.learn(2000)
        learned.append(learner.state())
    assert learned[0] == learned[1]


def test_every_outcome_passes_the_check_at_the_door(drawn: Any) -> None:
    env = drawn(MAZE, slip=0.3)
    check_all(env, compiled({"check": checking_kernel(env)["check"]})["check"])


def test_identity_is_what_is_drawn_not_where(drawn: Any) -> None:
    one = drawn(MAZE, "one.txt")
    assert drawn(MAZE, "two.txt").model_id == one.model_id
    same = [
        MAZE.replace("\n", "\r\n"), MAZE + "\n\n", MAZE.rstrip(), MAZE.replace(" ", "."),
        MAZE.replace("H", "O"), b"\xef\xbb\xbf" + MAZE.encode(),
    ]  # fmt: skip
    assert {drawn(text).model_id for text in same} == {one.model_id}
    others = [
        drawn(MAZE.replace("O", ".")), drawn(MAZE.replace("O", "#")), drawn(MAZE[::-1].strip()),
        drawn(MAZE.replace("H", "S")), drawn(MAZE.replace("H", "G")), drawn(MAZE, slip=0.1),
    ]  # fmt: skip
    assert len({one.model_id, *(env.model_id for env in others)}) == 7


def test_what_is_read(tmp_path: Path) -> None:
    path = tmp_path / "maze.txt"
    path.write_text(MAZE)
    layout = read_layout(str(path))
    assert layout.cells.tolist() == [
        [FREE, FREE, FREE, GOAL], [FREE, PIT, WALL, FREE], [PIT, FREE, FREE, FREE]
    ]  # fmt: skip
    assert layout.cells.dtype == np.int8 and layout.starts.tolist() == [0, 11]


def test_small_ones_are_drawn_with_their_policy(drawn: Any) -> None:
    env = drawn(MAZE)
    assert draw_policy([RIGHT] * 12, env.grid, env.arrows, env.marks).splitlines() == [
        "→ → → G", "→ O # →", "H → → →"
    ]  # fmt: skip
    wide = drawn("S" + "." * 60 + "G")
    assert wide.marks == "" and wide.grid == (1, 62)


def test_a_labyrinth_of_four_million_cells(drawn: Any) -> None:
    # A snake: every other row is a wall with one gap, at alternating ends. The way is 2e6 long.
    rows = [b"." * 2000 if r % 2 == 0 else b"#" * 2000 for r in range(1999)]
    for r in range(1, 1999, 2):
        rows[r] = b"." + b"#" * 1999 if r % 4 == 1 else b"#" * 1999 + b"."
    rows[0], rows[-1] = b"S" + rows[0][1:], rows[-1][:-1] + b"G"
    env = drawn(b"\n".join(rows))
    assert (env.n_states, env.marks) == (1999 * 2000, "")
    rows[1000] = b"#" * 2000
    with pytest.raises(ModelError, match="line 1, column 1: no goal can be reached"):
        drawn(b"\n".join(rows))


@pytest.mark.parametrize(
    ("text", "kwargs", "message"),
    [
        ("S.\nG", {}, "maze.txt, line 2: 1 cells, but line 1 has 2"),
        ("S..\n...\n....\n..G", {}, "line 3: 4 cells, but line 1 has 3"),
        ("S.\n\n.G", {}, "line 2: 0 cells"),
        ("S.\n.x\n.G", {}, "line 2, column 2: 'x' means nothing"),
        ("S\t\n.G", {}, r"line 1, column 2: '\\t' means nothing"),
        ("Sé\n.G", {}, "line 1, column 2: 'é' means nothing"),
        ("..\n.G", {}, "maze.txt has no start .S."),
        ("S.\n..", {}, "maze.txt has no goal .G."),
        ("", {}, "maze.txt is empty"),
        ("\n\n", {}, "maze.txt is empty"),
        (b"\xff\xfe", {}, "maze.txt is not a text file"),
        ("S#G", {}, "line 1, column 1: no goal can be reached from this start"),
        ("SOG\n.#.", {}, "no goal can be reached"),
        ("S.G\n###\nS..", {}, "line 3, column 1: no goal can be reached from this start"),
        ("S.G", {"rows": 1}, "rows is what the layout .*maze.txt says: leave it out"),
        ("S.G", {"columns": 3}, "columns is what the layout"),
        ("S.G", {"wall_density": 0.1}, "wall_density is what the layout"),
        ("S.G", {"pit_density": 0.1}, "pit_density is what the layout"),
        ("S.G", {"layout_seed": 1}, "layout_seed is what the layout"),
        ("S.G", {"slip": 2.0}, "slip must be a finite number from 0 to 1"),
    ],
)
def test_layouts_that_are_none_are_refused(
    drawn: Any, text: str | bytes, kwargs: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        drawn(text, **kwargs)


def test_files_that_are_missing_and_arguments_that_are_none() -> None:
    with pytest.raises(ModelError, match="layout: cannot read nowhere.txt: No such file"):
        made(layout="nowhere.txt")
    with pytest.raises(ModelError, match="layout must be the name of a text file, not 3"):
        made(layout=3)
    with pytest.raises(ModelError, match="missing a required argument: 'columns' .or 'layout'"):
        made(rows=3)
