"""Environments given as objects: copied faithfully, or refused by name; and what they are known by.
"""

from __future__ import annotations

import importlib
import sys
import threading
import types
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils import EzPickle
from gymnasium.wrappers import RecordEpisodeStatistics, TimeLimit, TransformReward

from distq_mpi import QLearning, environments
from distq_mpi.config import EnvConfig, from_dict, resolve
from distq_mpi.environments.contents import contents_hash
from distq_mpi.environments.copies import copies_of, difference
from distq_mpi.errors import ConfigError, FileError, ModelError
from distq_mpi.preparation import warnings


def tripled(reward: float) -> float:
    return 3.0 * reward


class Prices:
    """What action 1 pays."""

    def __init__(self, prize: float) -> None:
        self.prize = prize


class Coin(gymnasium.Env[Any, Any]):
    """One state; action 1 pays `prize` and what the arguments say, action 0 pays 1; ends."""

    observation_space, action_space = spaces.Discrete(1), spaces.Discrete(2)

    def __init__(self, prize: float = 0.0, paid: Any = None, prices: Any = None, table: Any = None):
        self.prize, self.paid, self.prices, self.table = prize, paid, prices, table

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.n_resets = getattr(self, "n_resets", 0) + 1
        return 0, {}

    def step(self, action: int) -> Any:
        reward = self.prize if action else 1.0
        if action and self.paid is not None:
            reward += self.paid(1.0)
        if action and self.prices is not None:
            reward += self.prices.prize
        if action and self.table is not None:
            reward += float(self.table[-1])
        return 0, reward, True, False, {}


class Pickled(Coin, EzPickle):
    """A coin whose copies by `copy` are made by its constructor again, and lack what was set."""

    def __init__(self, prize: float = 0.0) -> None:
        EzPickle.__init__(self, prize)
        Coin.__init__(self, prize)


class Opened(Coin):
    """A coin with something that cannot be copied."""

    def __init__(self, prize: float = 0.0) -> None:
        super().__init__(prize)
        self.log = (line for line in ())


class Minus(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A wrapper that takes `price` from every reward."""

    price = 1.0

    def step(self, action: int) -> Any:
        seen, reward, *more = self.env.step(action)
        return seen, float(reward) - self.price, *more


for name in ("Coin", "Pickled", "Opened"):
    gymnasium.register(f"{name}-v0", globals()[name])


def given(made: Any, **env: Any) -> Any:
    return environments.from_object(made, EnvConfig(**env))


def learned(env: Any, **more: Any) -> list[float]:
    model = QLearning(env, seed=0, learning_rate=1.0, initial="zeros", lanes=4, **more)
    return model.learn(400).q_values[0].tolist()


@pytest.mark.parametrize("id", ["Coin-v0", "Pickled-v0"])
def test_what_was_set_on_an_object_is_learned(id: str) -> None:
    made = gymnasium.make(id)
    assert learned(made) == [1.0, 0.0]
    made.unwrapped.prize = 10.0  # type: ignore[attr-defined]
    assert learned(made) == [1.0, 10.0]
    assert learned(Minus(made)) == [0.0, 9.0]
    wrapped = Minus(made)
    wrapped.price = 4.0
    assert learned(wrapped) == [-3.0, 6.0]
    assert learned(TransformReward(made, lambda reward: 3 * reward)) == [3.0, 30.0]
    assert made.unwrapped.prize == 10.0 and not hasattr(made.unwrapped, "n_resets")  # type: ignore[attr-defined]


def test_classes_make_as_many_as_are_needed() -> None:
    assert learned(Coin) == [1.0, 0.0]
    assert learned(Coin, env_kwargs={"prize": 10.0}) == [1.0, 10.0]
    model = QLearning(Coin, lanes=4)
    assert model.config.env.id == f"{__name__}:Coin"

    class Inner(Coin):
        pass

    assert learned(Inner, env_kwargs={"prize": 5}) == [1.0, 5.0]
    with pytest.raises(ModelError, match="could not be made: TypeError: .*'price'"):
        QLearning(Coin, env_kwargs={"price": 3})


def test_an_untouched_object_is_made_again_by_its_spec() -> None:
    made = gymnasium.make("Opened-v0")
    assert learned(made) == [1.0, 0.0]
    assert difference(made, gymnasium.make("Coin-v0")) == ("set of wrappers", False)


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (lambda: Opened(), "no faithful copy .* copying it raises TypeError: cannot pickle 'gener"),
        (lambda: [Coin(), Coin()], "a list of 2 environments; give a single one"),
        (lambda: gymnasium.make_vec("FrozenLake-v1", num_envs=3),
         r"FrozenLake-v1 \(SyncVectorEnv\) is a vector environment of 3"),
        (lambda: types.SimpleNamespace(reset=0, step=0, observation_space=0, action_space=0),
         "must inherit from gymnasium.Env"),
    ],
)  # fmt: skip
def test_what_cannot_be_copied_is_refused_by_name(made: Any, told: str) -> None:
    with pytest.raises(ModelError, match=told):
        given(made())


def test_an_object_that_cannot_be_copied_and_was_changed_names_the_attribute() -> None:
    made = gymnasium.make("Opened-v0")
    made.unwrapped.prize = 10.0  # type: ignore[attr-defined]
    with pytest.raises(ModelError, match=r"gymnasium.make gives another Opened\.prize"):
        given(made)


def test_copies_are_compared_in_all_their_attributes() -> None:
    made = TimeLimit(Coin(prices=Prices(3.0), table=np.arange(4.0)), 7)
    copy = copies_of("coin", made)()
    assert difference(made, copy) == ("", False)
    assert copy.unwrapped.prices is not made.unwrapped.prices
    copy.unwrapped.prices.prize = 2.0
    assert difference(made, copy)[0] == "Coin.prices"


@pytest.fixture
def gym(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A stand-in for the package gym, which Gymnasium replaced."""
    (tmp_path / "gym").mkdir()
    (tmp_path / "gym" / "__init__.py").write_text(
        "import types\n"
        "class Discrete:\n    n = 2\n    start = 0\n"
        "class Env:\n"
        "    spec = None\n    observation_space = action_space = Discrete()\n"
        "    unwrapped = property(lambda self: self)\n"
        "    def reset(self): return 0\n"
        "    def step(self, action): return 0, 0.0, True, {}\n"
        "envs = types.SimpleNamespace(registry={'Ancient-v0': None})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("gym")
    del sys.modules["gym"]


class OldStep(Coin):
    """An environment whose `step` is that of gym before 0.26."""

    def step(self, action: int) -> Any:
        return super().step(action)[:3] + ({},)


class OldReset(Coin):
    """An environment whose `reset` is that of gym before 0.26."""

    def reset(self) -> Any:  # type: ignore[override]
        return 0


class Unseeded(Coin):
    """An environment whose `reset` returns what it sees, and nothing else."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return 0


def test_environments_of_the_old_interface_are_named_as_such(gym: Any) -> None:
    for old in (gym.Env(), gym.Env):
        with pytest.raises(ModelError, match="gym:Env is an environment of gym, not gymnasium"):
            given(old)
    with pytest.raises(ModelError, match="gym:Env is an environment of gym, not gymnasium"):
        environments.make(EnvConfig("gym:Env"))
    with pytest.raises(ModelError, match="Ancient-v0 is registered with gym, not gymnasium"):
        environments.make(EnvConfig(f"{__name__}:Ancient-v0"))
    mixed = Coin()
    mixed.observation_space = gym.Discrete()
    with pytest.raises(ModelError, match="its space .* is of gym, not gymnasium"):
        given(mixed)
    for kind, told in (
        (OldStep, "step must return .*, not 4 values: it has the interface of gym before 0.26"),
        (OldReset, "reset must take seed and options: it has the interface of gym"),
        (Unseeded, r"reset must return \(observation, info\)"),
    ):
        with pytest.raises(ModelError, match=told):
            given(kind())


# What an environment is known by


def known(**kwargs: Any) -> Any:
    """The environment of an id that was registered with these arguments."""
    gymnasium.register("Told-v0", Coin, kwargs=kwargs)
    try:
        return environments.make(EnvConfig(f"{__name__}:Told-v0"))
    finally:
        del gymnasium.registry["Told-v0"]


def test_arguments_are_known_by_what_they_hold() -> None:
    long, other = np.zeros(5000), np.zeros(5000)
    other[2500] = 1.0
    alike = [
        ({"paid": tripled}, {"paid": tripled}),
        ({"prices": Prices(2.0)}, {"prices": Prices(2.0)}),
        ({"table": long}, {"table": long.copy()}),
        ({"paid": partial(pow, 2.0)}, {"paid": partial(pow, 2.0)}),
    ]
    for one, two in alike:
        first, second = known(**one), known(**two)
        assert first.model_id == second.model_id and not first.unidentified
    unlike = [
        ({"paid": tripled}, {"paid": lambda reward: 3.0 * reward}),
        ({"prices": Prices(2.0)}, {"prices": Prices(3.0)}),
        ({"table": long}, {"table": other}),
        ({"table": [long]}, {"table": [other]}),
        ({"table": long}, {"table": long.astype(np.float32)}),
        ({"paid": partial(pow, 2.0)}, {"paid": partial(pow, 3.0)}),
    ]
    for one, two in unlike:
        assert known(**one).model_id != known(**two).model_id


def test_wrappers_of_a_registered_environment_are_part_of_what_it_is_known_by() -> None:
    def registered(by: float | None) -> Any:
        spec = gymnasium.wrappers.TransformReward.wrapper_spec(func=lambda reward: by * reward)
        gymnasium.register("Told-v0", Coin, additional_wrappers=(spec,) if by else ())
        try:
            return environments.make(EnvConfig(f"{__name__}:Told-v0")).model_id
        finally:
            del gymnasium.registry["Told-v0"]

    assert len({registered(2.0), registered(2.0), registered(3.0), registered(None)}) == 3


class Adding(Coin):
    """A coin that puts into its argument what no copy can be made of."""

    def __init__(self, prices: Any) -> None:
        super().__init__(prices=prices)
        prices.log = (line for line in ())


def test_what_an_environment_adds_to_its_arguments_hides_none_of_them() -> None:
    for prize in (2.0, 3.0):
        gymnasium.register("Told-v0", Adding, kwargs={"prices": Prices(prize)})
        try:
            environment = environments.make(EnvConfig(f"{__name__}:Told-v0"))
        finally:
            del gymnasium.registry["Told-v0"]
        assert "argument prices" in environment.unidentified


def test_plain_arguments_are_known_as_ever() -> None:
    """The identity of environments with plain arguments, of checkpoints written before."""
    environment = environments.make(EnvConfig("Blackjack-v1", {"natural": True}))
    assert environment.model_id == (
        "29604285bea71c633f794cda2896975a833a1c056d8aee7fa995b2a781314edf"
    )


def test_what_an_object_was_given_is_part_of_what_it_is_known_by() -> None:
    ten, again, five = Coin(10.0), Coin(10.0), Coin(5.0)
    assert given(ten).model_id == given(again).model_id != given(five).model_id
    again.reset(seed=3)
    again.step(0)
    assert given(RecordEpisodeStatistics(ten)).model_id == given(ten).model_id
    assert given(Minus(ten)).model_id != given(ten).model_id
    assert given(ten, reset_options={"low": 1}).model_id != given(ten).model_id


def test_functions_are_hashed_with_all_they_read() -> None:
    def scaled(by: float) -> Any:
        return lambda reward: by * reward

    three = contents_hash("f", scaled(3.0))
    assert three == contents_hash("f", scaled(3.0)) != contents_hash("f", scaled(4.0))
    circle: list[Any] = [1]
    circle.append(circle)
    other: list[Any] = [1]
    other.append(other)
    assert contents_hash("c", circle) == contents_hash("c", other)
    assert contents_hash("s", {"a", "b", "c"}) == contents_hash("s", {"c", "b", "a"})
    assert contents_hash("d", {"a": 1, "b": 2}) == contents_hash("d", {"b": 2, "a": 1})
    one, two = (contents_hash("g", np.random.default_rng(seed)) for seed in (1, 2))
    assert one != two


def locked() -> Any:
    lock = threading.Lock()

    def paid(reward: float) -> float:
        with lock:
            return 2.0 * reward

    return paid


def test_what_cannot_be_hashed_is_refused_for_resume_with_the_reason(tmp_path: Path) -> None:
    environment = known(paid=locked())
    assert "argument paid: lock: what an object of _thread.lock holds" in environment.unidentified
    config = resolve(
        from_dict({"parallel": {"agents": 1, "lanes": 1}}), environment.n_states,
        environment.n_actions, 1, solvable=False, stepped=True,
    )  # fmt: skip
    (told,) = warnings(config, environment)
    assert told.startswith("this run cannot be resumed: argument paid: lock")
    gymnasium.register("Told-v0", Coin, kwargs={"paid": locked()})
    try:
        path = QLearning("Told-v0", seed=0, lanes=4).learn(40).save(tmp_path / "x")
        with pytest.raises(ConfigError, match="x.h5: learning cannot go on: .*argument paid"):
            QLearning.load(path)
    finally:
        del gymnasium.registry["Told-v0"]
    path = QLearning(gymnasium.make("Opened-v0"), seed=0, lanes=4).learn(40).save(tmp_path / "y")
    with pytest.raises(ConfigError, match=r"y.h5: learning cannot go on: .*Opened\.log"):
        QLearning.load(path, env=gymnasium.make("Opened-v0"))


def test_a_table_of_other_arguments_is_not_taken_up(tmp_path: Path) -> None:
    table, other = np.zeros(2000), np.zeros(2000)
    other[1000] = 1.0
    gymnasium.register("Told-v0", Coin, kwargs={"table": table, "paid": tripled})
    path = QLearning("Told-v0", seed=0, lanes=4).learn(400).save(tmp_path / "x")
    assert QLearning.load(path).learn(400).num_timesteps == 800
    del gymnasium.registry["Told-v0"]
    gymnasium.register("Told-v0", Coin, kwargs={"table": other, "paid": tripled})
    try:
        with pytest.raises(FileError, match="learned on another environment"):
            QLearning.load(path)
    finally:
        del gymnasium.registry["Told-v0"]
