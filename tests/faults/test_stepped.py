"""Environments that break while they are stepped, and runs that are taken up again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.launching import ROOT, distq


def train(folder: Path, n_ranks: int, id: str, *options: str) -> Any:
    return distq(
        n_ranks, "train", "--env.id", id, "--parallel.agents", "2", "--parallel.lanes", "8",
        "--stop.rounds", "60", "--parallel.steps_per_round", "5", *options, cwd=folder,
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
