"""Several hosts, with TCP between them: the same bits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

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
