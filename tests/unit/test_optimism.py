"""UCB-Hoeffding against the papers' loops over numpy tables; time in the state; what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from distq_mpi.architectures import Allreduce, Sharded
from distq_mpi.config import Config, EnvConfig, LearnConfig, ParallelConfig, check, resolve
from distq_mpi.environments import Environment, make, time_aware
from distq_mpi.environments.explicit import explicit_model
from distq_mpi.errors import ConfigError, ModelError
from distq_mpi.kernels.step_sizes import STEP_SIZES
from distq_mpi.preparation import with_horizon
from distq_mpi.table import first_bound, initialise
from tests.driving import Job, Learner
from tests.stand_in import Alone, compiled, config, together

u8 = np.uint64
HORIZON, N, A = 4, 5, 3


def gains(limit: int) -> Environment:
    """A random model with rewards from 0 to 1 that never ends by itself."""
    rng = np.random.default_rng(4)
    n = N * A * 2
    chances = rng.dirichlet(np.ones(2), N * A).reshape(-1)
    return explicit_model(
        "gains", N, A, np.arange(0, n + 1, 2), rng.integers(0, N, n), chances, rng.random(n),
        max_episode_steps=limit,
    )  # fmt: skip


def backup(environment: Environment, discount: float, v: np.ndarray) -> np.ndarray:
    """T q from v = max q, (S, A)."""
    params, shape = environment.params, (environment.n_states, environment.n_actions)
    found = np.zeros(shape)
    for s, a in np.ndindex(*shape):
        for i in range(int(environment.outcomes(s, a, params))):
            p, ahead, reward, ended = environment.outcome(s, a, i, params)
            found[s, a] += p * (reward + (0.0 if ended else discount * v[ahead]))
    return found


def optimal(environment: Environment, discount: float, n_sweeps: int) -> np.ndarray:
    q = np.zeros((environment.n_states, environment.n_actions))
    for _ in range(n_sweeps):
        q = backup(environment, discount, q.max(axis=1))
    return q


def learner_of(rule: str, bonus: float, n_lanes: int = 1, **changes: Any) -> Learner:
    if rule == "ucb_hoeffding":
        world, discount, horizon, high = time_aware(gains(HORIZON)), 1.0, 4.0, float(HORIZON)
    else:
        world, discount, horizon, high = gains(0), 0.8, 20.0, 5.0
    learn = config(
        rule=rule, step_size="horizon", horizon=horizon, discount=discount, bonus=bonus,
        value_high=high, initial="optimistic", **changes,
    ).learn  # fmt: skip
    learner = Learner(world, learn, n_lanes, epsilon=0.0, use_compiled=True)
    initialise(learner.rows, 0, "optimistic", first_bound(learn, world), 1)
    learner.begin()
    return learner


@pytest.mark.parametrize("rule", ["ucb_hoeffding", "ucb_discounted"])
def test_a_lane_learns_as_the_papers_say(rule: str) -> None:
    learner = learner_of(rule, 0.3)
    learn_high = 4.0 if rule == "ucb_hoeffding" else 5.0
    horizon = 4.0 if rule == "ucb_hoeffding" else 20.0
    discount = 1.0 if rule == "ucb_hoeffding" else 0.8
    shape = learner.rows.n_rows, A
    q, least, visits = np.full(shape, learn_high), np.full(shape, learn_high), np.zeros(shape, int)
    seen = set()
    for _ in range(3000):
        s, a, ahead, reward, ended = learner.lanes.pack()[0].tolist()[:5]
        seen.add((s, a))
        visits[s, a] += 1
        k = visits[s, a]
        alpha = (horizon + 1) / (horizon + k)
        bonus = 0.3 * learn_high * math.sqrt(horizon / k)
        table = q if rule == "ucb_hoeffding" else least
        future = 0.0 if ended else discount * min(learn_high, table[ahead].max())
        q[s, a] += alpha * (reward + bonus + future - q[s, a])
        least[s, a] = min(least[s, a], q[s, a])
        before = learner.rows.values[:, :A].copy()
        learner.learn()
        chosen = before[int(learner.lane("state")[0])]
        assert chosen[int(learner.lane("action")[0])] == chosen.max() or ended
    assert np.array_equal(learner.rows.clock[:, :A], visits)
    np.testing.assert_allclose(learner.rows.values[:, :A], least if rule != "ucb_hoeffding" else q,
                               rtol=0, atol=1e-11)  # fmt: skip
    if rule == "ucb_discounted":
        np.testing.assert_allclose(learner.rows.values[:, A:], q, rtol=0, atol=1e-11)
        assert np.array_equal(learner.rows.clock[:, A:], visits)
    assert len(seen) > 0.7 * (shape[0] - N * (rule == "ucb_hoeffding")) * A


@pytest.mark.parametrize("rule", ["ucb_hoeffding", "ucb_discounted"])
def test_values_stay_above_the_optimal_ones_and_come_down(rule: str) -> None:
    """With the theorem's constant, c = 1, no value is ever below its optimal one."""
    learner = learner_of(rule, 1.0, n_lanes=20)
    world = time_aware(gains(HORIZON)) if rule == "ucb_hoeffding" else gains(0)
    discount = 1.0 if rule == "ucb_hoeffding" else 0.8
    best = optimal(world, discount, 200)
    gaps = []
    for _ in range(12):
        learner.learn(500)
        assert np.all(learner.rows.policy_values() >= best - 1e-9)
        gaps.append(float((learner.rows.policy_values() - best).max(axis=1).min()))
    assert gaps[-1] < gaps[0]


def test_greedy_behaviour_of_optimism_finds_the_best_policy() -> None:
    learner, world = learner_of("ucb_hoeffding", 0.05, n_lanes=8), time_aware(gains(HORIZON))
    learner.learn(40_000)
    chosen, every = learner.rows.policy_values().argmax(axis=1), np.arange(world.n_states)
    v = np.zeros(world.n_states)
    for _ in range(HORIZON):
        v = backup(world, 1.0, v)[every, chosen]
    best = optimal(world, 1.0, HORIZON).max(axis=1)
    assert 0.0 <= (best - v)[:N].mean() < 0.01  # any state is a start


def test_the_step_size_of_the_horizon() -> None:
    size = STEP_SIZES["horizon"].size
    assert [float(size(np.uint32(k), 1.0, 9.0)) for k in (1, 2, 11)] == [1.0, 10 / 11, 0.5]


def test_time_in_the_state_is_the_model_step_by_step() -> None:
    plain, timed = gains(HORIZON), time_aware(gains(HORIZON))
    assert (timed.n_states, timed.n_transitions) == (N * HORIZON, plain.n_transitions * HORIZON)
    q, v = [], np.zeros(N)
    for _ in range(HORIZON):
        q.append(backup(plain, 1.0, v))
        v = q[-1].max(axis=1)
    expected = np.concatenate(q[::-1])
    np.testing.assert_allclose(optimal(timed, 1.0, HORIZON), expected, rtol=0, atol=1e-13)
    rng = np.random.default_rng(0)
    for word in rng.integers(0, 2**64, 300, dtype=np.uint64):
        step, s, a = (int(x) for x in (word % u8(HORIZON), word % u8(N), word % u8(A)))
        ahead, reward, ended = timed.law_step(u8(step * N + s), u8(a), word, timed.params)
        inner = plain.law_step(u8(s), u8(a), word, plain.params)
        assert (int(ahead), reward) == (min(step + 1, HORIZON - 1) * N + int(inner[0]), inner[1])
        assert bool(ended) == (step == HORIZON - 1)


def test_V3_the_best_policy_that_knows_the_time() -> None:
    """Success rate under FrozenLake's limit of 100 steps."""
    lake = time_aware(make(EnvConfig(id="FrozenLake-v1")))
    assert lake.n_states == 1600
    step = lake.n_states // 100
    v = np.zeros(lake.n_states)
    for k in range(99, -1, -1):  # backwards, one step at a time
        for s in range(k * step, (k + 1) * step):
            v[s] = max(
                sum(p * (reward + (0.0 if ended else v[ahead])) for p, ahead, reward, ended in
                    (lake.outcome(s, a, i, lake.params)
                     for i in range(int(lake.outcomes(s, a, lake.params)))))
                for a in range(4)
            )  # fmt: skip
    assert v[0] == pytest.approx(0.7441902878, abs=1e-9)


@pytest.mark.parametrize("rule", ["ucb_hoeffding", "ucb_discounted"])
def test_optimism_does_not_depend_on_the_ranks(rule: str) -> None:
    world = time_aware(gains(HORIZON)) if rule == "ucb_hoeffding" else gains(9)
    discount = 1.0 if rule == "ucb_hoeffding" else 0.8
    given = dict(rule=rule, step_size="horizon", horizon=4.0, discount=discount, epsilon=0.0,
                 initial="optimistic", value_high=4.0, fusion="count")  # fmt: skip
    fused = config(**given, agents=5, lanes=15, steps_per_round="auto")
    job = Job(fused, world, compiled(Allreduce.requests(fused, world)))
    alone = job.run(Alone(), 12)
    for rank in together(3, lambda transport: job.run(transport, 12)):
        assert rank["table"] == alone["table"]
    cut = config(**given, agents=0, lanes=15, steps_per_round=30)
    kernels = compiled(Sharded.requests(cut, world))

    def work(transport: Any) -> bytes:
        this = Sharded(cut, world, kernels, transport)
        this.learn()
        this.exchange((False, False, False))
        this.commit()
        return b"".join(q.tobytes() + clock.tobytes() for _, q, clock, _ in this.iter_rows())

    tables = {together(size, work)[0] for size in (1, 2, 3)}
    assert len(tables) == 1


@pytest.mark.parametrize(
    ("learn", "parallel", "message"),
    [
        ({"rule": "ucb_hoeffding"}, {}, "is for learn.rule ucb_discounted"),
        ({"rule": "ucb_discounted", "discount": 1.0}, {}, "is for learn.rule ucb_hoeffding"),
        ({"rule": "ucb_hoeffding", "discount": 1.0}, {}, "env.time_aware: false"),
        ({"rule": "ucb_discounted", "initial": "zeros"}, {}, "learn.initial: zeros"),
        ({"rule": "ucb_discounted", "exploration": "softmax"}, {}, "whose behaviour is greedy"),
        ({"rule": "ucb_discounted"}, {"agents": 2}, "only averages"),
        ({"rule": "ucb_discounted", "value_low": 2.0}, {}, "learn.value_low: 2"),
        ({"rule": "ucb_discounted", "step_size": "linear"}, {}, "must be horizon"),
    ],
)  # fmt: skip
def test_what_optimism_cannot_do_is_refused(
    learn: dict[str, Any], parallel: dict[str, Any], message: str
) -> None:
    (mistake,) = check(Config(learn=LearnConfig(**learn), parallel=ParallelConfig(**parallel)))
    assert message in mistake


def test_what_horizon_and_limits_stand_for() -> None:
    given = Config(learn=LearnConfig(rule="ucb_discounted", discount=0.9))
    learn = resolve(given, 5, 3, 1, solvable=True).learn
    assert (learn.step_size, learn.epsilon) == ("horizon", 0.0)
    with pytest.raises(ConfigError, match="gains declares no limits"):
        with_horizon(learn, gains(0))
    lake = make(EnvConfig(id="FrozenLake-v1"))
    found = with_horizon(learn, lake)
    assert found.horizon == pytest.approx(math.log(200) / math.log(1 / 0.9))
    assert (found.value_low, found.value_high) == (0.0, 1.0)
    assert with_horizon(found, lake) == found
    taxi = with_horizon(learn, make(EnvConfig(id="Taxi-v4")))
    assert (taxi.value_low, taxi.value_high) == (pytest.approx(-100.0), 20.0)


def test_time_needs_a_limit() -> None:
    with pytest.raises(ModelError, match="has no time limit"):
        time_aware(gains(0))
