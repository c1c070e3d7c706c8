"""The same script on every rank: the bits of the command line, common decisions, moved files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.launching import distq, run

SCRIPT = """
from mpi4py import MPI

from distq_mpi import QLearning
from distq_mpi.callbacks import BaseCallback, CheckpointCallback, EvalCallback
from distq_mpi.errors import DistqError

KEYS = dict(agents=4, seed=7, discount=0.95, fusion="count")


class LastRankStops(BaseCallback):
    def _on_step(self):
        return self.model.rank < self.model.size - 1 or self.n_calls < 5


model = QLearning("FrozenLake8x8-v1", **KEYS)
model.learn(100_000)
found = {"learned": model.table_sha256(), "steps": model.num_timesteps}
alone = QLearning("FrozenLake8x8-v1", MPI.COMM_SELF, **KEYS).learn(100_000)
assert (alone.size, alone.table_sha256()) == (1, found["learned"])
model.learn(50_000)
found["twice"] = model.table_sha256()
found["gap"] = model.certificate().policy_gap
found["action"] = int(model.predict(0)[0])
model.save("saved")
found["later"] = [model.learn(30_000).num_timesteps, model.table_sha256()]

evaluation = EvalCallback("FrozenLake8x8-v1", n_eval_episodes=20, eval_freq=1000, verbose=0)
stopped = QLearning("FrozenLake8x8-v1", **KEYS)
stopped.learn(400_000, evaluation)
found["evaluated"] = evaluation.evaluations_results
stopped = QLearning("FrozenLake8x8-v1", **KEYS)
stopped.learn(10**6, [evaluation, CheckpointCallback(2, "every"), LastRankStops()])
found["stopped"] = [stopped.progress.round, stopped.table_sha256(), stopped.stop_reason]

mistakes = []
for attempt in (
    lambda: QLearning("FrozenLake8x8-v1", fusion="pool"),
    lambda: QLearning("NoSuchWorld-v0"),
    lambda: QLearning.load("nothing"),
    lambda: model.save("/dev/null/x"),
):
    try:
        attempt()
    except DistqError as error:
        mistakes.append(type(error).__name__)
found["mistakes"] = mistakes
found = model._transport.gather(found)
if model.rank == 0:
    import json
    print(json.dumps(found))
"""

LOAD = """
from distq_mpi import QLearning
model = QLearning.load("saved").learn(30_000)
if model.rank == 0:
    print(model.size, model.num_timesteps, model.table_sha256())
"""

FAILS = """
from distq_mpi import QLearning
model = QLearning("FrozenLake8x8-v1", agents=2)


def fail(locals_, globals_):
    if model.rank == 1 and locals_["round"] == 3:
        raise ValueError("only here")


model.learn(10**9, fail)
"""
KEYS = ("--parallel.agents", "4", "--run.seed", "7", "--learn.discount", "0.95",
        "--parallel.fusion", "count")  # fmt: skip


def in_python(n_ranks: int, script: str, cwd: Path, code: int = 0) -> Any:
    cwd.mkdir(exist_ok=True)
    (cwd / "script.py").write_text(script)
    ended = run(n_ranks, ["script.py"], cwd)
    assert (ended.code == 0) == (code == 0), ended.out + ended.err
    return ended


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    """What every rank of `SCRIPT` found, on 1 rank without and on 3 with mpirun."""
    folder = tmp_path_factory.mktemp("api")
    return {
        n: (json.loads(in_python(n, SCRIPT, folder / str(n)).out), folder / str(n)) for n in (0, 3)
    }


def test_all_ranks_know_the_same_and_their_number_does_not_matter(told: dict[int, Any]) -> None:
    (alone,), _ = told[0]
    assert told[3][0] == [alone] * 3
    assert alone["steps"] == 100_096
    assert alone["gap"] < 0.5
    assert alone["mistakes"] == ["ConfigError", "ModelError", "FileError", "FileError"]


def test_a_callback_of_one_rank_stops_all_at_its_round(told: dict[int, Any]) -> None:
    for found, folder in told.values():
        n_rounds, _, reason = found[0]["stopped"]
        assert (n_rounds, reason) == (5, "a callback asked to stop")
        assert {value for returns in found[0]["evaluated"] for value in returns} == {0.0, 1.0}
        assert list((folder / "every").glob("rl_model_*_steps.h5"))


def test_the_bits_are_those_of_the_command_line(told: dict[int, Any], tmp_path: Path) -> None:
    (found, *_), _ = told[3]

    def hash_of(*command: str, n_ranks: int) -> str:
        ended = distq(n_ranks, *command, cwd=tmp_path)
        assert ended.code == 0, ended.err
        summary = json.loads((tmp_path / "run" / "summary.json").read_text())
        return str(summary["table_sha256"])

    train = ("train", "--run.dir", "run", *KEYS, "--stop.steps")
    assert hash_of(*train, "100000", n_ranks=2) == found["learned"]
    assert hash_of("resume", "run", "--stop.steps", "150096", n_ranks=1) == found["twice"]


def test_a_file_of_three_ranks_goes_on_on_one_and_two(told: dict[int, Any]) -> None:
    (found, *_), folder = told[3]
    n_steps, table = found["later"]
    for n_ranks in (0, 2):
        told_now = in_python(n_ranks, LOAD, folder).out.split()
        assert told_now == [str(max(1, n_ranks)), str(n_steps), table]


def test_an_exception_of_one_rank_ends_the_job(tmp_path: Path) -> None:
    ended = in_python(2, FAILS, tmp_path, code=1)
    assert ended.err.count("ValueError: only here") == 1
