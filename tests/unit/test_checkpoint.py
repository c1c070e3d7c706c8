"""What was written comes back bit for bit, and nothing else is ever taken for it."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
import textwrap

import h5py
import numpy as np
import pytest

from distq_mpi import checkpoint
from distq_mpi.errors import FileError
from distq_mpi.files import SLICE_ROWS

MODEL = "ab" * 32
LANES = np.dtype(
    [("state", "i8"), ("ended", "?"), ("episode_return", "f8"), ("action", "i4")], align=True
)


def table(n_states, n_actions, dtype="f8", seed=0):
    rng = np.random.default_rng(seed)
    q = rng.standard_normal((n_states, n_actions)).astype(dtype)
    clock = rng.integers(0, 2**32, q.shape, np.uint32)
    visits = rng.integers(0, 2**64, q.shape, np.uint64)
    return q, clock, visits


def slices(q, clock, visits):
    for start in range(0, len(q), SLICE_ROWS):
        stop = start + SLICE_ROWS
        yield (
            start,
            q[start:stop],
            clock[start:stop],
            None if visits is None else visits[start:stop],
        )


def make_lanes(n_lanes, seed=0):
    lanes = np.zeros(n_lanes, LANES)
    rng = np.random.default_rng(seed)
    for name in LANES.names:
        lanes[name] = rng.integers(0, 2, n_lanes)
    return lanes


def save(path, tables, round=7, lanes=None, config_toml="[env]\nid = 'é'\n", **attributes):
    q = tables[0]
    checkpoint.write(
        path,
        rows=slices(*tables),
        n_states=q.shape[0],
        n_actions=q.shape[1],
        dtype=q.dtype,
        lanes=make_lanes(5) if lanes is None else lanes,
        config_toml=config_toml,
        attributes={"round": round, "model_id": MODEL, "seed": 2**63 + 5, **attributes},
    )
    return path


def everything(path):
    """All that a resume reads."""
    header = checkpoint.verify(path, MODEL)
    q, clock, visits = checkpoint.read_rows(header, 0, header.n_states)
    lanes = checkpoint.read_lanes(header)
    return (
        header.round,
        header.config_toml,
        header.attributes,
        header.dtype,
        (header.format_version, header.creator, header.created),
        q.tobytes(),
        clock.tobytes(),
        visits.tobytes(),
        lanes.tobytes(),
        lanes.dtype,
    )


@pytest.mark.parametrize("n_states", [1, 7, SLICE_ROWS, 2 * SLICE_ROWS + 9])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_round_trip(tmp_path, n_states, dtype):
    q, clock, visits = table(n_states, 3, dtype)
    lanes = make_lanes(70_001)
    path = save(
        tmp_path / "a.h5", (q, clock, visits), lanes=lanes, fraction=0.1, state='{"x": 1}' * 9_999
    )
    header = pickle.loads(pickle.dumps(checkpoint.verify(path, MODEL)))
    assert (header.round, header.model_id, header.n_states, header.n_actions) == (
        7,
        MODEL,
        n_states,
        3,
    )
    assert header.dtype == np.dtype(dtype) and header.n_lanes == 70_001
    assert header.config_toml == "[env]\nid = 'é'\n"
    assert header.attributes == {
        "round": 7, "model_id": MODEL, "seed": 2**63 + 5, "fraction": 0.1,
        "state": '{"x": 1}' * 9_999,
    }  # fmt: skip
    read = checkpoint.read_lanes(header)
    assert read.dtype.names == LANES.names
    assert all(np.array_equal(read[name], lanes[name]) for name in LANES.names)
    for start, stop in {
        (0, n_states),
        (n_states // 2, n_states),
        (n_states // 3, n_states // 2),
        (0, 0),
    }:
        for got, want in zip(
            checkpoint.read_rows(header, start, stop), (q, clock, visits), strict=True
        ):
            assert got.dtype == want.dtype and got.tobytes() == want[start:stop].tobytes()
    joined = [
        np.concatenate(parts)
        for parts in zip(*(s[1:] for s in checkpoint.iter_rows(path)), strict=True)
    ]
    assert all(a.tobytes() == b.tobytes() for a, b in zip(joined, (q, clock, visits), strict=True))


def test_layout_is_what_the_page_says(tmp_path):
    q, clock, visits = table(70_000, 2)
    with h5py.File(save(tmp_path / "a.h5", (q, clock, visits))) as file:
        assert set(file) == {"q", "clock", "visits", "lanes", "config", "crc32"}
        assert file.attrs["format"] == b"distq_mpi/checkpoint" and file.attrs["format_version"] == 1
        for name, want in (("q", q), ("clock", clock), ("visits", visits)):
            assert file[name].chunks is None and file[name].compression is None
            assert np.array_equal(file[name], want)
            assert len(file[f"crc32/{name}"]) == 2


def test_lifetime_visits_may_be_absent(tmp_path):
    q, clock, _ = table(9, 2)
    header = checkpoint.verify(save(tmp_path / "a.h5", (q, clock, None)))
    assert checkpoint.read_rows(header, 2, 5)[2] is None
    assert "clock" in header.stored.arrays and "visits" not in header.stored.arrays


def test_no_lanes_and_an_empty_text(tmp_path):
    path = save(tmp_path / "a.h5", table(3, 1), lanes=make_lanes(0), config_toml="", note="")
    header = checkpoint.verify(path)
    assert len(checkpoint.read_lanes(header)) == 0
    assert (header.config_toml, header.attributes["note"]) == ("", "")


@pytest.mark.parametrize("broken", ["gap", "short", "shape"])
def test_rows_must_be_complete_and_in_order(tmp_path, broken):
    q, clock, visits = table(SLICE_ROWS + 5, 2)
    rows = list(slices(q, clock, visits))
    if broken == "gap":
        rows = rows[1:]
    elif broken == "short":
        rows = rows[:1]
    else:
        rows[1] = (rows[1][0], *(part[:-1] for part in rows[1][1:]))
    with pytest.raises(ValueError):
        checkpoint.write(
            tmp_path / "a.h5", rows=iter(rows), n_states=len(q), n_actions=2, dtype="f8",
            lanes=make_lanes(1), config_toml="", attributes={"round": 1, "model_id": MODEL},
        )  # fmt: skip
    assert os.listdir(tmp_path) == []


def test_every_flipped_bit_is_seen_or_harmless(tmp_path):
    path = save(tmp_path / "a.h5", table(6, 2), lanes=make_lanes(3))
    good = path.read_bytes()
    want = everything(path)
    data = checkpoint.read_header(path).stored.arrays
    must_be_seen = {
        offset
        for array in data.values()
        for offset in range(
            array.offset, array.offset + int(np.prod(array.shape)) * array.dtype.itemsize
        )
    }
    harmless = 0
    # All bytes of the data; of HDF5's own, which are many and slow to misread, every fifth.
    offsets = sorted(must_be_seen | set(range(0, len(good), 5)))
    for offset in offsets:
        bad = bytearray(good)
        bad[offset] ^= 1 << (offset % 8)
        path.write_bytes(bad)
        try:
            got = everything(path)
        except FileError as error:
            assert str(path) in str(error)
        else:
            assert offset not in must_be_seen
            assert got == want, f"byte {offset} changes what is read and is not seen"
            harmless += 1
    assert harmless < 0.5 * len(offsets)


def test_every_flip_in_a_text_of_the_header_is_seen(tmp_path):
    path = save(tmp_path / "a.h5", table(6, 2), state='{"episodes": 12345}')
    good = path.read_bytes()
    for text in (b"12345", MODEL.encode(), b"id = '"):
        bad = bytearray(good)
        bad[good.index(text) + 1] ^= 1
        path.write_bytes(bad)
        with pytest.raises(FileError, match="is damaged"):
            checkpoint.read_header(path)


def test_truncated(tmp_path):
    path = save(tmp_path / "a.h5", table(100, 2))
    good = path.read_bytes()
    for size in [*range(0, 1200, 37), len(good) // 2, len(good) - 1]:
        path.write_bytes(good[:size])
        with pytest.raises(FileError, match="empty|truncated|damaged|not an HDF5"):
            checkpoint.verify(path)
    with pytest.raises(
        FileError, match=rf"is truncated: {len(good) - 1:,} bytes where {len(good):,}"
    ):
        checkpoint.read_header(path)


def test_truncated_after_the_header_was_read(tmp_path):
    path = save(tmp_path / "a.h5", table(100, 2))
    header = checkpoint.read_header(path)
    os.truncate(path, header.stored.arrays["q"].offset + 8)
    with pytest.raises(FileError, match="truncated within /q"):
        checkpoint.read_rows(header, 0, 10)


def test_foreign_newer_and_other_model(tmp_path):
    path = tmp_path / "a.h5"
    path.write_text("not a checkpoint at all")
    with pytest.raises(FileError, match="not an HDF5 file"):
        checkpoint.read_header(path)
    with h5py.File(path, "w") as file:
        file["q"] = np.zeros(3)
    with pytest.raises(FileError, match="not a checkpoint of distq_mpi"):
        checkpoint.read_header(path)
    with pytest.raises(FileError, match="No such file"):
        checkpoint.read_header(tmp_path / "none.h5")
    with pytest.raises(FileError, match="Is a directory"):
        checkpoint.read_header(tmp_path)
    save(path, table(3, 2))
    with pytest.raises(FileError, match="learned on another environment: its model_id is ababab"):
        checkpoint.read_header(path, "cd" * 32)
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = 2
    with pytest.raises(FileError, match=r"newer distq_mpi \(format 2\); this one reads up to 1"):
        checkpoint.read_header(path)


def test_a_bad_slice_does_not_hide_the_good_ones(tmp_path):
    q, clock, visits = table(2 * SLICE_ROWS, 2)
    path = save(tmp_path / "a.h5", (q, clock, visits))
    header = checkpoint.read_header(path)
    with open(path, "r+b") as file:
        file.seek(header.stored.arrays["q"].offset + (SLICE_ROWS + 3) * 16)
        file.write(b"\xff")
    assert np.array_equal(checkpoint.read_rows(header, 0, SLICE_ROWS)[0], q[:SLICE_ROWS])
    with pytest.raises(FileError, match=r"checksum of /q rows \[65536, 131072\) is wrong"):
        checkpoint.read_rows(header, 0, SLICE_ROWS + 1)
    assert "BAD in /q" in checkpoint.describe(path)


def test_newest_good_falls_back_and_says_why(tmp_path):
    assert checkpoint.newest_good(tmp_path / "none") == (None, [])
    for round in (1, 2, 10):
        save(tmp_path / checkpoint.file_name(round), table(4, 2), round=round)
    (tmp_path / "notes.txt").write_text("mine")
    newest = tmp_path / checkpoint.file_name(10)
    assert checkpoint.newest_good(tmp_path, MODEL) == (newest, [])
    os.truncate(newest, 500)
    path, refusals = checkpoint.newest_good(tmp_path, MODEL)
    assert path == tmp_path / checkpoint.file_name(2)
    assert len(refusals) == 1 and str(newest) in refusals[0]
    path, refusals = checkpoint.newest_good(tmp_path, "cd" * 32)
    assert path is None and len(refusals) == 3


def test_prune_keeps_the_newest_and_what_is_not_ours(tmp_path):
    rounds = [1, 2, 9, 10, 1_000]
    for round in rounds:
        save(tmp_path / checkpoint.file_name(round), table(2, 1), round=round)
    (tmp_path / "mine.h5").write_text("mine")
    (tmp_path / ".round-000000000011.h5.123.part").write_text("left by a dead writer")
    checkpoint.prune(tmp_path, 2)
    kept = {checkpoint.file_name(10), checkpoint.file_name(1_000), "mine.h5"}
    assert set(os.listdir(tmp_path)) == kept
    checkpoint.prune(tmp_path, 0)
    assert set(os.listdir(tmp_path)) == kept - {checkpoint.file_name(10)}


def test_describe(tmp_path):
    q = np.array([[1.0, -2.5], [0.0, 4.25], [np.nan, 0.0]])
    counts = np.array([[1, 2], [0, 3], [0, 0]])
    path = save(tmp_path / "a.h5", (q, counts.astype("u4"), counts.astype("u8")), state="x" * 500)
    text = checkpoint.describe(path)
    assert "3 states x 2 actions, float64" in text
    assert "checksums   ok" in text
    assert "-2.5 to 4.25, 1 not finite" in text
    assert "3 of 6 pairs (50.0%)" in text
    assert max(map(len, text.splitlines())) < 200 + len(str(path))


KILLED = """
    import sys, time
    import numpy as np
    from distq_mpi import checkpoint
    def rows():
        n = 65_536
        for start in range(0, 4 * n, n):
            if start == 2 * n:
                print("half", flush=True)
                time.sleep(60)
            yield start, np.ones((n, 2)), np.ones((n, 2), "u4"), np.ones((n, 2), "u8")
    checkpoint.write(sys.argv[1], rows=rows(), n_states=4 * 65_536, n_actions=2, dtype="f8",
                     lanes=np.zeros(1, [("state", "i8")]), config_toml="",
                     attributes={"round": 2, "model_id": "x"})
"""


def test_killed_writer_leaves_the_previous_checkpoint(tmp_path):
    good = save(tmp_path / checkpoint.file_name(1), table(4, 2), round=1)
    writer = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(KILLED), tmp_path / checkpoint.file_name(2)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        assert writer.stdout.readline() == b"half\n"
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait(30)
        writer.stdout.close()
    assert len(os.listdir(tmp_path)) == 2
    assert checkpoint.newest_good(tmp_path, MODEL) == (good, [])
    checkpoint.prune(tmp_path, 1)
    assert os.listdir(tmp_path) == [good.name]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB: a real one for root, else none is needed (see test_files)."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder]
    is_small = (
        shutil.which("mount") is not None
        and subprocess.run(command, capture_output=True).returncode == 0
    )
    yield folder, is_small
    if is_small:
        subprocess.run(["umount", folder], check=True)


def test_full_disk(small_disk):
    folder, is_small = small_disk
    good = save(folder / checkpoint.file_name(1), table(4, 2), round=1)
    if not is_small:
        return
    path = folder / checkpoint.file_name(2)
    for n_states in (60_000, 200_000):
        with pytest.raises(
            FileError, match=r"disk full \(needs [\d,]+ bytes, [1-9][\d,]+ bytes free"
        ):
            save(path, table(n_states, 2), round=2)
    assert os.listdir(folder) == [good.name]
    # Sizes around the end of the disk: the refusal may come from data, metadata or the close.
    free = shutil.disk_usage(folder).free
    outcomes = set()
    for n_states in range((free - 40_000) // 40, free // 40, 40):
        try:
            save(path, table(n_states, 2), round=2)
        except FileError as error:
            outcomes.add("refused")
            assert "disk full" in str(error)
            assert os.listdir(folder) == [good.name]
        else:
            outcomes.add("written")
            checkpoint.verify(path)
            path.unlink()
    assert outcomes == {"refused", "written"}
    assert checkpoint.newest_good(folder, MODEL) == (good, [])
