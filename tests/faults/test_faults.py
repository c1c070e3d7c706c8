"""Real kills, signals, full disks and exceptions."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.launching import Job, distq, is_open_mpi, run, start

FAULTY = str(Path(__file__).with_name("faulty.py"))
LONG = ("--parallel.agents", "4", "--stop.rounds", "4000", "--evaluate.exact", "false")


def summary(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / "summary.json").read_text())
    return found


def begin(n_ranks: int, path: Path, *options: str) -> Job:
    """Start training in `path` and return once it has reported a round."""
    job = start(
        n_ranks, ["-m", "distq_mpi", "train", "--run.dir", str(path), *options], path.parent
    )
    wait_for(lambda: (path / "metrics.jsonl").exists() and (path / "metrics.jsonl").stat().st_size)
    return job


def wait_for(condition: Any, limit_s: float = 60) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The hash of a run that wrote no checkpoint before its end."""
    path = tmp_path_factory.mktemp("whole") / "run"
    ended = distq(
        1, "train", "--run.dir", str(path), *LONG, "--checkpoint.every_rounds", "0",
        cwd=path.parent,
    )  # fmt: skip
    assert ended.code == 0, ended.err
    found: str = summary(path)["table_sha256"]
    return found


@pytest.mark.parametrize("n_ranks", [1, 3])
def test_kill_the_whole_job_and_resume(n_ranks: int, uninterrupted: str, tmp_path: Path) -> None:
    path = tmp_path / "run"
    job = begin(2, path, *LONG, "--checkpoint.every_rounds", "50", "--run.report_every_s", "0.01")
    wait_for(lambda: any((path / "checkpoints").glob("*.h5")))
    time.sleep(random.Random(n_ranks).random() * 0.2)
    job.end()
    job.wait(30)
    ended = distq(n_ranks, "resume", str(path), cwd=tmp_path)
    assert ended.code == 0, ended.err
    assert summary(path)["table_sha256"] == uninterrupted


@pytest.mark.parametrize("staleness", ["0", "inf"])
def test_a_killed_worker_ends_the_job_where_mpi_cannot_go_on(
    staleness: str, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    job = begin(
        3, path, "--parallel.architecture", "server", "--parallel.staleness", staleness,
        "--stop.wall_time_s", "300", "--checkpoint.every_rounds", "2", "--evaluate.exact", "false",
        "--run.report_every_s", "0.05",
    )  # fmt: skip
    wait_for(lambda: any((path / "checkpoints").glob("*.h5")))
    os.kill(max(job.ranks()), signal.SIGKILL)
    ended = job.wait(60)
    assert ended.code != 0
    ended = distq(2, "resume", str(path), "--stop.wall_time_s", "0.5", cwd=tmp_path)
    assert ended.code == 0, ended.err
    assert summary(path)["status"] == "finished"


ENDLESS = ("--parallel.agents", "2", "--stop.wall_time_s", "300", "--evaluate.exact", "false",
           "--run.report_every_s", "0.05")  # fmt: skip


@pytest.mark.parametrize("name", ["USR2", "TERM", "INT"])
def test_a_signal_to_a_rank_saves_and_exits_75(name: str, tmp_path: Path) -> None:
    path = tmp_path / "run"
    job = begin(2, path, *ENDLESS)
    os.kill(job.ranks()[0], getattr(signal, f"SIG{name}"))
    ended = job.wait(60)
    assert ended.code == 75, (ended.code, ended.err)
    assert summary(path)["status"] == "interrupted"
    assert json.loads((path / "run.json").read_text())["state"] == "interrupted"


def test_a_signal_to_the_launcher(tmp_path: Path) -> None:
    """Open MPI's forwards USR2 to the ranks; MPICH's forwards INT and dies of USR2."""
    path = tmp_path / "run"
    job = begin(2, path, *ENDLESS)
    os.kill(job.process.pid, signal.SIGUSR2 if is_open_mpi() else signal.SIGINT)
    assert job.wait(60).code == 75
    resumed = distq(2, "resume", str(path), "--stop.wall_time_s", "1", cwd=tmp_path)
    assert resumed.code == 0, resumed.err


def test_usr1_checkpoints_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "run"
    job = begin(2, path, *ENDLESS, "--checkpoint.every_rounds", "0")
    os.kill(job.ranks()[0], signal.SIGUSR1)
    wait_for(lambda: any((path / "checkpoints").glob("*.h5")))
    assert job.process.poll() is None
    (path / "control" / "stop").touch()
    assert job.wait(60).code == 75


def test_control_files_ask(tmp_path: Path) -> None:
    path = tmp_path / "run"
    job = begin(2, path, *ENDLESS, "--checkpoint.every_rounds", "0")
    (path / "control" / "checkpoint").touch()
    wait_for(lambda: any((path / "checkpoints").glob("*.h5")))
    (path / "control" / "stop").touch()
    assert job.wait(60).code == 75


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_an_exception_on_one_rank_ends_the_job(rank: int, tmp_path: Path) -> None:
    ended = run(3, [FAULTY, "train"], tmp_path, limit_s=60, FAULT="raise", FAULT_RANK=str(rank))
    assert ended.code != 0
    assert ended.err.count("ZeroDivisionError: a fault on one rank") == 1


@pytest.mark.parametrize("rank", [0, 1])
def test_a_mistake_of_one_rank_ends_the_job(rank: int, tmp_path: Path) -> None:
    ended = run(2, [FAULTY, "train"], tmp_path, limit_s=60, FAULT="distq", FAULT_RANK=str(rank))
    assert ended.code != 0
    assert ended.err.count("error: a mistake on one rank") == 1


def test_metrics_that_cannot_be_written_end_the_job(tmp_path: Path) -> None:
    ended = run(
        2,
        [FAULTY, "train", "--run.dir", "run", "--checkpoint.every_rounds", "0",
         "--run.report_every_s", "0.0001", "--stop.steps", "1e8"],
        tmp_path, limit_s=60, FAULT="fsize", FAULT_RANK="0", FAULT_BYTES="2000",
    )  # fmt: skip
    assert ended.code == 1, (ended.code, ended.err)
    assert ended.err.count("error: ") == 1 and "run/" in ended.err
    assert "Traceback" not in ended.err


def test_a_request_is_not_lost_when_a_round_is_run_again(tmp_path: Path) -> None:
    """With rewards of -100 the first round does not fit the first guess of the scale."""
    grid = ("--env.id", "grid", "--env.kwargs.rows", "10", "--env.kwargs.columns", "10",
            "--env.kwargs.step_reward=-100", "--parallel.agents", "2")  # fmt: skip
    ended = run(
        2, [FAULTY, "train", "--run.dir", "run", *grid], tmp_path, FAULT="stop", FAULT_RANK="0"
    )
    assert ended.code == 75, (ended.code, ended.err)
    assert summary(tmp_path / "run")["rounds"] == 1


def test_file_size_limit_is_one_message_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "run"
    garnet = ("--env.id", "garnet", "--env.kwargs.states", "2000", "--env.kwargs.actions", "4",
              "--env.kwargs.branching", "3", "--evaluate.exact", "false")  # fmt: skip
    options = ("train", "--run.dir", str(path), *garnet, "--parallel.agents", "2")
    assert distq(2, *options, "--stop.rounds", "4", cwd=tmp_path).code == 0
    good = sorted((path / "checkpoints").iterdir())
    ended = run(
        2, [FAULTY, "resume", str(path), "--stop.rounds", "10"], tmp_path, limit_s=60,
        FAULT="fsize", FAULT_RANK="0",
    )  # fmt: skip
    assert ended.code == 1, (ended.code, ended.err)
    assert "checkpoints" in ended.err and "Traceback" not in ended.err
    assert ended.err.count("error:") == 1
    assert sorted((path / "checkpoints").iterdir()) == good
    assert distq(1, "resume", str(path), "--stop.rounds", "10", cwd=tmp_path).code == 0


def test_full_disk(tmp_path: Path) -> None:
    """On a real small file system where root may mount one, else under a limit of file size."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0
    options = (
        "train", "--run.dir", str(disk / "run"), "--env.id", "garnet", "--env.kwargs.states",
        "8000", "--env.kwargs.actions", "8", "--env.kwargs.branching", "2", "--evaluate.exact",
        "false", "--stop.rounds", "5",
    )  # fmt: skip
    try:
        if mounted:
            ended = distq(2, *options, cwd=tmp_path)
        else:
            ended = run(2, [FAULTY, *options], tmp_path, FAULT="fsize", FAULT_RANK="0")
        assert ended.code == 1, (ended.code, ended.err)
        assert str(disk) in ended.err and "Traceback" not in ended.err
        assert not list((disk / "run" / "checkpoints").glob("*.h5"))
    finally:
        if mounted:
            subprocess.run(["umount", str(disk)], check=True)
