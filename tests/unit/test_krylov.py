"""Iterations that find where sweeps lead to: against dense linear algebra, and where they fail."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from distq_mpi.kernels.krylov import krylov_kernels
from distq_mpi.krylov import Krylov
from distq_mpi.values import Values
from tests.stand_in import Alone, compiled, plain, together

N = 41
BORDERS = np.array([0, 16, 29, N])


class Map:
    """x -> matrix x + given, in place of sweeps; a rank has some of the blocks."""

    def __init__(self, given: np.ndarray, transport: Any, blocks: tuple[int, int]) -> None:
        rng = np.random.default_rng(1)
        matrix = rng.random((N, N)) * (rng.random((N, N)) < 0.1) + np.eye(N, k=1)
        self.matrix = 0.999 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1.0)
        self.given, self.transport = given, transport
        first, last = blocks
        self.rows = slice(BORDERS[first], BORDERS[last])
        mine = BORDERS[first : last + 1] - BORDERS[first] if last > first else BORDERS[:0]
        self.n_own = int(mine[-1]) if mine.size else 0
        # Its halo is everything, behind its own rows.
        n = self.n_own + N
        self.values = Values(self.n_own, N, transport.max_float)
        self.values.mask[:] = 1
        self.krylov = Krylov(
            mine, (first, BORDERS.size - 1), n, compiled(krylov_kernels()), transport.max_float,
            self.fetch,
        )  # fmt: skip

    def fetch(self, array: np.ndarray) -> None:
        """Every rank's own rows behind this one's."""
        whole = np.full(N, -np.inf)
        whole[self.rows] = array[: self.n_own]
        self.transport.max_float(whole)
        array[self.n_own :] = whole

    def sweep(self, given: Any = None) -> None:
        """Apply the map; without what is given it is linear."""
        v = self.krylov.swept.v
        swept = self.matrix[self.rows] @ v[self.n_own :]
        v[: self.n_own] = swept + (self.given[self.rows] if given is None else 0.0)
        self.fetch(v)

    def solve(self, share: float, most: int) -> tuple[int, bool]:
        """Run it from where the values are."""
        self.fetch(self.values.v)
        return self.krylov.solve(
            self.values, self.sweep, lambda: self.sweep(0.0), share, most
        )


GIVEN = np.random.default_rng(2).normal(size=N)


def test_it_finds_where_a_thousand_sweeps_lead() -> None:
    this = Map(GIVEN, Alone(), (0, 3))
    n, worth_it = this.solve(1e-12, 100)
    assert worth_it and n < 60
    expected = np.linalg.solve(np.eye(N) - this.matrix, GIVEN)
    np.testing.assert_allclose(this.values.v[:N], expected, rtol=1e-9)
    residual = GIVEN.copy()
    for _ in range(4 * n):
        residual = this.matrix @ residual
    assert np.linalg.norm(residual) > 1e-6 * np.linalg.norm(GIVEN)  # sweeps are not there yet


@pytest.mark.parametrize("hosted", [[(0, 1), (1, 3)], [(0, 3), (3, 3)], [(0, 0), (0, 2), (2, 3)]])
def test_it_is_the_same_on_any_number_of_ranks(hosted: list[tuple[int, int]]) -> None:
    """Also where some have no rows."""
    alone = Map(GIVEN, Alone(), (0, 3))
    found = alone.solve(1e-8, 100)

    def work(transport: Any) -> Any:
        this = Map(GIVEN, transport, hosted[transport.rank])
        return this.solve(1e-8, 100), this.values.v[: this.n_own].copy()

    ranks = together(len(hosted), work)
    assert [rank[0] for rank in ranks] == [found] * len(hosted)
    whole = np.concatenate([rank[1] for rank in ranks])
    np.testing.assert_allclose(whole, alone.values.v[:N], rtol=1e-12)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 1e200])
def test_values_stay_where_iterations_are_not_worth_it(wrong: float) -> None:
    given = GIVEN.copy()
    given[5] = wrong
    this = Map(given, Alone(), (0, 3))
    this.values.v[:N] = before = np.arange(float(N))
    n, worth_it = this.solve(1e-8, 3)
    assert not worth_it and n <= 3
    assert np.array_equal(this.values.v[:N], before)


@pytest.mark.parametrize("n", [0, 1, 3, 4, 29])
def test_sums_of_blocks_are_those_of_the_formula(n: int) -> None:
    request = krylov_kernels()["krylov_finish"]
    rng, cuts = np.random.default_rng(n), np.array([0, n // 3, n])
    for loop in (plain(request.template, request.parts), compiled({"it": request})["it"]):
        d, r, p, t, shadow = rng.normal(size=(5, n))
        sums, rates = np.full(4, np.nan), np.array([0.5, -2.0])
        wanted_d, wanted_r = d + 0.5 * p - 2.0 * r, r + 2.0 * t
        loop(d, r, p, t, shadow, rates, cuts, sums)
        np.testing.assert_allclose(d, wanted_d)
        np.testing.assert_allclose(r, wanted_r)
        for k, other in enumerate((shadow, wanted_r)):
            blocks = [np.sum(wanted_r[a:b] * other[a:b]) for a, b in ((0, n // 3), (n // 3, n))]
            np.testing.assert_allclose(sums[k::2], blocks, atol=1e-12)
