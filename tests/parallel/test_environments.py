"""Environments of others from the command line, on several ranks, and what goes on from a file."""

from __future__ import annotations

import json
from pathlib import Path

from tests.launching import distq

MODULE = '''
import threading
import gymnasium
from gymnasium import spaces
from gymnasium.envs.toy_text.frozen_lake import FrozenLakeEnv

class Toll(FrozenLakeEnv):
    """A lake that charges for every step; its table is the lake's."""
    def step(self, action):
        seen, reward, *more = super().step(action)
        return seen, reward - 0.1, *more

class Coin(gymnasium.Env):
    """One state; action 1 pays what a function says."""
    observation_space, action_space = spaces.Discrete(1), spaces.Discrete(2)
    def __init__(self, paid=None):
        self.paid = paid
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return 0, {}
    def step(self, action):
        return 0, self.paid(action), True, False, {}

def twice(action):
    return 2.0 * action

def locked(lock):
    def paid(action):
        with lock:
            return twice(action)
    return paid

gymnasium.register("Toll-v0", Toll, kwargs={"is_slippery": False}, max_episode_steps=50)
gymnasium.register("Paid-v0", Coin, kwargs={"paid": twice})
gymnasium.register("Locked-v0", Coin, kwargs={"paid": locked(threading.Lock())})
'''
FEW = ("--stop.steps", "2000", "--parallel.agents", "2", "--parallel.lanes", "8")


def test_an_overridden_step_is_what_is_learned(tmp_path: Path) -> None:
    """Six steps at -.1 each, the last of which pays 1: the best return is .4."""
    (tmp_path / "worlds_of_others.py").write_text(MODULE)
    for id in ("worlds_of_others:Toll-v0", "worlds_of_others:Toll"):
        more = () if id.endswith("v0") else (
            "--env.kwargs.is_slippery", "false", "--env.max_episode_steps", "50")  # fmt: skip
        ended = distq(2, "train", "--env.id", id, *more, "--learn.discount", "0.9",
                      "--stop.steps", "60000", "--run.dir", f"run{len(more)}",
                      cwd=tmp_path)  # fmt: skip
        assert ended.code == 0, ended.err
        assert ended.out.count("not by its table P: step is Toll's, P is FrozenLakeEnv's") == 1
        summary = json.loads((tmp_path / f"run{len(more)}" / "summary.json").read_text())
        assert abs(summary["evaluation"]["mean_return"] - 0.4) < 1e-9
        assert summary["certificate"]["kind"] == "none"


def test_a_run_with_a_function_among_its_arguments_goes_on(tmp_path: Path) -> None:
    (tmp_path / "worlds_of_others.py").write_text(MODULE)
    ended = distq(2, "train", "--env.id", "worlds_of_others:Paid-v0", *FEW, "--run.dir", "run",
                  cwd=tmp_path)  # fmt: skip
    assert ended.code == 0, ended.err
    ended = distq(2, "resume", "run", "--stop.steps", "4000", cwd=tmp_path)
    assert ended.code == 0, ended.err
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 4000
    (tmp_path / "worlds_of_others.py").write_text(MODULE.replace("2.0 *", "3.0 *"))
    ended = distq(2, "resume", "run", "--stop.steps", "6000", cwd=tmp_path)
    assert ended.code == 1 and ended.err.count("another environment") >= 1, ended.err


def test_what_cannot_be_hashed_is_said_at_the_start_and_refused_on_resume(tmp_path: Path) -> None:
    (tmp_path / "worlds_of_others.py").write_text(MODULE)
    ended = distq(2, "train", "--env.id", "worlds_of_others:Locked-v0", *FEW, "--run.dir", "run",
                  cwd=tmp_path)  # fmt: skip
    assert ended.code == 0, ended.err
    assert "this run cannot be resumed: argument paid: lock" in ended.out
    ended = distq(2, "resume", "run", "--stop.steps", "4000", cwd=tmp_path)
    assert ended.code == 2
    assert ended.err.count("learning cannot go on") == 1 and "argument paid: lock" in ended.err
