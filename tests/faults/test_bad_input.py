"""Mistakes: one message naming the thing, printed once, and the right exit code on all ranks."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest

from tests.launching import distq

CASES = {
    "unknown key": (("--learn.gama", "0.9"), "gama"),
    "out of range": (("--learn.discount", "1.5"), "discount"),
    "unknown environment": (("--env.id", "FrozenLak-v1"), "FrozenLak"),
    "renamed environment": (("--env.id", "Taxi-v3"), "Taxi-v4"),
    "continuous space": (("--env.id", "CartPole-v1"), "Box"),
    "continuous": (("--env.id", "CartPole-v1"), "--env.bins"),
    "infinite": (("--env.id", "CartPole-v1", "--env.bins", "6"), "--env.clip"),
    "bins": (("--env.id", "CartPole-v1", "--env.bins", "6,0,6,6"), "env.bins"),
    "bad kwargs": (("--env.kwargs.map_nam", "4x4"), "map_nam"),
    "max where it diverges": (("--parallel.fusion", "max"), "parallel.force"),
    "max from above": (
        ("--parallel.fusion", "max", "--env.id", "CliffWalking-v1"), "never comes down",
    ),
    "undiscounted rescaled": (("--learn.discount", "1"), "polynomial"),
    "too large": (
        ("--env.id", "grid", "--env.kwargs.rows", "50000", "--env.kwargs.columns", "20000"),
        "memory_bytes",
    ),
    "cannot be solved": (
        ("--env.id", "grid", "--env.kwargs.rows", "5000", "--env.kwargs.columns", "5000",
         "--stop.policy_loss", "1"),
        "stop.mean_return",
    ),
    "not a model": (("--env.id", "broken.npz"), "broken.npz"),
    "missing model": (("--env.id", "nothing.npz"), "nothing.npz"),
    "not stochastic": (("--env.id", "sums.npz"), "sum to 0.9"),
    "reward is NaN": (("--env.id", "nan.npz"), "nan"),
    "law that leaves its states": (
        ("--env.id", "leaving:Leaving"), "next_state 1000020000 is not in 0..19999",
    ),
    "missing config": (("--config", "nothing.toml"), "nothing.toml"),
}  # fmt: skip


LEAVING = """
def outcome(state, action, i, params):
    bad = state == 12345 and action == 1
    return 1.0, 1000020000 if bad else (state + 1) % 20000, -1.0, False


def start(i, params):
    return 1.0, 0


class Leaving:
    n_states, n_actions, n_outcomes, params = 20000, 2, 1, ()
    outcome, start = staticmethod(outcome), staticmethod(start)
"""


def write_models(folder: Path) -> None:
    (folder / "leaving.py").write_text(LEAVING)
    (folder / "broken.npz").write_text("not a model")
    model = {
        "n_states": 2, "n_actions": 1, "indptr": np.array([0, 1, 2]), "indices": np.array([1, 0]),
        "probability": np.array([1.0, 1.0]), "reward": np.array([0.0, 1.0]),
    }  # fmt: skip
    np.savez(folder / "sums.npz", **{**model, "probability": np.array([1.0, 0.9])})
    np.savez(folder / "nan.npz", **{**model, "reward": np.array([0.0, np.nan])})


# So many outcomes that only a sample is looked at; the fourth state is not among it.
UNSEEN = """
def outcome(state, action, i, params):
    bad = state == 3 and action == 1
    return 1.0 / 64, 2**40 if bad else (state + 1 + (i == 9)) % 200000, -1.0, False


def start(i, params):
    return 1.0, 0


class Unseen:
    n_states, n_actions, n_outcomes, params = 200000, 4, 64, ()
    outcome, start = staticmethod(outcome), staticmethod(start)
"""


@pytest.mark.parametrize("name", CASES)
def test_mistake(name: str, tmp_path: Path) -> None:
    options, wanted = CASES[name]
    write_models(tmp_path)
    ended = distq(3, "train", *options, cwd=tmp_path, limit_s=60)
    assert ended.code == 2, (ended.code, ended.out, ended.err)
    assert wanted in ended.err
    assert "Traceback" not in ended.err
    assert ended.err.count(wanted) <= 3  # one message (which may name the thing twice), one rank
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "learners",
    [("--parallel.agents", "2"), ("--parallel.architecture", "sharded", "--parallel.lanes", "64")],
)
def test_law_that_leaves_its_states_where_nobody_looked(
    learners: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "unseen.py").write_text(UNSEEN)
    ended = distq(
        3, "train", "--env.id", "unseen:Unseen", "--run.dir", "here", "--stop.steps", "1000000",
        *learners, cwd=tmp_path, limit_s=60,
    )  # fmt: skip
    assert ended.code == 2, (ended.code, ended.out, ended.err)
    assert "watched while learning" in ended.out
    wanted = (
        r"outcome\(state=3, action=1, i=\d+\): next_state 1099511627776 is not in 0..199999 "
        r"\(met by lane (\d+) in its step \d+\) on rank (\d+)"
    )
    ((lane, rank),) = re.findall(wanted, ended.err)
    # The host of the lane's agent, of two with 64 lanes each; else the owner of state 3.
    assert int(rank) == (int(lane) // 64 if "--parallel.agents" in learners else 0)
    assert "Traceback" not in ended.err
    assert not list((tmp_path / "here" / "checkpoints").iterdir())


def test_all_mistakes_at_once(tmp_path: Path) -> None:
    ended = distq(
        2, "train", "--learn.discount", "1.5", "--learn.epsilon", "-1", "--parallel.fusion", "avg",
        cwd=tmp_path,
    )  # fmt: skip
    assert ended.code == 2
    for wanted in ("learn.discount", "learn.epsilon", "parallel.fusion"):
        assert wanted in ended.err


def test_finished_run_is_not_overwritten(tmp_path: Path) -> None:
    options = ("train", "--run.dir", "here", "--stop.rounds", "2")
    assert distq(2, *options, cwd=tmp_path).code == 0
    before = (tmp_path / "here" / "summary.json").read_bytes()
    refused = distq(2, *options, cwd=tmp_path)
    assert refused.code == 2 and "here" in refused.err
    assert (tmp_path / "here" / "summary.json").read_bytes() == before
    assert distq(2, *options, "--run.overwrite", cwd=tmp_path).code == 0


def test_unwritable_run_directory(tmp_path: Path) -> None:
    # A file where a directory should be stops root, too.
    (tmp_path / "file").write_text("")
    ended = distq(2, "train", "--run.dir", "file/run", cwd=tmp_path)
    assert ended.code == 1 and "file/run" in ended.err and "Traceback" not in ended.err


def test_resume_of_nothing(tmp_path: Path) -> None:
    ended = distq(2, "resume", "nothing", cwd=tmp_path)
    assert ended.code == 1 and "nothing" in ended.err


def test_resume_refuses_what_would_change_the_bits(tmp_path: Path) -> None:
    assert distq(2, "train", "--run.dir", "here", "--stop.rounds", "2", cwd=tmp_path).code == 0
    ended = distq(2, "resume", "here", "--learn.epsilon", "0.5", cwd=tmp_path)
    assert ended.code == 2 and "learn.epsilon" in ended.err


def test_bad_checkpoints_are_refused_and_the_newest_good_one_taken(tmp_path: Path) -> None:
    options = ("--run.dir", "here", "--parallel.agents", "2", "--checkpoint.every_rounds", "10")
    assert distq(2, "train", *options, "--stop.rounds", "30", cwd=tmp_path).code == 0
    newest, second, third = sorted((tmp_path / "here" / "checkpoints").iterdir())[::-1]
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    second.write_bytes(second.read_bytes()[: os.path.getsize(second) // 2])
    ended = distq(3, "resume", "here", "--stop.rounds", "40", cwd=tmp_path)
    assert ended.code == 0, ended.err
    assert newest.name in ended.out and second.name in ended.out
    whole = distq(
        1, "train", "--run.dir", "whole", "--parallel.agents", "2", "--stop.rounds", "40",
        cwd=tmp_path,
    )  # fmt: skip
    assert whole.code == 0
    hashes = [line for line in (ended.out + whole.out).splitlines() if "sha256" in line]
    assert len(set(hashes)) == 1 and len(hashes) == 2


def test_resume_on_another_model_is_refused(tmp_path: Path) -> None:
    assert distq(1, "train", "--run.dir", "here", "--stop.rounds", "2", cwd=tmp_path).code == 0
    config = tmp_path / "here" / "config.toml"
    config.write_text(config.read_text().replace("FrozenLake8x8-v1", "FrozenLake-v1"))
    ended = distq(1, "resume", "here", cwd=tmp_path)
    assert ended.code == 1 and "model" in ended.err
