"""Files are whole or absent, whatever refuses them."""

import errno
import json
import os
import resource
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from distq_mpi import files
from distq_mpi.errors import FileError


def run_limited(code: str, limit_bytes: int, folder: Path) -> subprocess.CompletedProcess:
    """Run code in a process that may write no file larger than the limit."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes)),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_publish_replaces_whole_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with files.publish(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == tmp_path
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space"), KeyboardInterrupt()])
def test_publish_that_fails_keeps_the_old_file(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    expected = FileError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected), files.publish(path, 1234) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_messages_name_path_reason_and_sizes(tmp_path):
    missing = tmp_path / "nowhere" / "a.txt"
    with pytest.raises(FileError, match=r"cannot write .*nowhere/a\.txt: No such file"):
        files.write_json(missing, {})
    full = files.explain(OSError(errno.ENOSPC, "x"), tmp_path / "a", "write", 5_000)
    assert "disk full (needs 5,000 bytes, " in str(full) and "bytes free)" in str(full)
    assert "quota" in str(files.explain(OSError(errno.EDQUOT, "x"), tmp_path / "a", "write"))


@pytest.mark.parametrize("durable", [True, False])
def test_json_has_no_nan_and_reads_back(tmp_path, durable):
    path = tmp_path / "a.json"
    obj = {"a": float("nan"), "b": [np.float32("inf"), np.int64(3), (True, None)], "c": tmp_path}
    files.write_json(path, obj, durable)
    assert json.loads(path.read_text()) == {
        "a": None,
        "b": [None, 3, [True, None]],
        "c": str(tmp_path),
    }
    assert files.read_json(path) == json.loads(path.read_text())
    path.write_text("{")
    with pytest.raises(FileError, match="is not JSON"):
        files.read_json(path)


WRITE_ARRAY = """
    import h5py, numpy as np
    from distq_mpi.errors import FileError
    from distq_mpi.files import create_hdf5
    try:
        with create_hdf5("a.h5", 1_600_000) as file:
            file.create("q", (100_000, 2), np.dtype("<f8"))
            file.put("q", 0, np.ones((65_536, 2)))
            file.put("q", 65_536, np.ones((34_464, 2)))
            file.finish({"format": "x"})
    except FileError as error:
        print(error)
    h5py.File("b.h5", "w", driver="core", backing_store=False).close()
"""


@pytest.mark.parametrize("limit_bytes", [0, 100, 4096, 1_000_000, 1_600_000])
def test_file_size_limit_is_one_message_and_a_clean_exit(tmp_path, limit_bytes):
    done = run_limited(WRITE_ARRAY, limit_bytes, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "cannot write a.h5: file size limit reached" in done.stdout
    assert "needs 1,600,000 bytes" in done.stdout
    assert os.listdir(tmp_path) == []


def test_without_limit_the_same_code_writes(tmp_path):
    done = run_limited(WRITE_ARRAY, resource.RLIM_INFINITY, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert os.listdir(tmp_path) == ["a.h5"]


def test_slices_must_fit(tmp_path):
    with (
        pytest.raises(ValueError, match="slice at row 0"),
        files.create_hdf5(tmp_path / "a") as file,
    ):
        file.create("q", (10, 2), np.dtype("<f8"))
        file.put("q", 0, np.zeros((9, 2)))
    assert os.listdir(tmp_path) == []
