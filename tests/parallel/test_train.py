"""The main job, from the command line, on real ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.launching import distq

CHAIN = ("--env.id", "tests.contract.chain:Chain")


def summary(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / "summary.json").read_text())
    return found


def train(n_ranks: int, path: Path, *options: str, code: int = 0, **kwargs: Any) -> dict[str, Any]:
    """Run to the end in `path`, check the exit code, return the summary."""
    ended = distq(n_ranks, "train", "--run.dir", str(path), *options, cwd=path.parent, **kwargs)
    assert ended.code == code, ended.out + ended.err
    return summary(path)


@pytest.mark.parametrize("n_ranks", [0, 1, 2, 3])
def test_default_configuration_stops_by_itself_at_the_optimum(n_ranks: int, tmp_path: Path) -> None:
    ended = distq(n_ranks, cwd=tmp_path)
    assert ended.code == 0, ended.err
    found = summary(tmp_path / "runs" / "FrozenLake8x8-v1-0001")
    certificate = found["certificate"]
    assert found["status"] == "converged"
    assert found["ranks_started"] == max(1, n_ranks)
    assert certificate["policy_gap"] <= 1e-3
    assert certificate["optimal_value"] == pytest.approx(0.4146403618, abs=1e-8)
    assert "optimal" in ended.out


def test_taxi_reaches_a_loss_of_a_thousandth_and_the_known_return(tmp_path: Path) -> None:
    found = train(2, tmp_path / "run", "--env.id", "Taxi-v4", "--stop.policy_loss", "1e-3")
    assert found["certificate"]["policy_loss"] <= 1e-3
    assert found["certificate"]["policy_return"] == pytest.approx(7.93, abs=1e-9)


def test_cliff_walking_reaches_thirteen_steps(tmp_path: Path) -> None:
    found = train(2, tmp_path / "run", "--env.id", "CliffWalking-v1")
    assert found["certificate"]["policy_return"] == pytest.approx(-13, abs=1e-9)
    assert found["evaluation"]["mean_return"] == -13


@pytest.mark.parametrize("n_ranks", [5, 16])
def test_more_ranks_than_states(n_ranks: int, tmp_path: Path) -> None:
    found = train(
        n_ranks, tmp_path / "run", *CHAIN, "--env.kwargs.length", "3", "--stop.steps", "20000"
    )
    assert found["ranks_finished"] == n_ranks
    assert found["agents"] == n_ranks and found["agents_from_ranks"]


def test_sixty_four_ranks_start(tmp_path: Path) -> None:
    found = train(64, tmp_path / "run", "--stop.rounds", "3", limit_s=300)
    assert found["ranks_finished"] == 64
    assert found["startup_time_s"] > 0


def test_steps_stop_exactly(tmp_path: Path) -> None:
    found = train(2, tmp_path / "run", "--stop.steps", "100000", "--evaluate.exact", "false")
    assert found["steps"] == 100_096  # rounded up to a whole step of all 128 lanes
    assert found["certificate"]["kind"] == "none"


def test_it_learns_and_does_not_plan(tmp_path: Path) -> None:
    """Without exact values the table is the same: no learning kernel ever reads V*."""
    options = ("--stop.rounds", "40", "--parallel.agents", "2")
    with_truth = train(2, tmp_path / "with", *options)
    without = train(2, tmp_path / "without", *options, "--evaluate.exact", "false")
    assert with_truth["table_sha256"] == without["table_sha256"]
    assert with_truth["certificate"]["kind"] == "exact"


def test_ranks_do_not_matter_to_the_whole_program(tmp_path: Path) -> None:
    options = ("--parallel.agents", "6", "--stop.policy_gap", "0.01")
    runs = [train(n, tmp_path / str(n), *options) for n in (1, 2, 5)]
    for key in ("table_sha256", "steps", "rounds", "certificate", "evaluation", "status"):
        assert runs[0][key] == runs[1][key] == runs[2][key], key


def test_tables_in_memory_that_ranks_share_have_the_same_bits(tmp_path: Path) -> None:
    # 40,000 pairs: too many to be reduced in one message.
    options = ("--env.id", "grid", "--env.kwargs.rows", "100", "--env.kwargs.columns", "100",
               "--env.kwargs.slip", "0.2", "--parallel.agents", "3", "--learn.initial", "random",
               "--evaluate.exact", "false", "--evaluate.episodes", "2")  # fmt: skip
    whole = train(1, tmp_path / "whole", *options, "--stop.rounds", "40")
    train(3, tmp_path / "cut", *options, "--stop.rounds", "21")
    ended = distq(2, "resume", "cut", "--stop.rounds", "40", cwd=tmp_path)
    assert ended.code == 0, ended.err
    resumed = summary(tmp_path / "cut")
    for key in ("table_sha256", "steps", "episodes", "evaluation"):
        assert resumed[key] == whole[key], key
    verified = distq(0, "verify", "whole", "cut", cwd=tmp_path)
    assert verified.code == 0 and "visits        the same" in verified.out


@pytest.mark.parametrize("n_ranks", [1, 3])
def test_resume_on_other_ranks_gives_the_bits_of_one_run(n_ranks: int, tmp_path: Path) -> None:
    options = ("--parallel.agents", "4", "--checkpoint.every_rounds", "0")
    whole = train(2, tmp_path / "whole", *options, "--stop.rounds", "90")
    train(2, tmp_path / "cut", *options, "--stop.rounds", "37")
    ended = distq(
        n_ranks, "resume", str(tmp_path / "cut"), "--stop.rounds", "90", cwd=tmp_path
    )
    assert ended.code == 0, ended.err
    resumed = summary(tmp_path / "cut")
    for key in ("table_sha256", "steps", "episodes", "certificate", "agents", "lanes"):
        assert resumed[key] == whole[key], key


def test_a_missed_target_is_told_by_the_exit_code(tmp_path: Path) -> None:
    found = train(
        2, tmp_path / "run", "--stop.policy_gap", "1e-12", "--stop.steps", "1e5", code=3
    )
    assert found["status"] == "finished"


def test_dry_run_and_help_start_no_mpi(tmp_path: Path) -> None:
    for n_ranks in (0, 2):
        shown = distq(n_ranks, "train", "--dry-run", cwd=tmp_path)
        assert shown.code == 0 and shown.out.count("[parallel]") == 1
        helped = distq(n_ranks, "--help", cwd=tmp_path)
        assert helped.code == 0 and "train" in helped.out
    assert not (tmp_path / "runs").exists()


def test_info_shows_a_checkpoint(tmp_path: Path) -> None:
    found = train(1, tmp_path / "run", "--stop.rounds", "3")
    shown = distq(0, "info", found["checkpoint"], cwd=tmp_path)
    assert shown.code == 0 and "64" in shown.out
