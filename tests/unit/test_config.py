"""The configuration: round trips, limits between keys, what depends on environment and ranks."""

from __future__ import annotations

import math
import tomllib
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distq_mpi.cli import parse
from distq_mpi.config import SECTIONS, Config, check, from_dict, resolve, to_dict, to_toml
from distq_mpi.errors import ConfigError
from distq_mpi.keys import SCHEMAS, kinds

finite = st.floats(allow_nan=False, allow_infinity=False)
scalars = st.booleans() | st.integers(-(2**63), 2**63 - 1) | finite | st.text(
    st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=9
)  # fmt: skip
values = st.recursive(
    scalars | st.just("None"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1), inner),
    max_leaves=5,
)


@st.composite
def sections(draw: st.DrawFn) -> dict[str, dict[str, Any]]:
    """A configuration as a user may write it, without mistakes."""
    epsilon = draw(st.floats(0.01, 1))
    schedule = draw(st.sampled_from(["constant", "linear", "exponential"]))
    agents = draw(st.integers(0, 70))
    stop = {
        "steps": st.integers(1, 2**62),
        "wall_time_s": st.floats(1e-3, 1e9),
        "policy_gap": st.floats(0, 1),
        "mean_return": finite,
    }
    return {
        "env": {"id": draw(st.text(max_size=5)), "kwargs": draw(st.dictionaries(
            st.text("abc_", min_size=1), values, max_size=3))},
        "learn": {"discount": draw(st.floats(0, 0.999)), "epsilon": epsilon,
                  "epsilon_schedule": schedule, "epsilon_steps": draw(st.integers(1, 10**12)),
                  "rule": draw(st.sampled_from(["q_learning", "sarsa"]))},
        "parallel": {"agents": agents, "lanes": draw(st.just(0) | st.integers(70, 9999)),
                     "steps_per_round": draw(st.just("auto") | st.integers(1, 512))},
        "stop": draw(st.fixed_dictionaries({}, optional=stop)),
        "run": {"seed": draw(st.integers(0, 2**63 - 1)), "overwrite": draw(st.booleans())},
    }  # fmt: skip


@given(sections())
@settings(derandomize=True, deadline=None)
def test_toml_round_trip(written: dict[str, dict[str, Any]]) -> None:
    config = from_dict(written)
    text = to_toml(config)
    read = from_dict(tomllib.loads(text))
    assert read == config and to_toml(read) == text
    for name, value in config.env.kwargs.items():
        assert type(read.env.kwargs[name]) is type(value)


@given(sections(), st.integers(1, 70), st.integers(1, 70), st.booleans(),
       st.integers(1, 10**8))  # fmt: skip
@settings(derandomize=True, deadline=None)
def test_resolved_is_valid_and_resolves_to_itself(
    written: dict[str, dict[str, Any]], size: int, other: int, solvable: bool, n_states: int
) -> None:
    once = resolve(from_dict(written), n_states, 3, size, solvable=solvable)
    assert check(once) == []
    assert resolve(once, n_states, 3, other, solvable=solvable) == once
    assert once.parallel.agents == (written["parallel"]["agents"] or size)
    assert once.parallel.lanes >= once.parallel.agents
    assert any(value is not None for value in vars(once.stop).values())


@given(sections())
@settings(derandomize=True, deadline=None, max_examples=40)
def test_resolved_file_is_what_the_command_line_reads(
    tmp_path_factory: pytest.TempPathFactory, written: dict[str, dict[str, Any]]
) -> None:
    once = resolve(from_dict(written), 64, 4, 3, solvable=True)
    file = tmp_path_factory.mktemp("resolved") / "config.toml"
    file.write_text(to_toml(once), encoding="utf-8", newline="")
    assert parse(["--config", str(file)]).config == once


def test_what_is_off_is_left_out() -> None:
    assert tomllib.loads(to_toml(Config()))["stop"] == {}
    assert set(to_dict(Config())) == set(SECTIONS)


def test_defaults_by_hand() -> None:
    once = resolve(Config(), 64, 4, 3, solvable=True)
    assert (once.parallel.agents, once.parallel.lanes, once.learn.dtype) == (3, 192, "float64")
    assert to_dict(once)["stop"] == {"policy_gap": 1e-3}
    five = resolve(from_dict({"parallel": {"agents": 5}}), 64, 4, 3, solvable=True)
    assert five.parallel.lanes == 320  # by agents, never by ranks
    assert to_dict(resolve(Config(), 64, 4, 1, solvable=False))["stop"] == {"steps": 10_000_000}


@pytest.mark.parametrize(("n_states", "dtype"), [(1 << 20, "float64"), ((1 << 20) + 1, "float32")])
def test_type_of_the_table_turns_at_four_million_pairs(n_states: int, dtype: str) -> None:
    assert resolve(Config(), n_states, 4, 1, solvable=False).learn.dtype == dtype


def test_fewer_lanes_than_ranks() -> None:
    with pytest.raises(ConfigError, match="5 lanes for 6 agents"):
        resolve(from_dict({"parallel": {"lanes": 5}}), 64, 4, 6, solvable=True)
    assert resolve(from_dict({"parallel": {"lanes": 5}}), 64, 4, 5, solvable=True)


def test_keys_of_another_version_are_named() -> None:
    with pytest.raises(ConfigError) as caught:
        from_dict({"learn": {"alpha": 0.2, "lambda": 1}, "privacy": {}})
    told = str(caught.value)
    assert "learn.lambda" in told and "privacy" in told and "alpha" not in told


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        ({"discount": 1.0}, "polynomial"),
        ({"epsilon_schedule": "linear"}, "learn.epsilon_steps"),
        ({"epsilon_schedule": "exponential", "epsilon_steps": 9, "epsilon_final": 0.0}, "linear"),
    ],
)
def test_mistakes_between_keys(written: dict[str, Any], wanted: str) -> None:
    (mistake,) = check(from_dict({"learn": written}))
    assert wanted in mistake


def test_undiscounted_constant_is_fine() -> None:
    assert check(from_dict({"learn": {"discount": 1.0, "step_size": "constant"}})) == []


def test_every_key_is_described_and_its_default_is_within_its_limits() -> None:
    assert set(SCHEMAS) == {
        f"{section}.{key.name}" for section, kind in SECTIONS.items() for key in fields(kind)
    }
    for key, schema in SCHEMAS.items():
        assert schema["description"].endswith("."), key
        default = schema.get("default")
        if kinds(key) & {"integer", "number"} and isinstance(default, int | float):
            assert schema.get("minimum", -math.inf) <= default <= schema.get("maximum", math.inf)
