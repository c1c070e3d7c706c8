"""Files that are whole or absent. Everything here is local and runs on the rank that calls it."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from distq_mpi.errors import FileError

AnyPath = str | os.PathLike[str]


def explain(error: OSError, path: AnyPath, verb: str, needed_bytes: int = 0) -> FileError:
    """Turn an OSError into one sentence with the path, the reason, and sizes if the disk is full.

    Parameters
    ----------
    verb : str
        What was tried: "write", "read", "create" ...
    needed_bytes : int
        Size of what was to be written; 0 if not known.
    """
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        reason = {
            errno.ENOSPC: "disk full",
            errno.EDQUOT: "disk quota reached",
            errno.EFBIG: "file size limit reached (see ulimit -f)",
        }[error.errno]
        sizes = [f"needs {needed_bytes:,} bytes"] if needed_bytes else []
        with suppress(OSError):
            disk = os.statvfs(Path(path).parent)
            sizes.append(f"{disk.f_bavail * disk.f_frsize:,} bytes free")
        reason += f" ({', '.join(sizes)})" if sizes else ""
    return FileError(f"cannot {verb} {os.fspath(path)}: {reason}")


@contextmanager
def publish(path: AnyPath, needed_bytes: int = 0) -> Iterator[Path]:
    """Give a temporary path to write to; it becomes `path`, whole and durable, or never appears.

    The body creates and closes the file. It is then flushed to the disk, renamed over `path`, and
    the directory flushed. If anything fails the temporary file is removed and `path` is untouched.

    Parameters
    ----------
    needed_bytes : int
        Expected size, for the message of a full disk.

    Raises
    ------
    FileError
        For any OSError of the body or of the publishing.
    """
    path = Path(path)
    temporary = temporary_name(path)
    try:
        yield temporary
        needed_bytes = needed_bytes or temporary.stat().st_size
        flush(temporary)
        os.replace(temporary, path)
        flush(path.parent)
    except OSError as error:
        # The space the temporary took is part of what is free for the next attempt.
        with suppress(OSError):
            temporary.unlink()
        raise explain(error, path, "write", needed_bytes) from error
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def make_folder(path: AnyPath) -> None:
    """Make a folder and those above it, where they are missing.

    Raises
    ------
    FileError
        If it cannot be made.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explain(error, path, "create") from error


def temporary_name(path: Path) -> Path:
    """Name under which this process writes `path` before it is published."""
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def flush(path: Path) -> None:
    """Force a file or directory to the disk, the latter only where the file system can."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def plain(value: Any) -> Any:
    """Value as JSON knows it: NaN and infinities become None, NumPy values and paths plain ones."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (np.generic, np.ndarray)):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (str, int)):
        return value
    return str(value)


def write_json(path: AnyPath, obj: Any, durable: bool = True) -> None:
    """Replace `path` by `obj` as JSON, atomically; only if `durable` wait for the disk.

    Raises
    ------
    FileError
        If it cannot be written; the old file is then still there.
    """
    text = json.dumps(plain(obj), indent=2, allow_nan=False) + "\n"
    if durable:
        with publish(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
        return
    temporary = temporary_name(Path(path))
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise explain(error, path, "write", len(text)) from error


def read_json(path: AnyPath) -> Any:
    """Content of a JSON file.

    Raises
    ------
    FileError
        If it cannot be read or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise explain(error, path, "read") from error
    except ValueError as error:
        raise FileError(f"{os.fspath(path)} is not JSON: {error}") from error
