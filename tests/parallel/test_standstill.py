"""A run whose default setting does not learn says so; one that learns does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distq_mpi.environments import write_model
from distq_mpi.environments.explicit import explicit_model
from tests.launching import distq


def river(path: Path, length: int = 20) -> None:
    """RiverSwim (Strehl & Littman 2008): down is certain and pays .005 at the lower end; up,
    against the current, pays 1 at the upper end."""
    rows: list[list[tuple[float, int, float]]] = []
    for s in range(length):
        below, above = max(s - 1, 0), min(s + 1, length - 1)
        rows.append([(1.0, below, 0.005 * (s == 0))])
        if s == 0:
            rows.append([(0.4, 0, 0.0), (0.6, 1, 0.0)])
        elif s == length - 1:
            rows.append([(0.4, below, 0.0), (0.6, s, 1.0)])
        else:
            rows.append([(0.05, below, 0.0), (0.6, s, 0.0), (0.35, above, 0.0)])
    chance, following, reward = (np.array(part) for part in zip(*sum(rows, []), strict=True))
    indptr = np.cumsum([0, *map(len, rows)])
    model = explicit_model(
        "river", length, 2, indptr, following.astype(int), chance, reward,
        start_distribution=np.eye(length)[0],
    )  # fmt: skip
    write_model(path, model)


GENERATIVE = ("--learn.sampling", "generative")


@pytest.mark.parametrize(("more", "still"), [((), True), (GENERATIVE, False)])
def test_a_river_that_is_not_swum_is_noticed(tmp_path: Path, more: Any, still: bool) -> None:
    river(tmp_path / "river.npz")
    ended = distq(
        2, "train", "--env.id", "river.npz", "--parallel.agents", "2", "--stop.policy_gap", "0.01",
        "--stop.steps", "600000", "--run.dir", "run", "--evaluate.episodes", "0", *more,
        cwd=tmp_path,
    )  # fmt: skip
    assert ended.code == (3 if still else 0), ended.err
    lines = (tmp_path / "run" / "events.jsonl").read_text().splitlines()
    told = [e["message"] for e in map(json.loads, lines) if e["kind"] == "standstill"]
    assert len(told) == still
    if still:
        assert told[0] in ended.out and "docs/learning.md" in told[0]
        docs = Path(__file__).parents[2] / "docs" / "learning.md"
        assert "## Where the defaults do not learn" in docs.read_text()
