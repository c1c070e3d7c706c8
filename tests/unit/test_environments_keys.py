"""What `[env]` says of Gymnasium's environments: arguments, wrappers, options, names and hints."""

from __future__ import annotations

import importlib.metadata
import tomllib
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from distq_mpi import QLearning, environments
from distq_mpi.cli import from_keywords, parse
from distq_mpi.config import EnvConfig, from_dict, to_toml
from distq_mpi.environments.gymnasium_ids import maker
from distq_mpi.errors import ConfigError, ModelError

GIVEN: list[dict[str, Any]] = []
"""Arguments with which `Plain` was made, in order."""


class Plain(gymnasium.Env[Any, Any]):
    """One state; an episode pays `low` of the options, and ends."""

    observation_space, action_space = spaces.Discrete(1), spaces.Discrete(2)

    def __init__(self, **given: Any) -> None:
        GIVEN.append(given)
        self.low = 0.0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.low = (options or {}).get("low", 0.0)
        return 0, {}

    def step(self, action: int) -> Any:
        return 0, self.low, True, False, {}


class Twice(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A wrapper that doubles rewards."""

    def step(self, action: int) -> Any:
        seen, reward, *more = self.env.step(action)
        return seen, 2 * float(reward), *more


class More(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A wrapper that adds 1 to rewards."""

    def step(self, action: int) -> Any:
        seen, reward, *more = self.env.step(action)
        return seen, float(reward) + 1, *more


class Chain:
    """A law."""

    n_states, n_actions, n_outcomes, params = 2, 2, 1, (0,)

    @staticmethod
    def outcome(state, action, i, params):  # type: ignore[no-untyped-def]
        return 1.0, 1, -1.0, True

    @staticmethod
    def start(i, params):  # type: ignore[no-untyped-def]
        return 1.0, 0


def make_plain(**given: Any) -> Any:
    return Plain(made_by="function", **given)


gymnasium.register("Plain-v0", Plain)
gymnasium.register("Unversioned", Plain, kwargs={"registered": True})
HERE = __name__


def made(id: str, **env: Any) -> Any:
    return environments.make(EnvConfig(id, **env))


LISTS = {"desc": ["SFF", "HFH", "FFG"], "none": None, "deep": [{"a": [None, 1.5]}, "x", True],
         "text": "None", "escaped": "\\None", "empty": []}  # fmt: skip


def test_lists_none_and_dictionaries_reach_the_environment() -> None:
    GIVEN.clear()
    QLearning(f"{HERE}:Plain-v0", env_kwargs=LISTS, lanes=4)
    assert GIVEN and all(given == LISTS for given in GIVEN)


def test_lists_none_and_dictionaries_come_back_from_a_file(tmp_path: Path) -> None:
    config = from_keywords({"env_id": f"{HERE}:Plain-v0", "env_kwargs": LISTS})
    file = tmp_path / "c.toml"
    file.write_text(to_toml(config), encoding="utf-8")
    again = parse(["--config", str(file)]).config
    assert again == config == from_dict(tomllib.loads(to_toml(config)))
    GIVEN.clear()
    environments.make(again.env)
    assert GIVEN and all(given == LISTS for given in GIVEN)
    bare = from_keywords({}, {"env": {"kwargs": {"x": None, "y": (1, None)}}})
    assert bare.env.kwargs == {"x": "None", "y": [1, "None"]}


def test_lists_none_and_dictionaries_from_the_line() -> None:
    line = ["--env.kwargs.a", "None", "--env.kwargs.b", '["SF", "FG"]', "--env.kwargs.c",
            "{x = [1]}", "--env.kwargs.d", '"None"', "--env.kwargs.e", "\\None"]  # fmt: skip
    GIVEN.clear()
    made(f"{HERE}:Plain-v0", kwargs=parse(line).config.env.kwargs)
    assert GIVEN[0] == {"a": None, "b": ["SF", "FG"], "c": {"x": [1]}, "d": None, "e": "None"}
    lake = made("FrozenLake-v1", kwargs={"desc": ["SFF", "HFH", "FFG"], "is_slippery": False})
    assert (lake.kind, lake.n_states) == ("explicit", 9)


def test_numbers_of_numpy_are_numbers_and_tuples_lists() -> None:
    config = from_keywords({"env_kwargs": {"a": np.float32(0.5), "b": (1, np.int64(2))}})
    assert config.env.kwargs == {"a": 0.5, "b": [1, 2]}
    assert type(config.env.kwargs["a"]) is float and type(config.env.kwargs["b"][1]) is int


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (np.zeros(3), "an object of numpy.ndarray must be true or false"),
        (len, "an object of builtins.builtin_function_or_method must be"),
        ([lambda: 0], "must be true or false"),
        (float("nan"), "NaN must be"),
        ([1.0, float("inf")], r"\[1.0, Infinity\] must be"),
        ({1: 2}, r'\{"1": 2\} must be'),
        (b"x", "must be"),
    ],
)
def test_what_no_file_can_hold_is_refused_by_name(value: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=f"env_kwargs.x: .*{told}"):
        from_keywords({"env_kwargs": {"x": value}})


def test_options_reach_every_reset() -> None:
    config = parse(["--env.id", f"{HERE}:Plain-v0", "--env.reset_options.low", "3.5"]).config
    assert config.env.reset_options == {"low": 3.5}
    model = QLearning(config=config, initial="zeros", learning_rate=1.0, lanes=4, seed=0)
    assert model.learn(200).q_values.tolist() == [[3.5, 3.5]]
    plain, low = made(f"{HERE}:Plain-v0"), environments.make(config.env)
    assert plain.model_id != low.model_id
    lake = made("FrozenLake-v1", reset_options={"low": 1})
    assert lake.kind == "stepped" and "env.reset_options may change" in lake.summary
    given = environments.from_object(Plain(), EnvConfig(reset_options={"low": 2.0}))
    world = given.worlds.make()
    world.reset(seed=0)
    assert world.step(0)[1] == 2.0


def test_wrappers_are_put_around_in_their_order() -> None:
    names = [f"{HERE}:More", f"{HERE}:Twice"]
    line = parse(["--env.id", f"{HERE}:Plain-v0", "--env.wrappers", ",".join(names)]).config
    assert line.env.wrappers == names
    assert parse(["--env.wrappers", names[0]]).config.env.wrappers == names[:1]
    assert from_keywords({"wrappers": names[0]}).env.wrappers == names[:1]
    again = from_dict(tomllib.loads(to_toml(line)))
    assert again == line

    def values(names: list[str]) -> Any:
        model = QLearning(f"{HERE}:Plain-v0", wrappers=names, initial="zeros", learning_rate=1.0,
                          lanes=4, seed=0)  # fmt: skip
        return model.learn(200).q_values.tolist(), model.environment.model_id

    there, back = values(names), values(names[::-1])
    assert (there[0], back[0]) == ([[2.0, 2.0]], [[1.0, 1.0]])
    assert len({there[1], back[1], values([])[1]}) == 3
    lake = made("FrozenLake-v1", wrappers=[f"{HERE}:More"])
    assert lake.kind == "stepped" and "More may change what happens" in lake.summary
    neutral = made("FrozenLake-v1", wrappers=["gymnasium.wrappers:RecordEpisodeStatistics"])
    assert neutral.model_id == made("FrozenLake-v1").model_id


@pytest.mark.parametrize(
    ("env", "told"),
    [
        ({"wrappers": ["Twice"]}, "env.wrappers: Twice must be module:Wrapper"),
        ({"wrappers": ["nowhere_at_all:Twice"]}, "env.wrappers: .* no module nowhere_at_all"),
        ({"wrappers": [f"{HERE}:Thrice"]}, "has no wrapper Thrice"),
        ({"wrappers": ["gymnasium.wrappers:TimeLimit"]}, "could not be made: TypeError"),
        ({"wrappers": ["builtins:type"]}, "must make an environment of Gymnasium, not"),
    ],
)
def test_bad_wrappers_are_named(env: dict[str, Any], told: str) -> None:
    with pytest.raises(ModelError, match=told):
        made(f"{HERE}:Plain-v0", **env)


@pytest.mark.parametrize(
    "key", [{"step": True}, {"wrappers": ["a:B"]}, {"reset_options": {"a": 1}}]
)
def test_keys_of_stepped_environments_are_refused_elsewhere(key: dict[str, Any]) -> None:
    for id, kwargs in (("grid", {"rows": 2, "columns": 2}), (f"{HERE}:Chain", {})):
        with pytest.raises(ModelError, match=f"env.{next(iter(key))}: .* must be (false|empty)"):
            made(id, kwargs=kwargs, **key)
    if "step" not in key:
        with pytest.raises(ModelError, match=f"env.{next(iter(key))}: .* exists only as vector"):
            made("tests.worlds:Row-v0", **key)
    if "wrappers" in key:
        with pytest.raises(ModelError, match="is made already; wrap the object"):
            environments.from_object(Plain(), EnvConfig(**key))


def test_a_name_without_a_version_is_what_the_module_says_it_is() -> None:
    assert made(f"{HERE}:Chain").kind == "law"
    GIVEN.clear()
    for id, given in (
        ("Plain", {"a": 1}), ("make_plain", {"made_by": "function", "a": 1}),
        ("Unversioned", {"registered": True, "a": 1}),
    ):  # fmt: skip
        GIVEN.clear()
        environment = made(f"{HERE}:{id}", kwargs={"a": 1}, max_episode_steps=7)
        assert (environment.kind, environment.max_episode_steps) == ("stepped", 7)
        assert GIVEN and all(found == given for found in GIVEN)
    world = environments.make_world(EnvConfig(f"{HERE}:Plain"))
    assert type(world.unwrapped) is Plain
    with pytest.raises(ModelError, match="has no class Plane; did you mean Plain"):
        made(f"{HERE}:Plane")


def test_a_version_that_is_missing_is_named() -> None:
    gymnasium.register("Lonely-v3", Plain)
    with pytest.raises(ModelError, match=f"registers no Lonely; use {HERE}:Lonely-v3"):
        made(f"{HERE}:Lonely")
    with pytest.raises(ModelError, match=f"registers no Lonely-v1; use {HERE}:Lonely-v3"):
        made(f"{HERE}:Lonely-v1")
    with pytest.raises(ModelError, match="registers no environment 'Lonley-v3'; did you mean Lone"):
        made(f"{HERE}:Lonley-v3")


class Installed:
    """A distribution that is installed, as far as the metadata say."""

    requires = ["Gymnasium>=1.0", "numpy"]


def test_ids_of_packages_are_shown_with_their_module(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"ale_py": ["ale-py"], "minigrid": ["minigrid"], "numpy": ["numpy"]}
    monkeypatch.setattr(importlib.metadata, "packages_distributions", lambda: found)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Installed)
    for id, told in (
        ("MiniGrid-Empty-5x5-v0", "module:Id, as in minigrid:MiniGrid-Empty-5x5-v0"),
        ("ALE/Pong-v5", "module:Id, as in ale_py:ALE/Pong-v5"),
        ("Elsewhere-v0", r"an id of another package is module:Id\)"),
    ):
        with pytest.raises(ModelError, match=told):
            made(id)


def test_the_time_limit_of_the_configuration_leaves_a_table_as_it_is_known() -> None:
    limited = made("FrozenLake-v1", max_episode_steps=7)
    assert limited.model_id == made("FrozenLake-v1").model_id  # `build` puts the limit into it
    make = maker("Plain-v0", None, EnvConfig("Plain-v0", max_episode_steps=5), ())
    assert make().spec.max_episode_steps == 5
