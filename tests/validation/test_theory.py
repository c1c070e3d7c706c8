"""Closed forms that a right implementation meets: step sizes, fusions, clocks.

The ids T1, T7 and T8 and the clock numbers are those of docs/validation.md: exact values of tiny
problems, by the compiled loops of the program itself.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from distq_mpi.architectures import Allreduce
from distq_mpi.fusion import FUSIONS, fusion_kernels
from distq_mpi.kernels import fusing
from distq_mpi.table import Rows, record_of
from tests.driving import Fuser, Job, Learner
from tests.stand_in import Alone, compiled, config, one_state


def error_ratio(step_size: str, discount: float, n: int, dtype: str, seed: int = 1) -> float:
    """Error after n updates over the first error, one state, reward 1 for ever."""
    settings = config(step_size=step_size, discount=discount, alpha=0.1, dtype=dtype)
    learner = Learner(one_state(), settings.learn, 1, seed=seed, use_compiled=True)
    learner.begin()
    learner.learn(n)
    assert learner.rows.clock[0, 0] == n
    return 1.0 - float(learner.rows.values[0, 0]) * (1.0 - discount)


def test_T1_rescaled_linear() -> None:
    """prod (1 - a_k (1 - g)) telescopes to 1 / (1 + (1 - g) N); alpha sees k = 1 first."""
    found = error_ratio("rescaled_linear", 0.99, 10**6, "float64")
    assert found == pytest.approx(1 / (1 + 0.01 * 10**6), rel=1e-6)
    assert found == pytest.approx(9.999e-5, rel=1e-6)


def test_T1_constant() -> None:
    found = error_ratio("constant", 0.9, 1000, "float64")
    assert found == pytest.approx((1 - 0.1 * 0.1) ** 1000, rel=1e-6)
    assert found == pytest.approx(4.31712e-5, rel=2e-6)


@pytest.mark.parametrize("n", [1, 2, 10, 1000])
def test_T1_rescaled_linear_from_the_first_step(n: int) -> None:
    found = error_ratio("rescaled_linear", 0.99, n, "float64")
    assert found == pytest.approx(1 / (1 + 0.01 * n), rel=1e-12)


def test_T1_float32_does_not_stop_below_half_an_ulp() -> None:
    exact = 1 / (1 + 0.01 * 10**6)
    for seed in range(5):
        found = error_ratio("rescaled_linear", 0.99, 10**6, "float32", seed)
        assert exact / 3 < found < exact * 3


def visited(settings: Any, n_visits: int) -> Rows:
    """A replica of one state after that many visits of the real loop from a zero base."""
    learner = Learner(one_state(), settings.learn, 1, use_compiled=True)
    learner.begin()
    learner.learn(n_visits)
    return learner.rows


def fused(fusion: str, visits: tuple[int, ...], **changes: Any) -> tuple[float, int]:
    """The value and clock of one pair after agents with targets 1 visited it, base 0."""
    changes = {"alpha": 0.1, "step_size": "constant", "discount": 0.0, **changes}
    settings = config(fusion=fusion, agents=len(visits), **changes)
    exponent = 4
    while True:
        fuser = Fuser(settings, 1, 1, use_compiled=True, exponent=exponent)
        found = [fuser.contribute(visited(settings, n)) for n in visits]
        if not sum(f[fusing.OVERFLOWS] for f in found):
            rows = fuser.fuse()
            return float(rows.values[0, 0]), int(rows.clock[0, 0])
        exponent += 8


ONE_VISITOR = dict.fromkeys(FUSIONS, (0.92821020, 25))
ONE_VISITOR |= {"mean": (0.46410510, 12), "importance": (0.86603754, 25)}
TWO_VISITORS = dict.fromkeys(FUSIONS, (0.92821020, 25))
TWO_VISITORS |= {
    "pooled": (0.99484622, 50), "delta": (1.85642040, 50), "delta_capped": (1.0, 27),
}  # fmt: skip


@pytest.mark.parametrize("fusion", list(FUSIONS))
def test_T8_one_of_two_agents_visits(fusion: str) -> None:
    value, clock = ONE_VISITOR[fusion]
    for visits in ((25, 0), (0, 25)):
        found = fused(fusion, visits)
        assert found == (pytest.approx(value, abs=1e-8), clock)
    assert ONE_VISITOR["mean"][0] == pytest.approx((1 - 0.9**25) / 2, abs=1e-8)
    weights = 1 + 0.9**-25
    assert ONE_VISITOR["importance"][0] == pytest.approx((weights - 2) / weights, abs=1e-8)


@pytest.mark.parametrize("fusion", list(FUSIONS))
def test_T8_both_agents_visit(fusion: str) -> None:
    value, clock = TWO_VISITORS[fusion]
    assert fused(fusion, (25, 25)) == (pytest.approx(value, abs=1e-8), clock)
    assert TWO_VISITORS["pooled"][0] == pytest.approx(1 - 0.9**50, abs=1e-8)


def test_T8_uneven_visits() -> None:
    assert fused("count", (1, 3))[0] == pytest.approx((0.1 + 3 * (1 - 0.9**3)) / 4, rel=1e-14)
    assert fused("pooled", (1, 3))[0] == pytest.approx(1 - 0.9**4, rel=1e-14)
    assert [fused("count", visits)[1] for visits in ((1, 3), (1, 2), (1, 1), (5, 1))] == [
        3, 2, 1, 4,
    ]  # fmt: skip  (10/4, 5/3, 1, 26/6 rounded half up)


def random_round(fuser: Fuser, visits: list[int], seed: int) -> list[Rows]:
    """A random base, and one replica per agent with that many visits and another change each."""
    rng = np.random.default_rng(seed)
    shape = fuser.base.values.shape
    fuser.base.values[...] = rng.normal(size=shape)
    fuser.base.clock[...] = rng.integers(0, 1000, shape)
    fuser.lifetime[...] = fuser.base.clock.reshape(-1).astype(np.uint64) * np.uint64(len(visits))
    return [
        fuser.replica(rng.normal(size=shape) * 0.1 * (n > 0), np.full(shape, n)) for n in visits
    ]


def agrees(found: Rows, replica: Rows, base: Rows, fuser: Fuser) -> bool:
    """Within 2 ulp of what the agents hold, and one quantum of the fixed-point sums."""
    scale = np.maximum(np.abs(replica.values), np.abs(base.values))
    limit = 2 * np.spacing(scale) + 1 / fuser.rates[fusing.SCALE]
    return bool(np.all(np.abs(found.values - replica.values) <= limit))


@pytest.mark.parametrize("fusion", list(FUSIONS))
def test_T7_nothing_visited_changes_no_bit(fusion: str) -> None:
    fuser = Fuser(config(fusion=fusion, agents=3), 50, 4, use_compiled=True)
    for replica in random_round(fuser, [0, 0, 0], 1):
        fuser.contribute(replica)
    assert fuser.fuse().raw.tobytes() == fuser.base.raw.tobytes()


@pytest.mark.parametrize("fusion", list(FUSIONS))
def test_T7_equal_tables_and_visits(fusion: str) -> None:
    """Averages return what all agents hold; pooled, by design, moves further the same way."""
    exponent = 10 if fusion == "pooled" else 4  # it sends n (C - base), far larger
    fuser = Fuser(config(fusion=fusion, agents=4), 50, 4, True, exponent)
    replica = random_round(fuser, [7], 2)[0]
    fuser.lifetime[...] *= np.uint64(4)
    for _ in range(4):
        assert not fuser.contribute(replica)[fusing.OVERFLOWS]
    rows = fuser.fuse()
    change = replica.values - fuser.base.values
    moved = rows.values - fuser.base.values
    if fusion in ("max", "median"):
        # The agents' own table is the largest there is: bit for bit.
        assert np.array_equal(rows.values, replica.values)
    elif fusion in ("pooled", "delta", "delta_capped"):
        assert np.all(np.sign(moved) == np.sign(change))
        assert np.all(np.abs(moved) > np.abs(change))
    else:
        assert agrees(rows, replica, fuser.base, fuser)
    if fusion == "delta_capped":
        assert np.all(rows.clock >= fuser.base.clock + np.uint32(7))
        assert np.all(rows.clock <= fuser.base.clock + np.uint32(28))
    else:
        grown = 28 if fusion in ("pooled", "delta") else 7
        assert np.all(rows.clock == fuser.base.clock + np.uint32(grown))


@pytest.mark.parametrize("fusion", [name for name in FUSIONS if name != "max"])
@pytest.mark.parametrize("n", [1, 2, 25])
def test_T7_the_fusion_of_one_agent_is_its_table(fusion: str, n: int) -> None:
    """Also `pooled`, which undoes the contraction and applies it again."""
    settings = config(fusion=fusion, agents=2, step_size="constant")
    requests = fusion_kernels(settings, record_of(settings.learn, 4))
    settings.parallel.agents = 1
    fuser = Fuser(settings, 50, 4, True, 6, requests)
    (replica,) = random_round(fuser, [n], 3)
    assert not fuser.contribute(replica)[fusing.OVERFLOWS]
    rows = fuser.fuse()
    assert agrees(rows, replica, fuser.base, fuser)
    assert np.array_equal(rows.clock, replica.clock)


@pytest.mark.parametrize("fusion", [n for n, fusion in FUSIONS.items() if fusion.merge is None])
def test_T7_the_order_of_agents_does_not_matter(fusion: str) -> None:
    tables = set()
    for order in itertools.permutations(range(4)):
        fuser = Fuser(config(fusion=fusion, agents=4), 50, 4, use_compiled=True)
        replicas = random_round(fuser, [3, 0, 11, 1], 4)
        for k in order:
            fuser.contribute(replicas[k])
        tables.add(fuser.fuse().raw.tobytes())
    assert len(tables) == 1


N_ROUNDS = 1000
DISCOUNT = 0.99


def learned(fusion: str, n_agents: int, n_lanes: int = 0, **changes: Any) -> tuple[float, int]:
    """Error and clock of one state, reward 1, after rounds of one visit per lane; changes : of the
    fusion."""
    settings = config(
        fusion=fusion, agents=n_agents, lanes=n_lanes or n_agents, discount=DISCOUNT
    )
    environment = one_state()
    with patch.dict(FUSIONS, {fusion: replace(FUSIONS[fusion], **changes)}):
        requests = Allreduce.requests(settings, environment)
    found = Job(settings, environment, compiled(requests)).run(Alone(), N_ROUNDS)
    assert found["progress"].steps == N_ROUNDS * settings.parallel.lanes
    return 1 / (1 - DISCOUNT) - float(found["values"][0, 0]), found["clock"]


def lone_error(n: int) -> float:
    """T1 in closed form, from an error of 100."""
    return 100 / (1 + (1 - DISCOUNT) * n)


def summed_clock_error(n_agents: int, n_rounds: int) -> float:
    """What an average does whose clock counts all agents' visits: e falls like n^(-1 / K)."""
    alpha = [1 / (1 + (1 - DISCOUNT) * (n_agents * r + 1)) for r in range(n_rounds)]
    return 100 * math.exp(math.fsum(math.log1p(-(1 - DISCOUNT) * a) for a in alpha))


@pytest.mark.parametrize(
    ("fusion", "n_agents"),
    [("count", 1), ("count", 4), ("count", 16), ("count", 64), ("mean", 4), ("mean", 16),
     ("max", 4), ("max", 16)],
)  # fmt: skip
def test_clock_of_an_average_is_that_of_one_visitor(fusion: str, n_agents: int) -> None:
    error, clock = learned(fusion, n_agents)
    assert error == pytest.approx(lone_error(N_ROUNDS), abs=1e-9)
    assert clock == N_ROUNDS


@pytest.mark.parametrize("n_agents", [4, 16, 64])
def test_clock_summed_over_agents_would_freeze_an_average(n_agents: int) -> None:
    """The test above can fail: with the sum for a clock, more agents learn worse."""
    error, clock = learned("count", n_agents, advance=fusing.advance_pooled)
    assert clock == n_agents * N_ROUNDS
    assert error == pytest.approx(summed_clock_error(n_agents, N_ROUNDS), rel=1e-9)
    assert error > 4 * lone_error(N_ROUNDS)


def test_clock_numbers_of_two_hundred_thousand_visits() -> None:
    expected = {2: 1.57, 4: 10.5, 16: 52.0, 64: 83.0}
    for n_agents, error in expected.items():
        assert summed_clock_error(n_agents, 200_000) == pytest.approx(error, rel=0.015)
    assert lone_error(200_000) == pytest.approx(0.05, rel=1e-3)


@pytest.mark.parametrize("n_agents", [4, 16])
def test_clock_of_pooled_is_the_sum_because_its_contraction_is(n_agents: int) -> None:
    error, clock = learned("pooled", n_agents)
    expected = 100.0
    for r in range(N_ROUNDS):
        alpha = 1 / (1 + (1 - DISCOUNT) * (n_agents * r + 1))
        expected *= 1 - (1 - DISCOUNT) * (1 - (1 - alpha) ** n_agents)
    assert clock == n_agents * N_ROUNDS
    assert error == pytest.approx(expected, rel=1e-9)
    assert lone_error(n_agents * N_ROUNDS) < error < lone_error(N_ROUNDS)


def test_clock_of_the_mean_keeps_the_fraction() -> None:
    """Three lanes of two agents: 1.5 visits an agent and round, also after many rounds."""
    assert learned("mean", 2, 3)[1] == N_ROUNDS * 3 // 2
