"""What the tools say of damaged files and of bad usage: one line, the right exit code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from distq_mpi import checkpoint
from tests.launching import ROOT, distq


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damaged")
    ended = distq(
        1, "train", "--run.dir", "run", "--stop.rounds", "5", "--evaluate.exact", "false",
        cwd=folder,
    )  # fmt: skip
    assert ended.code == 0, ended.err
    return folder / "run"


def flipped(run: Path, dataset: str, folder: Path) -> Path:
    path = folder / "flipped.h5"
    path.write_bytes((run / "result.h5").read_bytes())
    data = bytearray(path.read_bytes())
    data[checkpoint.read_header(path).stored.arrays[dataset].offset + 9] ^= 4
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("dataset", ["q", "clock", "visits", "lanes"])
def test_a_flipped_bit_is_found_and_placed(run: Path, dataset: str, tmp_path: Path) -> None:
    path = flipped(run, dataset, tmp_path)
    ended = distq(0, "verify", str(path), cwd=tmp_path)
    assert ended.code == 1 and ended.out == ""
    (line,) = ended.err.splitlines()
    assert line.startswith(f"error: {path} is damaged: the checksum of /{dataset} rows [0, ")


def test_a_damaged_table_is_not_judged(run: Path, tmp_path: Path) -> None:
    ended = distq(3, "evaluate", str(flipped(run, "q", tmp_path)), cwd=tmp_path, limit_s=60)
    assert ended.code == 1 and ended.err.count("the checksum of /q rows [0, ") == 1
    assert "Traceback" not in ended.err and ended.out == ""


def test_a_run_whose_newest_checkpoint_is_damaged_is_judged_by_the_one_before(
    tmp_path: Path
) -> None:
    options = ("--run.dir", "run", "--checkpoint.every_rounds", "3", "--stop.wall_time_s", "600")
    ended = distq(1, "train", *options, "--stop.rounds", "7", cwd=tmp_path)
    assert ended.code == 0, ended.err
    (tmp_path / "run" / "result.h5").unlink()
    newest = checkpoint.paths(tmp_path / "run" / "checkpoints")[-1]
    newest.write_bytes(newest.read_bytes()[:-100])
    assert distq(0, "verify", "run", cwd=tmp_path).code == 1
    judged = distq(1, "evaluate", "run", "--evaluate.exact", "false", cwd=tmp_path)
    assert judged.code == 0, judged.err
    assert f"refused: {Path('run', 'checkpoints', newest.name)}" in judged.out
    assert "round-000000000006.h5: round 6" in judged.out


@pytest.mark.parametrize(
    ("n_ranks", "arguments", "code", "wanted"),
    [
        (2, ("evaluate", "nothing"), 1, "nothing"),
        (2, ("evaluate", "."), 1, "not a run directory"),
        (2, ("evaluate",), 2, "one run directory or checkpoint"),
        (2, ("verify", "a", "--epsilon"), 2, "--epsilon: verify takes --json"),
        (2, ("doctor", "--jsn"), 2, "did you mean json?"),
        (0, ("verify", "/dev/null"), 1, "is empty"),
        (0, ("upgrade", "nothing"), 1, "No such file"),
        (0, ("docter",), 2, "did you mean doctor?"),
    ],
)
def test_bad_usage(
    n_ranks: int, arguments: tuple[str, ...], code: int, wanted: str, tmp_path: Path
) -> None:
    ended = distq(n_ranks, *arguments, cwd=tmp_path, limit_s=60)
    assert ended.code == code, ended.err
    lines = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and wanted in lines[0]
    assert "Traceback" not in ended.err


def test_a_reader_that_has_enough_is_no_fault(run: Path) -> None:
    command = f"{sys.executable} -u -m distq_mpi info {run} | head -1"
    ended = subprocess.run(
        command, shell=True, capture_output=True, text=True, timeout=60, cwd=ROOT, check=False
    )
    assert ended.stdout.startswith(f"{run}: run directory") and ended.stderr == ""
