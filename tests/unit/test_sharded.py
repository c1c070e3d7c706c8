"""`sharded` on ranks that are threads: against an oracle without ranks, and its own promises."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distq_mpi.architectures import Sharded
from distq_mpi.architectures.balance import balanced, bucket_of, most_rows
from distq_mpi.architectures.sharded import LANE_DTYPE
from distq_mpi.environments import Environment, explicit_model
from distq_mpi.errors import ConfigError
from distq_mpi.kernels import crossing
from distq_mpi.kernels.draws import RESET, TRANSITION, threefry
from distq_mpi.kernels.loop import learning_parts
from distq_mpi.kernels.step_sizes import CLOCK_LIMIT, COUNT
from distq_mpi.partition import Partition
from distq_mpi.table import record_of
from tests.stand_in import Alone, compiled, config, plain, random_model, together

u4, u8 = np.uint32, np.uint64


def settings(**changes: Any) -> Any:
    return config(**{"agents": 0, "lanes": 13, "steps_per_round": 7, **changes})


def ran(
    size: int, given: Any, environment: Environment, n_rounds: int, first_tick: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, Any]:
    """Table, clocks, lanes and progress after some rounds on `size` ranks."""
    kernels = compiled(Sharded.requests(given, environment))

    def work(transport: Any) -> Any:
        this = Sharded(given, environment, kernels, transport)
        this.progress = this.progress._replace(lane_steps=first_tick)
        for _ in range(n_rounds):
            this.learn()
            this.exchange((False, False, False))
            this.commit()
        rows = [(q.copy(), clock.copy()) for _, q, clock, _ in this.iter_rows()]
        return rows, this.gather_lanes(), this.progress

    rows, lanes, progress = together(size, work)[0]
    q, clock = (np.concatenate(parts) for parts in zip(*rows, strict=True))
    return q, clock, lanes, progress


class Oracle:
    """Lockstep by its definition, in plain Python, on one table and without ranks.

    sequential : targets are applied at once; for one lane at a time.
    """

    def __init__(self, given: Any, environment: Environment, first_tick: int = 0) -> None:
        self.given, self.environment, self.now = given, environment, first_tick
        record = record_of(given.learn, environment.n_actions)
        parts = learning_parts(given.learn, environment.n_actions, record)
        self.look, self.update, self.choose_first = (
            plain(parts[name], {}) for name in ("look", "update", "choose_first")
        )
        self.raw = np.zeros(environment.n_states * record.row_bytes, np.uint8)
        self.q, self.clock = self.raw.view(record.dtype), self.raw.view(np.uint32)
        self.record = record
        self.lanes = [
            {"at": self._start(lane, 0), "pending": None, "gain": np.float32(0), "age": 0}
            for lane in range(given.parallel.lanes)
        ]
        self.returns: list[float] = []
        self.learned = 0

    def _start(self, lane: int, now: int) -> int:
        seed = u8(self.given.run.seed)
        with np.errstate(over="ignore"):
            word = threefry(u8(now), u8(lane), seed, RESET)[0]
            return int(self.environment.law_start(word, self.environment.params))

    def tick(self) -> None:
        self.now += 1
        learn, params = self.given.learn, self.environment.params
        seed, stride = u8(self.given.run.seed), self.record.stride
        explore, targets = u8(round(learn.epsilon * 2**32)), []
        for number, lane in enumerate(self.lanes):
            with np.errstate(over="ignore"):
                word, bits = threefry(u8(self.now), u8(number), seed, TRANSITION)
                first = threefry(u8(self.now), u8(number), seed, RESET)[1]
            row = u8(lane["at"] * stride)
            if lane["pending"] is None:
                action = int(self.choose_first(self.q, row, word, first, explore))
                gain, age = np.float32(0), 0
            else:
                state, taken, reward, ended = lane["pending"]
                action, target, part = self.look(
                    self.q, row, np.float64(reward), ended, word, bits, explore, learn.discount
                )
                self.learned += 1
                targets.append((u8(state), u8(part) + u8(taken), target, bits))
                gain, age = lane["gain"] + reward, lane["age"] + 1
                if ended or age >= (self.environment.max_episode_steps or 2**32):
                    self.returns.append(float(gain))
                    lane.update(at=self._start(number, self.now), pending=None, age=0)
                    continue
            with np.errstate(over="ignore"):
                new, reward, ended = self.environment.law_step(
                    u8(lane["at"]), u8(action), bits, params
                )
            pending = (lane["at"], int(action), np.float32(reward), bool(ended))
            lane.update(at=int(new), pending=pending, gain=gain, age=age)
        for state, entry, target, bits in targets:
            self.update(self.q, self.clock, state, entry, target, bits, learn.discount, 0.1)

    def table(self) -> np.ndarray:
        """q (S, width)."""
        return self.q.reshape(-1, self.record.stride)[:, : self.record.width]


@pytest.mark.parametrize("rule", ["q_learning", "sarsa", "expected_sarsa", "double_q"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_lockstep_is_what_it_says(rule: str, dtype: str) -> None:
    environment = random_model(11, 3)
    given = settings(rule=rule, dtype=dtype)
    oracle = Oracle(given, environment)
    for _ in range(3 * 7):
        oracle.tick()
    for size in (1, 2, 4):
        q, clock, lanes, progress = ran(size, given, environment, 3)
        assert np.array_equal(q, oracle.table())
        assert clock.sum() == progress.steps == oracle.learned > 150
        assert progress.episodes == len(oracle.returns) > 20
        assert progress.window_return == pytest.approx(sum(oracle.returns), abs=1e-9)
        assert lanes["next_state"].tolist() == [lane["at"] for lane in oracle.lanes]
        assert lanes["lane"].tolist() == list(range(13))


@pytest.mark.parametrize("lockstep", [True, False])
def test_steps_are_counted_in_64_bits(lockstep: bool) -> None:
    environment, first = random_model(7, 2), 2**32 - 10
    given = settings(lanes=1 if not lockstep else 5, reproducible=lockstep)
    oracle = Oracle(given, environment, first)
    for _ in range(21):
        oracle.tick()
    q, _, _, progress = ran(1 if not lockstep else 3, given, environment, 3, first)
    assert progress.lane_steps == 2**32 + 11 == oracle.now
    assert np.array_equal(q, oracle.table())


def test_one_lane_running_free_is_sequential() -> None:
    # Whatever the borders: one lane waits at each for its exchange, so ticks differ, but the draws
    # of a deterministic ring that is walked greedily do not matter.
    n = 9
    ring = explicit_model(
        "ring", n, 1, np.arange(n + 1), (np.arange(n) + 1) % n, np.ones(n), np.arange(n) * 1.0,
        start_distribution=np.eye(n)[4],
    )
    given = settings(lanes=1, reproducible=False, rebalance=False, steps_per_round=64)
    q, clock, _, progress = ran(3, given, ring, 30)
    expected, now = np.zeros(n), 4
    visits = np.zeros(n)
    for _ in range(progress.steps):
        ahead = (now + 1) % n
        visits[now] += 1
        target = now + 0.9 * expected[ahead]
        expected[now] += (target - expected[now]) / (1 + (1 - 0.9) * visits[now])
        now = ahead
    assert progress.steps > 60 and np.array_equal(clock[:, 0], visits)
    assert q[:, 0] == pytest.approx(expected, abs=1e-12)


def cycle(release: Any, delay: int, alpha: float, n_updates: int) -> np.ndarray:
    """Errors of both states of the cycle 0 <-> 1 (r = 1, discount .9), one state a rank, after
    every exchange; targets travel late, lanes do not."""
    environment = explicit_model("cycle", 2, 1, [0, 1, 2], [1, 0], [1.0, 1.0], [1.0, 1.0])
    given = settings(
        step_size="constant", alpha=alpha, reproducible=False, rebalance=False, lanes=2,
        steps_per_round=64, epsilon=0.0, seed=next(s for s in range(99) if _apart(environment, s)),
    )  # fmt: skip
    kernels = compiled(Sharded.requests(given, environment))

    def work(transport: Any) -> Any:
        this, errors = Sharded(given, environment, kernels, transport), []
        # Messages with room for all targets that are held back.
        records, (region, middle) = this.lanes.copy(), crossing.words_of(10 * n_updates)
        this.control[crossing.REGION], this.control[crossing.MIDDLE] = region, middle
        this.mail = transport.mail(region, middle, crossing.RECORD, crossing.TARGET)
        this.mail.release, this.mail.delay = release, delay
        this._home = transport.rank * region + middle
        this._take_lanes(records)
        this._bind()
        while int(this.rows.clock[0, 0]) < n_updates:
            this.learn()
            this.exchange((False, False, False))
            this.commit()
            errors.append((int(this.rows.clock[0, 0]), 10.0 - float(this.rows.values[0, 0])))
        return errors

    both = together(2, work)
    assert both[0] == both[1]
    return np.array(both[0])


def _apart(environment: Environment, seed: int) -> bool:
    starts = {Oracle(settings(lanes=2, seed=seed), environment)._start(k, 0) for k in range(2)}
    return len(starts) == 2


@pytest.mark.parametrize(
    ("every", "error"), [(1, 2.6561e-4), (2, 0.0515378), (5, 1.2157665), (10, 3.4867844)]
)
def test_t11_refreshed_every_m_updates(every: int, error: float) -> None:
    # The first exchange brings lanes only; from the second on each brings one target, and those
    # held back were all computed from the same values.
    found = cycle(lambda number: number >= 2 and (number - 1) % every == 0, 0, 1.0, 100)
    assert found[-1, 0] == 100
    assert found[-1, 1] == pytest.approx(error, rel=1e-4)
    assert found[-1, 1] == pytest.approx(10 * 0.9 ** (100 / every), rel=1e-12)


def test_t11_never_refreshed() -> None:
    found = cycle(lambda number: number == 101, 0, 1.0, 100)
    assert found[-1].tolist() == [100, 9.0]


@pytest.mark.parametrize(
    ("alpha", "delay", "n_updates"),
    [(0.1, 0, 688), (0.1, 1, 750), (0.1, 5, 1004), (0.1, 20, 1971), (0.5, 5, 458), (1.0, 20, 1366)],
)
def test_t12_delayed_targets(alpha: float, delay: int, n_updates: int) -> None:
    found = cycle(lambda number: True, delay, alpha, n_updates + 5)
    enough = found[np.abs(found[:, 1]) <= 1e-3 * 10, 0]  # of the first error
    assert abs(enough[0] - n_updates) <= 1


@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(1, 6))
def test_borders_do_not_matter(seed: int, n_states: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    environment = random_model(n_states, 2, seed % 97)
    given = settings(lanes=5, steps_per_round=2)
    cuts = [
        Partition([0, *np.sort(rng.integers(0, n_states + 1, size - 1)), n_states])
        for _ in range(3)
    ]  # fmt: skip
    kernels = compiled(Sharded.requests(given, environment))

    def work(transport: Any) -> Any:
        this = Sharded(given, environment, kernels, transport)
        this._room = n_states
        this._raw = np.zeros(n_states * this.record.row_bytes, np.uint8)
        this._take_borders()
        for blocks in cuts if transport.size > 1 else cuts[:1] * 3:
            this.place(blocks if transport.size > 1 else Partition([0, n_states]))
            this.learn()
            this.exchange((False, False, False))
            this.commit()
        rows = [q.copy() for _, q, _, _ in this.iter_rows()]
        return np.concatenate(rows), this.gather_lanes(), this.holding.sha256()

    q, lanes, digest = together(size, work)[0]
    expected, expected_lanes, expected_digest = together(1, work)[0]
    assert np.array_equal(q, expected) and np.array_equal(lanes, expected_lanes)
    assert digest == expected_digest


@given(st.integers(0, 2**31), st.integers(1, 5000), st.integers(1, 9))
def test_better_borders_stay_within_limits(seed: int, n_states: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    states = (rng.random(300) ** rng.uniform(0.3, 5) * n_states).astype(np.uint64)
    states = np.minimum(states, u8(n_states - 1))
    loads = np.bincount(bucket_of(states, n_states), minlength=1024)
    blocks: Partition | None = Partition.balanced(n_states, size)
    for _ in range(30):
        before, blocks = blocks, balanced(loads, blocks)
        if blocks is None:
            break
        assert before is not None
        assert blocks.n == n_states and blocks.counts.max() <= most_rows(n_states, size)
        step = max(1, n_states // (4 * size))
        inner = slice(1, size)
        assert np.abs(blocks.starts - before.starts)[inner].max() <= step
    else:
        pytest.fail("borders never come to rest")


def test_even_loads_stay() -> None:
    loads = np.ones(1024, np.int64)
    assert balanced(loads, Partition.balanced(4096, 4)) is None


def test_uneven_loads_are_evened_out_as_far_as_rows_allow() -> None:
    loads = np.zeros(1024, np.int64)
    loads[:512] = 1
    blocks = Partition.balanced(102_400, 2)
    while (better := balanced(loads, blocks)) is not None:
        blocks = better
    assert blocks.starts.tolist() == [0, 38_400, 102_400]  # 1.25 x 51,200 rows are the limit


def test_numbers_that_are_not_finite_are_counted() -> None:
    environment = random_model(5, 2)
    kernels = compiled(Sharded.requests(settings(), environment))

    def work(transport: Any) -> Any:
        this = Sharded(settings(), environment, kernels, transport)
        this.rows.values[...] = np.nan
        this.learn()
        return this.exchange((False, False, False)).non_finite

    assert min(together(2, work)) > 50


CLOCKS: list[dict[str, Any]] = [
    {"rule": rule, "step_size": step_size, "reproducible": lockstep}
    for lockstep in (True, False)
    for rule, step_size in (
        ("q_learning", "linear"), ("sarsa", "rescaled_linear"), ("expected_sarsa", "constant"),
        ("double_q", "polynomial"), ("q_learning", "sign_change"), ("double_q", "sign_change"),
        ("ucb_hoeffding", "horizon"), ("ucb_discounted", "horizon"),
    )
]  # fmt: skip


@pytest.mark.parametrize("changes", CLOCKS)
def test_clocks_stop_at_their_limit(changes: dict[str, Any]) -> None:
    """A clock that went on would come to 0, or into its sign, and steps would be of size 1."""
    signed, limit = changes["step_size"] == "sign_change", int(CLOCK_LIMIT)
    last = int(COUNT) if signed else 2**32 - 1
    # Rewards of both signs, so that those of TD errors change; two states, each other's next.
    environment = explicit_model(
        "noisy", 2, 2, np.arange(5) * 2, np.tile([0, 1], 4), np.full(8, 0.5),
        np.tile([1.0, -1.0], 4),
    )  # fmt: skip
    given = settings(lanes=16, steps_per_round=50, horizon=4.0, epsilon=1.0, **changes)
    kernels = compiled(Sharded.requests(given, environment))

    def work(transport: Any) -> np.ndarray:
        this = Sharded(given, environment, kernels, transport)
        begun = np.full(this.rows.clock.shape, limit - 5, np.uint32)
        begun[:, 1::2] = last - 1  # as an older version may have left them
        this.rows.clock[...] = begun | (1 << 30 if signed else 0)
        for _ in range(40):
            this.learn()
            this.exchange((False, False, False))
            this.commit()
        found: np.ndarray = this.rows.clock & (COUNT if signed else u4(2**32 - 1))
        return found

    for clock in together(2, work):
        assert (clock[:, ::2] == limit).all() and (clock[:, 1::2] == last - 1).all()


def test_what_does_not_fit_its_bits_is_refused() -> None:
    given = settings(lanes=2**28 + 1)
    for n_states, n_actions, told in (
        (2**47 + 1, 2, "states"), (9, 2**15 + 1, "actions"), (9, 2, "lanes"),
    ):
        with pytest.raises(ConfigError, match=told):
            Sharded.check(given, n_states, n_actions, 2)


def test_a_record_has_32_bytes() -> None:
    assert LANE_DTYPE.itemsize == 8 * crossing.RECORD == 32


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_bytes_of_a_step_are_those_of_the_crossings(size: int) -> None:
    """Next states are uniform: (P - 1) / P of the steps cross, 32 bytes there and 16 back."""
    n_states = 64
    environment = explicit_model(
        "uniform", n_states, 1, np.arange(n_states + 1) * n_states,
        np.tile(np.arange(n_states), n_states), np.full(n_states**2, 1 / n_states),
        np.zeros(n_states**2),
    )  # fmt: skip
    given = settings(lanes=512, steps_per_round=20, rebalance=False)
    kernels = compiled(Sharded.requests(given, environment))

    def work(transport: Any) -> tuple[int, int]:
        this = Sharded(given, environment, kernels, transport)
        counted = []
        for _ in range(2):  # the first tick of all learns nothing
            this.learn()
            this.exchange((False, False, False))
            this.commit()
            counted.append((this.sent_bytes, this.progress.steps))
        return counted[1][0] - counted[0][0], counted[1][1] - counted[0][1]

    results = together(size, work)
    assert results[0][1] == 20 * 512
    per_step = sum(sent for sent, _ in results) / results[0][1]
    heads = 20 * size * (size - 1) * 8 / results[0][1]
    assert per_step == pytest.approx(48 * (size - 1) / size + heads, rel=0.03)


@pytest.mark.parametrize(
    ("reward", "n_steps", "mean"), [(0.9, 1, 0.9), (2e18, 5, 1e19), (-3e38, 2, -np.inf)]
)
def test_returns_add_up_without_overflow(reward: float, n_steps: int, mean: float) -> None:
    """2^24 episodes of .9 in a round, and returns that no fixed point holds."""
    environment = explicit_model(
        "one", 1, 1, [0, 1], [0], [1.0], [reward], max_episode_steps=n_steps
    )
    n_ticks = 1 << 15
    given = settings(lanes=512, steps_per_round=n_ticks, dtype="float64", step_size="constant")
    this = Sharded(given, environment, compiled(Sharded.requests(given, environment)), Alone())
    this.learn()
    agreement = this.exchange((False, False, False))
    assert agreement.episodes == 512 * (n_ticks // (n_steps + 1))
    if np.isinf(mean):
        assert agreement.non_finite == agreement.episodes
        return
    assert agreement.non_finite == 0
    most = 2.0**62 / (n_ticks * 512)
    found = agreement.return_sum / agreement.episodes
    assert found == pytest.approx(min(mean, most), rel=1e-6)


def test_everybody_asks_for_states_of_its_own() -> None:
    environment = random_model(23, 3)
    given = settings(initial="random")
    kernels = compiled(Sharded.requests(given, environment))
    alone = Sharded(given, environment, kernels, Alone())

    def work(transport: Any) -> bool:
        this = Sharded(given, environment, kernels, transport)
        rng = np.random.default_rng(transport.rank)
        asked = rng.integers(0, 23, 5 * transport.rank)  # rank 0 asks for none
        values, visited = this.holding.values_of(asked)
        expected, _ = alone.holding.values_of(asked)
        return bool(np.array_equal(values, expected) and visited.shape == (len(asked), 3))

    assert all(together(4, work))
