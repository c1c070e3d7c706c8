"""`jobs/` on a real SLURM cluster of virtual nodes: limits, requeueing, preemption, lost nodes."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.launching import ROOT, distq, is_open_mpi
from tests.slurm import Slurm, missing

pytestmark = [
    pytest.mark.skipif(bool(missing()), reason=f"SLURM needs {', '.join(missing())}"),
    pytest.mark.skipif(not is_open_mpi(), reason="once is enough: under Open MPI, which has ULFM"),
]

TRAIN, SWEEP = str(ROOT / "jobs" / "train.sbatch"), str(ROOT / "jobs" / "sweep.sbatch")
# Two lanes, ten steps of 10 ms a round: ten rounds a second at most, whatever the machine.
PACED = ("--env.id", "tests.worlds:PacedLake-v0", "--parallel.agents", "2", "--parallel.lanes", "2",
         "--parallel.steps_per_round", "10", "--evaluate.episodes", "0",
         "--run.report_every_s", "0.1")  # fmt: skip
N_ROUNDS = ("--stop.rounds", "120")
PACE = {"PYTHON": sys.executable, "PACE_S": "0.01"}


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    cluster = Slurm(tmp_path_factory.mktemp("slurm"))
    yield cluster
    cluster.close()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("undisturbed")
    ended = distq(2, "train", "--run.dir", "run", *PACED, *N_ROUNDS, cwd=path)
    assert ended.code == 0, ended.err
    return str(summary(path / "run")["table_sha256"])


def summary(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / "summary.json").read_text())
    return found


def rounds(path: Path) -> int:
    """Rounds that a run has reported so far."""
    with suppress(OSError, IndexError):
        return int(json.loads((path / "metrics.jsonl").read_text().splitlines()[-1])["round"])
    return 0


def output(slurm: Slurm, number: str) -> str:
    return (slurm.folder / f"distq-{number}.out").read_text()


def test_before_the_time_limit_it_saves_and_goes_on_in_a_second_start(
    slurm: Slurm, undisturbed: str
) -> None:
    # The limit of a minute less the 45 seconds of --signal: asked to save after fifteen.
    number = slurm.submit(
        "-N2", "-n2", "-t1", "--signal=B:USR2@45", TRAIN, *PACED, "--stop.rounds", "400",
        "--run.dir", "limit", **PACE,
    )  # fmt: skip
    path = slurm.folder / "limit"
    slurm.wait_for(lambda: "queueing job" in output(slurm, number) if rounds(path) else False, 60)
    assert summary(path)["status"] == "interrupted"
    saved = summary(path)["rounds"]
    slurm.start_again(number)
    slurm.wait_for(lambda: rounds(path) > saved, 90)
    assert slurm.job(number)["Restarts"] == "1" and "start 1" in output(slurm, number)
    slurm.call("scancel", number)


def test_asked_to_save_it_ends_with_the_bits_of_an_undisturbed_run(
    slurm: Slurm, undisturbed: str
) -> None:
    number = slurm.submit("-N2", "-n2", TRAIN, *PACED, *N_ROUNDS, "--run.dir", "asked", **PACE)
    path = slurm.folder / "asked"
    slurm.wait_for(lambda: rounds(path) > 20)
    slurm.call("scancel", "--batch", "--signal=USR2", number)
    slurm.start_again(number)
    assert slurm.wait_for_end(number)["Restarts"] == "1"
    assert summary(path)["table_sha256"] == undisturbed


def test_a_chain_goes_on_where_requeueing_is_not_allowed(slurm: Slurm, undisturbed: str) -> None:
    told = slurm.call(
        str(ROOT / "jobs" / "chain.sh"), "2", *PACED, *N_ROUNDS, "--run.dir", "chain", **PACE,
        SBATCH_OPTIONS="-N2 -n2",
    )  # fmt: skip
    first, second = (line.split()[-1] for line in told.splitlines())
    path = slurm.folder / "chain"
    slurm.wait_for(lambda: rounds(path) > 20)
    assert slurm.job(second)["JobState"] == "PENDING"
    slurm.call("scancel", "--batch", "--signal=USR2", first)
    assert slurm.wait_for_end(second)["JobState"] == "COMPLETED"
    assert slurm.job(first)["Restarts"] == slurm.job(second)["Restarts"] == "0"
    assert summary(path)["table_sha256"] == undisturbed


def test_a_more_urgent_job_comes_in_between(slurm: Slurm, undisturbed: str) -> None:
    number = slurm.submit(
        "-N3", "-n3", "--exclusive", TRAIN, *PACED, *N_ROUNDS, "--run.dir", "preempted", **PACE
    )
    path = slurm.folder / "preempted"
    slurm.wait_for(lambda: rounds(path) > 20)
    urgent = slurm.submit("-p", "urgent", "-N3", "--exclusive", "--wrap", "sleep 1")
    assert slurm.wait_for_end(urgent)["JobState"] == "COMPLETED"
    slurm.start_again(number)
    assert slurm.wait_for_end(number)["JobState"] == "COMPLETED"
    assert slurm.job(number)["Restarts"] != "0"
    assert summary(path)["table_sha256"] == undisturbed


def test_an_array_over_seeds(slurm: Slurm) -> None:
    number = slurm.submit(
        "--array=0-2", "-n2", SWEEP, str(ROOT / "jobs" / "configs" / "taxi.toml"),
        SWEEP="sweep", JOBS=str(ROOT / "jobs"), PYTHON=sys.executable,
    )  # fmt: skip
    slurm.wait_for(lambda: not slurm.call("squeue", "-h", "-j", number), 120)
    told = [summary(slurm.folder / "sweep" / f"seed-{seed}") for seed in range(3)]
    assert [one["status"] for one in told] == ["converged"] * 3
    assert len({one["table_sha256"] for one in told}) == 3


def test_scancel_leaves_a_run_that_can_be_resumed(slurm: Slurm, undisturbed: str) -> None:
    number = slurm.submit(
        "-n2", TRAIN, *PACED, *N_ROUNDS, "--checkpoint.every_rounds", "5", "--run.dir", "cancelled",
        **PACE,
    )  # fmt: skip
    path = slurm.folder / "cancelled"
    slurm.wait_for(lambda: rounds(path) > 20)
    slurm.call("scancel", number)
    assert slurm.wait_for_end(number)["JobState"] == "CANCELLED"
    ended = distq(1, "resume", str(path), cwd=slurm.folder)
    assert ended.code == 0, ended.err
    assert summary(path)["table_sha256"] == undisturbed


def test_a_rank_killed_inside_the_job_is_survived(slurm: Slurm, undisturbed: str) -> None:
    launcher = f"{Path(sys.prefix) / 'bin' / 'mpirun'} --with-ft ulfm"
    number = slurm.submit(
        "-N3", "-n3", TRAIN, *PACED, *N_ROUNDS, "--run.dir", "killed", **PACE, LAUNCHER=launcher
    )
    path = slurm.folder / "killed"
    slurm.wait_for(lambda: rounds(path) > 20)
    os.kill(int(json.loads((path / "run.json").read_text())["pid"]), signal.SIGKILL)
    slurm.wait_for_end(number)
    told = summary(path)
    assert told["table_sha256"] == undisturbed and told["ranks_finished"] == 2


def test_a_lost_node_under_supervise(slurm: Slurm, undisturbed: str) -> None:
    mpirun = str(Path(sys.prefix) / "bin" / "mpirun")
    words = [sys.executable, "-m", "distq_mpi", "supervise", "--silent-s", "20", "--hosts-from",
             str(ROOT / "jobs" / "alive-hosts"), "--", mpirun, "--host", "{hosts}", "-n", "{ranks}",
             sys.executable, "-m", "distq_mpi", "train", *PACED, *N_ROUNDS,
             "--checkpoint.every_rounds", "5", "--run.dir", "node"]  # fmt: skip
    script = slurm.folder / "supervise.sh"
    script.write_text("#!/bin/bash\n" + " ".join(f"'{word}'" for word in words) + "\n")
    number = slurm.submit("-N3", "-n3", "--no-kill", "-o", "node.out", str(script), **PACE)
    path = slurm.folder / "node"
    slurm.wait_for(lambda: rounds(path) > 20)
    batch = slurm.job(number)["BatchHost"]
    slurm.lose_node(next(f"n{k}" for k in (1, 2, 3) if f"n{k}" != batch))
    slurm.wait_for_end(number, 150)
    told = (slurm.folder / "node.out").read_text()
    assert summary(path)["table_sha256"] == undisturbed, told
    assert told.count("supervise: start") >= 2 and "-n 2" in told, told
