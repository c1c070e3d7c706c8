"""Servers and workers out of step, without MPI: messages, caches, bounds, delays, stability."""

from __future__ import annotations

import types
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distq_mpi.architectures import Served
from distq_mpi.architectures.desk import Desk
from distq_mpi.architectures.schedules import Exploring
from distq_mpi.architectures.server import check_split, placement
from distq_mpi.architectures.worker import CachingWorker, Worker
from distq_mpi.config import Config, LearnConfig, ParallelConfig, check
from distq_mpi.environments.base import Environment
from distq_mpi.environments.explicit import explicit_model
from distq_mpi.errors import ConfigError
from distq_mpi.kernels import loop
from distq_mpi.kernels.pushing import DONE, HEAD, KIND, N_ROWS, PAUSE, PULL, PUSH, ROWS, VERSION
from distq_mpi.lanes import Lanes
from distq_mpi.partition import Partition
from distq_mpi.table import Rows, record_of
from tests.driving import Learner
from tests.stand_in import Post, compiled, config, random_model, together


class Letters:
    """A post of which a test writes what comes, and reads what goes."""

    def __init__(self) -> None:
        self.coming: list[tuple[int, np.ndarray]] = []
        self.sent: list[tuple[int, np.ndarray]] = []
        self.inbox = np.zeros(1 << 14, np.uint64)

    def send(self, words: np.ndarray, peer: int) -> None:
        self.sent.append((peer, words.copy()))

    def wait(self, peer: int = -1) -> int:
        source, words = self.coming.pop(0)
        self.inbox[: len(words)] = words
        return source


def one_step(reward: float = 1.0) -> Environment:
    """One state, one action, and every step an end: the value is the reward."""
    return explicit_model("step", 1, 1, [0, 1], [0], [1.0], [reward], [True])


def desk_of(given: Any, environment: Environment) -> tuple[Desk, Letters]:
    record, post = record_of(given.learn, environment.n_actions), Letters()
    rows = Rows(record, environment.n_states)
    kernels = compiled(Served.requests(given, environment))
    return Desk(rows, 0, environment.n_states, given, kernels, post, True), post  # type: ignore[arg-type]


def head(kind: int, agent: int, clock: int, version: int = 0, steps: int = 0) -> np.ndarray:
    return np.array([kind, agent, clock, version, 0, steps, 0, 0, 0, 0], np.uint64)


def serve(desk: Desk, post: Letters, *came: tuple[int, np.ndarray]) -> list[tuple[int, int]]:
    """What a desk answers to messages: (rank, kind) of each."""
    post.sent.clear()
    post.coming = [*came, (99, head(DONE, 0, 0))]
    desk.serve({99}, 10**9)
    return [(peer, int(words[KIND])) for peer, words in post.sent]


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 12), st.integers(2, 9))
def test_every_agent_and_every_row_has_one_rank(
    servers: int, agents: int, n_states: int, size: int
) -> None:
    hosting, blocks = placement(config(servers=servers, agents=agents), n_states, size)
    assert hosting.counts.sum() == agents and blocks.counts.sum() == n_states
    assert not np.any((hosting.counts > 0) & (blocks.counts > 0))
    assert len(hosting.counts) == len(blocks.counts) == size
    n_servers = np.count_nonzero(blocks.counts)
    assert n_servers == min(servers, size - 1, n_states) and np.all(blocks.counts[:n_servers] > 0)


def test_whoever_is_left_alone_is_both() -> None:
    hosting, blocks = placement(config(servers=2, agents=3), 5, 1)
    assert hosting.counts.tolist() == [3] and blocks.counts.tolist() == [5]


@pytest.mark.parametrize(("servers", "size"), [(1, 1), (3, 3), (5, 2)])
def test_a_split_without_workers_is_refused(servers: int, size: int) -> None:
    with pytest.raises(ConfigError, match="leave no worker: (one rank cannot|1 to )"):
        check_split(config(servers=servers), size)


@pytest.mark.parametrize(
    ("parallel", "message"),
    [
        ({"staleness": 4}, "staleness: 4 has a meaning with parallel.architecture server only"),
        ({"architecture": "server", "cache_rows": 9}, "cache_rows: 9 must be 0 with"),
        ({"architecture": "server", "staleness": 1, "fusion": "mean"}, "fusion: mean has no"),
        ({"architecture": "server", "reproducible": False}, "staleness decides"),
    ],
)
def test_what_has_no_meaning_is_refused(parallel: dict[str, Any], message: str) -> None:
    (mistake,) = check(Config(parallel=ParallelConfig(**parallel)))
    assert message in mistake


def test_what_it_cannot_do_is_refused() -> None:
    def of(stepped: bool = False, step_size: Any = "constant", **parallel: Any) -> None:
        parallel = {"architecture": "server", "staleness": 4, "agents": 2, "lanes": 8} | parallel
        Served.check(
            Config(learn=LearnConfig(step_size=step_size), parallel=ParallelConfig(**parallel)),
            stepped,
        )

    of()
    of(cache_rows=48)
    with pytest.raises(ConfigError, match="sign_change needs the agents' votes"):
        of(step_size="sign_change")
    with pytest.raises(ConfigError, match="cache_rows: 47 must be >= 48"):
        of(cache_rows=47)
    with pytest.raises(ConfigError, match="must be 0 for environments stepped"):
        of(stepped=True, cache_rows=48)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(["q_learning", "double_q", "sarsa"]), st.integers(0, 99), st.integers(1, 9))
def test_rows_in_slots_learn_as_rows_in_order(rule: str, seed: int, n_lanes: int) -> None:
    environment, n_steps = random_model(40, 3, seed), 30
    given_ = config(
        rule=rule, lanes=n_lanes, cache_rows=200, seed=seed, epsilon_schedule="linear",
        epsilon_steps=70 * n_lanes, epsilon=1.0,
    )  # fmt: skip
    exploring = Exploring(given_.learn, n_lanes)
    record = record_of(given_.learn, 3)
    whole = Learner(environment, given_.learn, n_lanes, seed=seed, use_compiled=True)
    whole.begin()
    kernels = compiled(Served.requests(given_, environment))

    class Served_(Letters):
        """Rows of a server that has learned nothing."""

        def wait(self, peer: int = -1) -> int:
            _, asked = self.sent.pop()
            states = asked[HEAD:]
            rows = np.zeros((len(states), 1 + record.row_bytes // 8), np.uint64)
            rows[:, 0] = states
            self.inbox[:HEAD] = head(ROWS, 0, 0)
            self.inbox[N_ROWS] = len(states)
            self.inbox[HEAD : HEAD + rows.size] = rows.reshape(-1)
            return 0

    slots = 512
    worker = CachingWorker(
        Rows(record, slots), Rows(record, slots), Partition([0, 40]), 1, slots,
        environment.params_of, whole.rates, kernels, Served_(), n_lanes=n_lanes, most=slots // 2,
    )  # fmt: skip
    worker.agent = 0
    agent: Any = type("Agent", (), {"number": 0})()
    agent.lanes, agent.totals = Lanes(0, n_lanes), np.zeros(3)
    agent.control, agent.exploring = whole.control.copy(), exploring
    agent.lanes.copy_from(whole.lanes)
    for k in range(3):
        whole.totals[:] = 0.0
        for now in range(k * n_steps, (k + 1) * n_steps):
            whole.control[loop.EXPLORE] = exploring.code(now)
            whole.learn(1)
        assert worker.learn(agent, k * n_steps, n_steps) == n_steps
    assert agent.lanes.pack().tobytes() == whole.lanes.pack().tobytes()
    assert agent.totals.tolist() == pytest.approx(whole.totals.tolist(), abs=1e-12)
    for slot in np.flatnonzero(worker.keys):
        row = int(worker.keys[slot]) - 1
        assert np.array_equal(worker.replica.values[slot], whole.rows.values[row])
        assert np.array_equal(worker.replica.clock[slot], whole.rows.clock[row])
    assert whole.rows.clock.sum() == worker.replica.clock.sum()


def test_a_cache_that_is_full_ends_the_push() -> None:
    environment = random_model(4000, 2, 5)
    given_ = config(lanes=4, agents=1, cache_rows=60, steps_per_round=500, alpha=0.5)

    def work(transport: Any) -> Any:
        kernels = compiled(Served.requests(given_, environment))
        this = Served(given_, environment, kernels, transport)
        this.learn()
        this.exchange((False, False, False))
        this.commit()
        kept = None if this.worker is None else np.count_nonzero(this.worker.keys)
        return this.progress, kept, this.desk and this.desk.pushes

    (progress, _, pushes), (_, kept, _) = together(2, work)
    assert progress.steps >= 8 * 4 * 500 and kept == 0
    assert pushes > 3 * progress.steps / 2000  # each of far less than 500 steps


@pytest.mark.parametrize("servers", [1, 2])
def test_a_pause_finds_every_push_in_the_rows(servers: int) -> None:
    environment = random_model(30, 2, 5)
    given_ = config(lanes=6, agents=3, servers=servers, steps_per_round=4, staleness="inf")

    def work(transport: Any) -> Any:
        kernels = compiled(Served.requests(given_, environment))
        this, found = Served(given_, environment, kernels, transport), []
        for _ in range(3):
            this.learn()
            this.exchange((False, False, False))
            this.commit()
            desk = this.desk
            told = desk and (desk.pushes, desk.rows.clock.sum() + desk.over.sum(dtype=float))
            found.append((told, sum(this.pushed)))
        return this.progress.steps, found

    told = together(servers + 2, work)
    for k in range(3):
        pushes = sum(found[k][1] for _, found in told[servers:])
        assert all(found[k][0][0] == pushes for _, found in told[:servers])
        ticked = sum(found[k][0][1] for _, found in told[:servers])
        assert 0 < ticked <= told[0][0] / 3 + 1e-6
    assert ticked == pytest.approx(told[0][0] / 3, rel=0.2)  # late ones count for less


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(["float64", "float32"]))
def test_a_lone_push_brings_what_was_learned(seed: int, dtype: str) -> None:
    rng = np.random.default_rng(seed)
    given_, environment = config(agents=1, dtype=dtype, seed=seed), random_model(20, 3)
    desk, post = desk_of(given_, environment)
    record, kernels = desk.rows.record, desk.kernels
    base, replica = Rows(record, 20), Rows(record, 20)
    worker = Worker(base, replica, Partition([0, 20]), 1, 20, None, np.array([0.9, 0.1]), kernels, post)  # type: ignore[arg-type]  # noqa: E501
    learned = rng.normal(size=(20, 3))
    touched = rng.random((20, 3)) < 0.2
    replica.values[touched] = learned[touched]
    replica.clock[touched] = rng.integers(1, 50, touched.sum())
    visits = replica.clock.copy()
    found = worker.push(0, 1, 7)
    ((_, message),) = post.sent
    assert int(message[N_ROWS]) == touched.any(axis=1).sum() and found[4] == visits.sum()
    assert np.array_equal(base.raw, replica.raw), "what was pushed is taken back"
    assert not serve(desk, post, (1, message))
    assert desk.rows.values == pytest.approx(np.where(touched, learned, 0), abs=1e-6)
    assert np.array_equal(desk.rows.clock, visits)
    assert serve(desk, post, (1, head(PULL, 0, 1, 0))) == [(1, ROWS)]
    post.coming = [(0, post.sent[0][1])]
    assert worker.pull(0, 1)
    assert np.array_equal(base.raw, desk.rows.raw) and np.array_equal(base.raw, replica.raw)
    assert serve(desk, post, (1, head(PULL, 0, 1, int(worker.known[0])))) == [(1, ROWS)]
    assert int(post.sent[0][1][N_ROWS]) == 0, "nothing has changed since"


@pytest.mark.parametrize("staleness", [1, 4, "inf"])
def test_nobody_is_further_ahead_than_staleness(staleness: Any) -> None:
    desk, post = desk_of(config(agents=2, staleness=staleness), one_step())
    for clock in range(10):
        pull = (1, head(PULL, 0, clock))
        answered = serve(desk, post, pull) == [(1, ROWS)]
        assert answered == (staleness == "inf" or clock <= staleness)
        serve(desk, post, (1, head(PUSH, 0, clock + 1)))
    # Whoever waits is let go as soon as the slowest has pushed.
    waits = (1, head(PULL, 0, 10))
    late = [(2, head(PUSH, 1, clock)) for clock in range(1, 10)]
    answers = serve(desk, post, waits, *late)
    assert answers == [(1, ROWS)]


def test_pushes_beyond_the_bound_are_dropped() -> None:
    """A safeguard: workers are held back before it comes to that."""
    desk, post = desk_of(config(agents=2, staleness=1), one_step())
    row = Rows(desk.rows.record, 1)
    row.values[0, 0], row.clock[0, 0] = 1.0, 1
    for rank, agent, clock in ((1, 0, 4), (2, 1, 1)):
        push = head(PUSH, agent, clock)
        push[N_ROWS] = 1
        message = np.concatenate([push, np.zeros(1, np.uint64), row.raw.view(np.uint64)])
        serve(desk, post, (rank, message))
    assert desk.dropped == 1 and desk.pushes == 2 and desk.rows.values[0, 0] == 0.5


def test_numbers_that_are_not_finite_stay_out_of_the_rows() -> None:
    desk, post = desk_of(config(agents=1), one_step())
    row = Rows(desk.rows.record, 1)
    row.values[0, 0], row.clock[0, 0] = np.nan, 1
    push = head(PUSH, 0, 1)
    push[N_ROWS] = 1
    serve(desk, post, (1, np.concatenate([push, np.zeros(1, np.uint64), row.raw.view(np.uint64)])))
    assert desk.rows.values[0, 0] == 0 and desk.rows.clock[0, 0] == 0


def test_who_takes_longer_than_others_is_named() -> None:
    this = types.SimpleNamespace(hosting=Partition([0, 0, 1, 2, 3, 4]))
    this.desk, _ = desk_of(config(agents=4, staleness=4), one_step())
    this.transport = types.SimpleNamespace(hosts=["a", "b", "c", "d", "e"])
    this.desk.clocks[:] = 30, 28, 29, 31
    this.desk.busy_s[:] = 3.0, 14.0, 2.9, 3.0
    ((kind, message),) = Served.notices(this)  # type: ignore[arg-type]
    assert kind == "straggler 1"
    assert message.startswith("agent 1 on rank 2 (c) takes 0.5 s for a push where half of")
    this.desk.clocks[:] = 3
    assert not Served.notices(this)  # type: ignore[arg-type]


def test_a_pause_is_called_after_so_many_steps() -> None:
    desk, post = desk_of(config(agents=2), one_step())
    post.coming = [
        (1, head(PULL, 0, 0)), (1, head(PUSH, 0, 1, 0, 60)), (2, head(PULL, 1, 0)),
        (1, head(PULL, 0, 1)), (2, head(PUSH, 1, 1, 0, 60)), (2, head(PULL, 1, 1)),
        (1, head(PULL, 0, 1)),
    ]  # fmt: skip
    desk.serve({1, 2}, 100)
    kinds = [(peer, int(words[KIND])) for peer, words in post.sent]
    assert kinds == [(1, ROWS), (2, ROWS), (1, ROWS), (2, PAUSE), (1, PAUSE)]
    assert [int(words[VERSION]) for _, words in post.sent] == [0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("n_agents", "gain", "diverges"),
    [(2, 0.97, False), (4, 0.42, False), (4, 0.47, True), (8, 0.20, False), (8, 0.22, True),
     (16, 0.095, False), (16, 0.11, True)],
)  # fmt: skip
@pytest.mark.parametrize("scaled", [False, True])
def test_pushes_in_turn_are_stable_below_the_limit_and_always_when_scaled(
    n_agents: int, gain: float, diverges: bool, scaled: bool
) -> None:
    """A push computed K - 1 pushes ago: stable iff gain < 2 cos((K - 1) pi / (2 K - 1))."""
    given_ = config(agents=n_agents, step_size="constant", alpha=gain, staleness="inf")
    desk, post = desk_of(given_, one_step())
    if not scaled:
        desk.scale_of = lambda behind: 1.0  # type: ignore[method-assign]
    value, known, errors = np.zeros(n_agents), np.zeros(n_agents, int), []
    for turn in range(400 * n_agents):
        k, record = turn % n_agents, desk.rows.record
        push, row = head(PUSH, k, turn // n_agents + 1, known[k]), Rows(record, 1)
        row.values[0, 0], row.clock[0, 0] = gain * (1.0 - value[k]), 1
        push[N_ROWS] = 1
        message = np.concatenate([push, np.zeros(1, np.uint64), row.raw.view(np.uint64)])
        serve(desk, post, (1, message))
        value[k], known[k] = desk.rows.values[0, 0], desk.version
        errors.append(abs(1.0 - value[k]))
    last = max(errors[-2 * n_agents :])
    assert (last > 1.0) == (diverges and not scaled), last
    if scaled:
        assert last < 1e-3


class Late(Post):
    """Rows of the state that is looked at come as they were `delay` of its updates ago."""

    delay = 0

    def begin(self, words: int) -> None:
        self.history: list[list[np.ndarray]] = [[np.zeros(words, np.uint64)] for _ in range(2)]
        self.updated = 0

    def send(self, words: np.ndarray, peer: int) -> None:
        if int(words[KIND]) == PUSH and int(words[N_ROWS]):
            self.updated = 1 - self.updated
        super().send(words, peer)

    def wait(self, peer: int = -1) -> int:
        source, words = super().wait(peer), self.inbox
        for k in range(int(words[N_ROWS])):
            n_words = 1 + len(self.history[0][0])
            row = words[HEAD + k * n_words : HEAD + (k + 1) * n_words]
            state, history = int(row[0]), self.history[int(row[0])]
            if not np.array_equal(history[-1], row[1:]):
                history.append(row[1:].copy())
            if state != self.updated:
                n_updates = len(self.history[self.updated]) - 1
                row[1:] = history[max(0, min(n_updates - self.delay, len(history) - 1))]
        return source


@pytest.mark.parametrize(
    ("alpha", "delay", "n_updates"), [(0.1, 0, 688), (0.1, 5, 1004), (0.1, 20, 1971)]
)
def test_t12_delayed_reads(alpha: float, delay: int, n_updates: int) -> None:
    """The cycle 0 <-> 1, r = 1, discount .9, a state on each server; updates until the error is
    1e-3 of the first one."""
    environment = explicit_model(
        "cycle", 2, 1, [0, 1, 2], [1, 0], [1.0, 1.0], [1.0, 1.0],
        start_distribution=[1.0, 0.0],
    )
    given_ = config(
        step_size="constant", alpha=alpha, servers=2, cache_rows=12, epsilon=0.0, seed=3
    )
    kernels = compiled(Served.requests(given_, environment))
    errors: list[float] = []

    def work(transport: Any) -> None:
        this = Served(given_, environment, kernels, transport)
        if this.worker is not None:
            late = Late(transport.rank, transport._queues, 64)
            late.begin(this.record.row_bytes // 8)
            late.delay = delay
            this.worker.post = late  # type: ignore[assignment]
            this.worker._bind()
        while this.progress.steps < 2 * (n_updates + 10):
            this.learn()
            this.exchange((False, False, False))
            this.commit()
        if this.worker is not None:
            values = [row.view(np.float64)[0] for row in late.history[0]]
            errors.extend(abs(10.0 - value) for value in values)

    together(3, work)
    first = next(n for n, error in enumerate(errors) if error <= 1e-3 * 10)
    assert abs(first - n_updates) <= 1, first
