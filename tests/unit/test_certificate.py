"""Certificates against dense linear algebra, by hand, and on several ranks."""

from __future__ import annotations

import functools
import gc
import weakref
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distq_mpi import bounds, budget, environments, planning, policy_evaluation
from distq_mpi.bounds import Orders
from distq_mpi.budget import Unsolved
from distq_mpi.certificate import Certificate, Solver, gap_scale, requests, solvable
from distq_mpi.compact import Path
from distq_mpi.config import EnvConfig
from distq_mpi.environments import Environment, explicit_model
from distq_mpi.finite import at_least, at_most, finite, positive_part
from distq_mpi.holding import Holding
from distq_mpi.krylov import Krylov
from distq_mpi.partition import Partition
from distq_mpi.policy_iteration import Optimiser
from distq_mpi.table import Record, Rows
from tests.stand_in import Alone, compiled, plain, together


def held(
    q: np.ndarray, stride: int, visited: np.ndarray | None = None, transport: Any = None
) -> Holding:
    """A table that every rank holds whole; q : flat, `stride` values per state, all of a row."""
    rows = Rows(Record(stride, q.dtype), q.size // stride)
    rows.values[...] = q.reshape(-1, stride)
    rows.clock[...] = 1 if visited is None else visited
    return Holding(rows, 0, None, transport or Alone())


def make(id: str, **kwargs: Any) -> Environment:
    return environments.make(EnvConfig(id=id, kwargs=kwargs))


@functools.cache
def _explicit_kernels(n_actions: int, dtype: str) -> dict[str, Any]:
    one = _model(np.zeros((1, n_actions, 1)) + 1.0, np.zeros((1, n_actions)))
    return compiled(requests(one, np.dtype(dtype)))


def kernels(environment: Environment, dtype: str = "float64") -> dict[str, Any]:
    if environment.kind == "explicit":  # the model is data: one compilation serves all
        return _explicit_kernels(environment.n_actions, dtype)
    return compiled(requests(environment, np.dtype(dtype)))


def solver(environment: Environment, discount: float, dtype: str = "float64") -> Solver:
    return Solver(environment, discount, kernels(environment, dtype), Alone())


def solved(environment: Environment, discount: float, dtype: str = "float64") -> Solver:
    this = solver(environment, discount, dtype)
    this.solve()
    return this


def _model(
    p: np.ndarray,
    r: np.ndarray,
    end: np.ndarray | None = None,
    start: np.ndarray | None = None,
    **more: Any,
) -> Environment:
    """p (S, A, S), probability of going on to a state; the rest of each row ends. r (S, A)."""
    n_states, n_actions = r.shape
    end = np.zeros_like(r) if end is None else end
    entries = np.concatenate([p, end[..., None]], axis=2).reshape(n_states * n_actions, -1)
    row, column = np.nonzero(entries)
    ended = column == n_states
    return explicit_model(
        "test", n_states, n_actions, np.searchsorted(row, np.arange(n_states * n_actions + 1)),
        np.where(ended, n_states - 1, column), entries[row, column], r.reshape(-1)[row], ended,
        start, **more,
    )  # fmt: skip


class Dense:
    """A random model, and everything about it by dense linear algebra over reachable states."""

    def __init__(self, rng: np.random.Generator, n_actions: int) -> None:
        n_states = int(rng.integers(1, 9))
        self.discount = float(rng.choice([0.0, 0.5, 0.9, 0.99]))
        shape = (n_states, n_actions, n_states)
        p = rng.random(shape) * (rng.random(shape) < rng.choice([0.2, 0.5, 1.0]))
        p[..., 0] += p.sum(axis=2) == 0
        p /= p.sum(axis=2, keepdims=True)
        going_on = np.where(rng.random(shape[:2]) < rng.choice([0, 0.3]), rng.random(shape[:2]), 1)
        p *= going_on[..., None]
        self.p, self.r = p, rng.normal(size=shape[:2]) * 10.0 ** rng.integers(-3, 3)
        self.start = np.zeros(n_states)
        self.start[: rng.integers(1, n_states + 1)] = 1.0
        self.start /= self.start.sum()
        self.environment = _model(p, self.r, 1 - going_on, self.start)
        links = p.max(axis=1) > 0
        self.reachable = self.start > 0
        for _ in range(n_states):
            self.reachable = self.reachable | links[self.reachable].any(axis=0)
        policy = np.zeros(n_states, int)
        while True:  # policy iteration, exact up to the linear solver
            self.v = self.values(policy)
            self.q = self.r + self.discount * p @ self.v
            better = self.q.argmax(axis=1)
            best = self.q[np.arange(n_states), better]
            keep = self.q[np.arange(n_states), policy] >= best - 1e-13 * (1 + abs(self.v).max())
            if keep.all():
                break
            policy = np.where(keep, policy, better)

    def values(self, policy: np.ndarray) -> np.ndarray:
        n = np.arange(len(policy))
        a = np.eye(len(policy)) - self.discount * self.p[n, policy]
        return np.linalg.solve(a, self.r[n, policy])

    def table(self, rng: np.random.Generator) -> np.ndarray:
        noise = 10.0 ** rng.uniform(-6, 1) * (abs(self.q).max() + 1e-9)
        q = self.q + noise * rng.normal(size=self.q.shape)
        return q + rng.choice([0.0, 1.0]) * rng.normal() * noise * 10


@pytest.mark.parametrize(("n_actions", "n_models"), [(3, 800), (1, 200)])
def test_against_dense_algebra(n_actions: int, n_models: int) -> None:
    rng = np.random.default_rng(n_actions)
    tightness = []
    for _ in range(n_models):
        dense = Dense(rng, n_actions)
        q, inside = dense.table(rng), dense.reachable
        scale = 1e-9 * (abs(dense.v).max() + abs(q).max()) / (1 - dense.discount)
        this = solved(dense.environment, dense.discount)
        assert this.n_reachable == inside.sum()
        assert this.values is not None
        np.testing.assert_allclose(this.values[inside], dense.v[inside], atol=scale, rtol=0)
        assert this.value_range == pytest.approx(np.ptp(dense.v[inside]), abs=scale)
        found = this.certify(held(q.ravel(), n_actions), tight=True)
        achieved = dense.values(q.argmax(axis=1))
        losses = (dense.v - achieved)[inside]
        assert found.kind == "exact"
        assert found.q_error == pytest.approx(abs(q - dense.q)[inside].max(), abs=scale)
        assert found.policy_value == pytest.approx(dense.start @ achieved, abs=scale)
        assert found.optimal_value == pytest.approx(dense.start @ dense.v, abs=scale)
        assert found.policy_loss == pytest.approx(max(losses.max(), 0), abs=scale)
        assert found.policy_loss_mean == pytest.approx(losses.mean(), abs=scale)
        # The bounds hold for the truth of the oracle, not only for what is reported.
        assert found.q_error_bound is not None and found.policy_loss_bound is not None
        assert abs(q - dense.q)[inside].max() <= found.q_error_bound + scale
        assert losses.max() <= found.policy_loss_bound + scale
        assert found.policy_loss_bound <= 2 * found.q_error_bound + scale
        if losses.max() > 1e-3 * found.q_error_bound:
            tightness.append(found.policy_loss_bound / losses.max())
        # On the way a policy is never called better than it is, nor much worse.
        loose = this.certify(held(q.ravel(), n_actions))
        assert loose.policy_loss is not None and loose.policy_gap is not None
        assert loose.policy_loss >= losses.max() - scale
        gap = (found.policy_gap or 0.0) * (this.value_range or 0.0)
        spare = 1e-7 * (this.value_range or 0.0) + scale
        assert loose.policy_gap * (this.value_range or 0.0) <= 1.02 * gap + spare
    if n_actions > 1:
        assert len(tightness) > 100 and 1.0 < np.median(tightness) < 100


def test_a_common_offset_costs_nothing() -> None:
    environment = make("garnet", states=40, actions=3, branching=3)
    this = solved(environment, 0.99)
    assert this.values is not None
    rows = [
        [environment.outcome(s, a, i, environment.params) for i in range(3)]
        for s in range(40)
        for a in range(3)
    ]
    q = np.array([sum(p * (r + 0.99 * this.values[t]) for p, t, r, _ in row) for row in rows])
    found = this.certify(held(q + 7.0, 3), tight=True)
    assert found.q_error == pytest.approx(7, abs=1e-8)
    assert found.q_error_bound == pytest.approx(7, abs=1e-6)  # 0.07 / (1 - 0.99)
    assert found.policy_loss_bound == pytest.approx(0, abs=1e-8)


# Two states: 0 stays for 1 or moves to 1 for 0; 1 stays for 2 or ends for 10. Discount 1/2.
HAND = _model(
    np.array([[[1.0, 0], [0, 1]], [[0, 1], [0, 0]]]),
    np.array([[1.0, 0], [2, 10]]),
    np.array([[0.0, 0], [0, 1]]),
    np.array([1.0, 0]),
)


def test_by_hand() -> None:
    # V* = (5, 10): Q*(0) = (1 + 5/2, 5), Q*(1) = (2 + 5, 10).
    this = solved(HAND, 0.5)
    assert this.values == pytest.approx([5, 10], abs=1e-11)
    q = np.array([4.0, 3, 9, 9])  # greedy 0, 0: values 2 and 4
    found = this.certify(held(q, 2, np.array([[1, 0], [0, 7]])), tight=True)
    expected = Certificate(
        kind="exact",
        q_error_bound=5.0,  # TQ = (3, 4.5; 6.5, 10), largest |TQ - Q| = 2.5
        # V = (4, 9), TV = (4.5, 10): rise 1; T_policy V = (3, 6.5): fall 2.5; both for ever
        policy_loss_bound=7.0,
        uncertified_pairs=2,
        q_error=2.0,
        policy_gap=1.0,  # (5 - 2) / (5 - 2): the worst there is
        policy_loss=6.0,
        policy_loss_mean=4.5,
        policy_value=2.0,
        optimal_value=5.0,
        policy_return=None,  # a reward for ever
        optimal_policy_return=10.0,
        worst_value=2.0,  # 0 stays for ever, as 1 does: 1 / (1 - 1/2) and 2 / (1 - 1/2)
        value_range=5.0,
        unknown="the undiscounted value is unknown: the policy can go on for ever in states that "
        "have rewards",
    )
    for name, value in asdict(expected).items():
        close = pytest.approx(value, abs=1e-9) if isinstance(value, float) else value
        assert getattr(found, name) == close, name


def test_lowest_index_strides_and_float32() -> None:
    this = solved(HAND, 0.5, "float32")
    # A record of two float32 and their clocks has no padding; one that stands in a wider row does.
    table = held(np.array([5, 5, 9, 9], np.float32), 2)
    found = this.certify(table, tight=True)
    assert found.policy_value == pytest.approx(2.0, abs=1e-9)  # the tie goes to action 0
    assert found.uncertified_pairs == 0


def test_values_that_are_not_finite_certify_nothing() -> None:
    this = solved(HAND, 0.5)
    for bad in (np.nan, np.inf, -np.inf):
        found = this.certify(held(np.array([1.0, bad, 0, 0]), 2))
        assert found.kind == "none"
        assert found.policy_loss_bound is None and found.policy_gap is None
        assert found.optimal_value == pytest.approx(5)


def test_without_v_star_there_are_bounds() -> None:
    q = np.array([4.0, 3, 9, 9])
    withheld, unsolved = solved(HAND, 0.5).certify(held(q, 2), exact=False), solver(HAND, 0.5)
    for found in (withheld, unsolved.certify(held(q, 2))):
        assert found.q_error_bound == pytest.approx(5)
        assert found.policy_loss_bound == pytest.approx(7)
        assert found.policy_value == pytest.approx(2, abs=1e-6)
        for name in ("q_error", "policy_gap", "policy_loss", "policy_loss_mean", "optimal_value"):
            assert getattr(found, name) is None, name


def test_unreachable_states_do_not_count() -> None:
    # State 1 is never met; its row says that nothing matters there.
    p = np.array([[[1.0, 0]], [[0, 1]]])
    this = solved(_model(p, np.array([[1.0], [1e6]]), start=np.array([1.0, 0])), 0.9)
    found = this.certify(held(np.array([10.0, -1e9]), 1, np.array([[1], [0]])), tight=True)
    assert this.n_reachable == 1 and this.value_range == 0
    assert found.policy_loss_bound == pytest.approx(0, abs=1e-12)
    assert (found.policy_gap, found.uncertified_pairs) == (0.0, 0)


def test_a_certificate_is_a_function_of_the_table_alone() -> None:
    environment = make("grid", rows=6, columns=7, slip=0.2)
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, environment.n_states * 4))
    this = solved(environment, 0.95)
    first = this.certify(held(one, 4))
    this.certify(held(other, 4), tight=True)
    assert this.certify(held(one, 4)) == first


def followed(environment: Environment, policy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Chances of going on (S, S) and expected rewards (S,) under a policy, dense."""
    n = environment.n_states
    chances, rewards = np.zeros((n, n)), np.zeros(n)
    for s in range(n):
        for i in range(int(environment.outcomes(s, policy[s], environment.params))):
            chance, ahead, reward, ended = environment.outcome(s, policy[s], i, environment.params)
            rewards[s] += chance * reward
            chances[s, ahead] += 0.0 if ended else chance
    return chances, rewards


def at_once(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let policies be solved for from the beginning; return the list of how many iterations."""
    for module in (bounds, policy_evaluation):
        monkeypatch.setattr(module, "PATIENCE", 4)
    monkeypatch.setattr(Orders.too_slow, "__defaults__", (0, 4))
    monkeypatch.setattr(policy_evaluation, "factorise", lambda *given: None)
    taken, solve = list[int](), Krylov.solve

    def counted(*given: Any) -> tuple[int, bool]:
        found = solve(*given)
        taken.append(found[0])
        return found

    monkeypatch.setattr(Krylov, "solve", counted)
    return taken


@pytest.mark.parametrize("solves", [False, True])
@pytest.mark.parametrize("discount", [0.95, 1.0])
@pytest.mark.parametrize(
    ("id", "kwargs"),
    [
        ("grid", {"rows": 5, "columns": 8, "slip": 0.2, "pit_density": 0.1}),
        ("grid", {"rows": 4, "columns": 6, "slip": 0.2, "max_episode_steps": 9}),
        ("garnet", {"states": 37, "actions": 3, "branching": 3}),
        ("FrozenLake-v1", {}),
    ],
)
def test_ranks_do_not_matter(
    id: str, kwargs: dict[str, Any], discount: float, solves: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(planning, "BLOCK_TRANSITIONS", 25)
    monkeypatch.setattr(budget, "LEAST_WORK", 3e6)  # sweeps of threads are slow
    taken = at_once(monkeypatch) if solves else []
    environment = make(id, **kwargs)
    loaded = kernels(environment)
    n_states, n_actions = environment.n_states, environment.n_actions
    table = np.random.default_rng(1).normal(size=n_states * n_actions)
    visited = np.arange(n_states * n_actions).reshape(n_states, n_actions) % 3

    def work(transport: Any) -> Any:
        this = Solver(environment, discount, loaded, transport)
        assert this.planner.alone == (transport.size == 1)
        this.solve()
        found = held(table, n_actions, visited, transport)
        certificates = [this.certify(found, tight=t) for t in (False, True)]
        told = (this.n_reachable, this.optimal_value, this.solution)
        return certificates, told, this.values

    alone = together(1, work)[0]
    assert (alone[1][1] is None) == (id == "garnet" and discount == 1)
    for size in (2, 3, 5):
        results = together(size, work)
        assert all(result[:2] == alone[:2] for result in results)
        if alone[2] is not None:
            whole = np.concatenate([result[2] for result in results])
            assert whole.tobytes() == alone[2].tobytes()
    assert bool(taken) == solves


@pytest.mark.parametrize("copies", [True, False])
@pytest.mark.parametrize("solves", ["from the beginning", "in vain"])
@pytest.mark.parametrize("seed", range(3))
def test_policies_that_go_round_in_circles_are_solved_for(
    seed: int, solves: str, copies: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against dense linear algebra; where iterations do not help sweeps go on."""
    taken = at_once(monkeypatch)
    if solves == "in vain":
        monkeypatch.setattr(Krylov, "solve", lambda *given: (taken.append(1) or 1, False))
    environment = make("grid", rows=12, columns=11, slip=0.2)
    if not copies:
        monkeypatch.setattr(planning, "MOST_TRANSITIONS", 0)
    this, n = solved(environment, 0.99), environment.n_states
    # Most go on towards the goal, some the other way: loops that only slipping leaves.
    q = np.zeros((n, 4)) - np.random.default_rng(seed).random((n, 4)) - [2.0, 0.0, 0.0, 2.0]
    policy = q.argmax(axis=1)
    back = np.random.default_rng(seed + 10).random(n) < 0.1
    q[back, 3], policy[back] = 1.0, 3
    chances, rewards = followed(environment, policy)
    told = this.certify(held(q.reshape(-1), 4), tight=True)
    one = np.eye(n)
    assert told.policy_value == pytest.approx(np.linalg.solve(one - 0.99 * chances, rewards)[0])
    assert told.policy_return == pytest.approx(np.linalg.solve(one - chances, rewards)[0], 1e-7)
    # In vain they are tried briefly and once more for each system, and then no longer.
    assert sum(taken) > 3 if solves != "in vain" else 1 <= sum(taken) <= 24, taken


@pytest.mark.parametrize(
    ("id", "kwargs", "dense"),
    [
        ("grid", {"rows": 60, "columns": 5, "slip": 0.2}, False),
        ("garnet", {"states": 60, "actions": 3, "branching": 5}, True),
    ],
)
def test_a_rank_keeps_its_rows_and_what_they_lead_to(
    id: str, kwargs: dict[str, Any], dense: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "BLOCK_TRANSITIONS", 50)
    environment = make(id, **kwargs)
    loaded = kernels(environment)

    def work(transport: Any) -> Any:
        planner = Solver(environment, 0.5, loaded, transport).planner
        sizes = {planner.scratch().v.size, planner.scratch().other.size}
        assert sizes == {planner.mask.size + planner.halo.size}
        return planner.first, planner.last, set(planner.halo.tolist())

    wholes = range(environment.n_states)
    for first, last, halo in together(4, work):
        assert 0 < last - first < environment.n_states / 2
        ahead = {
            int(outcome[1])
            for s in range(first, last)
            for a in range(environment.n_actions)
            for i in range(environment.outcomes(s, a, environment.params))
            if not (outcome := environment.outcome(s, a, i, environment.params))[3]
        }
        others = {s for s in wholes if not first <= s < last}
        assert halo == (others if dense else ahead & others)
        assert dense or len(halo) <= 2 * 5


@given(
    n_states=st.integers(1, 5000), per_state=st.integers(1, 5000), n_ranks=st.integers(1, 200)
)
def test_planned_rows_lie_near_those_of_an_even_cut(
    n_states: int, per_state: int, n_ranks: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "BLOCK_TRANSITIONS", 20_000)
        blocks = planning.logical_blocks(n_states, n_states * per_state)
        rows = planning.planner_rows(n_states, n_states * per_state, n_ranks)
    assert rows.n == n_states and rows.starts.size == n_ranks + 1
    assert set(rows.starts.tolist()) <= set(blocks.starts.tolist())
    even = Partition.balanced(n_states, n_ranks)
    # Even cuts put the larger parts first, so their borders are off by up to a quarter of those.
    most = int(blocks.counts.max()) + (n_ranks + blocks.starts.size) / 4 + 1
    assert np.all(np.abs(rows.starts - even.starts)[1:-1] <= most)


def test_more_ranks_than_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "BLOCK_TRANSITIONS", 1)
    loaded, table = kernels(HAND), np.array([4.0, 3, 9, 9])

    def work(transport: Any) -> Any:
        this = Solver(HAND, 0.5, loaded, transport)
        this.solve()
        return this.certify(held(table, 2, None, transport), tight=True), this.planner.alone

    assert together(5, work) == [(together(1, work)[0][0], False)] * 5


def test_small_environments_are_solved_by_one_rank() -> None:
    loaded = kernels(HAND)

    def work(transport: Any) -> Any:
        this = Solver(HAND, 0.5, loaded, transport)
        assert this.planner.alone
        this.solve()
        table = held(np.array([4.0, 3, 9, 9]), 2, None, transport)
        return this.certify(table), this.optimal_value

    results = together(64, work)
    assert results == [results[0]] * 64


def test_what_a_solver_holds_is_given_back_at_once() -> None:
    gc.collect()
    gc.disable()
    try:
        this = solved(HAND, 0.5)
        held_on_to = weakref.ref(this), weakref.ref(this.planner)
        del this
        assert [reference() for reference in held_on_to] == [None, None]
    finally:
        gc.enable()


def test_compiled_kernels_are_the_plain_ones() -> None:
    environment = make("garnet", states=7, actions=3, branching=2)
    wanted = requests(environment, np.dtype(np.float64))
    as_written = {name: plain(k.template, k.parts) for name, k in wanted.items()}
    table = np.random.default_rng(2).normal(size=21)
    results = []
    for chosen in (as_written, kernels(environment)):
        this = Solver(environment, 0.8, chosen, Alone())
        this.solve()
        assert this.values is not None
        results.append((this.values.tobytes(), this.certify(held(table, 3), tight=True)))
    assert results[0] == results[1]


def test_undiscounted_values() -> None:
    # From 0: end for 1 at once, or wait for nothing; waiting is as good, but the lowest action
    # alone would wait for ever.
    p = np.array([[[1.0], [0.0]]])
    this = solved(_model(p, np.array([[0.0, 1]]), np.array([[0.0, 1]])), 1.0)
    assert (this.optimal_value, this.value_range) == (1.0, 0.0)
    assert this.solution.optimal_policy_return == 1.0
    found = this.certify(held(np.array([0.5, 0.0]), 2), tight=True)
    assert found.q_error_bound is None and found.policy_loss_bound is None
    assert (found.policy_value, found.policy_loss) == (0.0, 1.0)  # it waits: worth 0
    assert found.q_error == pytest.approx(1.0)


def test_undiscounted_values_that_are_not_finite_are_not_known() -> None:
    # Waiting earns 1 a step: better than any end.
    p = np.array([[[1.0], [0.0]]])
    this = solved(_model(p, np.array([[1.0, 1]]), np.array([[0.0, 1]])), 1.0)
    assert this.optimal_value is None and this.solution.optimal_policy_return is None
    assert "for ever" in (this.solution.unknown or "")
    # Waiting costs: the optimum ends, a table that waits has no value, one that ends has.
    this = solved(_model(p, np.array([[-1.0, -5]]), np.array([[0.0, 1]])), 1.0)
    assert this.optimal_value == -5.0
    waits = this.certify(held(np.array([0.0, -5]), 2), tight=True)
    assert waits.policy_value is None and waits.policy_gap is None and waits.policy_return is None
    ends = this.certify(held(np.array([-6.0, -5]), 2), tight=True)
    # Nothing to measure a gap against: no range, and waiting costs without end.
    assert (ends.policy_value, ends.policy_gap, ends.policy_loss) == (-5.0, None, 0.0)
    assert "no range" in (ends.unknown or "")


def test_a_reward_before_a_loop_without_rewards_is_finite() -> None:
    # 0 moves to 1 for 5; 1 stays for nothing, for ever.
    p = np.array([[[0.0, 1]], [[0, 1]]])
    this = solved(_model(p, np.array([[5.0], [0]]), start=np.array([1.0, 0])), 1.0)
    assert (this.optimal_value, this.value_range) == (5.0, 5.0)
    found = this.certify(held(np.zeros(2), 1), tight=True)
    assert (found.policy_value, found.policy_return, found.policy_gap) == (5.0, 5.0, 0.0)


def test_a_cycle_that_pays_for_ever_is_not_known_and_costs_little() -> None:
    # Two states that pay 1 each time; state 2 ends. Nothing is solved for longer than its budget.
    p = np.array([[[0.0, 1, 0], [0, 0, 1]], [[1, 0, 0], [1, 0, 0]], [[0, 0, 0], [0, 0, 0]]])
    r = np.array([[1.0, 1], [1, 1], [0, 0]])
    end = np.array([[0.0, 0], [0, 0], [1, 1]])
    this = solver(_model(p, r, end, np.array([1.0, 0, 0])), 1.0)
    spent = spending(this)
    this.solve()
    assert this.optimal_value is None and "for ever" in (this.solution.unknown or "")
    assert sum(spent) < 1e7


def test_an_end_that_is_rare_is_solved_for() -> None:
    rare = 1e-10
    environment = _model(np.array([[[1 - rare]]]), np.array([[1.0]]), np.array([[rare]]))
    this = solver(environment, 1.0)
    spent = spending(this)
    this.solve()
    assert this.optimal_value == pytest.approx(1 / rare, rel=1e-6)
    assert sum(spent) < 1e8


def spending(this: Solver) -> list[float]:
    """The list of what the solves of a solver spend from now on."""
    spent, made = list[float](), this.planner.budget

    def budget_of(what: str) -> Any:
        one = made(what)
        spend = one.spend
        one.spend = lambda n: spent.append(n) or spend(n)  # type: ignore[method-assign]
        return one

    this.planner.budget = budget_of  # type: ignore[method-assign]
    return spent


def test_a_budget_ends_a_solve_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "LEAST_WORK", 1e4)
    monkeypatch.setattr(budget, "MOST_PASSES", 1.0)
    monkeypatch.setattr(policy_evaluation, "factorise", lambda *given: None)
    this = solved(make("CliffWalkingSlippery-v1"), 0.99999)
    assert this.optimal_value is None and "did not suffice" in (this.solution.unknown or "")
    found = this.certify(held(np.zeros(48 * 4), 4), tight=True)
    assert found.policy_gap is None and found.unknown is not None


@pytest.mark.parametrize("size", [1, 3])
def test_a_request_to_stop_ends_a_solve_on_all_ranks(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "BLOCK_TRANSITIONS", 25)
    environment = make("grid", rows=6, columns=7, slip=0.2)
    loaded = kernels(environment)

    def work(transport: Any) -> Any:
        this = Solver(environment, 0.999, loaded, transport, lambda: transport.rank == size - 1)
        this.solve()
        return this.solution

    for solution in together(size, work):
        assert solution.stopped and solution.optimal_value is None
        assert "asked to stop" in solution.unknown


@pytest.mark.parametrize("seed", range(4))
def test_slow_mixers_at_long_horizons(seed: int) -> None:
    """A grid of 900 states at .9999: once policy_value None beside policy_gap 0."""
    environment = make("grid", rows=30, columns=30, slip=0.2)
    this, n = solved(environment, 0.9999), environment.n_states
    rng = np.random.default_rng(seed)
    q = rng.normal(size=(n, 4))
    q[:, 1:3] += 1.0  # mostly towards the goal
    policy = q.argmax(axis=1)
    chances, rewards = followed(environment, policy)
    exact = np.linalg.solve(np.eye(n) - 0.9999 * chances, rewards)[0]
    found = this.certify(held(q.reshape(-1), 4), tight=True)
    assert found.policy_value == pytest.approx(exact, rel=1e-9)
    assert found.policy_gap is not None and found.policy_gap > 0.1
    assert found.policy_loss is not None and found.policy_loss > 1.0


def test_gaps_are_measured_by_what_policies_differ_in() -> None:
    # One state: V* has no range, but arms differ.
    bandit = solved(_model(np.ones((1, 3, 1)), np.array([[1.0, 2, 5]])), 0.9)
    assert bandit.value_range == 0.0 and bandit.solution.worst_value == pytest.approx(10)
    gaps = [bandit.certify(held(np.eye(3)[k], 3)).policy_gap for k in range(3)]
    assert gaps == pytest.approx([1.0, 0.75, 0.0], abs=1e-6)
    # Short horizon: the start of a large grid is worth -100 whatever a policy does.
    grid = solved(make("grid", rows=40, columns=40, slip=0.2), 0.9)
    assert grid.value_range == pytest.approx(9.63, abs=0.1)
    assert grid.solution.scale is not None and grid.solution.scale < 0.1
    still = grid.certify(held(np.tile([1.0, 0, 0, 0], 1600), 4))
    assert still.policy_gap == pytest.approx(1.0, rel=0.05)
    text = " ".join(grid.caveats({"terminated": 0, "episodes": 100}))
    assert "10 steps" in text and "78 steps" in text and "none of 100 evaluation" in text
    assert grid.caveats({"terminated": 1, "episodes": 100})[0].startswith("the horizon")
    assert solved(make("FrozenLake-v1"), 0.99).caveats({"terminated": 3, "episodes": 9}) == []


@pytest.mark.parametrize("seed", range(4))
def test_a_spread_of_rounding_is_no_scale(seed: int) -> None:
    """300 steps of cost 1 before anything matters, at a horizon of 10: the start is worth -10."""
    rng, lane, more = np.random.default_rng(seed), 300, 10
    n = lane + more
    p, r = np.zeros((n, 2, n)), np.full((n, 2), -1.0)
    p[np.arange(lane), :, np.arange(lane) + 1] = 1.0
    p[lane:, :, lane:] = rng.random((more, 2, more))
    p[lane:] /= p[lane:].sum(axis=2, keepdims=True)
    r[lane:] = rng.random((more, 2)) * 10.0 ** (3 + seed % 2)
    this = solved(_model(p, r, np.zeros((n, 2)), np.eye(n)[0]), 0.9)
    known = this.solution
    assert known.value_range is not None and known.worst_value is not None
    close = 1e-11 * known.value_range
    assert known.optimal_value == pytest.approx(-10, abs=close)
    assert known.worst_value == pytest.approx(-10, abs=close)
    assert known.scale == known.value_range
    assert this.values is not None
    q = r + 0.9 * (p @ this.values)
    assert this.certify(held(q.ravel(), 2)).policy_gap == pytest.approx(0.0, abs=1e-9)


def test_a_refinement_that_fails_leaves_v_star_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    # 120 steps before anything matters, at a horizon of 10: values must be refined for a scale.
    lane, n = 120, 122
    p, r = np.zeros((n, 2, n)), np.full((n, 2), -1.0)
    p[np.arange(lane), :, np.arange(lane) + 1] = 1.0
    p[lane:, :, lane:] = [[[0.5, 0.5], [0.1, 0.9]], [[0.3, 0.7], [0.6, 0.4]]]
    r[lane:] = [[1e5, 2e4], [7e4, 3e5]]
    environment = _model(p, r, np.zeros((n, 2)), np.eye(n)[0])
    whole, made, asked = solved(environment, 0.9), Optimiser.refine, [0]
    assert whole.values is not None

    def refine(self: Any, values: Any, *more: Any) -> None:
        if len(more) == 5:  # with weights of rewards: of the worst policy
            return made(self, values, *more)
        asked[0] += 1
        values.v += 1.0
        raise Unsolved("tired")

    monkeypatch.setattr(Optimiser, "refine", refine)
    this = solved(environment, 0.9)
    assert asked == [1] and this.values is not None
    np.testing.assert_allclose(this.values, whole.values, atol=1e-3)
    assert this.solution.scale is None and this.solution.unknown is not None


def test_a_long_ring_with_a_rare_link_is_solved_for() -> None:
    """Rounding of a factorisation leaves more than a check of bounds in float64 allows."""
    n, rare = 3000, 1e-9
    indices = np.stack([(np.arange(n) + 1) % n, np.zeros(n, int)], axis=1)
    rewards = np.random.default_rng(0).random(n)
    environment = explicit_model(
        "ring", n, 1, np.arange(n + 1) * 2, indices.ravel(), np.tile([1 - rare, rare], n),
        np.repeat(rewards, 2), np.zeros(2 * n, bool), np.eye(n)[0],
    )  # fmt: skip
    this = solver(environment, 0.99999)
    spent = spending(this)
    this.solve()
    chances = np.zeros((n, n))
    chances[np.arange(n), (np.arange(n) + 1) % n] += 1 - rare
    chances[:, 0] += rare
    exact = np.linalg.solve(np.eye(n) - 0.99999 * chances, rewards)
    assert this.optimal_value == pytest.approx(exact[0], rel=1e-9)
    assert sum(spent) < 1e9


def test_a_nan_among_losses_is_not_a_loss_of_0() -> None:
    this = solved(HAND, 0.5)
    assert this.values is not None
    for place in range(2):
        v = this.values.copy()
        v[place] = np.nan
        found = this._compared(Certificate(), v, this.values)
        assert found.policy_loss is found.policy_loss_mean is None
        assert found.policy_gap is None or place == 1  # the start is state 0


def test_probabilities_that_sum_to_more_than_1_are_divided() -> None:
    p = np.full((2, 1, 2), 0.5 + 1e-10)
    endless = solved(_model(p, np.ones((2, 1)), start=np.array([1.0, 0])), 0.99999)
    assert endless.optimal_value == pytest.approx(1e5, rel=1e-9)
    ends = np.full((2, 1), 5e-10)
    this = solved(_model(p, np.ones((2, 1)), ends, np.array([1.0, 0])), 1.0)
    assert this.optimal_value == pytest.approx(2e9, rel=1e-6)


def test_long_time_limits_cost_few_calls() -> None:
    p, r = np.array([[[0.0, 1], [1, 0]], [[1, 0], [0, 1]]]), np.array([[1.0, 0], [0, 0]])
    this = solver(_model(p, r, max_episode_steps=100_000), 0.9)
    spent = spending(this)
    this.solve()
    assert this.solution.best_return == pytest.approx(50_000)
    assert len(spent) < 500


def test_rewards_beyond_what_float64_holds_are_unknown() -> None:
    p = np.array([[[0.0, 1], [1, 0]], [[1, 0], [0, 1]]])
    this = solved(_model(p, np.array([[1e308, -1e308], [1e308, -1e308]])), 0.9)
    assert this.optimal_value is None and "float64" in (this.solution.unknown or "")


@pytest.mark.parametrize("seed", range(6))
def test_ranges_of_rounding_are_no_ranges(seed: int) -> None:
    """All states are worth the same but for rounding; action 1 is better everywhere."""
    rng = np.random.default_rng(seed)
    p = rng.random((20, 2, 20))
    p /= p.sum(axis=2, keepdims=True)
    r = np.tile([0.1 * rng.random(), 1 + rng.random()], (20, 1))
    this = solved(_model(p, r, 1 - p.sum(axis=2).round(12)), 0.97)
    best, worst = held(np.tile([0.0, 1], 20), 2), held(np.tile([1.0, 0], 20), 2)
    assert this.certify(best).policy_gap == pytest.approx(0.0, abs=1e-6)
    assert this.certify(worst).policy_gap == pytest.approx(1.0, abs=1e-6)


def test_gap_scales() -> None:
    assert gap_scale(10.0, 10.0, 5.0, 2.0) == 3.0
    assert gap_scale(10.0, 10.0, 5.0, -1e4) == 10.0
    assert gap_scale(10.0, 10.0, 5.0, -1e11) == 10.0
    assert gap_scale(10.0, 10.0, 5.0, None) == 10.0
    assert gap_scale(1e-12, 10.0, 5.0, 2.0) == 3.0
    assert gap_scale(0.0, 10.0, 5.0, 5.0) == 0.0
    assert gap_scale(0.0, 10.0, 5.0, None) is None
    assert gap_scale(np.nan, 10.0, 5.0, 2.0) is None
    assert gap_scale(np.inf, 10.0, 5.0, 2.0) is None


def test_a_catastrophe_does_not_make_other_mistakes_small() -> None:
    # A corridor of 12 states to a goal worth 10; action 2 ends for -1e11.
    n = 12
    p, r, end = np.zeros((n, 3, n)), np.zeros((n, 3)), np.zeros((n, 3))
    for s in range(n):
        p[s, 0, max(0, s - 1)] = 1.0
        p[s, 1, min(n - 1, s + 1)] = 1.0
    p[n - 1, 1], r[n - 1, 1], end[n - 1, 1] = 0.0, 10.0, 1.0
    r[:, 2], end[:, 2] = -1e11, 1.0
    start = np.eye(n)[0]
    this = solved(_model(p, r, end, start), 0.99)
    assert this.solution.scale == this.value_range
    found = this.certify(held(np.tile([1.0, 0, 0], n), 3))  # back and forth, for nothing
    assert found.policy_value == pytest.approx(0.0, abs=1e-6)
    assert found.policy_gap == pytest.approx(10 * 0.99**11 / (10 - 10 * 0.99**11), rel=1e-5)
    assert this.solution.worst_value == pytest.approx(-1e11)


def test_a_worst_value_that_was_not_found_leaves_the_gap_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = Optimiser.optimise

    def optimise(self: Any, discount: float, budget: Any, *more: Any) -> Any:
        if more:
            raise Unsolved("the worst policy's value is unknown: tired")
        return made(self, discount, budget)

    monkeypatch.setattr(Optimiser, "optimise", optimise)
    this = solved(HAND, 0.5)
    found = this.certify(held(np.array([4.0, 3, 9, 9]), 2))
    assert this.optimal_value == pytest.approx(5.0)
    assert (found.policy_gap, found.worst_value) == (None, None)
    assert "tired" in (found.unknown or "") and found.policy_loss == pytest.approx(6.0)


def test_unknown_numbers_are_never_below_a_limit() -> None:
    for bad in (None, np.nan, np.inf, -np.inf):
        assert not at_most(bad, 1.0) and not at_least(bad, -1.0)
        assert positive_part(bad) is None and finite(bad) is None
    certificate = Certificate(policy_gap=float("nan"), policy_loss=float("inf"), policy_value=1.0)
    assert (certificate.policy_gap, certificate.policy_loss) == (None, None)
    assert certificate.policy_value == 1.0


def test_rewards_of_any_size_have_returns() -> None:
    for size in (1e12, 1e-12, 1e100):
        environment = _model(np.array([[[0.5]]]), np.array([[size]]), np.array([[0.5]]))
        known = solved(environment, 0.9).solution
        assert known.optimal_policy_return == pytest.approx(2 * size)
        limited = _model(
            np.array([[[0.5]]]), np.array([[size]]), np.array([[0.5]]), max_episode_steps=50
        )
        known = solved(limited, 0.9).solution
        assert known.optimal_policy_return == known.best_return == pytest.approx(2 * size)


def test_the_best_return_is_no_less_than_that_of_the_discounted_optimum() -> None:
    this = solved(make("FrozenLake-v1"), 0.9).solution
    assert this.best_return == pytest.approx(0.7441902878, abs=1e-9)  # V3, by another solver
    assert this.optimal_policy_return is not None and this.optimal_policy_return < this.best_return


def test_undiscounted_where_only_the_start_is_proper() -> None:
    # 0 ends; 1, met under another action, waits for ever at a cost.
    p = np.array([[[0.0, 0], [0, 1]], [[0, 1], [0, 0]]])
    r = np.array([[-2.0, -1], [-1, -3]])
    end = np.array([[1.0, 0], [0, 1]])
    this = solved(_model(p, r, end, np.array([1.0, 0])), 1.0)
    assert this.optimal_value == -2.0
    found = this.certify(held(np.array([1.0, 0, 1, 0]), 2))
    assert (found.policy_value, found.policy_gap, found.policy_loss) == (-2.0, 0.0, None)


def test_time_limit_cuts_the_return() -> None:
    p, r = np.ones((1, 1, 1)), np.ones((1, 1))
    this = solved(_model(p, r, max_episode_steps=7), 0.9)
    assert this.solution.optimal_policy_return == this.solution.best_return == 7.0
    found = this.certify(held(np.zeros(1), 1), tight=True)
    assert found.policy_return == 7.0 and found.policy_value == pytest.approx(10)
    endless = solved(_model(p, r), 0.9).solution
    assert endless.optimal_policy_return is None and endless.best_return is None


def test_large_offsets_and_long_horizons_end() -> None:
    # Values near 1e6 that differ by 1: rounding leaves more than the tolerance asks for.
    rng = np.random.default_rng(3)
    p = rng.random((6, 3, 6))
    p /= p.sum(axis=2, keepdims=True)
    this = solved(_model(p, 100 + rng.random((6, 3))), 0.9999)
    assert this.values is not None and this.values.min() > 1e6 - 1e4
    assert this.optimal_value == pytest.approx(1e6, rel=1e-2)


def test_what_cannot_be_solved_says_why() -> None:
    huge = make("grid", rows=30_000, columns=30_000, slip=0.2)
    reason = solvable(huge, 0.99)
    assert reason is not None and "10,800,000,000 transitions" in reason and "50,000,000" in reason
    assert solvable(HAND, 0.99) is None
    large = make("grid", rows=1000, columns=1000, slip=0.2)
    assert solvable(large, 0.99) is None
    assert "learn.discount = 1" in (solvable(large, 1.0) or "")


@pytest.mark.parametrize(
    "environment",
    [make("garnet", states=300, actions=3, branching=4, seed=2),
     make("grid", rows=12, columns=11, slip=0.2), make("CliffWalking-v1")],
    ids=lambda environment: environment.id,
)  # fmt: skip
def test_copied_outcomes_say_what_the_model_says(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = solved(environment, 0.97)
    policy = np.random.default_rng(3).integers(0, environment.n_actions, environment.n_states)
    policy = policy.astype(np.int32)
    assert isinstance(copied.planner.follow(policy), Path)
    table = held(np.random.default_rng(1).normal(size=policy.size * environment.n_actions),
                 environment.n_actions)  # fmt: skip
    told = copied.certify(table, tight=True)
    monkeypatch.setattr(planning, "MOST_TRANSITIONS", environment.n_transitions - 1)
    from_model = solved(environment, 0.97)
    assert from_model.planner.follow(policy) is policy
    assert copied.values is not None and from_model.values is not None
    np.testing.assert_allclose(copied.values, from_model.values, rtol=1e-11, atol=1e-11)
    for name, value in asdict(from_model.certify(table, tight=True)).items():
        close = value if not isinstance(value, float) else pytest.approx(value, 1e-9, 1e-9)
        assert getattr(told, name) == close


def test_policies_followed_one_after_the_other_leave_nothing_behind() -> None:
    environment = make("garnet", states=200, actions=3, branching=4, seed=2)
    this, rng = solved(environment, 0.9), np.random.default_rng(5)
    for _ in range(4):
        policy = rng.integers(0, 3, 200).astype(np.int32)
        values = this.planner.scratch()
        this.planner.relax(values, this.planner.follow(policy), None, 0.9, 20)
        found = values.v.copy()
        values = this.planner.scratch()
        this.planner.relax(values, policy, None, 0.9, 20)
        assert np.array_equal(found, values.v)


def test_sweeps_follow_whatever_closes_the_bounds_faster() -> None:
    def taken(smooth: float, mixed: float, declines: float) -> list[bool]:
        orders, width, found = Orders(), 1.0, []
        for _ in range(24):
            orders.told(width)
            found.append(orders.smooths_only)
            orders.swept(4, 1.0, declines**4)
            width *= smooth if orders.smooths_only else mixed
        return found

    assert all(taken(0.9, 0.1, 0.5))  # what is uneven halves with every sweep: good enough
    found = taken(0.1, 0.5, 0.95)
    assert all(found[:2]) and 18 < sum(found) < 24
    found = taken(0.9, 0.5, 0.95)
    assert all(found[:2]) and sum(found) < 9
