"""The tools on real runs, on real ranks."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from distq_mpi import upgrading
from tests.launching import distq, is_open_mpi, launcher
from tests.unit.test_tools import from_version_0, to_version_0

OPTIONS = ("--parallel.agents", "3", "--stop.rounds", "60", "--checkpoint.every_rounds", "40")


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs on different ranks under Double Q, and one of another seed."""
    folder = tmp_path_factory.mktemp("runs")
    for n_ranks, name, seed in ((2, "a", "1"), (3, "b", "1"), (1, "c", "2")):
        ended = distq(
            n_ranks, "train", "--run.dir", name, *OPTIONS, "--run.seed", seed,
            "--learn.rule", "double_q", cwd=folder,
        )  # fmt: skip
        assert ended.code == 0, ended.err
    return folder


@pytest.mark.parametrize("n_ranks", [0, 1, 3])
def test_evaluate_says_what_train_said(n_ranks: int, runs: Path) -> None:
    before = snapshot(runs)
    ended = distq(n_ranks, "evaluate", "a", "--json", cwd=runs)
    assert ended.code == 0, ended.err
    found, summary = json.loads(ended.out), json.loads((runs / "a" / "summary.json").read_text())
    for key in ("certificate", "evaluation", "table_sha256", "rounds", "steps", "env", "seed",
                "states", "states_reachable", "actions"):  # fmt: skip
        assert found[key] == summary[key], key
    assert found["certificate"]["kind"] == "exact"
    assert snapshot(runs) == before


def test_evaluate_of_an_earlier_checkpoint_with_other_episodes(runs: Path) -> None:
    path = runs / "a" / "checkpoints" / "round-000000000040.h5"
    told = []
    for n_ranks, seed in ((2, "5"), (1, "5"), (1, "6")):
        ended = distq(
            n_ranks, "evaluate", str(path), "--json", "--evaluate.episodes", "40", "--run.seed",
            seed, "--evaluate.exact", "false", cwd=runs,
        )  # fmt: skip
        assert ended.code == 0, ended.err
        told.append(json.loads(ended.out))
    assert told[0] == told[1] != told[2]
    assert told[0]["rounds"] == 40 and told[0]["evaluation"]["episodes"] == 40
    assert told[0]["certificate"]["kind"] == "none"
    assert told[0]["no_exact_values"] == "evaluate.exact is false"


def test_verify_under_a_launcher_speaks_once(runs: Path) -> None:
    same = distq(2, "verify", "a", "b", cwd=runs)
    assert same.code == 0 and same.out.count("the same table, bit for bit") == 1, same.err
    other = distq(0, "verify", "a", "c", "--json", cwd=runs)
    assert other.code == 3
    found = json.loads(other.out)["comparison"]
    assert not found["same_table"] and found["configuration"] == {"run.seed": [1, 2]}
    assert found["largest"]["difference"] > 0 and found["others"]["lanes"] > 0


def test_an_upgraded_run_goes_on_as_if_nothing_had_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--parallel.agents", "3", "--checkpoint.every_rounds", "0")
    assert distq(2, "train", "--run.dir", "whole", *options, "--stop.rounds", "70",
                 cwd=tmp_path).code == 0  # fmt: skip
    assert distq(1, "train", "--run.dir", "cut", *options, "--stop.rounds", "30",
                 cwd=tmp_path).code == 0  # fmt: skip
    (path,) = (tmp_path / "cut" / "checkpoints").iterdir()
    for file in (path, tmp_path / "cut" / "result.h5"):
        to_version_0(file)
    refused = distq(2, "resume", "cut", "--stop.rounds", "70", cwd=tmp_path)
    assert refused.code == 1 and "distq_mpi upgrade" in refused.err
    monkeypatch.setitem(upgrading.STEPS, 0, from_version_0)
    upgrading.upgrade(str(tmp_path / "cut"))
    resumed = distq(2, "resume", "cut", "--stop.rounds", "70", cwd=tmp_path)
    assert resumed.code == 0, resumed.err
    same = distq(0, "verify", "whole", "cut", cwd=tmp_path)
    assert same.code == 0, same.out + same.err


def test_doctor_speaks_once_for_all_ranks(tmp_path: Path) -> None:
    path = f"{Path(launcher()).parent}{os.pathsep}{os.environ['PATH']}"
    ended = distq(3, "doctor", "--json", cwd=tmp_path, PATH=path)
    rows: dict[str, Any] = {row["name"]: row for row in json.loads(ended.out)}
    wrong = [row for row in rows.values() if row["verdict"] == "wrong"]
    assert ended.code == 0 and not wrong, wrong
    assert rows["ranks"]["found"] == "3 of 3 launched"
    assert rows["messages"]["found"].startswith("right among 3 ranks")
    assert rows["cores"]["found"].startswith("3 ranks on ")
    assert ("Open MPI" in rows["mpi library"]["found"]) == is_open_mpi()
    assert list(tmp_path.iterdir()) == []


def test_doctor_alone_prints_a_line_per_check(tmp_path: Path) -> None:
    ended = distq(0, "doctor", cwd=tmp_path)
    assert ended.code == 0, ended.out
    assert "1, without a launcher" in ended.out and ended.out.rstrip().endswith("0 wrong")


def test_a_certificate_is_found_again_on_other_ranks(runs: Path, tmp_path: Path) -> None:
    asked = ("--samples", "200", "--delta", "0.1", "--certificate", str(tmp_path / "claim.json"))
    assert distq(2, "evaluate", "a", *asked, cwd=runs).code == 0
    again = distq(3, "verify", "b", "--certificate", str(tmp_path / "claim.json"), cwd=runs)
    assert again.code == 0 and "every number is found again" in again.out, again.err
    claim = json.loads((tmp_path / "claim.json").read_text())
    assert claim["sampled"]["uncertified_pairs"] == 0
    assert claim["exact"]["q_error"] <= claim["sampled"]["q_error_bound"]
    for part, key in (("exact", "policy_loss"), ("sampled", "q_error_bound")):
        claim[part][key] *= 0.9
    (tmp_path / "false.json").write_text(json.dumps(claim))
    false = distq(2, "verify", "a", "--certificate", str(tmp_path / "false.json"), "--json",
                  cwd=runs)  # fmt: skip
    assert false.code == 3
    assert [fault.split(" is ")[0] for fault in json.loads(false.out)["faults"]] == [
        "exact policy_loss", "sampled q_error_bound",
    ]  # fmt: skip
    other = distq(0, "verify", "c", "--certificate", str(tmp_path / "claim.json"), cwd=runs)
    assert other.code == 3 and "table_sha256" in other.out
