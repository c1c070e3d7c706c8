"""Several hosts, with TCP between them: the same bits, and links that are cut."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.test_slurm import rounds
from tests.hosts import Hosts, missing
from tests.launching import distq, is_open_mpi, run

pytestmark = [
    pytest.mark.skipif(bool(missing()), reason=f"virtual hosts need {', '.join(missing())}"),
    pytest.mark.skipif(not is_open_mpi(), reason="the agent is for Open MPI's launcher"),
]

GARNET = ("--env.id", "garnet", "--env.kwargs.states", "20000", "--env.kwargs.actions", "4",
          "--parallel.agents", "6", "--evaluate.exact", "false")  # fmt: skip
SHARDED = ("--parallel.architecture", "sharded", "--parallel.lanes", "64")
PACED = ("--env.id", "tests.worlds:PacedLake-v0", "--parallel.agents", "3", "--parallel.lanes", "3",
         "--parallel.steps_per_round", "10", "--evaluate.episodes", "0",
         "--run.report_every_s", "0.1", "--checkpoint.every_rounds", "5")  # fmt: skip


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    made = Hosts(tmp_path_factory.mktemp("hosts"))
    yield made
    made.close()


def summary(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / "summary.json").read_text())
    return found


@pytest.mark.parametrize("options", [GARNET, SHARDED, ("--parallel.agents", "6")])
def test_three_hosts_give_the_bits_of_one(
    options: tuple[str, ...], hosts: Hosts, tmp_path: Path
) -> None:
    words = ("-m", "distq_mpi", "train", *options, "--stop.rounds", "40")
    ended = hosts.start(6, *words, "--run.dir", str(tmp_path / "three")).wait(120)
    assert ended.code == 0, ended.err
    ended = run(1, [*words, "--run.dir", "one"], tmp_path)
    assert ended.code == 0, ended.err
    one, three = summary(tmp_path / "one"), summary(tmp_path / "three")
    provenance = json.loads((tmp_path / "three" / "provenance.json").read_text())
    assert set(hosts.names) <= set(json.dumps(provenance).replace('"', " ").split())
    for key in ("table_sha256", "steps", "episodes"):
        assert one[key] == three[key], key


def test_a_host_that_is_cut_off_ends_in_one_group_or_none(hosts: Hosts, tmp_path: Path) -> None:
    whole = distq(2, "train", "--run.dir", "whole", *PACED, "--stop.rounds", "150", cwd=tmp_path)
    assert whole.code == 0, whole.err
    path = tmp_path / "cut"
    job = hosts.start(
        3, "-m", "distq_mpi", "train", *PACED, "--stop.rounds", "150", "--run.dir", str(path),
        options=("--with-ft", "ulfm", "--map-by", "node"), PACE_S="0.005",
    )  # fmt: skip
    try:
        while rounds(path) < 20 and job.process.poll() is None:
            pass
        hosts.link(hosts.names[2], up=False)
        ended = job.wait(90)
    finally:
        hosts.link(hosts.names[2], up=True)
        job.end()
    finished = (path / "summary.json").exists() and summary(path)["status"] == "finished"
    if not finished:  # a clean stop: what is there goes on
        assert ended.code != 0
        resumed = distq(2, "resume", str(path), cwd=tmp_path)
        assert resumed.code == 0, resumed.err
    assert summary(path)["table_sha256"] == summary(tmp_path / "whole")["table_sha256"]
