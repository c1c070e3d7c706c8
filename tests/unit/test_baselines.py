"""The comparison of benchmarks with a baseline."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.compare import compare

ROOT = Path(__file__).parents[2]


def row(table: str, ratio: float) -> dict[str, object]:
    return {"table": table, "ranks": 2, "fusion_s": 0.1, "ratio": ratio}


def test_a_ratio_that_has_fallen_is_flagged() -> None:
    before = [row("small", 1.0), row("large", 2.0), row("gone", 1.0)]
    lines, fallen = compare(before, [row("small", 0.95), row("large", 1.7), row("new", 1.0)], 0.9)
    assert fallen
    assert [line.split()[0] for line in lines] == ["as", "fallen", "missing", "new"]
    assert compare(before[:1], [row("small", 1.2)], 0.9) == (
        [f"{'risen':<9} {'small 2':<60} {1.0:9.3f} -> {1.2:9.3f}  x 1.20"], False,
    )  # fmt: skip


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "baselines").glob("*.json")))
def test_a_stored_baseline_is_as_before_beside_itself(path: Path) -> None:
    rows = json.loads(path.read_text())
    lines, fallen = compare(rows, rows, 0.9)
    assert not fallen and all(line.startswith("as before") for line in lines) and lines
