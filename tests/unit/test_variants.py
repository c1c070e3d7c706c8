"""Several environments behind one id: their mean, who learns in which, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distq_mpi import environments
from distq_mpi.cli import from_keywords
from distq_mpi.config import EnvConfig
from distq_mpi.errors import ConfigError, ModelError
from distq_mpi.memory import model_bytes
from distq_mpi.preparation import settle, warnings

LAKES = "FrozenLake-v1?success_rate=0.5,FrozenLake-v1?success_rate=0.9"


def outcomes(environment: Any, state: int, action: int) -> dict[tuple[int, float, bool], float]:
    found: dict[tuple[int, float, bool], float] = {}
    for i in range(int(environment.outcomes(state, action, environment.params))):
        p, new, reward, ended = environment.outcome(state, action, i, environment.params)
        key = int(new), float(reward), bool(ended)
        found[key] = found.get(key, 0.0) + float(p)
    return found


def test_the_mean_has_mean_chances_and_every_agent_its_own() -> None:
    mean = environments.make(EnvConfig(id=LAKES))
    parts = [
        environments.make(EnvConfig(id="FrozenLake-v1", kwargs={"success_rate": rate}))
        for rate in (0.5, 0.9)
    ]
    for state in range(mean.n_states):
        for action in range(mean.n_actions):
            wanted: dict[Any, float] = {}
            for part in parts:
                for key, p in outcomes(part, state, action).items():
                    wanted[key] = wanted.get(key, 0.0) + p / 2
            assert outcomes(mean, state, action) == pytest.approx(wanted)
    for agent in range(4):
        for found, wanted_array in zip(mean.params_of(agent), parts[agent % 2].params, strict=True):
            np.testing.assert_array_equal(found, wanted_array)
    assert "mean of 2 environments" in mean.summary
    other = environments.make(EnvConfig(id=",".join(reversed(LAKES.split(",")))))
    assert other.model_id != mean.model_id


def test_starts_are_the_mean_of_theirs(tmp_path: Path) -> None:
    names = []
    for k, starts in enumerate(([1.0, 0.0], [0.0, 1.0])):
        names.append(str(tmp_path / f"{k}.npz"))
        one = environments.explicit_model(
            "one", 2, 1, [0, 1, 2], [1, 0], [1.0, 1.0], [0.0, 1.0], None, starts
        )
        environments.write_model(names[-1], one)
    mean = environments.make(EnvConfig(id=",".join(names)))
    found = sorted(mean.start(i, mean.params) for i in range(mean.n_starts))
    assert [(float(p), int(s)) for p, s in found] == [(0.5, 0), (0.5, 1)]


@pytest.mark.parametrize(
    ("id", "told"),
    [
        ("FrozenLake-v1,FrozenLake8x8-v1", "n_states"),
        ("grid?rows=3&columns=3,grid?rows=3&columns=3", "no table of transitions"),
        ("FrozenLake-v1,NoSuch-v0", "NoSuch"),
    ],
)
def test_what_cannot_be_mixed(id: str, told: str) -> None:
    with pytest.raises(ModelError, match=told):
        environments.make(EnvConfig(id=id))


@pytest.mark.parametrize(
    ("keywords", "told"),
    [
        ({"fusion": "importance", "agents": 2}, "importance weighs agents by their visits"),
        ({"agents": 1}, "must be a multiple of 2"),
        ({"agents": 3}, "must be a multiple of 2"),
        ({"architecture": "sharded"}, "sharded has no agents"),
    ],
)
def test_what_is_refused(keywords: dict[str, Any], told: str) -> None:
    config = from_keywords({"env_id": LAKES, **keywords})
    with pytest.raises(ConfigError, match=told):
        settle(config, 1, 1)


def test_what_is_warned_of() -> None:
    for keywords, n in (
        ({"sampling": "generative", "fusion": "mean", "steps_per_round": 1}, 0),
        ({"sampling": "generative", "fusion": "median", "steps_per_round": 1}, 1),
        ({"fusion": "mean", "steps_per_round": 1}, 1),
        ({"fusion": "count", "steps_per_round": 5}, 2),
    ):
        config, environment, _ = settle(
            from_keywords({"env_id": LAKES, "agents": 4, **keywords}), 1, 1
        )
        told = [w for w in warnings(config, environment) if "env.id" in w]
        assert len(told) == n, told


def test_episodes_are_played_in_the_mean() -> None:
    found = environments.make_world(EnvConfig(id=LAKES))
    assert found.model_id == environments.make(EnvConfig(id=LAKES)).model_id


def test_a_file_may_have_a_comma_in_its_name(tmp_path: Path) -> None:
    name = str(tmp_path / "rate=.5,one.npz")
    environments.write_model(name, environments.make(EnvConfig(id="FrozenLake-v1")))
    assert environments.make(EnvConfig(id=name)).n_states == 16


def test_memory_counts_every_variant() -> None:
    mean = environments.make(EnvConfig(id=LAKES))
    every = sum(p.nbytes for v in mean.variants for p in v if isinstance(p, np.ndarray))
    alone = model_bytes(replace(mean, variants=()), None, 1)
    assert every > alone / 2 and model_bytes(mean, None, 1) == alone + every
