"""Stepped environments that break their own promises, and what a run may promise of them."""

from __future__ import annotations

import contextlib
import sys
import threading
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit

import tests.worlds  # noqa: F401  (registers them)
from distq_mpi import checkpoint, environments
from distq_mpi.architectures import Allreduce
from distq_mpi.config import EnvConfig, from_dict
from distq_mpi.environments import tape
from distq_mpi.environments.silence import silence
from distq_mpi.environments.stepped import open_worlds, stepped_environment
from distq_mpi.environments.vector import VectorWorlds
from distq_mpi.environments.worlds import play
from distq_mpi.errors import ModelError
from distq_mpi.lanes import Lanes
from distq_mpi.preparation import settle
from distq_mpi.sampling import in_time
from distq_mpi.saving import Saver
from tests.stand_in import Alone, compiled, config


class Told(gymnasium.Env):
    """Shows and gives what it is told to, from the second step on; 20 steps an episode."""

    action_space = spaces.Discrete(2)

    def __init__(self, space: Any, fair: Any, foul: Any = None, reward: Any = 1.0) -> None:
        self.observation_space, self.fair, self.foul = space, fair, foul
        self.reward, self.age = reward, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.age = 0
        return self.fair, {}

    def step(self, action: int) -> Any:
        self.age += 1
        seen = self.fair if self.foul is None or self.age < 2 else self.foul
        return seen, self.reward, self.age >= 20, False, {}


SQUARE = spaces.Box(-1.0, 1.0, (2,))
INSIDE = np.array([0.5, 0.0], np.float32)


def told(*given: Any, **cut: Any) -> Any:
    return stepped_environment("told", lambda: Told(*given), **cut)


def two_steps(environment: Any, n: int = 3) -> Lanes:
    """The lanes after two steps; a mistake is raised in the second."""
    worlds, lanes = open_worlds(environment.worlds, 10, n, 3), Lanes(10, n)
    worlds.begin()
    worlds.step(lanes, 0)
    worlds.step(lanes, 1)
    return lanes


@pytest.mark.parametrize(
    ("foul", "message"),
    [
        ([np.nan, 0.0], r"nan.* is not from \[-1.0, -1.0\] to \[1.0, 1.0\]$"),
        ([0.0, 1.5], "is not from .*; env.clip would limit it"),
        ([np.inf, 0.0], "is not from .*; env.clip would limit it"),
        ([0.0, 0.0, 0.0], r"not of the shape \(2,\)"),
        (["a", "b"], "TypeError|UFuncNoLoopError|ValueError"),
    ],
)
def test_an_observation_outside_its_box_is_named(foul: list[Any], message: str) -> None:
    environment = told(SQUARE, INSIDE, np.array(foul), bins=4)
    with pytest.raises(ModelError, match=f"told: lane 10, state 0, action 0: .*({message})"):
        two_steps(environment)


def test_clipping_takes_what_is_outside_but_never_nan() -> None:
    clipped = told(SQUARE, INSIDE, np.array([-np.inf, 7.0]), bins=4, clip=1.0)
    assert two_steps(clipped).pack()["next_state"].tolist() == [3, 3, 3]  # bins 0 and 3
    hollow = told(SQUARE, INSIDE, np.array([np.nan, 7.0]), bins=4, clip=1.0)
    with pytest.raises(ModelError, match="nan"):
        two_steps(hollow)
    half = told(SQUARE, INSIDE, np.array([0.0, 7.0]), bins=4, clip=[1.0, 0.0])
    with pytest.raises(ModelError, match="env.clip would limit it"):
        two_steps(half)


def test_limits_are_met_by_their_own_rounding() -> None:
    third = spaces.Box(-1 / 3, 1 / 3, (2,))
    lanes = two_steps(told(third, np.zeros(2), np.array([1 / 3, -1 / 3]), bins=3))
    assert lanes.pack()["next_state"].tolist() == [6, 6, 6]


def test_whole_numbers_are_cut_as_well() -> None:
    space = spaces.Box(0, 7, (2,), np.int32)
    whole = two_steps(told(space, np.array([0, 0]), np.array([6, 7]), bins=8))
    assert whole.pack()["next_state"].tolist() == [55, 55, 55]
    clipped = two_steps(told(space, np.array([0, 0]), np.array([6, 7]), bins=4, clip=[4, 0]))
    assert clipped.pack()["next_state"].tolist() == [15, 15, 15]


def test_the_largest_number_is_no_limit() -> None:
    most = np.finfo(np.float32).max
    with pytest.raises(ModelError, match=r"dimensions \[1\] .* are infinite: --env.clip"):
        told(spaces.Box(np.array([-1, -most]), np.array([1, most]), dtype=np.float64), INSIDE,
             bins=3)  # fmt: skip


def test_limits_that_leave_nothing_are_refused() -> None:
    with pytest.raises(ModelError, match=r"\[1.0\] leave nothing of dimensions \[1\]"):
        told(spaces.Box(np.array([0, 3]), np.array([1, 4]), dtype=np.float64), INSIDE, bins=3,
             clip=1.0)  # fmt: skip


@pytest.mark.parametrize("cut", [{}, {"bins": 3}])
def test_a_box_within_a_space_is_refused_alike_with_bins_and_without(cut: Any) -> None:
    with pytest.raises(ModelError, match="a Box within another space is not"):
        told(spaces.Dict(a=SQUARE, b=spaces.Discrete(2)), {"a": INSIDE, "b": 0}, **cut)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((spaces.Discrete(5), 2, 2.7), "2.7 is not a whole number from 0 to 4"),
        ((spaces.Discrete(5), 2, np.nan), "cannot convert float NaN"),
        ((spaces.Discrete(5), 2, "two"), "invalid literal for int"),
        ((spaces.Discrete(5), 2, None, "one"), "reward 'one' is not a number"),
        ((spaces.Discrete(5), 2, 2, np.ones(2)), r"reward array\(\[1., 1.\]\) is not a number"),
        ((spaces.Discrete(5), 2, 2, -np.inf), "reward -inf is not finite"),
    ],
)
def test_what_is_no_number_is_named(given: Any, message: str) -> None:
    with pytest.raises(ModelError, match=f"lane 10, state 0, action 0: .*{message}"):
        two_steps(told(*given))


def test_rewards_of_numpy_are_numbers() -> None:
    lanes = two_steps(told(spaces.Discrete(5), 2, np.int64(3), np.float32(0.5)))
    assert lanes.pack()["reward"].tolist() == [0.5] * 3
    assert lanes.pack()["next_state"].tolist() == [3] * 3


def test_an_evaluation_that_breaks_is_named() -> None:
    kind = told(SQUARE, INSIDE, np.array([0.0, 9.0]), bins=2).worlds
    with pytest.raises(ModelError, match="told: evaluation, episode 4, state 3, action 1: Value"):
        list(play(kind, [1] * 4, 7, 4, np.zeros(2), 100, np.zeros(2)))
    kind = told(spaces.Discrete(5), 2, None, np.nan).worlds
    with pytest.raises(ModelError, match="episode 4, state 2, action 1: .* the return is nan"):
        list(play(kind, [1] * 5, 7, 4, np.zeros(2), 100, np.zeros(2)))


@pytest.mark.parametrize("trouble", ["", "forgets", "raises"])
def test_noise_that_no_seed_decides_is_noticed_before_it_is_learned_from(trouble: str) -> None:
    kind = environments.make(EnvConfig("tests.worlds:Walk-v0", kwargs={"trouble": trouble})).worlds
    found = []
    for seed in range(4):
        worlds = open_worlds(kind, 0, 2, seed)
        worlds.begin()
        found.append(worlds.matched)
    # One that raises is told of by whoever steps it.
    assert found == [trouble != "forgets"] * 4


def test_what_was_not_reproducible_once_is_never_again(tmp_path: Path) -> None:
    parallel = {"agents": 2, "lanes": 6, "steps_per_round": 4}
    wanted = from_dict({"env": {"id": "tests.worlds:Walk-v0"}, "parallel": parallel})
    settings, environment, _ = settle(wanted, 1)
    kernels = compiled(Allreduce.requests(settings, environment))

    def fresh(folder: Path) -> tuple[Allreduce, Saver]:
        transport: Any = Writing()
        learner = Allreduce(settings, environment, kernels, transport)
        return learner, Saver(settings, environment, SimpleNamespace(checkpoints=folder), learner)

    for number, matched in enumerate((True, False)):
        folder = tmp_path / str(number)
        folder.mkdir()
        first, saver = fresh(folder)
        worlds = first.agents[1].worlds
        assert worlds is not None
        worlds.matched = matched
        first.learn()
        assert first.exchange((False, False, False)) is not None
        first.commit()
        path = saver.write(Writing())
        assert path is not None
        assert checkpoint.read_header(path).attributes["reproducible"] is matched
        again, other = fresh(folder)
        other.restore(path, Writing())
        assert again.reproducible() is matched


class Writing(Alone):
    """With what a `Saver` asks of a transport."""

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def same_outcome(self) -> Any:
        return contextlib.nullcontext()


class Loud(Told):
    """Prints and warns wherever it can."""

    def __init__(self) -> None:
        super().__init__(spaces.Discrete(3), 1)
        print("made")

    def step(self, action: int) -> Any:
        print("stepped")
        warnings.warn("stepped", stacklevel=1)
        gymnasium.logger.warn("stepped")
        return super().step(action)

    def close(self) -> None:
        print("closed")
        raise RuntimeError("cannot close")


def test_what_environments_print_and_warn_of_is_not_shown(capsys: Any, recwarn: Any) -> None:
    settings = config(agents=2, lanes=6, steps_per_round=4)
    environment = stepped_environment("loud", Loud)
    learner = Allreduce(
        settings, environment, compiled(Allreduce.requests(settings, environment)), Alone()
    )
    learner.learn()
    learner.rollback()
    learner.close()
    list(in_time(play(environment.worlds, [1] * 3, 7, 0, np.zeros(1), 1, np.zeros(1))))
    print("heard")
    assert capsys.readouterr().out == "heard\n" and not recwarn.list


def test_silence_of_several_threads_ends_with_the_last() -> None:
    real, filters = sys.stdout, list(warnings.filters)
    inside, leave = threading.Barrier(2), threading.Event()

    def work() -> None:
        with silence():
            inside.wait(10)
            leave.wait(10)

    thread = threading.Thread(target=work)
    thread.start()
    with silence():
        inside.wait(10)
    assert sys.stdout is not real
    leave.set()
    thread.join(10)
    assert sys.stdout is real and warnings.filters == filters


@pytest.mark.parametrize("own", [0, 7, 40])
@pytest.mark.parametrize("wanted", [0, 15])
@pytest.mark.parametrize("registered", [True, False])
def test_an_object_is_held_to_the_limit_that_is_wanted(
    own: int, wanted: int, registered: bool
) -> None:
    if registered:
        given = gymnasium.make("tests.worlds:Walk-v0", max_episode_steps=own or -1)
    else:
        given = TimeLimit(tests.worlds.Walk(), own) if own else tests.worlds.Walk()
    environment = environments.from_object(given, EnvConfig(max_episode_steps=wanted))
    limit = wanted or own
    assert environment.max_episode_steps == limit
    world = environment.worlds.make()
    world.reset(seed=1)
    # To the left: the episode has no other end.
    cuts = [bool(world.step(5)[3]) for _ in range(limit or 50)]
    assert cuts == [False] * (len(cuts) - 1) + [limit > 0]


@pytest.mark.parametrize("id", ["tests.worlds:Walk-v0", "tests.worlds:Row-v0"])
@pytest.mark.parametrize("longest", [None, 3])
def test_a_round_run_again_as_it_was_steps_nothing_again(
    id: str, longest: int | None, monkeypatch: Any
) -> None:
    """Where it is kept; else environments are brought back, or, as vector, begin anew."""
    if longest is not None:
        monkeypatch.setattr(tape, "LONGEST", longest)
    settings = config(agents=3, lanes=12, steps_per_round=7)
    environment = environments.make(EnvConfig(id))
    kernels = compiled(Allreduce.requests(settings, environment))

    def run(exponent: int | None) -> tuple[bytes, int, int]:
        learner = Allreduce(settings, environment, kernels, Alone())
        if exponent is not None:
            tight = learner.progress._replace(exponent=exponent, peak=exponent)
            learner.progress = learner.pending = tight
        made = _counted(learner)
        repeated = 0
        for _ in range(9):
            learner.learn()
            while learner.exchange((False, False, False)) is None:
                repeated += 1
                learner.rollback()
                learner.learn()
            learner.commit()
        return learner.base.raw.tobytes(), repeated, made[0]

    loose, tight = run(20), run(-6)
    assert loose[1] == 0 and tight[1] > 0
    assert (tight[2] == loose[2]) == (longest is None)
    if longest is None or "Walk" in id:
        # The scale of the sums rounds differently, by less than 2^-30.
        values = [np.frombuffer(raw).reshape(-1, 4)[:, :2] for raw, *_ in (loose, tight)]
        assert np.allclose(*values, rtol=0, atol=1e-6)


def _counted(learner: Allreduce) -> list[int]:
    """The calls of `step` of all environments from now on, in a list of one."""
    made = [0]

    def counting(step: Any) -> Any:
        def counted(action: Any) -> Any:
            made[0] += 1
            return step(action)

        return counted

    for agent in learner.agents:
        worlds: Any = agent.worlds
        if isinstance(worlds, VectorWorlds):
            worlds._vector.step = counting(worlds._vector.step)
        else:
            worlds._steps = [counting(step) for step in worlds._steps]
    return made


def test_an_interrupted_round_is_brought_back_even_where_it_was_run_again() -> None:
    settings = config(agents=2, lanes=10, steps_per_round=6)
    environment = environments.make(EnvConfig("tests.worlds:Walk-v0"))
    kernels = compiled(Allreduce.requests(settings, environment))

    def run(interrupted: bool) -> bytes:
        learner = Allreduce(settings, environment, kernels, Alone())
        learner.progress = learner.progress._replace(exponent=20, peak=20)
        for k in range(12):
            learner.learn()
            if interrupted and k % 3 == 0:
                learner._again = k % 2 == 0
                learner.rollback()
                worlds, lanes = learner.agents[1].worlds, learner.agents[1].lanes
                assert worlds is not None
                if k % 2:  # what comes next is not what was
                    lanes.arrays()[1][:] = 1 - lanes.arrays()[1]
                    worlds.step(lanes, learner.progress.lane_steps + 1)
                learner.rollback()
                learner.learn()
            assert learner.exchange((False, False, False)) is not None
            learner.commit()
        assert learner.reproducible()
        return learner.base.raw.tobytes()

    assert run(True) == run(False)
