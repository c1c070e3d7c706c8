"""V1 to V6, V10 and V11: published and independently computed values of Gymnasium's worlds."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

from distq_mpi import environments
from distq_mpi.certificate import Solver, requests
from distq_mpi.config import EnvConfig
from tests.stand_in import Alone, compiled


@functools.cache
def solved(id: str, discount: float, **kwargs: Any) -> Solver:
    environment = environments.make(EnvConfig(id=id, kwargs=kwargs))
    kernels = compiled(requests(environment, np.dtype(np.float64)))
    solver = Solver(environment, discount, kernels, Alone())
    solver.solve()
    return solver


def test_v1_frozen_lake() -> None:
    solver = solved("FrozenLake-v1", 0.99)
    assert solver.optimal_value == pytest.approx(0.5420259320, abs=1e-9)
    assert solver.values is not None
    assert solver.values.sum() == pytest.approx(6.3398195383, abs=1e-9)


@pytest.mark.parametrize(
    ("discount", "value"), [(0.95, 0.1804715784), (0.9, 0.0688909049), (1.0, 14 / 17)]
)
def test_v2_frozen_lake_discounts(discount: float, value: float) -> None:
    assert solved("FrozenLake-v1", discount).optimal_value == pytest.approx(value, abs=1e-9)


def test_v3_frozen_lake_under_its_limit() -> None:
    for discount in (0.99, 0.999, 1.0):
        assert solved("FrozenLake-v1", discount).solution.optimal_policy_return == (
            pytest.approx(0.7401648978, abs=1e-9)
        )
    assert solved("FrozenLake-v1", 0.99).solution.best_return == pytest.approx(
        0.7441902878, abs=1e-9
    )


def test_v4_frozen_lake_8x8() -> None:
    solver = solved("FrozenLake8x8-v1", 0.99)
    assert solver.optimal_value == pytest.approx(0.4146403618, abs=1e-9)
    assert solver.solution.optimal_policy_return == pytest.approx(0.8629553800, abs=1e-9)
    patient = solved("FrozenLake8x8-v1", 0.999)
    assert patient.solution.optimal_policy_return == pytest.approx(0.8856539193, abs=1e-9)
    assert solver.solution.best_return == pytest.approx(0.9132201502, abs=1e-9)


def test_v5_frozen_lake_not_slippery() -> None:
    solver = solved("FrozenLake-v1", 0.99, is_slippery=False)
    assert solver.optimal_value == pytest.approx(0.9509900499, abs=1e-10)
    assert solver.solution.optimal_policy_return == 1.0


@pytest.mark.parametrize(("discount", "value"), [(0.99, -12.2478977001), (0.95, -9.7331583344)])
def test_v6_cliff_walking(discount: float, value: float) -> None:
    solver = solved("CliffWalking-v1", discount)
    assert solver.optimal_value == pytest.approx(value, abs=1e-9)
    assert solver.solution.optimal_policy_return == -13.0


def test_v10_taxi_returns() -> None:
    solver = solved("Taxi-v4", 0.99)
    assert solver.solution.optimal_policy_return == pytest.approx(7.93, abs=1e-12)
    planner = solver.planner
    assert solver.values is not None
    policy = planner.greedy(solver.values, 0.99)
    returns = solver.policies.horizon(policy, planner.mask, 200, planner.budget("the return"))
    law = solver.environment
    returns = returns[[law.start(i, law.params)[1] for i in range(law.n_starts)]]
    assert returns.size == 300
    assert returns.std() == pytest.approx(2.5894, abs=5e-5)
    assert (returns.min(), returns.max()) == (3.0, 15.0)


@pytest.mark.parametrize(
    ("discount", "value"), [(0.99, 6.3274643149), (0.95, 1.7299300168), (0.9, -1.2633230990)]
)
def test_v11_taxi(discount: float, value: float) -> None:
    assert solved("Taxi-v4", discount).optimal_value == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize(
    ("id", "n_reachable"),
    [
        ("FrozenLake-v1", 11),  # 16 cells, 4 holes and the goal end the episode
        ("FrozenLake8x8-v1", 53),  # 64 cells, 10 holes and the goal
        ("CliffWalking-v1", 37),  # 48 cells, 10 of cliff send back to the start, the goal ends
        ("Taxi-v4", 400),  # 5 x 5 cells x (4 places + aboard) x 4 destinations, less delivered ones
    ],
)
def test_reachable_states(id: str, n_reachable: int) -> None:
    assert solved(id, 0.9).n_reachable == n_reachable
