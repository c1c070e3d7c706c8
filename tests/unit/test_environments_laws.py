"""Laws: the grid, a user's own, derived sampling, identity, refusals."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from distq_mpi.config import EnvConfig
from distq_mpi.environments import make
from distq_mpi.environments.laws import law_environment
from distq_mpi.errors import ModelError

u8 = np.uint64
UP, RIGHT, DOWN, LEFT = range(4)


@pytest.fixture(autouse=True)
def _own_import_path(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])


def made(id, **kwargs):
    return make(EnvConfig(id=id, kwargs=kwargs))


def outcomes(env, state, action):
    n = env.outcomes(state, action, env.params)
    with np.errstate(over="ignore"):
        return [env.outcome(np.int64(state), np.int64(action), i, env.params) for i in range(n)]


def draws(env, state, action, n):
    """Count the next states of n equidistant draws."""
    counts = np.zeros(env.n_states)
    for k in range(n):
        bits = u8(((2 * k + 1) * 2**31 // n) << 32 | 0xFFFF)
        with np.errstate(over="ignore"):
            new, reward, terminated = env.law_step(u8(state), u8(action), bits, env.params)
        assert type(new) is np.uint64 and type(terminated) is bool
        counts[int(new)] += 1
    return counts


def test_grid_moves_by_hand():
    env = made("grid", rows=3, columns=4)
    assert (env.n_states, env.n_transitions) == (12, 48)
    assert env.deterministic
    assert env.grid == (3, 4)
    assert env.marks == "S..........G"
    assert env.arrows == "↑→↓←"
    moves = {
        (5, UP): 1, (5, RIGHT): 6, (5, DOWN): 9, (5, LEFT): 4,
        (0, UP): 0, (0, LEFT): 0, (3, RIGHT): 3, (3, UP): 3, (8, LEFT): 8, (8, DOWN): 8,
    }
    for (state, action), new in moves.items():
        assert outcomes(env, state, action) == [(1.0, new, -1.0, False)]
    assert outcomes(env, 10, RIGHT) == [(1.0, 11, 0.0, True)]
    assert outcomes(env, 7, DOWN) == [(1.0, 11, 0.0, True)]


def test_grid_slips_to_both_sides():
    env = made("grid", rows=3, columns=3, slip=0.2, step_reward=-0.5, goal_reward=4)
    assert outcomes(env, 4, UP) == [
        (0.8, 1, -0.5, False), (0.1, 5, -0.5, False), (0.1, 3, -0.5, False)
    ]
    assert outcomes(env, 0, LEFT) == [
        (0.8, 0, -0.5, False), (0.1, 0, -0.5, False), (0.1, 3, -0.5, False)
    ]
    assert outcomes(env, 7, UP) == [
        (0.8, 4, -0.5, False), (0.1, 8, 4.0, True), (0.1, 6, -0.5, False)
    ]
    assert not env.deterministic
    assert env.n_transitions == 9 * 4 * 3


def test_grid_starts_in_the_corner():
    env = made("grid", rows=3, columns=3)
    assert env.start(0, env.params) == (1.0, 0)
    assert [env.law_start(u8(b), env.params) for b in (0, 2**64 - 1)] == [0, 0]


def test_grid_sampling_is_its_outcomes():
    env = made("grid", rows=3, columns=3, slip=0.3)
    n = 1000
    for state, action in [(4, UP), (0, LEFT), (5, DOWN)]:
        expected = np.zeros(9)
        for probability, new, _, _ in outcomes(env, state, action):
            expected[new] += probability
        np.testing.assert_allclose(draws(env, state, action, n), n * expected, atol=2)


def test_walls_stop_and_pits_end():
    env = made("grid", rows=20, columns=20, slip=0.2, wall_density=0.25, pit_density=0.15,
               layout_seed=3, goal_reward=1.0)
    assert set(env.marks) == set("S#O.G")
    assert 0.15 < env.marks.count("#") / 400 < 0.35
    assert 0.08 < env.marks.count("O") / 400 < 0.22
    plain = made("grid", rows=20, columns=20, slip=0.2, goal_reward=1.0)
    for state in range(399):
        for action in range(4):
            pairs = zip(
                outcomes(env, state, action), outcomes(plain, state, action), strict=True
            )
            for got, (probability, new, reward, goal) in pairs:
                if env.marks[new] == "#":
                    assert got == (probability, state, reward, goal)
                elif env.marks[new] == "O":
                    assert got == (probability, new, 0.0, True)
                else:
                    assert got == (probability, new, reward, goal)


def test_only_pits_or_only_walls():
    assert set(made("grid", rows=9, columns=9, pit_density=0.3).marks) == set("S.OG")
    assert set(made("grid", rows=9, columns=9, wall_density=0.3).marks) == set("S.#G")
    layouts = [made("grid", rows=9, columns=9, wall_density=0.3, layout_seed=s) for s in (0, 1)]
    assert layouts[0].marks != layouts[1].marks


def test_grid_of_a_thousand_million_states():
    env = made("grid", rows=25_000, columns=40_000, slip=0.1, pit_density=0.01)
    last = env.n_states - 1
    assert last == 10**9 - 1
    assert outcomes(env, last - 1, RIGHT)[0] == (0.9, last, 0.0, True)
    assert outcomes(env, last - 40_000, DOWN)[0] == (0.9, last, 0.0, True)
    assert env.marks == ""


@pytest.mark.parametrize(
    ("step", "goal", "bound"),
    [(-1.0, 0.0, 0.0), (-1.0, 5.0, 5.0), (0.0, -2.0, 0.0), (0.1, 5.0, None)],
)
def test_grid_return_bound(step, goal, bound):
    env = made("grid", rows=2, columns=2, step_reward=step, goal_reward=goal)
    assert env.return_bound == bound


def test_grid_identity():
    def id_of(**kwargs):
        return made("grid", **{"rows": 4, "columns": 5, **kwargs}).model_id

    variants = [
        {}, {"rows": 5, "columns": 4}, {"slip": 0.1}, {"slip": 0.2}, {"goal_reward": 1},
        {"wall_density": 0.1}, {"pit_density": 0.1}, {"wall_density": 0.1, "layout_seed": 1},
        {"max_episode_steps": 9},
    ]
    assert len({id_of(**kwargs) for kwargs in variants}) == len(variants)
    assert id_of() == id_of(slip=0)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({}, "env.kwargs: grid: missing a required argument: 'rows'"),
        ({"rows": 1, "columns": 1}, "at least 2 cells"),
        ({"rows": 2.0, "columns": 2}, "rows must be a whole number"),
        ({"rows": True, "columns": 2}, "rows must be a whole number"),
        ({"rows": 2, "columns": 2, "slip": 1.5}, "slip must be a finite number from 0 to 1"),
        ({"rows": 2, "columns": 2, "slip": float("nan")}, "slip must be a finite number"),
        ({"rows": 2, "columns": 2, "goal_reward": float("inf")}, "goal_reward must be a finite"),
        ({"rows": 2, "columns": 2, "wall_density": 0.6, "pit_density": 0.4}, "must be below 1"),
        ({"rows": 2, "colums": 2}, "takes no 'colums'; did you mean columns?"),
        ({"rows": 2, "columns": 2, "layout_seed": -1}, "layout_seed must be a whole number"),
    ],
)
def test_grid_refuses(kwargs, message):
    with pytest.raises(ModelError, match=message):
        made("grid", **kwargs)


# ---- a user's own law


def test_law_of_twenty_lines(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[1])
    env = made("river:River", length=4)
    assert (env.kind, env.n_states, env.n_actions, env.n_transitions) == ("law", 4, 2, 24)
    assert env.params == (4, 0.35, 0.05, 10.0)
    assert env.return_bound == 10.0
    assert env.arrows == "↓↑"
    assert outcomes(env, 2, 1)[0] == (0.35, 3, 10.0, True)
    assert [row[:2] for row in outcomes(env, 0, 0)] == [(0.0, 1), (0.0, 0), (1.0, 0)]
    n = 2000
    np.testing.assert_allclose(draws(env, 1, 1, n), n * np.array([0.05, 0.6, 0.35, 0]), atol=2)
    np.testing.assert_allclose(draws(env, 1, 0, n), n * np.array([1, 0, 0, 0]), atol=0)


LAW = '''
import math
import os.path
import numpy as np
from math import sqrt
SCALE = 2.0
TABLE = {{}}
def helper(x):
    return x * SCALE
def outcome(state, action, i, params):
    {body}
def start(i, params):
    {start}
class Law:
    n_states, n_actions, n_outcomes, n_starts = 3, 2, 2, {n_starts}
    params = {params}
    outcome, start = staticmethod(outcome), staticmethod(start)
    {extra}
'''
GOOD = {
    "body": "return 0.5, (state + i) % 3, helper(1.0), False",
    "start": "return 1.0, 0",
    "n_starts": 1,
    "params": "(3,)",
    "extra": "",
}

NUMBER = itertools.count()


@pytest.fixture
def law(tmp_path, monkeypatch):
    """Write a law to a module of its own and make it."""
    monkeypatch.chdir(tmp_path)

    def build(text=None, **changes):
        name = f"user_law_{next(NUMBER)}"
        text = LAW.format(**{**GOOD, **changes}) if text is None else text
        (tmp_path / f"{name}.py").write_text(text)
        return made(f"{name}:Law")

    return build


def test_start_of_several_states_is_drawn(law):
    env = law(n_starts=3, start="return 0.2 + 0.2 * i * (3 - i) / 2 , i")
    expected = np.array([0.2, 0.4, 0.4])
    n = 20_000
    bits = np.random.Philox(9).random_raw(n)
    counts = np.bincount([int(env.law_start(b, env.params)) for b in bits], minlength=3)
    assert np.sum((counts - n * expected) ** 2 / (n * expected)) < 13.8  # 0.999 quantile, 2 degrees


def test_identity_follows_every_edit_that_matters(law):
    source = LAW.format(**GOOD)
    same = law(text=source).model_id
    assert law(text=source.replace("    return x", "    # why\n    return   x")).model_id == same
    edits = [
        source.replace("SCALE = 2.0", "SCALE = 3.0"),
        source.replace("x * SCALE", "x * SCALE * 2"),
        source.replace("(state + i) % 3", "(state + 2 * i) % 3"),
        source.replace("(3,)", "(4,)"),
        source.replace("(3,)", "(3.0,)"),
        source.replace("return 1.0, 0", "return 1.0, 1"),
        source.replace("= 3, 2, 2, 1", "= 3, 4, 2, 1"),
    ]
    assert len({same, *(law(text=text).model_id for text in edits)}) == 8


def test_identity_is_the_same_in_another_process(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[1])
    program = (
        "from distq_mpi.config import EnvConfig as N; from distq_mpi.environments import make; "
        "print(*(make(N(id=i, kwargs=k)).model_id for i, k in (('river:River', {}), "
        "('grid', {'rows': 3, 'columns': 3, 'wall_density': .1}), ('FrozenLake-v1', {}))))"
    )
    root = str(Path(__file__).parents[2])
    result = subprocess.run(
        [sys.executable, "-c", program], check=True, timeout=60, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": root, "PYTHONHASHSEED": "7"},
    )
    here = [
        made("river:River").model_id,
        made("grid", rows=3, columns=3, wall_density=0.1).model_id,
        made("FrozenLake-v1").model_id,
    ]
    assert result.stdout.split() == here


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"body": "return 0.4, state, 0.0, False"}, "state 0, action 0: .* sum to 0.8, not 1"),
        ({"body": "return 0.5, state + 1, 0.0, False"},
         r"outcome\(state=2, action=1, i=0\): next_state 3 is not in 0..2"),
        ({"body": "return 0.5, state / 2, 0.0, False"}, "must be an integer .use // to divide"),
        ({"body": "return 0.5, state, float('nan'), False"}, "reward nan must be a finite number"),
        ({"body": "return 1.5 - 2 * i, state, 0.0, False"}, "probability 1.5 must be from 0 to 1"),
        ({"body": "return 0.5, state, 0.0, 'no'"}, "terminated 'no' must be a bool"),
        ({"body": "return 0.5, state, 0.0, 2"}, "terminated 2 must be a bool"),
        ({"body": "return 0.5, state, 0.0"}, "must return .probability, next_state"),
        ({"body": "return params[7], state, 0.0, False"}, "raised IndexError"),
        ({"body": "return 0.5, state, math.sin(state), False"}, "outcome reads the module math"),
        ({"body": "return 0.5, state, 0.0 * os.path.getsize('.'), False"}, "reads the module os"),
        ({"body": "return 0.5, state, float(len(TABLE)), False"}, "TABLE: a value of .*dict"),
        ({"start": "return 0.5, 0"}, "start probabilities sum to 0.5"),
        ({"start": "return 1.0, 3"}, r"start\(i=0\): state 3 is not in 0..2"),
        ({"params": "[3]"}, "params must be a tuple"),
        ({"params": "('x',)"}, r"params\[0\] must be an int, float or bool"),
        ({"params": "(2**63,)"}, "does not fit 64 bits"),
        ({"extra": "n_states = 0"}, "n_states must be from 1"),
        ({"extra": "n_actions = None"}, "the law has no n_actions"),
        ({"extra": "n_outcomes = 2.0"}, "n_outcomes must be a whole number"),
        ({"extra": "outcome = None"}, "no function outcome"),
        ({"extra": "outcome = max"}, "must be a plain Python function"),
        ({"extra": "def outcome(self, s, a, i, p): return 1.0, 0, 0.0, False"}, "@staticmethod"),
        ({"extra": "start = staticmethod(helper)"}, r"start must take \(i, params\)"),
        ({"extra": "deterministic = True"}, "says deterministic"),
        ({"extra": "grid = (2, 2)"}, "grid must be .rows, columns. of 3 cells"),
        ({"extra": "marks = 'ab'"}, "marks has 2 characters for 3 states"),
        ({"extra": "arrows = 'abc'"}, "arrows has 3 characters for 2 actions"),
        ({"extra": "return_bound = float('inf')"}, "return_bound must be a finite number"),
        ({"extra": "exec('def f(i, params): return 1.0, 0'); start = staticmethod(f)"},
         "f has no source text"),
        ({"extra": "def __init__(self): raise RuntimeError('boom')"}, "RuntimeError: boom"),
        ({"extra": "a = 1 / 0"}, "failed: ZeroDivisionError"),
    ],
)
def test_laws_that_cannot_be_trusted_are_refused(law, changes, message):
    with pytest.raises(ModelError, match=message):
        law(**changes)


def test_numpy_and_borrowed_functions_are_allowed(law):
    env = law(body="return 0.5, state, np.floor(sqrt(4.0)), False")
    assert outcomes(env, 0, 0)[0][2] == 2.0


def test_missing_modules_and_classes_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "half_done.py").write_text("import not_installed_anywhere\n")
    (tmp_path / "empty_world.py").write_text("class World:\n    outcome = None\n")
    for id, message in [
        ("absent_world:World", "there is no module absent_world, neither in"),
        ("half_done:World", "importing half_done failed: ModuleNotFoundError: .*not_installed"),
        ("empty_world:Wold", "has no class Wold; did you mean World?"),
        ("empty_world:Something", "has no class Something; it has World"),
    ]:
        with pytest.raises(ModelError, match=message):
            made(id)


class Wide:
    """So many states that are all equally likely to begin with that their chances do not add up."""

    n_states = n_starts = 100_000_000
    n_actions, n_outcomes, uniform_starts = 1, 1, True

    def __init__(self, off: float = 1.0) -> None:
        self.params = (off / self.n_states,)

    @staticmethod
    def outcome(state, action, i, params):
        return 1.0, state, 0.0, False

    @staticmethod
    def start(i, params):
        return params[0], i


def test_a_hundred_million_starts_are_not_all_looked_at():
    assert law_environment("wide", Wide, {}).n_starts == 100_000_000
    with pytest.raises(ModelError, match="probability 0.2, but the law says uniform_starts"):
        law_environment("wide", Wide, {"off": 0.2e8})
