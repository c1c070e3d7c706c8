"""Sums over thousands of agents: 64 bits hold them, or the configuration is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from distq_mpi.config import MOST_AGENTS, Config, EnvConfig, LearnConfig, ParallelConfig
from distq_mpi.errors import ConfigError
from distq_mpi.fusion import FixedPoint
from distq_mpi.kernels import fusing
from distq_mpi.kernels.rounds import report, round_kernels
from distq_mpi.keys import validate
from distq_mpi.preparation import settle
from tests.driving import Fuser
from tests.stand_in import compiled, config

MANY = [2**13, 2**14 + 1, 2**15, 2**17]


@pytest.mark.parametrize("n_agents", [2**15])
@pytest.mark.parametrize("fusion", ["delta", "delta_capped"])
def test_gains_of_all_agents_are_added_up(fusion: str, n_agents: int) -> None:
    """All of them find 3 where the base has 1, each with alpha 1: a gain of 1 each."""
    fuser = Fuser(
        config(fusion=fusion, step_size="constant", alpha=1.0, agents=n_agents), 1, 1,
        use_compiled=True,
    )  # fmt: skip
    fuser.base.values[...] = 1.0
    replica = fuser.replica(np.array([[2.0]]), np.array([[1]]))
    for _ in range(n_agents):
        assert fuser.contribute(replica)[fusing.OVERFLOWS] == 0
    value = fuser.fuse().values[0, 0]
    assert value == (1.0 + 2.0 * n_agents if fusion == "delta" else 3.0)
    assert fuser.unstable[0] == 1
    clock = n_agents if fusion == "delta" else 1
    assert fuser.next.clock[0, 0] == clock


@pytest.mark.parametrize("n_agents", [*MANY, MOST_AGENTS])
def test_sums_at_their_largest_fit_63_bits(n_agents: int) -> None:
    steps = fusing.round_limit(n_agents)
    assert steps <= fusing.ROUND_LIMIT and (n_agents > 2**13 or steps == fusing.ROUND_LIMIT)
    assert 2 * n_agents * steps**2 + n_agents * steps < 2**63, "of squares, rounded by halves"
    assert n_agents * fusing.gain_scale(n_agents) < 2**63
    fixed = FixedPoint(n_agents)
    assert n_agents * (fixed.bound * fixed.scale + 1) < 2**63
    assert steps >= 512 * 64, "the longest of short rounds, with the lanes of an agent"


@pytest.mark.parametrize("n_agents", [2, 512, *MANY])
@pytest.mark.parametrize("use_compiled", [False, True])
def test_no_field_of_the_header_overflows(n_agents: int, use_compiled: bool) -> None:
    call: Any = compiled(round_kernels("report"))["report"] if use_compiled else report
    header, most = np.zeros(16, np.int64), 2.0**60
    found, totals = np.array([most / n_agents] * 2 + [1.0, 1e300, 2.0**24]), np.array([-1e300] * 3)
    totals[2] = 2.0**40
    call(found, totals, header, n_agents, 2.0**14)
    assert all(abs(n_agents * field) < 2**63 for field in header.tolist())
    assert header[3] >= 2**61 // max(512, n_agents), "and keeps what it can"


def test_more_agents_are_refused() -> None:
    assert validate({"parallel": {"agents": MOST_AGENTS}})[0] is not None
    found, mistakes = validate({"parallel": {"agents": MOST_AGENTS + 1}})
    assert found is None and "parallel.agents" in mistakes


def test_longer_rounds_of_many_agents_are_refused() -> None:
    def with_agents(n_agents: int) -> None:
        settle(
            Config(
                EnvConfig("CliffWalking-v1"), LearnConfig(),
                ParallelConfig(agents=n_agents, steps_per_round=2**18, memory_bytes=2**50),
            ), 1,
        )  # fmt: skip

    with_agents(2**13)
    with pytest.raises(ConfigError, match="more than 8388608 in a round"):
        with_agents(2**15)
