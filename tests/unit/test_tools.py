"""verify and upgrade: what is told of one file, of two, and of files of another format."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distq_mpi import checkpoint, upgrading
from distq_mpi.cli import parse
from distq_mpi.comparison import compare
from distq_mpi.config import Config, LearnConfig, to_toml
from distq_mpi.description import describe
from distq_mpi.errors import ConfigError, FileError
from distq_mpi.files import SLICE_ROWS, create_hdf5
from distq_mpi.operands import table_file
from distq_mpi.table import table_sha256
from distq_mpi.upgrading import Contents, upgrade
from distq_mpi.verification import check, verify

MODEL = "ab" * 32


def save(
    path: Path, q: np.ndarray, *, n_actions: int | None = None, round: int = 7,
    model_id: str = MODEL, lanes: int = 3, count: int = 1,
) -> Path:  # fmt: skip
    """Write a checkpoint of q (S, A), or (S, 2 A) for two parts; all clocks and visits `count`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    two = n_actions is not None and n_actions < q.shape[1]
    config = Config(learn=LearnConfig(rule="double_q" if two else "q_learning"))
    clock, visits = np.full(q.shape, count, np.uint32), np.full(q.shape, count, np.uint64)
    checkpoint.write(
        path,
        rows=[(s, q[s : s + SLICE_ROWS], clock[s : s + SLICE_ROWS], visits[s : s + SLICE_ROWS])
              for s in range(0, len(q), SLICE_ROWS)],
        n_states=len(q),
        n_actions=n_actions or q.shape[1],
        dtype=q.dtype,
        lanes=np.zeros(lanes, [("state", "u8"), ("gain", "f8")]),
        config_toml=to_toml(config),
        attributes={"round": round, "model_id": model_id, "state": "{}"},
    )  # fmt: skip
    return path


def numbers(n_states: int, n_actions: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n_states, n_actions))


def run_directory(folder: Path, **rounds: int) -> Path:
    """A run directory whose result and checkpoints are of these rounds."""
    folder.mkdir()
    (folder / "config.toml").write_text(to_toml(Config()))
    (folder / "checkpoints").mkdir()
    for name, number in rounds.items():
        place = "result.h5" if name == "result" else f"checkpoints/{checkpoint.file_name(number)}"
        save(folder / place, numbers(5, 2, number), round=number)
    return folder


def flip(path: Path, dataset: str, row: int = 0) -> None:
    array = checkpoint.read_header(path).stored.arrays[dataset]
    width = int(np.prod(array.shape[1:], dtype=int)) * array.dtype.itemsize
    data = bytearray(path.read_bytes())
    data[array.offset + row * width] ^= 1
    path.write_bytes(data)


def test_one_whole_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    q = numbers(2 * SLICE_ROWS + 5, 2)
    path = save(tmp_path / "a.h5", q)
    assert verify([str(path)], as_json=True) == 0
    (facts,) = json.loads(capsys.readouterr().out)["files"]
    assert facts["slices"] == 3 * 3 + 1  # q, clock and visits in three slices each, lanes in one
    cuts = (q[:SLICE_ROWS], q[SLICE_ROWS : 2 * SLICE_ROWS], q[2 * SLICE_ROWS :])
    assert facts["table_sha256"] == table_sha256(cuts)
    assert facts["datasets"] == ["clock", "lanes", "q", "visits"]


def test_every_damaged_slice_of_every_dataset_is_named(tmp_path: Path) -> None:
    path = save(tmp_path / "a.h5", numbers(2 * SLICE_ROWS + 5, 4), n_actions=2)
    flip(path, "q2", SLICE_ROWS)
    flip(path, "visits", 2 * SLICE_ROWS + 4)
    flip(path, "lanes", 2)
    with pytest.raises(FileError) as caught:
        verify([str(path)], as_json=False)
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    for wanted in ("/q2 rows [65536, 131072)", "/visits rows [131072, 131077)", "/lanes rows [0,"):
        assert sum(wanted in line for line in lines) == 1


def test_a_directory_stands_for_its_newest_table(tmp_path: Path) -> None:
    run = run_directory(tmp_path / "finished", result=20, middle=10, last=20)
    assert table_file(run) == run / "result.h5"
    went_on = run_directory(tmp_path / "went_on", result=20, last=30)
    assert table_file(went_on).name == checkpoint.file_name(30)
    cut = run_directory(tmp_path / "cut", first=10, second=20)
    assert table_file(cut).name == checkpoint.file_name(20)
    with pytest.raises(FileError, match="holds no table yet"):
        table_file(run_directory(tmp_path / "new"))
    with pytest.raises(FileError, match="not a run directory"):
        table_file(tmp_path)


@pytest.mark.parametrize("place", ["result", "checkpoint"])
def test_the_summary_of_the_run_must_say_the_same(tmp_path: Path, place: str) -> None:
    run = run_directory(tmp_path / "run", **{place: 20})
    header = checkpoint.read_header(table_file(run))
    right = check(header).table_sha256
    assert not check(header).in_summary
    for told, rounds in ((right, 20), ("0" * 64, 19)):  # another round's says nothing
        (run / "summary.json").write_text(json.dumps({"rounds": rounds, "table_sha256": told}))
        assert check(header).in_summary == (rounds == 20)
    (run / "summary.json").write_text(json.dumps({"rounds": 20, "table_sha256": "0" * 64}))
    with pytest.raises(FileError, match=f"{right[:16]}, summary.json says 0000"):
        check(header)


def test_the_same_table_with_other_lanes_and_clocks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    q = numbers(6, 3)
    files = [save(tmp_path / "a.h5", q), save(tmp_path / "b.h5", q, lanes=4, count=2)]
    assert verify([str(path) for path in files], as_json=True) == 0
    found = json.loads(capsys.readouterr().out)["comparison"]
    assert found["same_table"] and found["differing_pairs"] == found["differing_policy"] == 0
    assert found["others"] == {"clock": 18, "lanes": 4, "visits": 18}


def test_the_largest_difference_and_where(tmp_path: Path) -> None:
    q = np.zeros((SLICE_ROWS + 10, 2))
    other = q.copy()
    other[3, 0], other[SLICE_ROWS + 4, 1], other[SLICE_ROWS + 5, 0] = 0.25, -2.0, 0.5
    files = [save(tmp_path / "a.h5", q), save(tmp_path / "b.h5", other)]
    found = compare(*map(checkpoint.read_header, files))
    at = found.largest
    assert (at.difference, at.dataset, at.state, at.action) == (2.0, "q", SLICE_ROWS + 4, 1)
    assert (at.first, at.second) == (0.0, -2.0)
    assert found.differing_pairs == 3 and found.differing_policy == 0  # ties: the lowest action
    assert found.mean_difference == 2.75 / q.size
    assert verify([str(path) for path in files], as_json=False) == 3


def test_values_that_are_no_numbers(tmp_path: Path) -> None:
    q = np.array([[np.nan, np.inf], [0.0, 1.0], [-np.inf, 2.0]])
    other = np.array([[np.nan, np.inf], [-0.0, np.nan], [np.inf, 2.5]])
    files = [save(tmp_path / "a.h5", q), save(tmp_path / "b.h5", other)]
    found = compare(*map(checkpoint.read_header, files))
    assert (found.differing_pairs, found.not_finite) == (4, 2)
    assert found.mean_difference == 0.5 / 4
    assert found.largest.difference == np.inf


def test_two_parts_are_one_policy(tmp_path: Path) -> None:
    """Double Q is greedy on the sum of its parts; another rule's table is held against the mean."""
    parts = np.array([[1.0, 0.0, 0.0, 3.0], [2.0, 0.0, 0.0, 1.0]])
    swapped = parts[:, [2, 3, 0, 1]]
    paths = [save(tmp_path / f"{k}.h5", t, n_actions=2) for k, t in enumerate((parts, swapped))]
    found = compare(*map(checkpoint.read_header, paths))
    assert found.differing_policy == 0 and found.differing_pairs == 8 and found.pairs == 8
    single = save(tmp_path / "single.h5", np.array([[0.5, 1.5], [1.0, 0.5]]))
    found = compare(checkpoint.read_header(single), checkpoint.read_header(paths[0]))
    assert found.differing_pairs == 0 and found.others["q2"] == 4


@given(seed=st.integers(0, 10**6), n_changes=st.integers(0, 6), dtype=st.sampled_from(["f4", "f8"]))
def test_comparison_is_that_of_whole_arrays(
    tmp_path_factory: pytest.TempPathFactory, seed: int, n_changes: int, dtype: str
) -> None:
    folder, rng = tmp_path_factory.mktemp("pair"), np.random.default_rng(seed)
    q = rng.integers(-3, 4, (9, 3)).astype(dtype)
    other = q.copy()
    other.reshape(-1)[rng.choice(27, n_changes, replace=False)] += rng.integers(1, 5, n_changes)
    files = [save(folder / "a.h5", q), save(folder / "b.h5", other)]
    found = compare(*map(checkpoint.read_header, files))
    gaps = np.abs(q.astype(float) - other)
    assert found.largest.difference == gaps.max() and found.differing_pairs == n_changes
    assert found.mean_difference == pytest.approx(gaps.mean())
    assert found.differing_policy == np.count_nonzero(q.argmax(1) != other.argmax(1))
    assert verify([str(path) for path in files], as_json=True) == (3 if n_changes else 0)


def test_other_shapes_and_models_are_refused(tmp_path: Path) -> None:
    a = save(tmp_path / "a.h5", numbers(6, 3))
    for name, other in (
        ("6 states x 3 actions against 6 states x 2", save(tmp_path / "b.h5", numbers(6, 2))),
        ("different environments", save(tmp_path / "c.h5", numbers(6, 3), model_id="cd" * 32)),
    ):
        with pytest.raises(ConfigError, match=name):
            verify([str(a), str(other)], as_json=False)


@pytest.mark.parametrize(
    ("argv", "wanted"),
    [
        (["verfy", "x"], "did you mean verify?"),
        (["verify"], "one or two run directories or files, not none"),
        (["verify", "a", "b", "c"], "not a b c"),
        (["verify", "a", "--jsno"], "did you mean json?"),
        (["verify", "a", "--json=yes"], "takes no value"),
        (["verify", "a", "--learn.alpha", "1"], "verify takes --json"),
        (["evaluate", "a", "--evaluate.epsodes", "1"], "did you mean evaluate.episodes?"),
        (["evaluate", "a", "--evaluate.episodes", "-1"], ">= 0"),
        (["evaluate", "a", "--learn.discount", ".5"], "evaluate takes"),
        (["evaluate"], "one run directory or checkpoint"),
        (["upgrade", "a", "--output"], "needs a value"),
        (["upgrade", "a", "b"], "one run directory or file"),
        (["doctor", "me"], "doctor takes no operand, not me"),
        (["doctor", "--fix"], "doctor takes --json"),
    ],
)
def test_mistakes_on_the_line(argv: list[str], wanted: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(argv)
    (line,) = str(caught.value).splitlines()
    assert wanted in line


def test_what_the_line_says() -> None:
    command = parse(["evaluate", "a", "--json", "--run.seed", "7", "--evaluate.exact", "false"])
    assert (command.operands, command.json) == (("a",), True)
    config = command.override(to_toml(Config()), "there")
    assert (config.run.seed, config.evaluate.exact) == (7, False)
    assert parse(["upgrade", "a", "--output", "b"]).output == "b"


def to_version_0(path: Path) -> None:
    """Rewrite a checkpoint as a format that never was: clocks int64, `model_id` called `model`."""
    header = checkpoint.read_header(path)
    q, clock, visits = checkpoint.read_rows(header, 0, header.n_states)
    attributes = dict(header.stored.attributes, format_version=0)
    attributes["model"] = attributes.pop("model_id")
    lanes = checkpoint.read_lanes(header)
    with create_hdf5(path) as file:
        file.text("config", header.config_toml)
        for name, whole in (
            ("q", q), ("clock", clock.astype("<i8")), ("visits", visits), ("lanes", lanes)
        ):
            file.create(name, whole.shape, whole.dtype)
            for start in range(0, len(whole), SLICE_ROWS):
                file.put(name, start, whole[start : start + SLICE_ROWS])
        file.finish(attributes)


def from_version_0(old: Contents) -> Contents:
    attributes = dict(old.attributes)
    attributes["model_id"] = attributes.pop("model")
    clock = old.arrays["clock"]

    def narrowed() -> Iterator[tuple[int, Any]]:
        return ((start, rows.astype("<u4")) for start, rows in clock.slices())

    arrays = {**old.arrays, "clock": replace(clock, dtype=np.dtype("<u4"), slices=narrowed)}
    return replace(old, attributes=attributes, arrays=arrays)


@pytest.fixture
def step_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(upgrading.STEPS, 0, from_version_0)


def everything(path: Path) -> tuple[Any, ...]:
    header = checkpoint.verify(path)
    tables = checkpoint.read_rows(header, 0, header.n_states)
    lanes = checkpoint.read_lanes(header)
    arrays = [(a.dtype, a.tobytes()) for a in (*tables, lanes) if a is not None]
    return header.attributes, header.config_toml, header.created, header.format_version, arrays


def test_upgrade_gives_the_file_the_newest_version_would_have_written(
    tmp_path: Path, step_0: None
) -> None:
    path = save(tmp_path / "a.h5", numbers(SLICE_ROWS + 3, 2))
    before = everything(path)
    to_version_0(path)
    old = path.read_bytes()
    with pytest.raises(FileError, match=f"format 0, older than 1: .*upgrade {path}"):
        checkpoint.read_header(path)
    (told,) = upgrade(str(path))
    assert "format 0 -> 1" in told and "a.v0.h5" in told
    assert everything(path) == before
    assert (tmp_path / "a.v0.h5").read_bytes() == old
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.h5", "a.v0.h5"]
    assert "already format 1, nothing to do" in upgrade(str(path))[0]


def test_upgrade_elsewhere_leaves_the_old_file(tmp_path: Path, step_0: None) -> None:
    path = save(tmp_path / "a.h5", numbers(4, 2))
    before = everything(path)
    to_version_0(path)
    old = path.read_bytes()
    upgrade(str(path), str(tmp_path / "b.h5"))
    assert path.read_bytes() == old and everything(tmp_path / "b.h5") == before
    with pytest.raises(ConfigError, match=r"b.h5 exists"):
        upgrade(str(path), str(tmp_path / "b.h5"))


def test_upgrade_of_a_run(tmp_path: Path, step_0: None) -> None:
    run = run_directory(tmp_path / "run", first=10, second=20, result=20)
    files = [*sorted((run / "checkpoints").iterdir()), run / "result.h5"]
    to_version_0(files[0])
    to_version_0(files[2])
    assert [("->" in line, "already" in line) for line in upgrade(str(run))] == [
        (True, False), (False, True), (True, False)
    ]  # fmt: skip
    assert checkpoint.paths(run / "checkpoints") == files[:2]  # the old file is none of them
    with pytest.raises(ConfigError, match="--output"):
        upgrade(str(run), "elsewhere")


def test_a_damaged_file_is_not_replaced(tmp_path: Path, step_0: None) -> None:
    run = run_directory(tmp_path / "run", first=10, second=20)
    first, second = checkpoint.paths(run / "checkpoints")
    offset = checkpoint.read_header(first).stored.arrays["q"].offset
    for path in (first, second):
        to_version_0(path)
    with h5py.File(first) as file:
        offset = file["q"].id.get_offset()
    data = bytearray(first.read_bytes())
    data[offset] ^= 1
    first.write_bytes(data)
    with pytest.raises(FileError, match=r"the checksum of /q rows \[0, 5\) is wrong"):
        upgrade(str(run))
    assert first.read_bytes() == data
    assert len(list((run / "checkpoints").iterdir())) == 3  # the other one was upgraded
    checkpoint.verify(second)


def test_a_step_that_makes_no_good_file_replaces_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "a.h5", numbers(4, 2))
    to_version_0(path)
    old = path.read_bytes()
    monkeypatch.setitem(upgrading.STEPS, 0, lambda contents: contents)  # forgets model_id
    with pytest.raises(FileError, match="model_id"):
        upgrade(str(path))
    assert path.read_bytes() == old and [f.name for f in tmp_path.iterdir()] == ["a.h5"]


def test_versions_that_cannot_be_upgraded(tmp_path: Path) -> None:
    path = save(tmp_path / "a.h5", numbers(4, 2))
    to_version_0(path)
    with pytest.raises(FileError, match="format 0, which no release"):
        upgrade(str(path))
    save(path, numbers(4, 2))
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = 2
    with pytest.raises(FileError, match=r"newer .*\(format 2\).* take distq_mpi .* or later"):
        upgrade(str(path))


def test_info_of_a_run_directory(tmp_path: Path) -> None:
    run = run_directory(tmp_path / "run", first=10, second=20)
    (run / "config.toml").write_text(to_toml(replace(Config(), run=replace(Config().run, seed=5))))
    (run / "run.json").write_text('{"state": "running", "heartbeat": 1, "pid": 7, "host": "h"}')
    told = describe(run)
    assert "process 7 on h" in told and "probably killed: go on with resume" in told
    assert "  run.seed = 5\n" in told and "learn.alpha" not in told
    assert f"{checkpoint.file_name(20)}: checkpoint" in told and "checkpoints      2" in told
    (run / "run.json").write_text('{"state": "finished"}')
    (run / "summary.json").write_text(
        '{"status": "converged", "stop_reason": "enough", "steps": 1234, "rounds": 20}'
    )
    told = describe(run)
    assert "run directory, finished" in told and "  converged: enough\n" in told
    assert "1234 in 20 rounds" in told
    assert "no table yet" in describe(run_directory(tmp_path / "new"))
    with pytest.raises(FileError, match="not a run directory"):
        describe(tmp_path)
