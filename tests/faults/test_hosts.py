"""Several hosts, with TCP between them: the same bits, and a link that is cut."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.test_slurm import rounds
from tests.hosts import Hosts, missing
from tests.launching import is_open_mpi, run

pytestmark = [
    pytest.mark.skipif(bool(missing()), reason=f"virtual hosts need {', '.join(missing())}"),
    pytest.mark.skipif(not is_open_mpi(), reason="the agent is for Open MPI's launcher"),
]

GARNET = ("--env.id", "garnet", "--env.kwargs.states", "20000", "--env.kwargs.actions", "4",
          "--env.kwargs.branching", "2", "--parallel.agents", "6", "--evaluate.exact", "false",
          "--parallel.fusion", "mean")  # fmt: skip
SHARDED = ("--parallel.architecture", "sharded", "--parallel.lanes", "64")


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
    ended = hosts.start(6, *words, "--run.dir", str(tmp_path / "three")).wait(60)
    assert ended.code == 0, ended.err
    ended = run(1, [*words, "--run.dir", "one"], tmp_path)
    assert ended.code == 0, ended.err
    one, three = summary(tmp_path / "one"), summary(tmp_path / "three")
    provenance = json.loads((tmp_path / "three" / "provenance.json").read_text())
    assert set(hosts.names) <= set(json.dumps(provenance).replace('"', " ").split())
    for key in ("table_sha256", "steps", "episodes"):
        assert one[key] == three[key], key


def test_a_host_that_is_cut_off_leaves_one_group_that_goes_on(
    hosts: Hosts, tmp_path: Path
) -> None:
    """The launcher waits for the lost daemon for ever; the run itself comes to its verdict."""
    paced = ("-m", "distq_mpi", "train", "--env.id", "tests.worlds:PacedLake-v0",
             "--parallel.agents", "3", "--parallel.lanes", "3", "--parallel.steps_per_round", "10",
             "--evaluate.episodes", "0", "--run.report_every_s", "0.1", "--stop.rounds", "100")
    whole = run(1, [*paced, "--run.dir", "whole"], tmp_path)  # fmt: skip
    assert whole.code == 0, whole.err
    path = tmp_path / "cut"
    job = hosts.start(
        3, *paced, "--run.dir", str(path), options=("--with-ft", "ulfm"), map_by="node",
        PACE_S="0.005",
    )  # fmt: skip
    try:
        wait_for(lambda: rounds(path) >= 20)
        hosts.link(hosts.names[2], up=False)
        wait_for(lambda: (path / "summary.json").exists())
    finally:
        hosts.link(hosts.names[2], up=True)
        hosts.clear()
        job.end()
    assert summary(path)["table_sha256"] == summary(tmp_path / "whole")["table_sha256"]
    events = [json.loads(line) for line in (path / "events.jsonl").read_text().splitlines()]
    (lost,) = [event for event in events if event["kind"] == "ranks_lost"]
    assert lost["ranks"] == [2] and lost["hosts"] == [hosts.names[2]]


def wait_for(condition: Any, limit_s: float = 60) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)
