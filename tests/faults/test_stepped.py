"""Environments that break while they are stepped, and runs that are taken up again."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.faults.test_faults import wait_for
from tests.launching import ROOT, distq, start
from tests.worlds import LEAVING


def train(folder: Path, n_ranks: int, id: str, *options: str, **extra: str) -> Any:
    return distq(
        n_ranks, "train", "--env.id", id, "--parallel.agents", "2", "--parallel.lanes", "8",
        "--stop.rounds", "60", "--parallel.steps_per_round", "5", *options, cwd=folder, **extra,
    )  # fmt: skip


@pytest.mark.parametrize("trouble", ["raises", "outside", "hollow"])
def test_a_broken_environment_is_named_once_and_ends_all_ranks(
    trouble: str, tmp_path: Path
) -> None:
    ended = train(tmp_path, 2, "tests.worlds:Walk-v0", "--env.kwargs.trouble", trouble)
    assert ended.code == 2, ended.out + ended.err
    lines = [line for line in ended.err.splitlines() if "tests.worlds:Walk-v0: lane" in line]
    # A rank that breaks ends the job at once; another may have broken in the same moment.
    assert 1 <= len(lines) <= 2 and "state 2, action " in lines[0]
    assert "Traceback" not in ended.err


@pytest.mark.parametrize("trouble", list(LEAVING))
def test_one_rank_whose_environment_leaves_loses_nothing(trouble: str, tmp_path: Path) -> None:
    options = ("--env.kwargs.trouble", trouble, "--run.dir")
    whole = train(tmp_path, 2, "tests.worlds:Walk-v0", *options, "whole", MENDED="1")
    assert whole.code == 0, whole.err
    ended = train(tmp_path, 2, "tests.worlds:Walk-v0", *options, "broken")
    assert ended.code == 2, ended.out + ended.err
    (line,) = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    error = LEAVING[trouble]
    assert re.search(r"tests.worlds:Walk-v0: lane [4-7], state \d, action [01]: ", line)
    assert line.endswith(f"{type(error).__name__}: {error}" if str(error) else "Interrupt")
    assert "Traceback" not in ended.err and "is saved" in ended.out
    state = json.loads((tmp_path / "broken" / "run.json").read_text())["state"]
    assert state == "failed"
    again = distq(2, "resume", "broken", cwd=tmp_path, MENDED="1")
    assert again.code == 0, again.err
    found, wanted = (
        json.loads((tmp_path / name / "summary.json").read_text()) for name in ("broken", "whole")
    )
    assert found["table_sha256"] == wanted["table_sha256"] and found["reproducible"]


def test_a_module_that_exits_ends_all_ranks(tmp_path: Path) -> None:
    (tmp_path / "leaving.py").write_text("import sys\nsys.exit(0)\n")
    for id in ("leaving:Law", "leaving:Name-v0"):
        ended = train(tmp_path, 2, id)
        assert ended.code == 2 and "SystemExit: 0" in ended.err, ended.out + ended.err


@pytest.mark.parametrize("rank", [0, 1])
def test_an_evaluation_ends_when_a_rank_is_asked_to(rank: int, tmp_path: Path) -> None:
    """It would go on for a day."""
    job = start(
        2,
        ["-m", "distq_mpi", "train", "--env.id", "tests.worlds:Endless-v0", "--parallel.lanes",
         "2", "--parallel.agents", "2", "--stop.steps", "40", "--run.dir", "run"],
        tmp_path,
    )  # fmt: skip
    wait_for(lambda: any((tmp_path / "run" / "checkpoints").glob("*.h5")))
    os.kill(sorted(job.ranks())[rank], signal.SIGTERM)
    ended = job.wait(60)
    assert ended.code == 0, ended.err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["evaluation"] is None and summary["steps"] == 40
    assert "evaluation is left out" in ended.out


def test_an_environment_that_cannot_be_brought_back_is_not_called_reproducible(
    tmp_path: Path,
) -> None:
    options = ("--env.kwargs.trouble", "forgets", "--run.dir", "run")
    first = train(tmp_path, 2, "tests.worlds:Walk-v0", *options)
    assert first.code == 0, first.err
    again = distq(2, "resume", "run", "--stop.rounds", "90", cwd=tmp_path)
    assert again.code == 0, again.err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["reproducible"] is False and summary["rounds"] == 90
    assert "not reproducible" in again.out


def test_only_a_vector(tmp_path: Path) -> None:
    ended = train(tmp_path, 3, "tests.worlds:Row-v0", "--run.dir", "run")
    assert ended.code == 0, ended.err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["reproducible"] is False and summary["evaluation"]["mean_return"] < 0
    assert str(ROOT) not in ended.out
