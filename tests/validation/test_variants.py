"""T17 and V23: agents in different environments, and what their table converges to."""

from __future__ import annotations

import numpy as np
import pytest

from distq_mpi.environments import Environment
from distq_mpi.study.problems import mazes, two_chains
from distq_mpi.study.running import fused_in_turn
from tests.stand_in import Alone


@pytest.mark.parametrize(
    ("alpha", "period", "n_rounds", "fixed_point"),
    [
        (0.5, 1, 40_000, (4.73684, 5.69378)),
        (0.5, 2, 40_000, (4.69917, 5.95291)),
        (0.5, 10, 20_000, (4.58794, 6.94766)),
        (0.5, 2000, 1000, (4.73684, 7.63158)),
        (0.1, 10, 20_000, (4.71292, 6.02446)),
    ],
)
def test_T17_fixed_points(
    alpha: float, period: int, n_rounds: int, fixed_point: tuple[float, float]
) -> None:
    # Backups are linear with one action: the mean over rounds is the fixed point of the means.
    tables = fused_in_turn(Alone(), two_chains(), 2, period, n_rounds, 0.9, alpha=alpha)
    mean = np.mean(tables[n_rounds // 10 :], axis=0).reshape(-1)
    np.testing.assert_allclose(mean, fixed_point, atol=0.04)


def optimal(environment: Environment, discount: float) -> np.ndarray:
    """Q* by its functions, one outcome after the other."""
    shape = environment.n_states, environment.n_actions
    told = {
        pair: [
            environment.outcome(*pair, i, environment.params)
            for i in range(int(environment.outcomes(*pair, environment.params)))
        ]
        for pair in np.ndindex(*shape)
    }
    q = np.zeros(shape)
    for _ in range(60):
        v = q.max(axis=1)
        for pair, outcomes in told.items():
            q[pair] = sum(p * (r + discount * (not end) * v[new]) for p, new, r, end in outcomes)
    return q


def test_Q_of_the_mean_of_mazes_is_that_of_its_outcomes() -> None:
    environment, q = mazes(4, 1, 0.8)
    np.testing.assert_allclose(q, optimal(environment, 0.8), atol=1e-5)


def test_V23_more_local_steps_end_further_off() -> None:
    environment, q = mazes(20, 1, 0.99)
    curves = {}
    for period in (1, 10, 40, 200):
        tables = fused_in_turn(
            Alone(), environment, 20, period, 8_000 // period, 0.99, first=2.0, alpha=0.2
        )
        curves[period] = np.abs(np.array(tables) - q).max(axis=(1, 2))
    ends = {period: float(curve[-10:].mean()) for period, curve in curves.items()}
    # One local step converges; with more the error falls from above, turns, and stays: the higher
    # the more.
    assert ends[1] < 1e-9
    assert 0.01 < ends[10] < 0.7 * ends[40] < 0.5 * ends[200]
    for period in (40, 200):
        assert curves[period].min() < 0.6 * ends[period]
