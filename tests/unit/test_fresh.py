"""Certificates by fresh samples: ranks, what ends, what is stepped, and what is refused."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distq_mpi import certificate_file, environments, fresh
from distq_mpi.config import EnvConfig
from distq_mpi.environments import Environment
from distq_mpi.environments.guard import guarded
from distq_mpi.environments.laws import law_environment
from distq_mpi.errors import ConfigError, FileError, ModelError
from distq_mpi.fresh import Asked, Sampled
from distq_mpi.holding import Holding
from distq_mpi.partition import Partition
from distq_mpi.table import Record, Rows
from tests.stand_in import Alone, compiled, together
from tests.unit.test_environments_guard import Small

DISCOUNT = 0.9


def lake() -> Environment:
    return environments.make(EnvConfig(id="FrozenLake-v1"))


def stepped() -> Environment:
    return environments.make(EnvConfig(id="tests.worlds:PacedLake-v0"))


def table(environment: Environment) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.uniform(0, 1, (environment.n_states, environment.n_actions))


def judged(
    environment: Environment, transport: Any, kernels: dict[str, Any], blocks: bool = False,
    **asked: Any,
) -> Sampled:  # fmt: skip
    q = table(environment)
    cut = Partition.balanced(len(q), transport.size)
    first, stop = cut.block(transport.rank) if blocks else (0, len(q))
    rows = Rows(Record(q.shape[1], q.dtype), stop - first)
    rows.values[...] = q[first:stop]
    holding = Holding(rows, first, cut if blocks else None, transport)
    return fresh.certify(holding, environment, kernels, DISCOUNT, Asked(**asked))


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("size", [2, 3])
def test_ranks_do_not_matter(size: int, blocks: bool) -> None:
    environment = lake()
    kernels = compiled(fresh.requests(environment, np.dtype(np.float64)))
    alone = judged(environment, Alone(), kernels, samples=50)
    found = together(size, lambda t: judged(environment, t, kernels, blocks, samples=50))
    assert found == [alone] * size
    assert alone.uncertified_pairs == 0 and (alone.least_reward, alone.most_reward) == (0, 1)


def test_other_seeds_and_checks_are_other_samples() -> None:
    kwargs = {"states": 20, "actions": 2, "branching": 5}
    environment = environments.make(EnvConfig(id="garnet", kwargs=kwargs))
    kernels = compiled(fresh.requests(environment, np.dtype(np.float64)))
    bounds = [
        judged(environment, Alone(), kernels, samples=50, **more).q_error_bound
        for more in ({}, {"seed": 1}, {"check": 2}, {"check": 2, "delta": 0.5})
    ]
    assert len(set(bounds)) == 4


@pytest.mark.parametrize("size", [1, 3])
def test_what_is_stepped_is_judged_by_visits(size: int) -> None:
    environment, q = stepped(), table(stepped())
    asked = {"samples": 30, "least_reward": 0.0, "most_reward": 1.0, "steps": 80_000}
    found = together(size, lambda t: judged(environment, t, {}, **asked))
    assert len(set(found)) == 1
    one = found[0]
    # Ends of the lake have no visits: 4 holes and the goal, 4 actions each.
    assert one.uncertified_pairs == 20 and one.pairs == q.size
    assert one.q_error_bound is not None and (one.q_error_floor or 0) < one.q_error_bound


def test_stepped_without_a_range_is_refused() -> None:
    with pytest.raises(ConfigError, match="--rewards LEAST,MOST"):
        judged(stepped(), Alone(), {}, samples=10)


def test_a_reward_outside_the_range_is_seen() -> None:
    environment = lake()
    kernels = compiled(fresh.requests(environment, np.dtype(np.float64)))
    with pytest.raises(ConfigError, match=r"lie in \[0, 1\], more than 0,0.5"):
        judged(environment, Alone(), kernels, samples=500, most_reward=0.5)
    with pytest.raises(ModelError, match=r"outside \[0, 0.5\]"):
        judged(stepped(), Alone(), {}, samples=30, steps=20_000, least_reward=0.0, most_reward=0.5)


def test_what_a_guard_notes_is_no_certificate() -> None:
    whole = law_environment("small", Small, {})
    environment = guarded(replace(whole, params=(64, 8, 2**40, 0.8, -1.0), trusted=False))
    kernels = compiled(fresh.requests(environment, np.dtype(np.float64)))
    with pytest.raises(ModelError, match="next_state 1099511627776"):
        judged(environment, Alone(), kernels, samples=50)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"delta": "0.1"}, "say --samples, too"),
        ({"samples": "1"}, "must be a whole number >= 2"),
        ({"samples": "10.9"}, "--samples: 10.9 must be a whole number"),
        ({"samples": "10", "steps": "0.5"}, "--steps: 0.5 must be a whole number"),
        ({"samples": "10", "run.seed": "1.5"}, "--run.seed: 1.5 must be a whole number"),
        ({"samples": "10", "delta": "1"}, "must be between 0 and 1"),
        ({"samples": "10", "rewards": "-inf,inf"}, "must be finite"),
        ({"samples": "10", "rewards": "3"}, "two numbers"),
        ({"samples": "10", "rewards": "3,1"}, "the least first"),
    ],
)
def test_what_cannot_be_asked(options: dict[str, str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        certificate_file.asked_of(options)


def test_what_can_be_asked() -> None:
    assert certificate_file.asked_of({}) is None
    found = certificate_file.asked_of({"samples": "1e3", "rewards": "-1,0", "run.seed": "7.0"})
    assert found == Asked(1000, seed=7, least_reward=-1.0, most_reward=0.0)


def claim(**changes: Any) -> dict[str, Any]:
    sampled = Sampled(10, 0.1, 1, 0, 100, 0.0, 1.0, 4, 0, 0.1, 0.0, 0.2)
    return {
        "format": certificate_file.FORMAT, "model_id": "m", "table_sha256": "t", "exact": None,
        "sampled": asdict(sampled) | changes,
    }  # fmt: skip


def test_files_that_are_no_certificates(tmp_path: Path) -> None:
    path = tmp_path / "claim.json"
    path.write_text(json.dumps(claim()))
    assert certificate_file.read(path)["sampled"]["samples"] == 10
    short = claim()
    del short["sampled"]["pairs"], short["model_id"]
    for told, why in (
        ({"format": "another"}, "is no certificate"),
        (short, "lacks model_id, sampled.pairs"),
        (claim(samples=1), "sampled: --samples: 1 must be"),
        (claim(delta=2), "sampled: --delta: 2 must be"),
        (claim(most_reward=None), "sampled: --rewards"),
        (claim(seed="x"), "sampled: could not convert"),
    ):
        path.write_text(json.dumps(told))
        with pytest.raises(FileError, match=why):
            certificate_file.read(path)
