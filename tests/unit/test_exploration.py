"""The greedy action, and the behaviour around it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import chisquare

from distq_mpi.kernels import Kernel
from distq_mpi.kernels.exploration import best_of, epsilon_greedy
from tests.stand_in import compiled, plain

u8 = np.uint64
ALWAYS, NEVER = 1 << 32, 0

rows = st.integers(1, 9).flatmap(
    lambda n: arrays(
        np.float64,
        n,
        elements=st.one_of(
            st.sampled_from([0.0, -0.0, 1.0, np.inf, -np.inf]), st.floats(allow_nan=False)
        ),
    )
)


def pick(row: np.ndarray, word: int, epsilon: int) -> int:
    with np.errstate(over="ignore"):
        return int(epsilon_greedy(len(row))(row, u8(0), row.max(), u8(word), u8(epsilon)))


@given(rows, st.integers(0, 3))
def test_best_is_the_lowest_index_of_the_largest_value(row: np.ndarray, offset: int) -> None:
    table = np.concatenate([np.full(offset, np.inf), row, [np.inf]])
    index, value = best_of(len(row))(table, u8(offset))
    assert int(index) == int(np.argmax(row))
    assert value == row.max()


@given(rows, st.integers(0, 2**64 - 1))
def test_without_exploration_the_action_is_greedy(row: np.ndarray, word: int) -> None:
    action = pick(row, word, NEVER)
    assert 0 <= action < len(row) and row[action] == row.max()


@given(rows, st.integers(0, 2**64 - 1))
def test_with_full_exploration_the_values_do_not_matter(row: np.ndarray, word: int) -> None:
    assert pick(row, word, ALWAYS) == ((word >> 32) * len(row)) >> 32


@pytest.mark.parametrize("n_actions", range(1, 10))
def test_every_action_is_reached_at_both_ends_of_the_bits(n_actions: int) -> None:
    equal = np.zeros(n_actions)
    for epsilon in (NEVER, ALWAYS):
        assert pick(equal, 0, epsilon) == 0
        assert pick(equal, 2**64 - 1, epsilon) == n_actions - 1


def test_epsilon_is_a_threshold_on_the_low_32_bits() -> None:
    row = np.array([1.0, 0.0])
    high = 0xFFFFFFFF << 32  # would explore action 1
    assert pick(row, high | 999, 1000) == 1
    assert pick(row, high | 1000, 1000) == 0
    assert pick(row, high | 0xFFFFFFFF, ALWAYS) == 1
    assert pick(row, high, NEVER) == 0


def choices(row, words, epsilon, actions):  # type: ignore[no-untyped-def]
    for i in range(words.size):
        value = best(row, u8(0))[1]
        actions[i] = choose(row, u8(0), value, words[i], epsilon)


best, choose = best_of(4), epsilon_greedy(4)


def compiled_choices(row: np.ndarray, words: np.ndarray, epsilon: int) -> np.ndarray:
    n_actions = len(row)
    actions = np.zeros(words.size, np.uint64)
    arguments = (row, words, u8(epsilon), actions)
    parts = {"best": best_of(n_actions), "choose": epsilon_greedy(n_actions)}
    compiled({"choices": Kernel(choices, parts, arguments)})["choices"](*arguments)
    first = actions[:64].copy()
    plain(choices, parts)(row, words[:64], u8(epsilon), first)
    assert np.array_equal(first, actions[:64])
    return actions


def words(n: int) -> np.ndarray:
    return np.random.default_rng(11).integers(0, 2**64, n, dtype=np.uint64)


@pytest.mark.parametrize(
    ("row", "tied"),
    [
        ([2.0] * 4, [0, 1, 2, 3]),
        ([1.0, 2.0, 0.0, 2.0], [1, 3]),
        ([0.0, -0.0, -1.0, 0.0, -1.0], [0, 1, 3]),
        ([-3.0] * 6, [0, 1, 2, 3, 4, 5]),
        ([5.0, 1.0, 5.0, 5.0, 1.0, 1.0, 1.0, 5.0], [0, 2, 3, 7]),
        ([0.0] * 9, list(range(9))),
    ],
)
def test_exact_ties_are_broken_uniformly(row: list[float], tied: list[int]) -> None:
    actions = compiled_choices(np.array(row), words(60_000), NEVER)
    counts = np.bincount(actions.astype(int), minlength=len(row))
    assert set(np.flatnonzero(counts)) == set(tied)
    assert chisquare(counts[tied]).pvalue > 1e-4


@pytest.mark.parametrize("n_actions", [2, 3, 4, 7])
def test_exploration_is_uniform_and_as_often_as_asked(n_actions: int) -> None:
    row = np.zeros(n_actions)
    row[1] = 1.0
    n, epsilon = 100_000, 0.3
    actions = compiled_choices(row, words(n), round(epsilon * 2**32))
    counts = np.bincount(actions.astype(int), minlength=n_actions)
    expected = np.full(n_actions, n * epsilon / n_actions)
    expected[1] += n * (1 - epsilon)
    assert chisquare(counts, expected).pvalue > 1e-4


@pytest.mark.parametrize("n_actions", range(1, 10))
@pytest.mark.parametrize("epsilon", [NEVER, 1 << 31, ALWAYS])
def test_rows_with_nan_stay_in_range(n_actions: int, epsilon: int) -> None:
    rng = np.random.default_rng(n_actions)
    for _ in range(20):
        row = rng.normal(size=n_actions)
        row[rng.random(n_actions) < 0.5] = np.nan
        for word in rng.integers(0, 2**64, 20, dtype=np.uint64):
            index, value = best_of(n_actions)(row, u8(0))
            with np.errstate(over="ignore"):
                action = epsilon_greedy(n_actions)(row, u8(0), value, word, u8(epsilon))
            assert 0 <= int(index) < n_actions and 0 <= int(action) < n_actions


def test_rows_of_nan_stay_in_range_when_compiled() -> None:
    for n_actions in (4, 9):
        row = np.full(n_actions, np.nan)
        for epsilon in (NEVER, ALWAYS):
            assert compiled_choices(row, words(1000), epsilon).max() < n_actions
