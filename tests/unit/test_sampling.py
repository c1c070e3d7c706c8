"""The closing evaluation: played in parts, and ended where a run is asked to stop."""

from __future__ import annotations

import types
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from distq_mpi import environments, sampling
from distq_mpi.config import EnvConfig
from distq_mpi.environments.stepped import stepped_environment
from distq_mpi.holding import Holding
from distq_mpi.kernels.evaluation import evaluation_kernel
from distq_mpi.partition import Partition
from distq_mpi.table import Record, Rows
from tests.stand_in import Alone, compiled, config, together

EPISODES = 11


def evaluated(
    environment: Any, kernels: Any, transport: Any, blocks: bool = False, asked: Any = None
) -> Any:
    """`sample` of a random table."""
    q = np.random.default_rng(0).uniform(0, 1, (environment.n_states, environment.n_actions))
    cut = Partition.balanced(len(q), transport.size)
    first, stop = cut.block(transport.rank) if blocks else (0, len(q))
    rows = Rows(Record(q.shape[1], q.dtype), stop - first)
    rows.values[...] = q[first:stop]
    holding = Holding(rows, first, cut if blocks else None, transport)
    settings = config()
    settings.evaluate = types.SimpleNamespace(episodes=EPISODES)
    more = () if asked is None else (asked,)
    return sampling.sample(settings, environment, kernels, holding, *more)


def lake() -> tuple[Any, Any]:
    environment = environments.make(EnvConfig(id="FrozenLake-v1"))
    record = Record(environment.n_actions, np.dtype(np.float64))
    return environment, compiled(evaluation_kernel(config().learn, environment, record))


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("size", [1, 3])
def test_the_parts_it_is_played_in_do_not_matter(
    size: int, blocks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment, kernels = lake()
    whole = evaluated(environment, kernels, Alone())
    monkeypatch.setattr(sampling, "SLICE_STEPS", 30)
    found = together(size, lambda t: evaluated(environment, kernels, t, blocks))
    assert found == [whole] + [None] * (size - 1)
    walk = environments.make(EnvConfig(id="tests.worlds:Walk-v0"))
    whole = evaluated(walk, {}, Alone())
    monkeypatch.setattr(sampling, "SLICE_S", 0.0)
    found = together(size, lambda t: evaluated(walk, {}, t, blocks))
    assert found == [whole] + [None] * (size - 1)


class Endless(gymnasium.Env):
    """Episodes without an end, and the number of steps made in all of them."""

    observation_space = action_space = spaces.Discrete(2)
    made = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return 0, {}

    def step(self, action: int) -> Any:
        Endless.made += 1
        return 0, 1.0, False, False, {}


@pytest.mark.parametrize("rank", [0, 2])
def test_a_rank_that_is_asked_to_stop_ends_it_for_all(
    rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment, kernels = lake()
    monkeypatch.setattr(sampling, "SLICE_STEPS", 1)
    monkeypatch.setattr(sampling, "SLICE_S", 0.0)

    def work(transport: Any, world: Any, blocks: bool) -> Any:
        polls = iter([False, False, transport.rank == rank])  # and no fourth
        return evaluated(world, kernels, transport, blocks, polls.__next__)

    for blocks in (False, True):
        assert together(3, lambda t, b=blocks: work(t, environment, b)) == [None] * 3
        Endless.made = 0
        endless = stepped_environment("endless", Endless)
        assert together(3, lambda t, b=blocks, e=endless: work(t, e, b)) == [None] * 3
        assert Endless.made == 9
