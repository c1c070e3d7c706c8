"""Arrays in HDF5 that are written whole and checked slice by slice.

Local. h5py is imported inside functions: ranks that never open a file by name do not pay for it.
"""

from __future__ import annotations

import json
import math
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from distq_mpi.errors import FileError
from distq_mpi.files.publishing import AnyPath, explain, publish

if TYPE_CHECKING:
    from concurrent.futures import Future

SLICE_ROWS = 65_536
SEND_BYTES = 8 << 20
"""Written bytes that are sent to the disk at once."""
BESIDE_BYTES = 1 << 18
"""Of a slice whose checksum is worth another thread."""
SIGNATURE = b"\x89HDF\r\n\x1a\n"


class Sink:
    """The file HDF5 writes to. It remembers the first error and pretends that all is well.

    HDF5 keeps metadata in memory until it closes. If the disk refuses it then, HDF5 can neither
    close nor forget the file, and may take the interpreter down at its exit. So the refusal is kept
    here, and the file is thrown away after HDF5 has closed it happily.

    A thread sends what is written to the disk meanwhile, another makes the checksums: else the disk
    waits for these, and then everybody for the disk.
    """

    def __init__(self, path: Path) -> None:
        self.error: OSError | None = None
        from concurrent.futures import Future, ThreadPoolExecutor  # brings `logging` along

        self._unsent, self._threads = 0, ThreadPoolExecutor(2)
        self._sent: Future[None] = Future()
        self._sent.set_result(None)
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
        self._unsent += total
        if self._unsent >= SEND_BYTES and self._sent.done():
            self._keep(self._sent.result)
            self._sent = self.beside(os.fdatasync, self._file.fileno()) or self._sent
            self._unsent = 0
        return total

    def beside(self, call: Any, *arguments: Any) -> Future[Any] | None:
        """Begin a call in another thread, while this one writes; None where no thread can start, as
        when the interpreter ends."""
        try:
            return self._threads.submit(call, *arguments)
        except RuntimeError:
            return None

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
        self._keep(self._sent.result)
        self._threads.shutdown()
        try:
            self._file.close()
        except OSError as error:
            self.error = self.error or error

    def check(self) -> None:
        if self.error is not None:
            raise self.error


class ArrayWriter:
    """Arrays, texts and attributes of one HDF5 file being written; made by `create_hdf5`."""

    def __init__(self, file: Any, sink: Sink) -> None:
        self._file, self._sink = file, sink
        self._arrays: dict[str, Any] = {}
        self._crc32: dict[str, np.ndarray] = {}

    def create(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
        """Add a contiguous uncompressed array; its rows follow through `put`."""
        array = self._file.create_dataset(name, shape, dtype, fill_time="never")
        self._arrays[name] = array, array.shape, array.dtype
        self._crc32[name] = np.zeros(-(-shape[0] // SLICE_ROWS), np.uint32)
        self._sink.check()

    def put(self, name: str, start: int, rows: np.ndarray) -> None:
        """Write one slice that starts at a multiple of `SLICE_ROWS`, and note its checksum."""
        array, shape, dtype = self._arrays[name]
        rows = np.ascontiguousarray(rows, dtype)
        stop = min(start + SLICE_ROWS, shape[0])
        if start % SLICE_ROWS or rows.shape != (stop - start, *shape[1:]):
            raise ValueError(
                f"/{name}: a slice at row {start} has the shape "
                f"{(stop - start, *shape[1:])}, not {rows.shape}"
            )
        made = self._sink.beside(checksum, rows) if rows.nbytes >= BESIDE_BYTES else None
        array[start:stop] = rows
        self._crc32[name][start // SLICE_ROWS] = made.result() if made else checksum(rows)
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
        sink = Sink(temporary)
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
        raise damaged(path, size_bytes, error) from error
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


def damaged(path: Path, size_bytes: int, error: Exception) -> FileError:
    truncated = re.search(r"truncated file.*stored_eof = (\d+)", str(error))
    if truncated:
        return FileError(
            f"{path} is truncated: {size_bytes:,} bytes where {int(truncated[1]):,} were written"
        )
    reason = str(error).strip("'\"").split("\n")[0] or type(error).__name__
    return FileError(f"{path} is damaged: {reason}")
