"""What passes between us and environments: actions of their own, results of any type, and whatever
they raise."""

from __future__ import annotations

import signal
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from distq_mpi import QLearning
from distq_mpi.config import EnvConfig
from distq_mpi.environments import from_object, make
from distq_mpi.environments.calls import flag, number
from distq_mpi.environments.silence import shut, silence
from distq_mpi.environments.spaces import range_of
from distq_mpi.environments.stepped import open_worlds, stepped_environment
from distq_mpi.environments.vector import VectorWorlds
from distq_mpi.environments.worlds import Kind, play, repeats, wander
from distq_mpi.errors import Interrupted, ModelError
from distq_mpi.lanes import Lanes

PAY = np.array([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0], [9.0, 7.0, 8.0]])


class Once(gymnasium.Env):
    """One state; a pair of numbers pays PAY and ends the episode. It changes what it was given."""

    observation_space = spaces.Discrete(1)

    def __init__(self, kind: str = "array") -> None:
        pair = (spaces.Discrete(3), spaces.Discrete(3))
        self.action_space = {
            "array": spaces.MultiDiscrete([3, 3]),
            "box": spaces.Box(0, 2, (2,), np.int64),
            "dict": spaces.Dict({"row": pair[0], "column": pair[1]}),
            "nested": spaces.Tuple([spaces.Dict({"row": pair[0], "column": pair[1]})]),
            "many": spaces.MultiDiscrete([3, 3] + [1] * 10),
        }[kind]

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return 0, {}

    def step(self, action: Any) -> Any:
        if isinstance(action, tuple):
            (action,) = action
        if isinstance(action, dict):
            pay = PAY[action.pop("row"), action.pop("column")]
        else:
            pay = PAY[int(action[0]), int(action[1])]
            action += 1
        return 0, float(pay), True, False, {}


def pays(model: QLearning) -> np.ndarray:
    """What was learned of every pair, in the order of PAY."""
    found = np.zeros((3, 3))
    actions = model.environment.worlds.actions
    for k, value in enumerate(model.q_values[0]):
        element = actions.element(k)
        element = element[0] if isinstance(element, tuple) else element
        at = (element["row"], element["column"]) if isinstance(element, dict) else element[:2]
        found[tuple(at)] = value
    return found


@pytest.mark.parametrize("kind", ["array", "box", "dict", "nested", "many"])
def test_an_environment_that_changes_its_actions_teaches_what_it_pays(kind: str) -> None:
    model = QLearning(
        Once(kind), seed=0, discount=0.5, learning_rate=0.5, initial="zeros", epsilon=1.0, lanes=4
    )
    model.learn(4000)
    assert pays(model) == pytest.approx(PAY, abs=1e-6)
    chosen, _ = model.predict(0)
    if isinstance(chosen, np.ndarray):
        chosen *= 100  # what is returned belongs to the caller
    elif isinstance(chosen, dict):
        chosen.clear()
    model.learn(4000)
    assert pays(model) == pytest.approx(PAY, abs=1e-6)
    again = model.predict(0)[0]
    assert np.array_equal(again, model.environment.worlds.actions.element(int(
        model.q_values[0].argmax()
    )))  # fmt: skip


@pytest.mark.parametrize(
    "space",
    [
        spaces.MultiDiscrete([2, 3]),
        spaces.MultiBinary(3),
        spaces.Dict(a=spaces.MultiBinary(2), b=spaces.Discrete(2)),
        spaces.Tuple([spaces.Discrete(2), spaces.MultiDiscrete([2, 2])]),
        spaces.MultiBinary(17),
    ],
    ids=str,
)
def test_every_element_is_the_callers(space: Any) -> None:
    found = range_of("x", "action", space)

    def spoil(x: Any) -> None:
        if isinstance(x, np.ndarray):
            x += 7
        elif isinstance(x, dict):
            for item in x.values():
                spoil(item)
            x.clear()
        elif isinstance(x, tuple):
            for item in x:
                spoil(item)

    for i in (0, 3):
        spoil(found.element(i))
        assert space.contains(found.element(i)) and found.index(found.element(i)) == i


class Chain(gymnasium.Env):
    """Four states: action 1 goes on and ends with 1, action 0 ends for .2; all in odd types."""

    action_space = spaces.Discrete(2)
    observation_space = spaces.Discrete(4)

    def __init__(self, **odd: Any) -> None:
        self.odd = odd

    def _seen(self) -> Any:
        return self.odd.get("seen", int)(self.state)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.state = 0
        return self._seen(), self.odd.get("info", {})

    def step(self, action: int) -> Any:
        reward, ended = (0.2, True) if action == 0 else (float(self.state == 3), self.state == 3)
        self.state = min(self.state + action, 3)
        parts = [
            self._seen(), self.odd.get("reward", float)(reward),
            self.odd.get("ended", bool)(ended), self.odd.get("cut", bool)(False),
            self.odd.get("info", {}),
        ]  # fmt: skip
        return self.odd.get("whole", tuple)(parts)


@pytest.mark.parametrize(
    "odd",
    [
        {"ended": lambda x: np.array([x])}, {"ended": int}, {"ended": float}, {"ended": np.array},
        {"ended": lambda x: [x]}, {"ended": np.bool_}, {"cut": lambda x: np.array([[x]])},
        {"cut": lambda x: None}, {"reward": lambda x: np.array([x])}, {"reward": np.float32},
        {"reward": lambda x: [x]}, {"seen": lambda x: np.array([x])}, {"seen": np.uint8},
        {"seen": float}, {"info": None}, {"whole": list},
    ],
)  # fmt: skip
def test_flags_rewards_and_states_may_come_in_any_type(odd: dict[str, Any]) -> None:
    model = QLearning(
        Chain(**odd), seed=0, discount=0.9, learning_rate=0.5, initial="zeros", epsilon=0.5,
        lanes=4,
    ).learn(4000)  # fmt: skip
    right = np.array([[0.2, 0.729], [0.2, 0.81], [0.2, 0.9], [0.2, 1.0]])
    assert model.q_values == pytest.approx(right, abs=1e-6)


WRONG = [
    ({"ended": lambda x: 2}, "terminated 2 is neither true nor false"),
    ({"ended": lambda x: "no"}, "terminated 'no' is neither true nor false"),
    ({"ended": lambda x: np.array([x, x])}, "terminated array.* is neither true nor false"),
    ({"cut": lambda x: 0.5}, "truncated 0.5 is neither true nor false"),
    ({"reward": str}, "reward '0.2|1.0|0.0' is not a number"),
    ({"reward": lambda x: None}, "reward None is not a number"),
    ({"reward": lambda x: [[1.0], 2]}, "is not a number"),
    ({"whole": lambda x: (*x[:3], x[4])}, "step returned .*, not .observation, reward, terminated"),
    ({"whole": lambda x: None}, "step returned None, not .observation"),
]


@pytest.mark.parametrize(("odd", "message"), WRONG)
def test_what_is_neither_is_named_wherever_it_is_met(odd: dict[str, Any], message: str) -> None:
    kind = stepped_environment("odd", lambda: Chain(**odd)).worlds
    worlds, lanes = open_worlds(kind, 10, 3, 0), Lanes(10, 3)
    worlds.begin()
    with pytest.raises(ModelError, match=f"odd: lane 10, state 0, action 0: .*{message}"):
        worlds.step(lanes, 0)
    with pytest.raises(ModelError, match=f"odd: evaluation, episode 4, state 0, .*{message}"):
        list(play(kind, [1] * 4, 7, 4, np.zeros(2), 100, np.zeros(2)))
    with pytest.raises(ModelError, match=f"odd: certificate, episode 2, state 0, .*{message}"):
        wander(kind, 7, 1, range(2, 4), 100)
    assert repeats(kind, 3)


class Old(Chain):
    """`reset` of the old Gym."""

    def reset(self, **_: Any) -> Any:  # type: ignore[override]
        return super().reset()[0]


def test_a_reset_without_info_is_named() -> None:
    worlds = open_worlds(stepped_environment("old", Old).worlds, 10, 3, 0)
    with pytest.raises(ModelError, match="lane 10: reset.*: reset returned 0, not .observation, i"):
        worlds.begin()


class Mute(Exception):
    """It has no text."""

    def __str__(self) -> str:
        raise RuntimeError


RAISED = [
    (SystemExit(0), "SystemExit: 0"), (SystemExit(), "SystemExit"), (KeyError("k"), "KeyError"),
    (KeyboardInterrupt(), "KeyboardInterrupt"), (MemoryError("all"), "MemoryError: all"),
    (GeneratorExit(), "GeneratorExit"), (Mute(), "Mute"),
]  # fmt: skip


class Raises(Chain):
    """Raises what it is given, in one of its methods."""

    def __init__(self, where: str, error: BaseException) -> None:
        super().__init__()
        self.where, self.error = where, error

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        if self.where == "reset":
            raise self.error
        return super().reset()

    def step(self, action: int) -> Any:
        if self.where == "step":
            raise self.error
        return super().step(action)

    def close(self) -> None:
        if self.where == "close":
            raise self.error


@pytest.mark.parametrize(("error", "message"), RAISED)
def test_whatever_an_environment_raises_names_it(error: BaseException, message: str) -> None:
    kind = stepped_environment("x", lambda: Raises("step", error)).worlds
    worlds, lanes = open_worlds(kind, 10, 3, 0), Lanes(10, 3)
    worlds.begin()
    with pytest.raises(ModelError, match=f"^x: lane 10, state 0, action 0: {message}") as found:
        worlds.step(lanes, 0)
    assert found.value.exit_code == 2
    with pytest.raises(ModelError, match=f"^x: evaluation, episode 0, state 0, .*: {message}"):
        list(play(kind, [1] * 4, 7, 0, np.zeros(2), 100, np.zeros(2)))
    with pytest.raises(ModelError, match=f"^x: certificate, episode 0, state 0, .*: {message}"):
        wander(kind, 7, 1, range(2), 100)
    kind = stepped_environment("x", lambda: Raises("reset", error)).worlds
    with pytest.raises(ModelError, match=f"^x: lane 10: reset.*: {message}"):
        open_worlds(kind, 10, 3, 0).begin()
    shut(Raises("close", error))


def test_an_interrupt_is_none_of_the_environments() -> None:
    class Asks(Chain):
        def step(self, action: int) -> Any:
            signal.raise_signal(signal.SIGINT)
            return super().step(action)

    kind = stepped_environment("x", Asks).worlds
    worlds, lanes = open_worlds(kind, 10, 3, 0), Lanes(10, 3)
    worlds.begin()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), silence():
            worlds.step(lanes, 0)
        with pytest.raises(Interrupted), silence():
            list(play(kind, [1] * 4, 7, 0, np.zeros(2), 100, np.zeros(2)))
        with pytest.raises(Interrupted), silence():
            repeats(kind, 3)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


LEAVES = """
import sys
{top}

def outcome(state, action, i, params):
    return 1.0, state, 0.0, False

def start(i, params):
    return 1.0, 0

class Leaves:
    n_states, n_actions, n_outcomes, params = 2, 2, 1, ()
    outcome, start = staticmethod(outcome), staticmethod(start)
    def __init__(self):
        {inside}
"""


@pytest.mark.parametrize("place", ["top", "inside"])
@pytest.mark.parametrize("id", ["leaving_law_{}:Leaves", "leaving_law_{}:Leaves-v0"])
def test_a_module_that_exits_is_named(
    place: str, id: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"leaving_law_{place}_{id.endswith('v0')}"
    filled = {"top": "", "inside": "pass", place: "sys.exit(0)"}
    text = LEAVES.format(**filled)
    if id.endswith("v0"):
        text += f"\nimport gymnasium\ngymnasium.register('Leaves-v0', '{name}:Leaves')\n"
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="SystemExit: 0"):
        make(EnvConfig(id.format(f"{place}_{id.endswith('v0')}")))


class Reused(gymnasium.vector.VectorEnv):
    """A vector that returns the same arrays at every step, and changes them when it resets."""

    def __init__(self, n: int) -> None:
        self.num_envs = n
        self.metadata = {"autoreset_mode": gymnasium.vector.AutoresetMode.DISABLED}
        self.single_observation_space = self.single_action_space = spaces.Discrete(2)
        self.observation_space = self.action_space = spaces.MultiDiscrete([2] * n)
        self.seen, self.rewards = np.zeros(n, int), np.zeros(n)
        self.ends, self.cuts = np.zeros(n, bool), np.zeros(n, bool)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        for array in (self.seen, self.rewards, self.ends, self.cuts):
            array[:] = 0
        if options:
            options["reset_mask"][:] = False
        return self.seen, {}

    def step(self, actions: np.ndarray) -> Any:
        self.seen[:], self.rewards[:], self.ends[:] = 1, 5.0, actions == 1
        actions[:] = 0
        return self.seen, self.rewards, self.ends, self.cuts, {}


def test_a_vector_may_change_what_it_returned() -> None:
    one = spaces.Discrete(2)
    ranges = range_of("v", "observation", one), range_of("v", "action", one)
    kind = Kind("v", *ranges, lambda: None, Reused)
    worlds, lanes = VectorWorlds(kind, 0, 3, 0), Lanes(0, 3)
    worlds.begin()
    lanes.arrays()[1][:] = 1, 0, 1
    worlds.step(lanes, 0)
    _, _, following, rewards, ends, _, _ = lanes.arrays()
    assert ends.tolist() == [True, False, True] and rewards.tolist() == [5.0] * 3
    assert following.tolist() == [1, 1, 1] and worlds.start.tolist() == [0, 0, 0]


def test_numbers_and_flags_as_such() -> None:
    assert number(True) == 1.0 and number(np.float16(0.5)) == 0.5 and number(7) == 7.0
    assert flag("x", np.float32(1)) is True and flag("x", None) is False
    for wrong in (complex(1), "1", [], object(), np.datetime64("2026-01-01")):
        with pytest.raises(ValueError, match="is not a number"):
            number(wrong)


class Greedy(Once):
    """It eats the arguments it is made of."""

    def __init__(self, pays: list[float], more: dict[str, list[float]]) -> None:
        super().__init__()
        self.pay = pays.pop() + more["pays"].pop()

    def step(self, action: Any) -> Any:
        return 0, self.pay, True, False, {}


def test_an_environment_may_change_the_arguments_it_is_made_of() -> None:
    gymnasium.register("Greedy-v0", Greedy)
    try:
        kwargs = {"pays": [1.0, 2.0], "more": {"pays": [3.0]}}
        kind = make(EnvConfig("Greedy-v0", kwargs=kwargs)).worlds
        worlds, lanes = open_worlds(kind, 0, 5, 0), Lanes(0, 5)
        worlds.begin()
        worlds.step(lanes, 0)
        assert lanes.arrays()[3].tolist() == [5.0] * 5
        assert kwargs == {"pays": [1.0, 2.0], "more": {"pays": [3.0]}}
    finally:
        del gymnasium.registry["Greedy-v0"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ((1.0, 1.5, 0.0, False), "next state 1.5 is not a whole number"),
        ((1.0, 1, "0.2", False), "reward '0.2' is not a number"),
        ((1.0, 1, 0.0, 2), "terminated 2 is neither true nor false"),
        ((1.0, 1, 0.0, "no"), "terminated 'no' is neither"),
    ],
)
def test_a_table_holds_what_steps_may_return(entry: Any, message: str) -> None:
    class Tabled(Chain):
        P = {s: {a: [entry] for a in range(2)} for s in range(4)}
        initial_state_distrib = np.eye(4)[0]

    found: Any = None
    try:
        found = from_object(Tabled(), EnvConfig())
    except ModelError as error:
        assert message in str(error)
    else:  # where tables that cannot be read are stepped instead
        assert found.kind == "stepped"
