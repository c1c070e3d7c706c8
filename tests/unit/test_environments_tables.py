"""When the table of transitions that an environment carries is trusted, and what is made of it."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.toy_text.frozen_lake import FrozenLakeEnv

from distq_mpi import QLearning, environments
from distq_mpi.config import EnvConfig
from distq_mpi.environments.attached_table import read_table
from distq_mpi.environments.chi_square import misfit
from distq_mpi.errors import ModelError


def made(id: str, **env: Any) -> Any:
    return environments.make(EnvConfig(f"{__name__}:{id}", **env))


class Toll(FrozenLakeEnv):
    """A lake that charges for every step; its table is the lake's."""

    def step(self, action: int) -> Any:
        seen, reward, ended, cut, info = super().step(action)
        return seen, reward - 0.1, ended, cut, info


class Anywhere(FrozenLakeEnv):
    """A lake that begins beside the goal; its start distribution is the lake's."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        _, info = super().reset(seed=seed, options=options)
        self.s = 14
        return 14, info


class Charging:
    """A mixin in front of a lake."""

    def step(self, action: int) -> Any:
        seen, reward, *more = super().step(action)  # type: ignore[misc]
        return seen, reward - 0.1, *more


class Mixed(Charging, FrozenLakeEnv):
    """A lake charged by a mixin."""


class Map(FrozenLakeEnv):
    """A lake of another shape: `step`, `reset` and `P` are the lake's own."""

    def __init__(self, **more: Any) -> None:
        super().__init__(desc=["SFF", "HFH", "FFG"], is_slippery=True, **more)


class Dear(FrozenLakeEnv):
    """A lake whose table says what the subclass made of it, which is what `step` reads."""

    def __init__(self, price: float = 5.0) -> None:
        super().__init__(is_slippery=False)
        self.P = {s: {a: [(p, new, r * price, end) for p, new, r, end in row]
                      for a, row in actions.items()} for s, actions in self.P.items()}  # fmt: skip


class Line(gymnasium.Env[Any, Any]):
    """States 0, 1, 2; action 1 goes on with .9, and 2 ends; `step` draws from a table of its own.

    says : what the table `P` says in its place.
    """

    observation_space, action_space = spaces.Discrete(3), spaces.Discrete(2)

    def __init__(self, says: Any = "", first: Any = (0.5, 0.5, 0.0), hidden: bool = False) -> None:
        self.P, self.initial_state_distrib, self.hidden = table(), first, hidden
        if isinstance(says, str):
            self.P = WRITTEN[says](self.P) if says else self.P
        else:
            self.P = says

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        place = int(self.np_random.integers(2))
        if self.hidden:
            self.place = place
        else:
            self.s = place
        return place, {}

    def step(self, action: int) -> Any:
        row = table()[self.place if self.hidden else self.s][int(action)]
        i = self.np_random.choice(len(row), p=[entry[0] for entry in row])
        _, place, reward, ended = row[i]
        if self.hidden:
            self.place = place
        else:
            self.s = place
        return place, reward, ended, False, {}


class Shown(gymnasium.Env[Any, Any]):
    """A corridor that goes by `place`; its attribute `s`, which shows it, moves nothing."""

    observation_space, action_space = spaces.Discrete(4), spaces.Discrete(2)

    def __init__(self) -> None:
        self.P = {s: {a: [(1.0, min(s + a, 3), -1.0, s + a == 3)] for a in (0, 1)}
                  for s in range(4)}  # fmt: skip
        self.initial_state_distrib = [1.0, 0.0, 0.0, 0.0]

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.place = self.s = 0
        return 0, {}

    def step(self, action: int) -> Any:
        self.place += action
        self.s = self.place
        return self.place, -1.0, self.place == 3, False, {}


class Tired(Shown):
    """A corridor that is never left, and that ends episodes itself after 1000 steps."""

    def __init__(self) -> None:
        super().__init__()
        self.P = {s: {a: [(1.0, s, 0.0, False)] for a in (0, 1)} for s in range(4)}
        self.initial_state_distrib = [1.0, 0.0, 0.0, 0.0]

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.age = 0
        return super().reset(seed=seed)

    def step(self, action: int) -> Any:
        self.age += 1
        return 0, 0.0, False, self.age >= 1000, {}


class Seldom(FrozenLakeEnv):
    """A lake that pays another price in one state, which random actions do not come to.

    `step` and `P` are of one class.
    """

    def __init__(self) -> None:
        super().__init__(map_name="8x8", is_slippery=False)
        self.P = dict(self.P)

    def step(self, action: int) -> Any:
        before = self.s
        seen, reward, *more = FrozenLakeEnv.step(self, action)
        return seen, reward - (before == 62), *more


class Helped(Line):
    """A line whose reward, which `step` takes from a method, is another than its table's."""

    def step(self, action: int) -> Any:
        return super().step(action)


def table() -> dict[int, Any]:
    rows: dict[int, Any] = {
        s: {0: [(1.0, s, 0.0, False)],
            1: [(0.7, s + 1, float(s == 1), s == 1), (0.2, s + 1, float(s == 1), s == 1),
                (0.1, s, 0.0, False)]} for s in (0, 1)
    }  # fmt: skip
    return rows | {2: {a: [(1.0, 2, 0.0, True)] for a in (0, 1)}}


def changed(state: int, action: int, row: list[Any]) -> Any:
    return lambda rows: {**rows, state: {**rows[state], action: row}}


NAN = float("nan")
WRITTEN: dict[str, Any] = {
    "missing": lambda rows: {s: rows[s] for s in (0, 1)},
    "empty": lambda rows: {**rows, 2: {0: [], 1: []}},
    "nothing": lambda rows: {**rows, 2: {}},
    "zeros": changed(0, 1, [*table()[0][1], (0.0, 1, 99.0, True), (0.0, 0, 0.0, False)]),
    "padded": changed(0, 1, [*table()[0][1], (0.0, -1, 0.0, False)]),
    "padded with NaN": changed(0, 1, [*table()[0][1], (0.0, 0, NAN, False)]),
    "five": lambda rows: {s: {a: [(*entry, {}) for entry in rows[s][a]] for a in rows[s]}
                          for s in rows},
    "tuples": lambda rows: {s: {a: tuple(map(tuple, rows[s][a])) for a in rows[s]} for s in rows},
    "lists": lambda rows: [[rows[s][a] for a in (0, 1)] for s in (0, 1, 2)],
    "three": lambda rows: {s: {a: [e[:3] for e in rows[s][a]] for a in rows[s]} for s in rows},
    "texts": lambda rows: {f"s{s}": {f"a{a}": rows[s][a] for a in rows[s]} for s in rows},
    "array": lambda rows: np.full((3, 2, 3), 1 / 3),
    "method": lambda rows: rows.get,
    "half": changed(0, 1, [(0.5, 1, 0.0, False)]),
    "no way out": lambda rows: {s: rows[s] for s in (0, 2)},
    "one action": lambda rows: {**rows, 1: {1: rows[1][1]}},
    "another reward": changed(1, 1, [(0.9, 2, 2.0, True), (0.1, 1, 0.0, False)]),
    "another end": changed(1, 1, [(0.9, 2, 1.0, False), (0.1, 1, 0.0, False)]),
    "never stays": changed(0, 1, [(1.0, 1, 0.0, False)]),
    "other chances": changed(0, 1, [(0.75, 1, 0.0, False), (0.25, 0, 0.0, False)]),
    "rarer": changed(0, 1, [(0.999, 1, 0.0, False), (0.001, 0, 0.0, False)]),
}  # fmt: skip
for name in ("Toll", "Anywhere", "Mixed", "Map", "Dear", "Line", "Helped", "Shown", "Seldom",
             "Tired"):  # fmt: skip
    kwargs = {"is_slippery": False} if name in ("Toll", "Anywhere", "Mixed") else {}
    gymnasium.register(f"{name}-v0", globals()[name], kwargs=kwargs, max_episode_steps=50)


@pytest.mark.parametrize(
    ("id", "told"),
    [
        ("Toll-v0", "not by its table P: step is Toll's, P is FrozenLakeEnv's"),
        ("Anywhere-v0", "not by its table P: reset is Anywhere's, P is FrozenLakeEnv's"),
        ("Mixed-v0", "not by its table P: step is Charging's, P is FrozenLakeEnv's"),
        ("Helped-v0", "not by its table P: step is Helped's, P is Line's"),
    ],
)
def test_a_step_or_a_reset_newer_than_the_table_is_stepped(id: str, told: str) -> None:
    environment = made(id)
    assert environment.kind == "stepped" and environment.summary.endswith(told)
    given = environments.from_object(gymnasium.make(id), EnvConfig())
    assert given.kind == "stepped" and given.summary.endswith(told)


def test_what_is_charged_is_learned() -> None:
    """Six steps of the shortest way at -.1 each, the last of which pays 1: V = .121931."""
    model = QLearning(f"{__name__}:Toll-v0", seed=0, discount=0.9, learning_rate=1.0, lanes=8)
    model.learn(40_000)
    assert model.q_values[0].max() == pytest.approx(0.9**5 - 0.1 * sum(0.9**k for k in range(6)))
    beside = QLearning(f"{__name__}:Anywhere-v0", seed=0, discount=0.9, lanes=8).learn(4000)
    assert beside.q_values[14].max() == pytest.approx(1.0)


def test_what_is_replaced_on_an_object_is_stepped() -> None:
    lake = gymnasium.make("FrozenLake-v1", is_slippery=False)
    lake.unwrapped.step = lambda action: (0, 7.0, True, False, {})  # type: ignore[method-assign]
    environment = environments.from_object(lake, EnvConfig())
    assert environment.kind == "stepped" and "step was replaced" in environment.summary
    limited = gymnasium.make("FrozenLake-v1", is_slippery=False)
    limited.step = lambda action: (0, 7.0, True, False, {})  # type: ignore[method-assign]
    assert environments.from_object(limited, EnvConfig()).kind == "stepped"


def test_a_subclass_that_changes_the_table_alone_is_compiled() -> None:
    assert made("Map-v0").kind == "explicit"
    dear = made("Dear-v0", kwargs={"price": 3.0})
    assert (dear.kind, dear.return_bound) == ("explicit", 3.0)
    edited = FrozenLakeEnv(is_slippery=False)
    edited.P[14][2] = [(1.0, 15, 5.0, True)]
    assert environments.from_object(edited, EnvConfig()).return_bound == 5.0


@pytest.mark.parametrize(
    ("says", "told"),
    [
        ("missing", "P has no rows of state 2, where episodes end"),
        ("empty", "P has no rows of state 2, where episodes end"),
        ("nothing", "P has no rows of state 2, where episodes end"),
        ("five", "what P lists after each end is left out"),
        *((says, "transitions") for says in ("zeros", "padded", "padded with NaN", "tuples",
                                             "lists")),
    ],
)  # fmt: skip
def test_a_table_in_another_form_is_the_same_table(says: str, told: str) -> None:
    plain, written = made("Line-v0"), made("Line-v0", kwargs={"says": says})
    assert written.kind == "explicit" and written.model_id == plain.model_id
    assert written.summary.endswith(told)


@pytest.mark.parametrize(
    ("says", "told"),
    [
        ("three", "state 0, action 0: P does not list"),
        ("texts", "P has keys like 's0', not 0 to 2"),
        ("array", "state 0, action 0: P does not list"),
        ("method", "P is no table of states and actions"),
        ("half", "state 0, action 1: the probabilities sum to 0.5, not 1"),
        ("no way out", "state 1, action 0: P has no transition"),
        ("one action", "state 1, action 0: P has no transition"),
        ("another reward", r"step gives \(2, 1.0, True\) as .*, which P does not list"),
        ("another end", r"step gives \(2, 1.0, True\) as .*, which P does not list"),
        ("never stays", r"step gives \(0, 0.0, False\) as .*, which P does not list"),
        ("other chances", r"state 0, action 1: \(.*\) came .* and its probability is 0\.\d+"),
        ("rarer", "state 0, action 1: .* its probability is 0.001"),
    ],
)
@pytest.mark.parametrize("hidden", [False, True])
def test_a_table_that_cannot_speak_for_the_steps_is_not_taken(
    says: str, told: str, hidden: bool
) -> None:
    environment = made("Line-v0", kwargs={"says": says, "hidden": hidden})
    assert environment.kind == "stepped"
    assert re.search(f"not by its table P: .*{told}", environment.summary)


@pytest.mark.parametrize("says", ["array", "other chances"])
def test_what_happens_is_learned_whatever_the_table_says(says: str) -> None:
    model = QLearning(f"{__name__}:Line-v0", env_kwargs={"says": says}, seed=0, discount=0.9,
                      lanes=4)  # fmt: skip
    values = model.learn(20_000).q_values.max(axis=1)
    v1 = 0.9 / (1 - 0.09)
    assert values[:2] == pytest.approx([0.81 * v1 / (1 - 0.09), v1], abs=0.01)


def test_states_that_are_seldom_visited_are_tried_where_they_can_be_set() -> None:
    seldom = made("Seldom-v0")
    assert seldom.kind == "stepped"
    assert "state 62, action 0: step gives (61, -1.0, False)" in seldom.summary
    assert made("Shown-v0").kind == "explicit"
    assert "step truncates the episode, which P cannot say" in made("Tired-v0").summary


@pytest.mark.parametrize(
    ("first", "told"),
    [
        ([1 / 3, 1 / 3, 1 / 3], "reset: state 2 came 0 times"),
        ([1.0, 0.0, 0.0], "reset begins in state 1, which initial_state_distrib excludes"),
        ([3, 1, 0], "the start probabilities sum to 4, not 1"),
        ([0.5, 0.5], "initial_state_distrib is not 3 numbers"),
    ],
)
def test_a_start_distribution_that_resets_contradict_is_not_taken(first: Any, told: str) -> None:
    environment = made("Line-v0", kwargs={"first": first})
    assert environment.kind == "stepped" and told in environment.summary
    assert made("Line-v0", kwargs={"first": [0.5, 0.5, 0]}).kind == "explicit"


def test_probabilities_keep_the_type_they_were_written_in() -> None:
    rows = {0: {0: [(np.float32(0.1), 0, 0.0, False), (np.float32(0.9), 0, 1.0, False)]}}
    chances = read_table(rows, [1.0], 1, 1).arrays()[2]
    assert chances.dtype == np.float32
    assert read_table({0: {0: [(1, 0, 0, False)]}}, [1.0], 1, 1).arrays()[2].dtype == np.float64


def test_reading_a_table_adds_nothing_to_it() -> None:
    rows: Any = defaultdict(lambda: defaultdict(list))
    rows[0][0].append((1.0, 1, 0.0, True))
    assert read_table(rows, [1.0, 0.0], 2, 1).repairs and list(rows) == [0]


def test_what_is_expected_seldom_and_comes_often_is_a_misfit() -> None:
    assert misfit({"a": 0.999, "b": 0.001}, {"a": 300, "b": 200})
    assert not misfit({"a": 0.999, "b": 0.001}, {"a": 498, "b": 2})


def test_a_table_that_is_drawn_when_it_is_made_is_known_to_be() -> None:
    drawn = environments.make(EnvConfig("FrozenLake-v1", {"map_name": None}))
    assert drawn.kind == "explicit" and "each one that is made draws another" in drawn.unidentified
    with pytest.raises(ModelError, match="no two lanes would learn on the same"):
        environments.make(EnvConfig("FrozenLake-v1", {"map_name": None}, step=True))
    assert not environments.make(EnvConfig("FrozenLake-v1")).unidentified


def test_stepping_can_be_asked_for() -> None:
    stepped = environments.make(EnvConfig("FrozenLake-v1", step=True))
    assert stepped.kind == "stepped" and stepped.summary.endswith("env.step is true")
    given = environments.from_object(gymnasium.make("FrozenLake-v1"), EnvConfig(step=True))
    assert given.kind == "stepped"
