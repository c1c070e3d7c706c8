"""Environments stepped in Python: spaces, seeds, ends of episodes, replays, and their mistakes."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from hypothesis import given
from hypothesis import strategies as st

import tests.worlds  # noqa: F401  (registers them)
from distq_mpi import QLearning, environments, preparation
from distq_mpi.architectures import Allreduce
from distq_mpi.certificate import solvable
from distq_mpi.config import EnvConfig, from_dict
from distq_mpi.environments.spaces import range_of
from distq_mpi.environments.stepped import open_worlds
from distq_mpi.environments.worlds import play
from distq_mpi.errors import ConfigError, ModelError
from distq_mpi.lanes import Lanes
from distq_mpi.memory import memory_bytes
from distq_mpi.preparation import build, settle
from tests.driving import Job
from tests.stand_in import Alone, compiled, config, together


def made(id: str, **env: Any) -> Any:
    return environments.make(EnvConfig(id, **env))


SPACES = [
    spaces.Discrete(7),
    spaces.Discrete(4, start=-2),
    spaces.MultiDiscrete([3, 1, 4]),
    spaces.MultiDiscrete([[2, 3], [4, 5]]),
    spaces.MultiDiscrete([3, 2], start=[5, -1]),
    spaces.MultiBinary(5),
    spaces.MultiBinary([2, 3]),
    spaces.Tuple([spaces.Discrete(3), spaces.MultiBinary(2), spaces.Discrete(2, start=9)]),
    spaces.Dict({"b": spaces.Discrete(3), "a": spaces.Tuple([spaces.Discrete(5)])}),
]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_every_element_has_one_index_and_every_index_an_element(space: Any) -> None:
    found = range_of("x", "observation", space)
    elements = [found.element(i) for i in range(found.n)]
    assert all(space.contains(element) for element in elements)
    assert [found.index(element) for element in elements] == list(range(found.n))
    space.seed(1)
    for _ in range(50):
        sample = space.sample()
        assert found.index(found.element(found.index(sample))) == found.index(sample)


def test_several_digits_are_raveled_as_numpy_does() -> None:
    found = range_of("x", "observation", spaces.MultiDiscrete([3, 4, 5]))
    assert found.index(np.array([2, 1, 3])) == np.ravel_multi_index((2, 1, 3), (3, 4, 5))


@pytest.mark.parametrize("outside", [[3, 0], [0, -1], [0, 4]])
def test_an_element_outside_its_space_has_no_index(outside: list[int]) -> None:
    with pytest.raises(ValueError, match="is not a whole number from 0 to"):
        range_of("x", "observation", spaces.MultiDiscrete([3, 4])).index(np.array(outside))


@pytest.mark.parametrize(
    ("id", "env", "message"),
    [
        ("CartPole-v1", {}, "observation space Box.* is continuous: --env.bins N cuts each of 4"),
        ("CartPole-v1", {"bins": 6}, r"dimensions \[1, 3\] of its observation .* --env.clip LIMIT"),
        ("CartPole-v1", {"bins": [6, 6], "clip": 3.0}, "has 4 continuous dimensions"),
        ("CartPole-v1", {"bins": 6, "clip": [1.0, 2.0]}, "has 4 observed dimensions"),
        ("Blackjack-v1", {"bins": 6}, "has no continuous space to cut"),
        ("Blackjack-v1", {"clip": 6.0}, "env.clip: Blackjack-v1 has no continuous space"),
        ("Pendulum-v1", {"bins": [3, 3, 3]}, r"\(observation 3, action 1\)"),
        ("Taxi-v3", {}, "Taxi-v4"),
        ("CliffWalking-v0", {}, "CliffWalking-v1"),
        ("Blackjack-v0", {}, "Blackjack-v1"),
        ("tests.worlds:Row-v0", {"bins": 3}, "has no continuous space to cut"),
        ("tests.worlds:Row-v0", {"max_episode_steps": 3}, "exists only as vector environment"),
        ("grid", {"kwargs": {"rows": 3, "columns": 3}, "bins": 3}, "env.bins: grid has no cont"),
    ],
)
def test_what_cannot_be_learned_on_is_refused(
    id: str, env: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        made(id, **env)


def test_it_decides_its_own_starts() -> None:
    with pytest.raises(ConfigError, match="exploring_starts: Blackjack-v1 .* decides its own"):
        build(EnvConfig("Blackjack-v1"), exploring=True)


def test_what_stepped_environments_say_of_themselves() -> None:
    blackjack = made("Blackjack-v1")
    assert (blackjack.kind, blackjack.n_states, blackjack.n_actions) == ("stepped", 704, 2)
    assert "stepped in Python and its law is not known" in str(solvable(blackjack, 0.9))
    cart = made("CartPole-v1", bins=[3, 4, 5, 6], clip=[0.0, 3.0, 0.0, 3.0])
    assert (cart.n_states, cart.n_actions, cart.max_episode_steps) == (360, 2, 500)
    pendulum = made("Pendulum-v1", bins=[4, 4, 5, 7])
    assert (pendulum.n_states, pendulum.n_actions) == (80, 7)
    assert made("Taxi-v4", kwargs={"fickle_passenger": True}).kind == "stepped"
    assert made("Taxi-v4").kind == "explicit"
    ids = {made("Blackjack-v1", kwargs=kwargs).model_id for kwargs in ({}, {"natural": True})}
    limited = made("CartPole-v1", bins=3, clip=3.0, max_episode_steps=9)
    assert len(ids) == 2 and limited.max_episode_steps == 9


class Five(gymnasium.RewardWrapper):
    """Five times the reward, which no table below it knows."""

    def reward(self, reward: Any) -> Any:
        return 5 * reward


def test_a_wrapper_that_an_id_brings_along_is_learned_on() -> None:
    gymnasium.register(
        "Wrapped-v0", lambda: Five(gymnasium.make("FrozenLake-v1").unwrapped), max_episode_steps=9
    )
    try:
        wrapped = made("Wrapped-v0")
        assert (wrapped.kind, wrapped.max_episode_steps) == ("stepped", 9)
    finally:
        del gymnasium.registry["Wrapped-v0"]


def test_an_object_is_held_to_the_time_limit_of_the_configuration() -> None:
    cart = gymnasium.make("CartPole-v1")
    env = EnvConfig(bins=3, clip=3.0, max_episode_steps=4)
    work = job(build(env, given=cart))
    found = work.run(Alone(), 10)["progress"]
    assert found.steps == 4 * found.episodes + 13 * (40 % 4)


def test_the_rounds_of_one_agent_stay_within_seconds() -> None:
    environment = made("CartPole-v1", bins=16, clip=3.0)
    work = job(environment, agents=1, lanes=64, steps_per_round="auto")
    assert Allreduce(work.settings, environment, work.kernels, Alone()).progress.period == 512


def job(environment: Any, **changes: Any) -> Job:
    settings = config(**{"agents": 3, "lanes": 13, "steps_per_round": 4, **changes})
    return Job(settings, environment, compiled(Allreduce.requests(settings, environment)))



@pytest.mark.parametrize(
    "changes",
    [{}, {"rule": "sarsa", "dtype": "float32"}, {"rule": "double_q", "step_size": "sign_change"},
     {"rule": "expected_sarsa", "exploration": "softmax", "fusion": "median"}],
)  # fmt: skip
@pytest.mark.parametrize("limit", [100, 7])
def test_where_nothing_is_random_but_the_choices_the_bits_are_those_of_the_compiled_loop(
    changes: dict[str, Any], limit: int
) -> None:
    kwargs = {"is_slippery": False}
    told = made("FrozenLake-v1", kwargs=kwargs)
    told = replace(told, max_episode_steps=limit)
    lake = gymnasium.make("FrozenLake-v1", max_episode_steps=limit, **kwargs)
    walked = environments.from_object(Unread(lake), EnvConfig())
    assert (told.kind, walked.kind) == ("explicit", "stepped")
    found = [job(environment, **changes).run(Alone(), 12) for environment in (told, walked)]
    assert found[0]["table"] == found[1]["table"]
    assert found[0]["progress"] == found[1]["progress"]
    assert found[0]["progress"].episodes > 10


class Unread(gymnasium.Wrapper):
    """A wrapper that may change what happens, for all that is known of it."""


@pytest.mark.parametrize("id", ["Blackjack-v1", "tests.worlds:Walk-v0"])
def test_a_round_run_again_and_other_hosts_give_the_same_bits(id: str) -> None:
    work = job(made(id), fusion="count", discount=0.9)
    tight = work.run(Alone(), 9, -6)
    assert tight["repeated"] >= 1
    hosted = together(4, lambda transport: work.run(transport, 9, -6))
    assert hosted[0]["table"] == tight["table"] and hosted[0]["lanes"] == tight["lanes"]


def stepped(id: str, n: int = 5, seed: int = 3, **env: Any) -> tuple[Any, Lanes]:
    worlds, lanes = open_worlds(made(id, **env).worlds, 10, n, seed), Lanes(10, n)
    worlds.begin()
    return worlds, lanes


def go_on(worlds: Any, lanes: Lanes, steps: range, actions: np.ndarray) -> list[Any]:
    """Step with these actions; what was seen, as plain numbers."""
    seen = []
    for now in steps:
        lanes.arrays()[1][:] = actions[now]
        worlds.step(lanes, now)
        seen.append([a.tolist() for a in (*lanes.arrays()[2:5], worlds.truncated, worlds.start)])
        ended = lanes.arrays()[4] | worlds.truncated
        lanes.arrays()[5][:] = np.where(ended, 0, lanes.arrays()[5] + 1)
    return seen


@given(st.integers(0, 40), st.integers(1, 12), st.integers(0, 2**32))
def test_what_is_rewound_shows_the_same_again(before: int, after: int, seed: int) -> None:
    """Also through a checkpoint, into new environments."""
    worlds, lanes = stepped("tests.worlds:Walk-v0", seed=seed)
    actions = np.random.default_rng(seed).integers(0, 2, (before + after + 1, 5))
    ages = lanes.arrays()[5]
    go_on(worlds, lanes, range(before + 1), actions)
    # The pending transition of step `before` is not yet learned from: it is no part of the age.
    ages[:] = np.maximum(ages.astype(int) - 1, 0)
    worlds.commit()
    committed = Lanes(10, 5)
    committed.copy_from(lanes)
    packed = worlds.pack()
    later = range(before + 1, before + after + 1)
    first = go_on(worlds, lanes, later, actions)
    worlds.rewind(committed, before)
    lanes.copy_from(committed)
    assert go_on(worlds, lanes, later, actions) == first and worlds.matched
    other, others = stepped("tests.worlds:Walk-v0", seed=seed)
    other.unpack(*packed, committed, before)
    others.copy_from(committed)
    assert go_on(other, others, later, actions) == first and other.matched


def test_an_environment_that_forgets_is_noticed() -> None:
    worlds, lanes = stepped("tests.worlds:Walk-v0", 8, kwargs={"trouble": "forgets"})
    actions = np.ones((30, 8), int)
    go_on(worlds, lanes, range(6), actions)
    lanes.arrays()[5][:] = 5
    worlds.commit()
    committed = Lanes(10, 8)
    committed.copy_from(lanes)
    go_on(worlds, lanes, range(6, 8), actions)
    packed = worlds.pack()
    worlds.rewind(committed, 5)
    assert not worlds.matched and worlds.idle.any()
    other, _ = stepped("tests.worlds:Walk-v0", 8, kwargs={"trouble": "forgets"})
    other.unpack(*packed, committed, 5)
    assert not other.matched and other.idle.any()


@pytest.mark.parametrize(
    ("trouble", "told"),
    [
        ("raises", "RuntimeError: the wheel came off"),
        ("outside", "4 is not a whole number from 0 to 3"),
        ("hollow", "reward nan is not finite"),
    ],
)
def test_a_mistake_names_lane_state_and_action(trouble: str, told: str) -> None:
    worlds, lanes = stepped("tests.worlds:Walk-v0", 4, kwargs={"trouble": trouble})
    lanes.arrays()[0][:] = 2
    with pytest.raises(ModelError, match=rf"lane 1\d, state 2, action 1: .*{told}"):
        go_on(worlds, lanes, range(9), np.ones((9, 4), int))


def test_the_end_by_the_environment_is_no_end_by_the_limit() -> None:
    worlds, lanes = stepped("tests.worlds:Walk-v0", 40)
    actions = np.random.default_rng(0).integers(0, 2, (100, 40))
    seen = go_on(worlds, lanes, range(100), actions)
    ends = sum(sum(step[2]) for step in seen)
    cuts = sum(sum(step[3]) for step in seen)
    assert ends > 10 and cuts > 10
    for states, *_, over in ((step[0], step[2]) for step in seen):
        assert all(state == 10 for state, end in zip(states, over, strict=True) if end)


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_vectors_reset_without_teaching_it(mode: str) -> None:
    environment = made("tests.worlds:Row-v0", kwargs={"mode": mode})
    work = job(environment, agents=2, lanes=6, discount=0.5, step_size="constant", alpha=1.0)
    state = Allreduce(work.settings, environment, work.kernels, Alone())
    for _ in range(120):
        state.learn()
        while state.exchange((False, False, False)) is None:
            state.rollback()
            state.learn()
        state.commit()
    values = state.base.values
    # Alpha 1 without noise: Bellman's equation to the bit; a reset learned from would show +1000.
    assert values[9, 1] == -1.0 and values.max() <= 0.0 and values.min() >= -2.0
    assert values[8, 1] == -1.5
    assert state.progress.episodes > 50 and not state.reproducible()


def test_games_are_played_by_their_number() -> None:
    kind = made("tests.worlds:Walk-v0").worlds
    whole, part = np.zeros(10), np.zeros(4)
    list(play(kind, [1] * 12, 7, 0, whole, 1000, whole.copy()))
    list(play(kind, [1] * 12, 7, 3, part, 1000, part.copy()))
    assert part.tolist() == whole[3:7].tolist() and len(set(whole.tolist())) > 1
    vector = np.zeros(2)
    list(play(made("tests.worlds:Row-v0").worlds, [1] * 11, 7, 0, vector, 1000, vector.copy()))
    assert vector.tolist() == [-10.0, -10.0]


MOVES = ((0, 1), (1, 0), (0, -1), (-1, 0))


class Field(gymnasium.Env):
    """A 3 x 3 field walked to its last corner; places are whole numbers in a Box."""

    action_space = spaces.Discrete(4)

    def __init__(self, kind: str = "box", dtype: Any = np.int64) -> None:
        self.kind, self.dtype = kind, dtype
        place = spaces.Box(-1, 1, (2,), dtype)
        self.observation_space = {
            "box": place, "dict": spaces.Dict(agent=place, target=place),
            "tuple": spaces.Tuple([place, spaces.Discrete(1)]),
        }[kind]  # fmt: skip

    def _seen(self) -> Any:
        here = np.array(self.at, self.dtype) - np.array(1, self.dtype)
        target = np.array([1, 1], self.dtype)
        return {"box": here, "dict": {"agent": here, "target": target}, "tuple": (here, 0)}[
            self.kind
        ]

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.at = [0, 0]
        return self._seen(), {}

    def step(self, action: int) -> Any:
        self.at = [min(max(a + b, 0), 2) for a, b in zip(self.at, MOVES[action], strict=True)]
        ended = self.at == [2, 2]
        return self._seen(), 1.0 if ended else -0.1, ended, False, {}


def field_values() -> np.ndarray:
    """V* at discount .9, by the number of steps to the corner."""
    steps = np.array([4 - row - column for row in range(3) for column in range(3)])
    values = [sum(-0.1 * 0.9**k for k in range(n - 1)) + 0.9 ** (n - 1) for n in steps if n]
    return np.array([*values, 0.0])


@pytest.mark.parametrize("kind", ["box", "dict", "tuple"])
@pytest.mark.parametrize("dtype", [np.int64, np.int8])
def test_a_box_of_whole_numbers_is_a_finite_space(kind: str, dtype: Any) -> None:
    field = TimeLimit(Field(kind, dtype), 60)
    model = QLearning(
        field, seed=0, discount=0.9, learning_rate=0.5, initial="zeros", lanes=4
    ).learn(20_000)
    n = 81 if kind == "dict" else 9
    assert model.environment.n_states == n
    found = model.q_values.max(axis=1)
    reached = found[8::9] if kind == "dict" else found
    assert reached == pytest.approx(field_values(), abs=1e-3)


def test_a_box_of_whole_numbers_is_cut_where_bins_are_given_for_it() -> None:
    pixels = spaces.Box(0, 255, (2,), np.uint8)
    arm = spaces.Box(-1.0, 1.0, (1,))

    class Both(Field):
        observation_space, action_space = pixels, arm

        def __init__(self) -> None:
            pass

    def shape(**cut: Any) -> tuple[int, int]:
        found = environments.from_object(Both(), EnvConfig(**cut))
        return found.n_states, found.n_actions

    assert shape(bins=4) == (16, 4)
    assert shape(bins=[4, 2, 3]) == (8, 3)
    assert shape(bins=[3]) == (2**16, 3)  # for what is continuous alone
    with pytest.raises(ModelError, match="action space .* is continuous"):
        shape()


class Sized(gymnasium.Env):
    """As many dimensions as it is told."""

    def __init__(self, seen: Any, done: Any = 2) -> None:
        self.observation_space = seen
        self.action_space = done if isinstance(done, spaces.Space) else spaces.Discrete(done)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return self.observation_space.low * 0, {}

    def step(self, action: Any) -> Any:
        return self.observation_space.low * 0, 0.0, True, False, {}


def floats(n: int) -> Any:
    return spaces.Box(0.0, 1.0, (n,))


@pytest.mark.parametrize(
    ("seen", "done", "bins", "message"),
    [
        (floats(100), 2, 2, "env.bins: .* 2^100 states; the limit is 2^62"),
        (floats(17), 2, 15, "env.bins: .* 15^17 states; the limit is 2^62"),
        (floats(64), 2, 2, "2^64 states"),
        (floats(3), floats(40), [2, 2, 2] + [3] * 40, "3^40 actions"),
        (floats(30), floats(40), 2, "1,073,741,824 states x 1,099,511,627,776 actions"),
        (floats(1), 2, 10**9, "1,000,000,000 bins of one dimension; the limit is 16,777,216"),
        (spaces.MultiBinary(100), 2, 0, "observation space has 2^100 elements"),
        (spaces.MultiDiscrete([15] * 17), 2, 0, "has 15^17 elements; the limit is 2^62"),
        (spaces.Discrete(2), spaces.MultiBinary(65), 0, "its action space has 2^65 elements"),
        (spaces.Box(0, 255, (84, 84), np.uint8), 2, 0, "256^7056 elements.*--env.bins N"),
        (spaces.Box(-(2**63), 2**63 - 1, (1,), np.int64), 2, 0, "18,446,744,073,709,551,616"),
        (spaces.Dict(a=spaces.MultiBinary(40), b=spaces.MultiDiscrete([3] * 30)), 2, 0,
         "2^40 x 3^30 elements"),
        (spaces.MultiBinary(61), 3, 0, "2^61 states x 3 actions"),
    ],
)  # fmt: skip
def test_what_is_too_large_to_be_counted_is_refused_with_its_number(
    seen: Any, done: Any, bins: Any, message: str
) -> None:
    message = message.replace("^", r"\^")
    with pytest.raises(ModelError, match=message):
        environments.from_object(Sized(seen, done), EnvConfig(bins=bins))


def test_lanes_share_the_borders_of_their_bins() -> None:
    found = environments.from_object(Sized(floats(2), floats(1)), EnvConfig(bins=50)).worlds
    one, other = found.make(), found.make()
    assert one is not other and one.bin_centers is other.bin_centers
    assert one.env.bin_edges is other.env.bin_edges


def test_much_memory_is_announced_before_the_table_is_made(monkeypatch: Any) -> None:
    environment = environments.from_object(Sized(floats(2)), EnvConfig(bins=15000))
    settings, _, reason = settle(
        from_dict({"parallel": {"memory_bytes": 2**40}, "env": {"bins": 15000}}), 1, 1,
        Sized(floats(2)),
    )  # fmt: skip
    assert reason is not None and environment.n_states == 225_000_000
    need = memory_bytes(settings, environment, False, 1, 1)
    lines = preparation.banner(settings, environment, Alone(), False, need)
    assert re.match(r"takes [\d.]+ GB of memory per rank \(.*\d GB", lines[2]) and len(lines) == 3
    small = environments.from_object(Sized(floats(2)), EnvConfig(bins=15))
    settings, _, _ = settle(from_dict({"env": {"bins": 15}}), 1, 1, Sized(floats(2)))
    need = memory_bytes(settings, small, False, 1, 1)
    assert len(preparation.banner(settings, small, Alone(), False, need)) == 2
