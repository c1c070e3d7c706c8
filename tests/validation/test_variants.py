"""T17 and V23: agents in different environments, and what their table converges to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from distq_mpi.architectures import Allreduce
from distq_mpi.environments import Environment, explicit_model
from distq_mpi.environments.variants import mean_model
from tests.stand_in import Alone, compiled, config


def chain(rows: Sequence[Sequence[float]]) -> Environment:
    """Two states, one action, reward 0 and 1; chances of the next state."""
    p = np.array(rows)
    return explicit_model(
        "chain", 2, 1, [0, 2, 4], [0, 1, 0, 1], p.reshape(-1), [0.0, 0.0, 1.0, 1.0]
    )


def learned(
    environment: Environment, n_agents: int, period: int, n_rounds: int, discount: float,
    seed: int = 0, first: float = 0.0, **learn: Any,
) -> list[np.ndarray]:  # fmt: skip
    """The table after every round of agents that draw every pair in every step."""
    settings = config(
        sampling="generative", discount=discount, agents=n_agents, lanes=n_agents, fusion="mean",
        steps_per_round=period, step_size="constant", dtype="float64", initial="zeros", seed=seed,
        **learn,
    )  # fmt: skip
    state = Allreduce(settings, environment, compiled(Allreduce.requests(settings, environment)),
                      Alone())  # fmt: skip
    state.base.values[...] = first
    found = []
    for _ in range(n_rounds):
        state.learn()
        assert state.exchange((False, False, False)) is not None
        state.commit()
        found.append(state.base.values.copy())
    state.close()
    return found


FIRST, SECOND = [[0.9, 0.1], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]


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
    environment = mean_model("two", [chain(FIRST), chain(SECOND)])
    tables = learned(environment, 2, period, n_rounds, 0.9, alpha=alpha)
    mean = np.mean(tables[len(tables) // 10 :], axis=0).reshape(-1)
    np.testing.assert_allclose(mean, fixed_point, atol=0.04)


def maze(rng: np.random.Generator, size: int = 5) -> Environment:
    """A random maze: a third of the moves is blocked; 1 for reaching the last cell, which ends."""
    moves = ((-1, 0), (0, 1), (1, 0), (0, -1))
    n = size * size
    free = rng.random((n, 4)) > 1 / 3
    following, rewards, ends = [], [], []
    for cell in range(n):
        for k, (down, right) in enumerate(moves):
            row, column = cell // size + down, cell % size + right
            inside = 0 <= row < size and 0 <= column < size and free[cell, k]
            new = row * size + column if inside else cell
            following.append(new)
            ends.append(new == n - 1)
            rewards.append(float(new == n - 1))
    return explicit_model(
        "maze", n, 4, np.arange(4 * n + 1), following, np.ones(4 * n), rewards, ends
    )


def optimal(environment: Environment, discount: float) -> np.ndarray:
    n = environment.n_states * environment.n_actions
    indptr, alias, reward, chance, *_ = environment.params
    row = np.repeat(np.arange(n), np.diff(indptr))
    following = (alias[1::2] >> np.uint64(1)).astype(int)
    goes_on = (alias[1::2] & np.uint64(1)) == 0
    q = np.zeros((environment.n_states, environment.n_actions))
    for _ in range(4000):
        worth = chance * (reward + discount * goes_on * q.max(axis=1)[following])
        q = np.bincount(row, worth, n).reshape(q.shape)
    return q


def test_V23_more_local_steps_end_further_off() -> None:
    rng = np.random.default_rng(1)
    environment = mean_model("mazes", [maze(rng) for _ in range(20)])
    q_star = optimal(environment, 0.99)
    curves = {}
    for period in (1, 10, 40, 200):
        tables = learned(environment, 20, period, 16_000 // period, 0.99, first=2.0, alpha=0.2)
        curves[period] = [float(np.abs(q - q_star).max()) for q in tables]
    ends = {period: float(np.mean(curve[-10:])) for period, curve in curves.items()}
    # One local step converges; with more the error falls from above, turns, and stays: the higher
    # the more.
    assert ends[1] < 1e-9
    assert 0.01 < ends[10] < 0.7 * ends[40] < 0.7 * ends[200]
    for period in (40, 200):
        assert min(curves[period]) < 0.6 * ends[period]
