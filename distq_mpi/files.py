"""Files that are whole or absent, and arrays in HDF5 that are checked slice by slice.

Everything here is local and runs on the rank that calls it. h5py and scipy are imported inside
functions: ranks that never open a file by name do not pay for them.
"""

from __future__ import annotations

import errno
import functools
import json
import math
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from distq_mpi.errors import FileError

SLICE_ROWS = 65_536
SIGNATURE = b"\x89HDF\r\n\x1a\n"
FILTERS = {1, 2, 3, 4, 5, 6, 32000}
"""What comes with h5py: deflate, shuffle, fletcher32, szip, nbit, scaleoffset, lzf."""

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


class _Sink:
    """The file HDF5 writes to. It remembers the first error and pretends that all is well.

    HDF5 keeps metadata in memory until it closes. If the disk refuses it then, HDF5 can neither
    close nor forget the file, and may take the interpreter down at its exit. So the refusal is kept
    here, and the file is thrown away after HDF5 has closed it happily.
    """

    def __init__(self, path: Path) -> None:
        self.error: OSError | None = None
        self._file: BinaryIO = open(path, "w+b", buffering=0)  # noqa: SIM115

    def _keep(self, call: Any, *arguments: Any) -> Any:
        if self.error is not None:
            return 0
        try:
            return call(*arguments)
        except OSError as error:
            self.error = error
            return 0

    def write(self, data: memoryview) -> int:
        view = memoryview(data).cast("B")
        total = len(view)
        while len(view) and self.error is None:
            view = view[self._keep(self._file.write, view) :]
        return total

    def readinto(self, buffer: memoryview) -> int:
        return int(self._keep(self._file.readinto, buffer))  # type: ignore[attr-defined]

    read = readinto

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._keep(self._file.seek, offset, whence))

    def tell(self) -> int:
        return int(self._keep(self._file.tell))

    def truncate(self, size: int) -> int:
        return int(self._keep(self._file.truncate, size))

    def flush(self) -> None:
        """Nothing is buffered here; `publish` forces the file to the disk."""

    def close(self) -> None:
        try:
            self._file.close()
        except OSError as error:
            self.error = self.error or error

    def check(self) -> None:
        if self.error is not None:
            raise self.error


class ArrayWriter:
    """Arrays, texts and attributes of one HDF5 file being written; made by `create_hdf5`."""

    def __init__(self, file: Any, sink: _Sink) -> None:
        self._file, self._sink = file, sink
        self._crc32: dict[str, np.ndarray] = {}

    def create(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
        """Add a contiguous uncompressed array; its rows follow through `put`."""
        self._file.create_dataset(name, shape, dtype, fill_time="never")
        self._crc32[name] = np.zeros(-(-shape[0] // SLICE_ROWS), np.uint32)
        self._sink.check()

    def put(self, name: str, start: int, rows: np.ndarray) -> None:
        """Write one slice that starts at a multiple of `SLICE_ROWS`, and note its checksum."""
        dataset = self._file[name]
        rows = np.ascontiguousarray(rows, dataset.dtype)
        stop = min(start + SLICE_ROWS, dataset.shape[0])
        if start % SLICE_ROWS or rows.shape != (stop - start, *dataset.shape[1:]):
            raise ValueError(
                f"/{name}: a slice at row {start} has the shape "
                f"{(stop - start, *dataset.shape[1:])}, not {rows.shape}"
            )
        dataset[start:stop] = rows
        self._crc32[name][start // SLICE_ROWS] = checksum(rows)
        self._sink.check()

    def text(self, name: str, value: str) -> None:
        """Add a text as a scalar dataset."""
        self._file.create_dataset(name, data=value.encode(), dtype=_text_type(value))
        self._crc32[name] = np.array([zlib.crc32(value.encode())], np.uint32)

    def finish(self, attributes: dict[str, Any]) -> None:
        """Add the attributes (numbers and texts) of the root and the group `/crc32`."""
        for name, value in attributes.items():
            if isinstance(value, str):
                self._file.attrs.create(name, value.encode(), dtype=_text_type(value))
            else:
                self._file.attrs[name] = value
        stored = _attributes(self._file)
        self._crc32["attributes"] = np.array([_attributes_checksum(stored)], np.uint32)
        for name, values in self._crc32.items():
            self._file.create_dataset(f"crc32/{name}", data=values)
        self._sink.check()


@contextmanager
def create_hdf5(path: AnyPath, needed_bytes: int = 0) -> Iterator[ArrayWriter]:
    """Write an HDF5 file that appears under `path` whole and durable, or not at all.

    Raises
    ------
    FileError
        If it cannot be written, a full disk included; nothing is left behind.
    """
    import h5py

    with publish(path, needed_bytes) as temporary:
        sink = _Sink(temporary)
        try:
            # From 1.8 on HDF5 keeps checksums of its own metadata.
            with h5py.File(sink, "w", libver=("v108", "v108")) as file:
                yield ArrayWriter(file, sink)
        except (OSError, RuntimeError, KeyError) as error:
            sink.check()
            if isinstance(error, OSError):
                raise
            raise OSError(None, f"HDF5: {error}") from error
        finally:
            sink.close()
        sink.check()


def hdf5_version() -> str:
    """Version of the HDF5 library. Raises ImportError where it cannot be loaded."""
    import h5py

    return str(h5py.version.hdf5_version)


@dataclass(frozen=True)
class StoredArray:
    """Where one contiguous array lies in its file; picklable."""

    name: str
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype
    crc32: np.ndarray = field(repr=False, compare=False)

    @property
    def n_slices(self) -> int:
        """Number of checked slices."""
        return -(-self.shape[0] // SLICE_ROWS)


@dataclass(frozen=True)
class Stored:
    """What an HDF5 file holds: attributes, texts, and where its arrays lie."""

    path: Path
    size_bytes: int
    attributes: dict[str, Any]
    texts: dict[str, str]
    arrays: dict[str, StoredArray]


def open_hdf5(path: AnyPath, kind: str, format_name: str, newest: int) -> Stored:
    """Read attributes and texts, and find the arrays, of a file made by `create_hdf5`.

    Parameters
    ----------
    kind : str
        What the file should be, for messages: "checkpoint".
    format_name, newest : str, int
        The attribute `format` it must carry, and the largest `format_version` that can be read.

    Raises
    ------
    FileError
        If it is unreadable, empty, truncated, damaged, foreign or too new.
    """
    import h5py

    path = Path(path)
    try:
        with open(path, "rb") as plain_file:
            first = plain_file.read(len(SIGNATURE))
            size_bytes = os.fstat(plain_file.fileno()).st_size
    except OSError as error:
        raise explain(error, path, "read") from error
    if not first:
        raise FileError(f"{path} is empty: not a {kind}")
    if first != SIGNATURE:
        raise FileError(f"{path} is not an HDF5 file, so not a {kind}")
    try:
        with h5py.File(path, "r", locking=False) as file:
            attributes = _attributes(file)
            found, version = attributes.get("format"), attributes.get("format_version")
            if found != format_name or not isinstance(version, int):
                raise FileError(
                    f"{path} is an HDF5 file but not a {kind} of distq_mpi "
                    f'(its attribute format is {found!r}, not "{format_name}")'
                )
            if version > newest:
                raise FileError(
                    f"{path} was written by a newer distq_mpi (format {version}); "
                    f"this one reads up to {newest}; take "
                    f"{attributes.get('creator', 'the one that wrote it')} or later"
                )
            texts, arrays = _datasets(file)
            crc32 = {name: int(file[f"crc32/{name}"][0]) for name in ("attributes", *texts)}
    except FileError:
        raise
    except Exception as error:  # h5py raises nearly anything on damaged metadata
        raise _damaged(path, size_bytes, error) from error
    for name, value in [("attributes", _attributes_checksum(attributes))] + [
        (name, zlib.crc32(text)) for name, text in texts.items()
    ]:
        if crc32[name] != value:
            raise FileError(f"{path} is damaged: the checksum of its {name} is wrong")
    decoded = {name: text.decode() for name, text in texts.items()}
    return Stored(path, size_bytes, attributes, decoded, arrays)


def read_slices(
    stored: Stored, name: str, start: int, stop: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (first row, rows) that together cover rows [start, stop), checked slice by slice.

    Needs no h5py; memory is one slice. The yielded arrays belong to the caller.

    Raises
    ------
    FileError
        If the rows cannot be read or a checksum is wrong.
    """
    array = stored.arrays[name]
    if not 0 <= start <= stop <= array.shape[0]:
        raise ValueError(f"rows [{start}, {stop}) of /{name}, which has {array.shape[0]}")
    if start == stop:
        return
    width = math.prod(array.shape[1:])
    try:
        with open(stored.path, "rb", buffering=0) as file:
            for number in range(start // SLICE_ROWS, -(-stop // SLICE_ROWS)):
                first = number * SLICE_ROWS
                last = min(first + SLICE_ROWS, array.shape[0])
                file.seek(array.offset + first * width * array.dtype.itemsize)
                rows = np.fromfile(file, array.dtype, (last - first) * width)
                if len(rows) != (last - first) * width:
                    raise FileError(f"{stored.path} is truncated within /{name}")
                rows = rows.reshape(last - first, *array.shape[1:])
                if checksum(rows) != array.crc32[number]:
                    raise FileError(
                        f"{stored.path} is damaged: the checksum of /{name} "
                        f"rows [{first}, {last}) is wrong"
                    )
                yield max(first, start), rows[max(start - first, 0) : stop - first]
    except OSError as error:
        raise explain(error, stored.path, "read") from error


def checksum(rows: np.ndarray) -> int:
    """CRC-32 of the bytes of a C-contiguous array."""
    return zlib.crc32(rows.reshape(-1).view(np.uint8).data) if rows.size else 0


class ForeignArrays:
    """Arrays of numbers in a file that somebody else wrote, read one at a time, nothing executed.

    Made by `open_arrays`. `names` : the arrays in the file; `notes` : its attributes, which HDF5
    has, read in the same way. Reading raises FileError for whatever is not a plain array of numbers
    stored in this very file.
    """

    def __init__(
        self, path: Path, names: list[str], read: Callable[[str], Any], notes: list[str]
    ) -> None:
        self.names, self.notes = names, notes
        self._path, self._read = path, read

    def __contains__(self, name: str) -> bool:
        return name in self.names or name in self.notes

    def get(self, name: str) -> np.ndarray | None:
        """The array, None where there is none of this name."""
        if name not in self:
            return None
        return self[name]

    def __getitem__(self, name: str) -> np.ndarray:
        try:
            array = np.asarray(self._read(name))
        except FileError:
            raise
        except MemoryError as error:
            raise FileError(f"{self._path}: {name} does not fit the memory: {error}") from error
        except Exception as error:  # h5py and zipfile raise nearly anything on damaged files
            reason = str(error).strip("'\"").split("\n")[0] or type(error).__name__
            raise FileError(f"{self._path}: {name} cannot be read: {reason}") from error
        if array.dtype.kind not in "biuf":
            raise FileError(f"{self._path}: {name} holds {array.dtype}, not numbers")
        return array


@contextmanager
def open_arrays(path: AnyPath) -> Iterator[ForeignArrays]:
    """Open an npz or HDF5 file of plain arrays; which one it is, its first bytes tell.

    Raises
    ------
    FileError
        If there is no such file, or it is neither, or only a part of one.
    """
    path = Path(path)
    try:
        with open(path, "rb") as plain_file:
            first = plain_file.read(len(SIGNATURE))
    except OSError as error:
        raise explain(error, path, "read") from error
    if first == SIGNATURE:
        import h5py

        try:
            file = h5py.File(path, "r", locking=False)
        except OSError as error:
            raise _damaged(path, path.stat().st_size, error) from error
        with file:
            read = functools.partial(_hdf5_array, file)
            yield ForeignArrays(path, list(file), read, list(file.attrs))
        return
    if not zipfile.is_zipfile(path):
        raise FileError(f"{path} is neither an npz nor an HDF5 file, or only a part of one")
    try:
        npz = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise FileError(f"{path} is not an npz file: {error}") from error
    with npz:
        yield ForeignArrays(path, list(npz.files), npz.__getitem__, [])


def write_arrays(path: AnyPath, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays as npz, or as HDF5 where the name ends in .h5 or .hdf5; whole or not at all.

    Raises
    ------
    FileError
        If it cannot be written.
    """
    with publish(path, sum(array.nbytes for array in arrays.values())) as temporary:
        if not os.fspath(path).endswith((".h5", ".hdf5")):
            with open(temporary, "wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]
            return
        import h5py

        sink = _Sink(temporary)
        try:
            with h5py.File(sink, "w", libver=("v108", "v108")) as hdf5:
                for name, array in arrays.items():
                    hdf5.create_dataset(name, data=array)
        finally:
            sink.close()
        sink.check()


def read_array(path: AnyPath) -> np.ndarray:
    """Return the array of numbers in an npy file; it belongs to the caller.

    Raises
    ------
    FileError
        If there is no such file, or it holds anything else.
    """
    try:
        array = np.load(path, allow_pickle=False)
    except OSError as error:
        raise explain(error, path, "read") from error
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise FileError(f"{os.fspath(path)} is not an npy file: {error}") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
        raise FileError(f"{os.fspath(path)} is not an npy file of numbers")
    return array


def read_sparse(path: AnyPath) -> Any:
    """Return the matrix in a file written by `scipy.sparse.save_npz`, as CSR.

    Raises
    ------
    FileError
        If there is no such file, it holds anything else, or scipy is not installed.
    """
    path = os.fspath(path)
    try:
        from scipy import sparse
    except ImportError as error:
        raise FileError(
            f"{path}: reading sparse matrices needs scipy: pip install 'distq_mpi[mdp]'"
        ) from error
    try:
        matrix = sparse.load_npz(path)
        if matrix.format in ("csr", "csc", "bsr"):
            matrix.check_format(full_check=True)  # conversions believe the indices
        return matrix.tocsr()
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise explain(error, path, "read") from error
    except Exception as error:  # scipy and zipfile raise nearly anything on foreign files
        raise FileError(
            f"{path} is not a matrix written by scipy.sparse.save_npz: {error}"
        ) from error


def _hdf5_array(file: Any, name: str) -> Any:
    """An attribute, or a dataset whose numbers lie in this file under a filter of HDF5's own."""
    import h5py

    if name in file.attrs and name not in file:
        return file.attrs[name]
    path = file.filename
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise FileError(f"{path}: {name} is a link; models are read from one file only")
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset):
        raise FileError(f"{path}: {name} is a group, not an array")
    if dataset.dtype.kind not in "biuf":
        raise FileError(f"{path}: {name} holds {dataset.dtype}, not numbers")
    if dataset.is_virtual or dataset.external:
        raise FileError(f"{path}: {name} is stored in other files; models are read from one only")
    stored = dataset.id.get_create_plist()
    for k in range(stored.get_nfilters()):
        number, *_, label = stored.get_filter(k)
        # Anything else would be a plugin: code that HDF5 looks for and loads.
        if number not in FILTERS:
            raise FileError(
                f"{path}: {name} is compressed by {label.decode(errors='replace') or number}, "
                "which comes with no HDF5; take gzip"
            )
    return dataset[()]

def _text_type(value: str) -> Any:
    import h5py

    return h5py.string_dtype("utf-8", max(1, len(value.encode())))


def _attributes(file: Any) -> dict[str, Any]:
    """Attributes of the root as plain numbers and texts."""
    values = {name: np.asarray(file.attrs[name]).tolist() for name in file.attrs}
    return {name: v.decode() if isinstance(v, bytes) else v for name, v in values.items()}


def _attributes_checksum(attributes: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(attributes, sort_keys=True).encode())


def _datasets(file: Any) -> tuple[dict[str, bytes], dict[str, StoredArray]]:
    texts, arrays = {}, {}
    for name in file["crc32"]:
        if name == "attributes":
            continue
        dataset, crc32 = file[name], file[f"crc32/{name}"][:]
        if dataset.shape == ():
            texts[name] = bytes(dataset[()])
            continue
        offset = dataset.id.get_offset() if dataset.size else 0
        array = StoredArray(name, offset, dataset.shape, dataset.dtype, crc32)
        if offset is None or len(crc32) != array.n_slices:
            raise ValueError(f"/{name} is not stored as one piece with its checksums")
        arrays[name] = array
    return texts, arrays


def _damaged(path: Path, size_bytes: int, error: Exception) -> FileError:
    truncated = re.search(r"truncated file.*stored_eof = (\d+)", str(error))
    if truncated:
        return FileError(
            f"{path} is truncated: {size_bytes:,} bytes where {int(truncated[1]):,} were written"
        )
    reason = str(error).strip("'\"").split("\n")[0] or type(error).__name__
    return FileError(f"{path} is damaged: {reason}")
