"""`parallel.fusion = hogwild` from the command line, on real ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.launching import distq
from tests.parallel.test_train import train

HOGWILD = ("--parallel.fusion", "hogwild", "--parallel.reproducible", "false")


@pytest.mark.parametrize(("n_ranks", "n_agents"), [(0, 2), (2, 2), (3, 4), (4, 2)])
def test_it_reaches_the_optimum(n_ranks: int, n_agents: int, tmp_path: Path) -> None:
    found = train(n_ranks, tmp_path / "run", *HOGWILD, "--parallel.agents", str(n_agents))
    assert found["status"] == "converged" and found["certificate"]["policy_gap"] <= 1e-3
    assert not found["reproducible"]


def test_stopped_and_taken_up_on_other_ranks(tmp_path: Path) -> None:
    options = (*HOGWILD, "--env.id", "Taxi-v4", "--parallel.agents", "3",
               "--parallel.steps_per_round", "50")  # fmt: skip
    cut = train(3, tmp_path / "cut", *options, "--stop.rounds", "2")
    checked = distq(0, "verify", "cut", cwd=tmp_path)
    assert checked.code == 0, checked.out + checked.err
    more = ("--stop.rounds", "100000", "--stop.policy_loss", "0.001")
    resumed = distq(2, "resume", "cut", *more, cwd=tmp_path)
    assert resumed.code == 0, resumed.err
    found = json.loads((tmp_path / "cut" / "summary.json").read_text())
    assert found["steps"] > cut["steps"]
    assert found["certificate"]["policy_return"] == pytest.approx(7.93, abs=1e-9)


def test_one_agent_has_the_bits_of_any_other_fusion(tmp_path: Path) -> None:
    same = ("--parallel.agents", "1", "--stop.rounds", "5")
    alone = train(2, tmp_path / "hogwild", *HOGWILD, *same)
    pooled = train(1, tmp_path / "pooled", *same)
    assert alone["table_sha256"] == pooled["table_sha256"] and alone["reproducible"]


def test_a_large_table_of_one_agent_has_the_same_bits_in_place_and_beside_a_rank_that_looks_on(
    tmp_path: Path,
) -> None:
    large = ("--env.id", "grid", "--env.kwargs.rows", "1024", "--env.kwargs.columns", "1024",
             "--env.kwargs.slip", "0.2", "--learn.exploring_starts", "true",
             "--parallel.agents", "1", "--evaluate.exact", "false")  # fmt: skip
    beside = train(2, tmp_path / "beside", *large, "--stop.rounds", "2")
    alone = train(0, tmp_path / "alone", *large, "--stop.rounds", "1")
    assert alone["status"] == "finished"
    resumed = distq(0, "resume", "alone", "--stop.rounds", "2", cwd=tmp_path)
    assert resumed.code == 0, resumed.err
    found = json.loads((tmp_path / "alone" / "summary.json").read_text())
    assert found["table_sha256"] == beside["table_sha256"] and found["reproducible"]
    compared = distq(0, "verify", "alone", "beside", cwd=tmp_path)
    assert compared.code == 0, compared.out + compared.err
