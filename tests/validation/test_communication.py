"""Section 8c of theory, FedQ-Hoeffding, and Fed-DVR-Q: what few messages can do, on any ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from distq_mpi.kernels.episodic import episodic_kernels
from distq_mpi.study import reduced, regret
from distq_mpi.study.problems import hard
from tests.stand_in import Alone, compiled, together


@pytest.fixture(scope="module")
def kernels() -> dict[str, Any]:
    return compiled(episodic_kernels())


def test_8c_federated_regret_is_that_of_one_agent(kernels: dict[str, Any]) -> None:
    found = [regret.regrets(seed, 10_000, kernels, Alone()) for seed in range(3)]
    assert all(0.9 <= one.federated / one.alone <= 1.1 for one in found)
    assert all(one.rounds < 2500 and one.late_rounds < 0.15 * one.rounds for one in found)


def test_regret_does_not_depend_on_ranks(kernels: dict[str, Any]) -> None:
    alone = regret.regrets(1, 300, kernels, Alone())
    assert together(3, lambda t: regret.regrets(1, 300, kernels, t)) == [alone] * 3


def test_regret_of_the_best_policy_is_none() -> None:
    problem = regret.Instance(0)
    v, policy = np.zeros(regret.N_STATES), []
    for _ in range(regret.N_STEPS):
        q = problem.rewards + problem.p @ v
        v = q.max(axis=1)
        policy.insert(0, q.argmax(axis=1))
    np.testing.assert_allclose(problem.worth(np.array(policy)), problem.optimal, rtol=1e-12)


def test_first_epoch_of_fed_dvr_q_contracts_as_it_must() -> None:
    # State 3 is worth 10 and certain: 20 steps of .5 leave 10 x .95^20.
    environment, optimal = hard(0.9)
    q, drawn, rounds = reduced.learn(environment, 0.9, 4, 0, Alone(), 1)
    assert optimal[3, 0] - q[3, 0] == pytest.approx(3.5849, abs=0.02)  # of 16 bits
    assert (drawn, rounds) == (250, 21)


def test_fed_dvr_q_shares_samples_out_at_equal_error() -> None:
    environment, optimal = hard(0.9)
    for agents, drawn, published in ((1, 72200, 0.062), (4, 18050, 0.067), (16, 4563, 0.064)):
        runs = [reduced.learn(environment, 0.9, agents, seed, Alone()) for seed in range(10)]
        error = float(np.mean([np.abs(q - optimal).max() for q, _, _ in runs]))
        assert error == pytest.approx(published, abs=0.012)
        assert {run[1:] for run in runs} == {(drawn, 105)}


def test_fed_dvr_q_does_not_depend_on_ranks() -> None:
    environment, _ = hard(0.9)
    alone = reduced.learn(environment, 0.9, 5, 3, Alone(), 2)
    for q, drawn, rounds in together(3, lambda t: reduced.learn(environment, 0.9, 5, 3, t, 2)):
        np.testing.assert_array_equal(q, alone[0])
        assert (drawn, rounds) == alone[1:]


def test_numbers_in_few_bits_are_right_on_average() -> None:
    rng, x = np.random.default_rng(0), np.array([0.3, -0.77, 1.0, 0.0])
    sent = sum(reduced.coded(x, 2.0, rng) for _ in range(4000))
    np.testing.assert_allclose(reduced.decoded(np.asarray(sent), 2.0, 4000), x, atol=1e-5)
    assert reduced.coded(np.array([9.0]), 2.0, rng)[0] == 2**15 - 1
