"""Gymnasium's tables: sizes, exact values, drawing, refusals."""

import re
import subprocess
import sys

import gymnasium
import numpy as np
import pytest

from distq_mpi.config import EnvConfig
from distq_mpi.environments import make
from distq_mpi.errors import ModelError


def made(id, **kwargs):
    return make(EnvConfig(id, kwargs))


def start_value(env, discount):
    """Return the optimal value over the start distribution, by value iteration on `params`."""
    indptr, alias, reward, probability, start_state, _, start_probability, _ = env.params
    following = (alias[1::2] >> np.uint64(1)).astype(int)
    going_on = (alias[1::2] & np.uint64(1)) == 0
    value = np.zeros(env.n_states)
    for _ in range(20_000):
        gain = probability * (reward + discount * going_on * value[following])
        new = np.add.reduceat(gain, indptr[:-1]).reshape(env.n_states, -1).max(axis=1)
        change = np.abs(new - value).max()
        value = new
        if change < 1e-14:
            break
    return float(start_probability @ value[start_state.astype(int)])


@pytest.mark.parametrize(
    ("id", "kwargs", "sizes", "limit", "bound", "deterministic"),
    [
        ("FrozenLake-v1", {}, (16, 4, 148), 100, 1.0, False),
        ("FrozenLake-v1", {"is_slippery": False}, (16, 4, 64), 100, 1.0, True),
        ("FrozenLake8x8-v1", {}, (64, 4, 674), 200, 1.0, False),
        ("Taxi-v4", {}, (500, 6, 3000), 200, 20.0, True),
        ("CliffWalking-v1", {}, (48, 4, 192), 0, 0.0, True),
    ],
)
def test_compiled_sizes(id, kwargs, sizes, limit, bound, deterministic):
    env = made(id, **kwargs)
    assert (env.n_states, env.n_actions, env.n_transitions) == sizes
    assert env.max_episode_steps == limit
    assert env.return_bound == bound
    assert env.deterministic is deterministic
    assert env.summary.startswith(f"compiled {id}: ")


@pytest.mark.parametrize(
    ("id", "kwargs", "discount", "value"),
    [
        ("FrozenLake-v1", {}, 0.99, 0.5420259320),
        ("FrozenLake-v1", {}, 0.9, 0.0688909049),
        ("FrozenLake-v1", {"is_slippery": False}, 0.99, 0.99**5),
        ("FrozenLake8x8-v1", {}, 0.99, 0.4146403618),
        ("CliffWalking-v1", {}, 0.99, -12.2478977001),
        ("Taxi-v4", {}, 0.99, 6.3274643149),
        ("Taxi-v4", {}, 0.9, -1.2633230990),
    ],
)
def test_exact_values(id, kwargs, discount, value):
    assert start_value(made(id, **kwargs), discount) == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("id", ["FrozenLake8x8-v1", "Taxi-v4", "CliffWalkingSlippery-v1"])
def test_outcomes_are_the_rows_of_the_table(id):
    env, table = made(id), gymnasium.make(id).unwrapped.P
    for state in range(env.n_states):
        for action in range(env.n_actions):
            merged = {}
            for p, new, reward, ended in table[state][action]:
                key = (int(new), float(reward), bool(ended))
                merged[key] = merged.get(key, 0.0) + p
            n = env.outcomes(state, action, env.params)
            rows = [env.outcome(state, action, i, env.params) for i in range(n)]
            assert {tuple(row[1:]): row[0] for row in rows} == merged


def test_options_that_change_the_dynamics_change_the_model():
    dry, rain = made("Taxi-v4"), made("Taxi-v4", is_rainy=True)
    heavy = made("Taxi-v4", is_rainy=True, rainy_probability=0.5)
    assert not rain.deterministic
    assert len({dry.model_id, rain.model_id, heavy.model_id}) == 3
    paid = made("FrozenLake-v1", reward_schedule=(5, -1, 0))
    assert paid.return_bound == 5.0
    assert made("FrozenLake-v1", reward_schedule=(5, -1, 1)).return_bound is None
    assert made("FrozenLake-v1", max_episode_steps=7).max_episode_steps == 7


def test_drawing():
    lake = made("FrozenLake-v1")
    assert (lake.grid, lake.marks, lake.arrows) == ((4, 4), "SFFFFHFHFFFHHFFG", "←↓→↑")
    cliff = made("CliffWalking-v1")
    assert (cliff.grid, cliff.arrows) == ((4, 12), "↑→↓←")
    assert cliff.marks[36:] == "SCCCCCCCCCCG"
    # An arrow must point where the action goes: right leads to the next cell.
    assert lake.outcome(0, lake.arrows.index("→"), 2, lake.params)[1] in (1, 4)
    assert cliff.outcome(0, cliff.arrows.index("→"), 0, cliff.params)[1] == 1
    assert cliff.outcome(0, cliff.arrows.index("↓"), 0, cliff.params)[1] == 12
    assert made("Taxi-v4").grid is None


@pytest.mark.parametrize(
    ("id", "kwargs", "message"),
    [
        ("Taxi-v3", {}, "Gymnasium has no Taxi-v3; use Taxi-v4"),
        ("CliffWalking-v0", {}, "no CliffWalking-v0; use CliffWalking-v1"),
        ("Taxi", {}, "use Taxi-v4"),
        ("FrozenLak-v1", {}, "unknown environment 'FrozenLak-v1'; did you mean FrozenLake-v1?"),
        ("gird", {}, "did you mean grid?"),
        ("qqqqqq", {}, r"unknown environment 'qqqqqq' \(a Gymnasium id, garnet, grid"),
        ("model.h5", {}, r"there is no file model\.h5"),
        ("CartPole-v1", {}, r"observation space Box\(.*is continuous"),
        ("FrozenLake-v1", {"slippery": True}, "unexpected keyword argument 'slippery'"),
        ("FrozenLake-v1", {"map_name": "9x9"}, "could not be made: KeyError: '9x9'"),
        ("no_such_module:Thing-v0", {}, "there is no module no_such_module"),
    ],
)
def test_refused(id, kwargs, message):
    with pytest.raises(ModelError, match=message):
        made(id, **kwargs)


class Still(gymnasium.Env):
    """One state that can be given any fault, and no step."""

    def __init__(self, **attributes):
        self.observation_space = self.action_space = gymnasium.spaces.Discrete(1)
        vars(self).update(attributes)

    def reset(self, *, seed=None, options=None):
        return self.observation_space.start, {}


class Odd(Still):
    """The same with a step that its table tells of."""

    def step(self, action):
        return 0, 0.0, True, False, {}


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"P": {0: {}}, "initial_state_distrib": [1.0]}, "state 0, action 0: P has no transition"),
        ({"P": {0: {0: [(1.0, 0, 0)]}}, "initial_state_distrib": [1.0]}, "0: P does not list"),
        ({"P": {0: {0: []}}, "initial_state_distrib": [1.0]}, "action 0: P has no transition"),
        ({"P": {0: {0: [(0.5, 0, 0, True)]}}, "initial_state_distrib": [1.0]}, "sum to 0.5"),
    ],
)
def test_foreign_tables_are_checked(attributes, message):
    gymnasium.register("Odd-v0", entry_point=Still)
    try:
        with pytest.raises(ModelError, match=message):
            made("Odd-v0", **attributes)
        del gymnasium.registry["Odd-v0"]
        gymnasium.register("Odd-v0", entry_point=Odd)
        stepped = made("Odd-v0", **attributes)
        assert stepped.kind == "stepped"
        assert re.search(f"not by its table P: .*{message}", stepped.summary)
    finally:
        del gymnasium.registry["Odd-v0"]


TABLE = {"P": {0: {0: [(1.0, 0, 0, True)]}}, "initial_state_distrib": [1.0]}


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"P": TABLE["P"]},
        {**TABLE, "observation_space": gymnasium.spaces.Discrete(1, start=1)},
        {**TABLE, "action_space": gymnasium.spaces.MultiDiscrete([2, 2])},
        {**TABLE, "fickle_passenger": True},
    ],
)
def test_what_does_not_tell_all_by_a_table_is_stepped(attributes):
    gymnasium.register("Odd-v0", entry_point=Odd)
    try:
        assert made("Odd-v0", **attributes).kind == "stepped"
    finally:
        del gymnasium.registry["Odd-v0"]


def test_gymnasium_is_imported_only_for_its_ids():
    program = (
        "import sys; from distq_mpi.config import EnvConfig as N; "
        "from distq_mpi.environments import make; "
        "make(N(id='grid', kwargs={'rows': 3, 'columns': 3})); "
        "make(N(id='garnet', kwargs={'states': 3, 'actions': 2, 'branching': 2})); "
        "assert not {'gymnasium', 'numba', 'mpi4py', 'h5py', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
