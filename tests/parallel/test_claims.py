"""`validate` and `study` on real ranks: every number right, and the same on any number of ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distq_mpi.cli import parse
from distq_mpi.errors import ConfigError
from tests.launching import distq


def test_validate_finds_every_number_on_two_ranks(tmp_path: Path) -> None:
    ended = distq(2, "validate", "--json", cwd=tmp_path, limit_s=300)
    assert ended.code == 0, ended.out + ended.err
    rows = json.loads(ended.out)
    verdicts = {row["id"]: row["verdict"] for row in rows}
    assert set(verdicts.values()) == {"pass", "skipped"}
    for name in ("V1", "V7", "V10-learned", "V16", "V18", "V22", "T1-linear", "T5", "S-horizon"):
        assert verdicts[name] == "pass", name
    assert all(row["error"] <= row["tolerance"] for row in rows if row["verdict"] == "pass")
    assert len(verdicts) == len(rows) > 30


def test_a_study_does_not_depend_on_the_ranks(tmp_path: Path) -> None:
    found = [distq(n, "study", "horizon", "--runs", "2", "--json", cwd=tmp_path) for n in (1, 3)]
    assert found[0].code == 0, found[0].err
    assert found[0].out == found[1].out
    (told,) = json.loads(found[0].out)
    assert told["verdict"] == "pass" and told["low"] <= told["slope"] <= told["high"]


def test_what_is_no_study_is_refused(tmp_path: Path) -> None:
    ended = distq(0, "study", "everything", cwd=tmp_path)
    assert ended.code == 2
    assert "study: everything is none of speedup, fusion, staleness, horizon" in ended.err
    with pytest.raises(ConfigError, match="--runs: none must be a number > 0"):
        parse(["study", "speedup", "--runs", "none"])
