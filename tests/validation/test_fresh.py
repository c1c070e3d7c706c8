"""T13: what fresh samples say of a table is true as often as it claims, and not by far too much."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from distq_mpi import fresh
from distq_mpi.environments import Environment, explicit_model
from distq_mpi.fresh import Asked, Sampled
from distq_mpi.holding import Holding
from distq_mpi.kernels.fresh import half_width
from distq_mpi.table import Record, Rows
from tests.stand_in import Alone, compiled

N_STATES, N_ACTIONS, DISCOUNT = 8, 3, 0.9
N_MODELS = 300


def model(rng: np.random.Generator, share_ending: float = 0.0) -> tuple[Environment, np.ndarray]:
    """A random model and its Q*."""
    n = N_STATES * N_ACTIONS
    chances, rewards = rng.dirichlet(np.ones(N_STATES), n), rng.uniform(0, 1, n)
    ends = rng.random((n, N_STATES)) < share_ending
    rows = np.arange(0, n * N_STATES + 1, N_STATES)
    environment = explicit_model(
        "random", N_STATES, N_ACTIONS, rows, np.tile(np.arange(N_STATES), n), chances.reshape(-1),
        np.repeat(rewards, N_STATES), ends.reshape(-1),
    )  # fmt: skip
    q = np.zeros((N_STATES, N_ACTIONS))
    for _ in range(400):
        q = (rewards + DISCOUNT * (chances * ~ends) @ q.max(axis=1)).reshape(q.shape)
    return environment, q


def held(q: np.ndarray) -> Holding:
    rows = Rows(Record(q.shape[1], q.dtype), len(q))
    rows.values[...] = q
    return Holding(rows, 0, None, Alone())


def judged(
    environment: Environment, q: np.ndarray, kernels: dict[str, Any], **asked: Any
) -> Sampled:
    return fresh.certify(held(q), environment, kernels, DISCOUNT, Asked(**asked))


@pytest.mark.parametrize("share_ending", [0.0, 0.2])
def test_T13_coverage(share_ending: float) -> None:
    rng = np.random.default_rng(3)
    kernels = compiled(fresh.requests(model(rng)[0], np.dtype(np.float64)))
    covered, ratios, floors, losses = 0, [], 0, 0
    for seed in range(N_MODELS):
        environment, optimal = model(rng, share_ending)
        q = optimal + rng.normal(0, 0.05, optimal.shape)
        found = judged(environment, q, kernels, samples=2000, delta=0.05, seed=seed)
        true = float(np.abs(q - optimal).max())
        assert found.q_error_bound is not None and found.q_error_floor is not None
        covered += true <= found.q_error_bound
        floors += found.q_error_floor <= true
        ratios.append(found.q_error_bound / true)
        losses += loss(environment, q, optimal) <= (found.policy_loss_bound or 0.0)
    assert min(covered, floors, losses) >= 0.95 * N_MODELS
    assert 1.5 < float(np.median(ratios)) < 50


def loss(environment: Environment, q: np.ndarray, optimal: np.ndarray) -> float:
    """max V* - V of the greedy policy, by algebra."""
    _, alias, reward, probability, *_ = environment.params
    following = (alias[1::2] >> np.uint64(1)).astype(int)
    ends = (alias[1::2] & np.uint64(1)).astype(bool)
    p, r = np.zeros((N_STATES, N_STATES)), np.zeros(N_STATES)
    indptr = environment.params[0]
    for s, a in enumerate(q.argmax(axis=1)):
        for i in range(indptr[s * N_ACTIONS + a], indptr[s * N_ACTIONS + a + 1]):
            r[s] += probability[i] * reward[i]
            p[s, following[i]] += probability[i] * (not ends[i])
    v = np.linalg.solve(np.eye(N_STATES) - DISCOUNT * p, r)
    return float((optimal.max(axis=1) - v).max())


def test_T13_widths() -> None:
    # R = 10, variance 1, 5e-4 for the pair: Hoeffding .204, Bernstein .063; here at half of that.
    n, pair = 10_000, 2 * 5e-4
    log_pairs = float(np.log(1 / pair))
    assert half_width(n, 1.0, 10.0, log_pairs) == pytest.approx(0.0634, abs=1e-4)
    assert half_width(n, 1e6, 10.0, log_pairs) == pytest.approx(0.2036, abs=1e-4)
