"""Certificates of random models against dense solutions in extended precision.

The oracle is policy iteration whose linear systems are refined in `np.longdouble`: it shares no
code with the planners. A failing case prints its seed.
"""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from distq_mpi.certificate import ROUNDING, Solver
from distq_mpi.environments import Environment
from distq_mpi.errors import DistqError
from tests.stand_in import Alone
from tests.unit.test_certificate import _model, held, kernels, solved

N_MODELS = 3000
DISCOUNTS = (0.0, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999, 1.0)
KINDS = (
    "garnet", "grid", "ring", "near-periodic", "absorbing", "rare end", "unreachable", "one state",
    "zero rewards", "flat", "slow",
)  # fmt: skip
EPSILON = float(np.finfo(float).eps)
wide = np.longdouble


@dataclass
class Case:
    """A model as dense arrays: p (S, A, S), probability of going on, r (S, A), both in extended
    precision, start (S,)."""

    kind: str
    p: np.ndarray
    r: np.ndarray
    start: np.ndarray
    environment: Environment


def random_case(seed: int) -> Case:
    """A model of a kind that the seed chooses."""
    rng = np.random.default_rng(seed)
    kind = KINDS[seed % len(KINDS)]
    n, n_actions = int(rng.integers(2, 9)), int(rng.integers(2, 4))
    n = 1 if kind == "one state" else 9 if kind == "grid" else n
    p, r = np.zeros((n, n_actions, n)), rng.normal(size=(n, n_actions))
    start = np.zeros(n)
    start[0] = 1.0
    if kind == "grid":
        n_actions, p, r = 4, np.zeros((9, 4, 9)), np.full((9, 4), -1.0)
        moves, slip = ((-1, 0), (0, 1), (1, 0), (0, -1)), rng.choice([0.0, 0.2])
        for s, a, turn in itertools.product(range(8), range(4), (-1, 0, 1)):
            down, right = moves[(a + turn) % 4]
            row, column = np.clip([s // 3 + down, s % 3 + right], 0, 2)
            if row * 3 + column != 8:
                p[s, a, row * 3 + column] += 1 - slip if turn == 0 else slip / 2
        p[8] = 0.0
    elif kind in ("ring", "near-periodic"):
        stray = 0.0 if kind == "ring" else 10.0 ** -rng.integers(3, 9)
        for s, a in itertools.product(range(n), range(n_actions)):
            p[s, a, (s + 1 + a) % n] += 1 - stray
            p[s, a, s] += stray
        r = -abs(r)
    elif kind == "slow":
        for s, a in itertools.product(range(n), range(n_actions)):
            p[s, a, s] = 1 - 10.0 ** -rng.integers(1, 7)
            p[s, a, (s + 1) % n] += 1 - p[s, a, s]
    else:
        p = rng.random(p.shape) * (rng.random(p.shape) < rng.choice([0.3, 0.6, 1.0]))
        p[..., 0] += p.sum(axis=2) == 0
        p /= p.sum(axis=2, keepdims=True)
    if kind in ("absorbing", "rare end", "slow") and n > 1:
        p[-1], r[-1] = 0.0, 0.0
        if kind == "absorbing":
            p[-1, :, -1] = 1.0
    if kind == "rare end":
        p *= 1 - 10.0 ** -rng.integers(1, 7, size=(n, n_actions))[..., None]
    if kind == "unreachable" and n > 2:
        p[: n - 1, :, n - 1] = 0.0
        total = p[: n - 1].sum(axis=2, keepdims=True)
        p[: n - 1] = np.where(total > 0, p[: n - 1] / np.where(total > 0, total, 1.0), 0.0)
        r[n - 1] = 1e9
    if kind == "zero rewards":
        r[:] = 0.0
    if kind == "flat":
        r[:] = rng.normal(size=n_actions)
    r *= rng.choice([1.0, 1.0, 1e9, 1e-9, 1e12])
    end = 1.0 - p.sum(axis=2)
    end[abs(end) < 1e-12] = 0.0  # what is not an end but rounding
    environment = _model(p, r, end, start)
    # As the model has it: it may have divided probabilities by their sum.
    p, mean = np.zeros(p.shape, wide), np.zeros(r.shape, wide)
    for s, a in itertools.product(range(n), range(n_actions)):
        for i in range(environment.outcomes(s, a, environment.params)):
            chance, ahead, reward, ended = environment.outcome(s, a, i, environment.params)
            mean[s, a] += wide(chance) * wide(reward)
            p[s, a, ahead] += 0.0 if ended else wide(chance)
    return Case(kind, p, mean, start, environment)


def solution(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """x of a x = b, refined in extended precision."""
    x = np.zeros(len(b), wide)
    inverse = np.linalg.inv(a.astype(float))
    for _ in range(40):
        step = inverse @ (b - a @ x).astype(float)
        x += step
        if abs(step).max(initial=0.0) <= 1e-19 * abs(x).max(initial=0.0):
            break
    return x


class Dense:
    """Everything about a case by dense linear algebra over reachable states."""

    def __init__(self, case: Case, discount: float) -> None:
        self.case, self.discount = case, wide(discount)
        self.p, self.r = case.p, case.r
        links, inside = case.p.max(axis=1) > 0, case.start > 0
        for _ in inside:
            inside = inside | links[inside].any(axis=0)
        self.inside, self.n = inside, np.arange(len(inside))

    def values(self, policy: np.ndarray) -> np.ndarray:
        v = np.zeros(self.n.size, wide)
        rows, i = self.n[self.inside], np.ix_(self.inside, self.inside)
        chances = self.p[self.n, policy][i]
        v[rows] = solution(
            np.eye(len(rows), dtype=wide) - self.discount * chances, self.r[rows, policy[rows]]
        )
        return v

    def q_of(self, v: np.ndarray) -> np.ndarray:
        return self.r + self.discount * (self.p @ v)

    def best(self, sign: int) -> np.ndarray:
        """V* where sign is 1, the worst policy's values where it is -1; by policy iteration."""
        policy = np.zeros(self.n.size, int)
        for _ in range(1000):
            v = self.values(policy)
            q = sign * self.q_of(v)
            better = q.argmax(axis=1)
            slack = 1e-17 * (1e-300 + abs(v).max())
            changed = q[self.n, better] > q[self.n, policy] + slack
            if not changed.any():
                return v
            policy = np.where(changed, better, policy)
        raise AssertionError("policy iteration of the oracle does not end")

    def undiscounted(self, policy: np.ndarray) -> np.ndarray | str:
        """Values at discount 1; or "infinite" or "unsettled" where a closed class has rewards."""
        rows = self.inside
        chances = np.where(rows[:, None], self.case.p[self.n, policy], 0.0)
        met = np.linalg.matrix_power((chances > 0) | np.eye(len(rows), dtype=bool), len(rows)) > 0
        ends = rows & (chances.sum(axis=1) < 1 - 1e-11)
        settled = (met & ends).any(axis=1)
        quiet = ~(met & (self.case.r[self.n, policy] != 0)).any(axis=1)
        lost = rows & ~settled & ~(met & quiet).any(axis=1)
        if lost.any():
            return "unsettled"
        v = np.zeros(self.n.size, wide)
        live = rows & ~quiet
        i = np.ix_(live, live)
        v[live] = solution(
            np.eye(live.sum(), dtype=wide) - self.p[self.n, policy][i],
            self.r[self.n, policy][live],
        )
        return v


def same(ours: float | None, exact: Any, close: float, what: str) -> None:
    assert ours is not None, f"{what} is None"
    assert abs(wide(ours) - exact) <= close, f"{what}: {ours!r}, not {exact!r} +- {close:g}"


def check_discounted(seed: int, discount: float) -> None:
    case = random_case(seed)
    dense = Dense(case, discount)
    inside, start = dense.inside, case.start
    best, worst = dense.best(1), dense.best(-1)
    extent = float(np.ptp(best[inside]))
    this = solved(case.environment, discount)
    size = max(float(abs(best[inside]).max()), float(abs(start @ worst)))
    close = 1e-8 * extent + 32 * EPSILON * size
    assert this.n_reachable == inside.sum()
    assert this.values is not None
    same(float(abs(this.values[inside] - best[inside]).max()), 0, close, "V* - oracle")
    known = this.solution
    same(known.optimal_value, start @ best, close, "optimal value")
    same(known.value_range, extent, 2 * close, "range")
    rng = np.random.default_rng(seed + 1)
    noise = float(rng.choice([0.0, 1e-6, 0.1, 10.0])) * (extent + size * 1e-3)
    q = (dense.q_of(best) + noise * rng.normal(size=case.r.shape)).astype(float)
    table = held(q.ravel(), q.shape[1])
    policy = q.argmax(axis=1)
    achieved = dense.values(policy)
    losses = (best - achieved)[inside]
    q_error = abs(q - dense.q_of(best))[inside].max()
    ends = abs(start @ best), abs(start @ worst)
    pairs = [
        (extent, ROUNDING * float(abs(best[inside]).max())),
        (float(start @ best - start @ worst), ROUNDING * float(max(ends))),
    ]
    clear = all(x > 10 * least or x < least / 10 or x == 0 for x, least in pairs)
    scales = [x for x, least in pairs if x > least]
    near_worst = 1e-8 * float(min(scales, default=0)) + 32 * EPSILON * size
    same(known.worst_value, start @ worst, near_worst, "worst value")
    for tight in (True, False):
        found = this.certify(table, tight)
        assert found.kind == "exact"
        near = 1e-8 * float(min(scales, default=0)) + 32 * EPSILON * size
        near += 0.0 if tight else 1e-2 * float(losses.max()) + 1e-6 * float(min(scales, default=0))
        near_q = close + 8 * EPSILON * float(abs(q).max())
        same(found.q_error, q_error, near_q, "q error")
        same(found.policy_value, start @ achieved, near, "policy value")
        same(found.policy_loss, max(losses.max(), 0), near, "policy loss")
        same(found.policy_loss_mean, losses.mean(), near, "mean loss")
        assert found.q_error_bound is not None and found.policy_loss_bound is not None
        assert q_error <= found.q_error_bound, "q error bound is violated"
        assert losses.max() <= found.policy_loss_bound, "loss bound is violated"
        if clear and scales:
            gap = start @ (best - achieved) / min(scales)
            share = 4 * close / float(min(scales)) + 1e-2 * (not tight)
            same(
                found.policy_gap, max(gap, 0), 4 * near / float(min(scales)) + share * float(gap),
                "gap",
            )
        elif clear:
            assert found.policy_gap == 0.0
    dense.inside = start > 0
    for _ in policy:  # under the policy alone
        dense.inside = dense.inside | (case.p[dense.n, policy] > 0)[dense.inside].any(axis=0)
    exact = dense.undiscounted(policy)
    if isinstance(exact, str):
        assert found_return(this, table) is None
    else:
        size = float(abs(exact).max()) + float(abs(case.r).max())
        same(found_return(this, table), start @ exact, 1e-8 * size, "policy return")


def found_return(this: Solver, table: Any) -> float | None:
    return this.certify(table, tight=True).policy_return


def check_undiscounted(seed: int) -> None:
    """Every policy is evaluated: what is finite is compared, what grows for ever is None."""
    case = random_case(seed)
    n, n_actions = case.r.shape
    dense = Dense(case, 1.0)
    this = solved(case.environment, 1.0)
    known = this.solution
    if n_actions ** int(dense.inside.sum()) > 300:
        return
    rows, values, growing = dense.n[dense.inside], [], False
    for actions in itertools.product(range(n_actions), repeat=len(rows)):
        policy = np.zeros(n, int)
        policy[rows] = actions
        v = dense.undiscounted(policy)
        if isinstance(v, str):
            growing = True
        else:
            values.append(case.start @ v)
    size = float(max([abs(case.r).max(), *(abs(v) for v in values)]))
    if not growing:  # all policies are proper: everything is known
        same(known.optimal_value, max(values), 1e-8 * size, "optimal value")
        same(known.worst_value, min(values), 1e-8 * size, "worst value")
    elif known.optimal_value is not None and values:
        # One that goes on for ever at a cost is worse than any other.
        same(known.optimal_value, max(values), 1e-8 * size, "optimal value")
    q = np.random.default_rng(seed + 1).normal(size=case.r.shape)
    found = this.certify(held(q.ravel(), n_actions), tight=True)
    v = dense.undiscounted(q.argmax(axis=1))
    if not isinstance(v, str):
        same(found.policy_value, case.start @ v, 1e-8 * size, "policy value")


@pytest.mark.parametrize("first", range(0, N_MODELS, 500))
def test_random_models_against_dense_solutions(first: int) -> None:
    """Each model at one of the discounts, which meet each kind alike; at all of them where
    DISTQ_EVERY_DISCOUNT is set (a quarter of an hour)."""
    every = "DISTQ_EVERY_DISCOUNT" in os.environ
    for seed in range(first, first + 500):
        for discount in DISCOUNTS if every else (DISCOUNTS[seed // 11 % 8],):
            try:
                if discount == 1.0:
                    check_undiscounted(seed)
                else:
                    check_discounted(seed, discount)
            except AssertionError as error:
                kind = KINDS[seed % len(KINDS)]
                pytest.fail(f"seed {seed} ({kind}), discount {discount}: {error}")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_certifies_nothing(bad: float) -> None:
    rng = np.random.default_rng(5)
    for seed in range(60):
        case = random_case(seed)
        this = solved(case.environment, 0.9)
        q = rng.normal(size=case.r.shape)
        p, r = case.p.astype(float), case.r.astype(float)
        rows = np.flatnonzero(Dense(case, 0.9).inside)
        q[rng.choice(rows), rng.integers(q.shape[1])] = bad
        for tight in (True, False):
            found = this.certify(held(q.ravel(), q.shape[1]), tight)
            assert found.kind == "none" and "not finite" in (found.unknown or "")
            assert found.policy_gap is found.policy_loss is found.policy_value is None, seed
        r[rng.choice(rows), rng.integers(r.shape[1])] = bad
        with pytest.raises(DistqError):
            _model(p, r, 1 - p.sum(axis=2), case.start)
        p[rng.choice(rows), rng.integers(r.shape[1]), 0] = bad
        with pytest.raises(DistqError):
            _model(p, case.r.astype(float), None, case.start)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "kernel", ["plan_sweep_compact", "plan_sweep_followed", "plan_residue", "plan_greedy"]
)
def test_a_solver_that_computes_nonsense_says_nothing(kernel: str, bad: float) -> None:
    """A kernel writes what is not finite into a value, once or for ever."""
    for seed, persists in itertools.product(range(12), (True, False)):
        case = random_case(seed)
        loaded, calls = dict(kernels(case.environment)), [0]
        honest = loaded[kernel]

        class Broken:
            def __call__(self, *given: Any) -> None:
                honest(*given)  # noqa: B023
                calls[0] += 1  # noqa: B023
                if persists or calls[0] == 3:  # noqa: B023
                    floats = [a for a in given if isinstance(a, np.ndarray) and a.dtype == float]
                    floats[1 if kernel == "plan_greedy" else 0][:1] = bad

            def bind(self, *given: Any) -> Any:
                return lambda: self(*given)

        loaded[kernel] = Broken()
        exact = solved(case.environment, 0.999).solution
        this = Solver(case.environment, 0.999, loaded, Alone())
        this.solve()
        table = held(np.random.default_rng(seed).normal(size=case.r.size), case.r.shape[1])
        found = this.certify(table)
        for ours in (this.solution.optimal_value, found.optimal_value):
            assert ours is None or ours == pytest.approx(exact.optimal_value, 1e-6), seed
        right = solved(case.environment, 0.999).certify(table)
        for name in ("policy_value", "policy_gap"):
            ours, truth = getattr(found, name), getattr(right, name)
            assert ours is None or (truth is not None and ours == pytest.approx(truth, 0.05)), seed
