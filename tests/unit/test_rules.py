"""Rules and behaviours for one transition, against numbers worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import chisquare

from distq_mpi.environments import exploring_starts
from distq_mpi.kernels.draws import scaled
from distq_mpi.kernels.exploration import (
    best_of,
    epsilon_greedy_mean,
    epsilon_threshold,
    inverse_bits,
    softmax,
    softmax_mean,
    sum_of_parts,
)
from distq_mpi.kernels.loop import learning_parts
from distq_mpi.kernels.rules import RULES, coin
from distq_mpi.table import Rows, record_of
from tests.driving import Learner
from tests.stand_in import config, random_model

u8, f8 = np.uint64, np.float64


def bootstrap(
    rule: str, q: list[float], n_actions: int, a_next: int, expected: Any = None, part: int = 0,
    word: int = 0,
) -> float:  # fmt: skip
    table = np.array(q)
    at = sum_of_parts(n_actions) if RULES[rule].n_parts == 2 else None
    value = best_of(n_actions, *([at] if at else []))(table, u8(0))[1]
    function = RULES[rule].bootstrap(n_actions, expected)
    return float(function(table, u8(0), u8(a_next), value, u8(0), u8(part), u8(word)))


def test_q_learning_takes_the_best_and_sarsa_the_next() -> None:
    assert bootstrap("q_learning", [1.0, 3.0, 2.0], 3, 2) == 3.0
    assert bootstrap("sarsa", [1.0, 3.0, 2.0], 3, 2) == 2.0


def test_double_q_judges_the_best_of_one_part_by_the_other() -> None:
    row = [1.0, 3.0, 2.0, 10.0, 20.0, 30.0]
    assert bootstrap("double_q", row, 3, 0, part=0) == 20.0
    assert bootstrap("double_q", row, 3, 0, part=3) == 2.0


def test_double_q_breaks_ties_within_a_part_by_the_draw() -> None:
    row = [5.0, 1.0, 5.0, 10.0, 20.0, 30.0]
    for high, wanted in ((0, 10.0), (2**31 - 1, 10.0), (2**31, 30.0), (2**32 - 1, 30.0)):
        assert bootstrap("double_q", row, 3, 0, part=0, word=high << 32) == wanted


def test_the_coin_is_bit_29() -> None:
    toss = coin(3)
    draws = (0, 1 << 29, (1 << 30) - 1, ~(1 << 29) & 2**64 - 1)
    assert [int(toss(u8(bits))) for bits in draws] == [0, 3, 3, 0]


def test_expected_sarsa_splits_ties_and_exploration() -> None:
    expected = epsilon_greedy_mean(3)
    row, epsilon = np.array([1.0, 4.0, 4.0]), u8(epsilon_threshold(0.25))
    # Half of 1 - epsilon for either 4, epsilon / 3 for each.
    assert expected(row, u8(0), f8(4.0), epsilon) == pytest.approx(0.75 * 4 + 0.25 * 3)
    assert bootstrap("expected_sarsa", [1.0, 4.0, 4.0], 3, 0, expected) == 4.0


def test_softmax_is_as_often_as_it_says() -> None:
    row, temperature = np.array([0.3, -0.2, 1.1, 1.1]), 0.5
    explore = u8(inverse_bits(temperature))
    weights = np.exp(row / temperature)
    words = np.random.default_rng(1).integers(0, 2**64, 20_000, dtype=np.uint64)
    choose = softmax(4)
    counts = np.bincount([int(choose(row, u8(0), row.max(), w, explore)) for w in words])
    assert chisquare(counts, weights / weights.sum() * len(words)).pvalue > 1e-4
    mean = softmax_mean(4)(row, u8(0), row.max(), explore)
    assert mean == pytest.approx(weights @ row / weights.sum(), rel=1e-14)


@pytest.mark.parametrize("rule", list(RULES))
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_every_rule_acts_at_the_temperature_it_is_given(rule: str, dtype: type) -> None:
    """The policy's values are those that `policy_values` shows: of Double Q the mean of two."""
    learn = config(rule=rule, exploration="softmax", dtype=np.dtype(dtype).name).learn
    rows = Rows(record_of(learn, 3), 1)
    rows.values[...] = np.random.default_rng(5).normal(size=rows.values.shape)
    parts = learning_parts(learn, 3, rows.record)
    explore, values = u8(inverse_bits(0.7)), rows.policy_values()[0].astype(np.float64)
    words = np.random.default_rng(6).integers(0, 2**64, 20_000, dtype=np.uint64)
    value = parts["best"](rows.q, u8(0))[1]
    counts = np.bincount(
        [int(parts["choose"](rows.q, u8(0), value, w, explore)) for w in words], minlength=3
    )
    weights = np.exp(values / 0.7)
    assert chisquare(counts, weights / weights.sum() * len(words)).pvalue > 1e-4


@pytest.mark.parametrize("temperature", [1e-300, 1e300])
def test_softmax_at_extreme_temperatures(temperature: float) -> None:
    row, explore = np.array([1.0, 2.0, 1.5]), u8(inverse_bits(temperature))
    words = (0, 2**63, 2**64 - 1)
    found = [int(softmax(3)(row, u8(0), f8(2.0), u8(word), explore)) for word in words]
    assert found == ([1, 1, 1] if temperature < 1 else [0, 1, 2])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_softmax_stays_in_range(bad: float) -> None:
    row, explore = np.array([1.0, bad, 0.0]), u8(inverse_bits(0.1))
    for word in (0, 2**63, 2**64 - 1):
        with np.errstate(invalid="ignore"):
            assert 0 <= int(softmax(3)(row, u8(0), row.max(), u8(word), explore)) < 3


def test_under_double_q_every_visit_updates_one_part() -> None:
    learn = config(rule="double_q", step_size="linear").learn
    learner = Learner(random_model(7, 3), learn, 40, use_compiled=True)
    learner.begin()
    learner.learn(200)
    halves = learner.rows.clock.reshape(7, 2, 3).sum(axis=(0, 2))
    assert halves.sum() == 8000
    assert abs(int(halves[0]) - 4000) < 5 * math.sqrt(2000)
    assert not np.array_equal(learner.rows.part(0), learner.rows.part(1))
    mean = (learner.rows.part(0) + learner.rows.part(1)) / 2
    assert np.array_equal(learner.rows.policy_values(), mean)


def test_sign_change_counts_visits_apart() -> None:
    learn = config(step_size="sign_change", exponent=0.6).learn
    learner = Learner(random_model(7, 3), learn, 40, use_compiled=True)
    learner.begin()
    learner.learn(100)
    visits = learner.visits
    assert visits.sum() == 4000
    changes = learner.rows.clock & np.uint32((1 << 30) - 1)
    assert np.all(changes < visits) and changes.sum() > 100


@pytest.mark.parametrize("n_states", [1, 3, 2**32 - 1, 2**32 + 5, 2**62])
def test_uniform_starts_are_the_high_half_of_a_product(n_states: int) -> None:
    words = np.random.default_rng(0).integers(0, 2**64, 200, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for word in [u8(0), u8(2**64 - 1), *words]:
            assert int(scaled(word, u8(n_states))) == int(word) * n_states >> 64


def test_exploring_starts_visit_every_pair_whatever_the_policy_wants() -> None:
    model = random_model(30, 5, limit=1)
    learner = Learner(exploring_starts(model), config(exploring_starts=True).learn, 500,
                      epsilon=0.0, use_compiled=True)  # fmt: skip
    learner.begin()
    learner.learn(20)
    counts = learner.rows.clock.reshape(-1)
    assert chisquare(counts).pvalue > 1e-4
    assert exploring_starts(model).model_id != model.model_id
