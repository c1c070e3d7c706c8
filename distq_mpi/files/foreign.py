"""Arrays in files that somebody else wrote, and files for somebody else to read.

Local. h5py and scipy are imported inside functions, by the rank that reads.
"""

from __future__ import annotations

import functools
import math
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from distq_mpi.errors import FileError
from distq_mpi.files.hdf5 import SIGNATURE, Sink, damaged
from distq_mpi.files.publishing import AnyPath, explain, publish

FILTERS = {1, 2, 3, 4, 5, 6, 32000}
"""What comes with h5py: deflate, shuffle, fletcher32, szip, nbit, scaleoffset, lzf."""

CHUNK_CACHE = 1 << 20
"""Bytes of a chunked array that HDF5 keeps unpacked unless it is told otherwise."""


class ForeignArrays:
    """Arrays of numbers in a file that somebody else wrote, read one at a time, nothing executed.

    Made by `open_arrays`. `names` : the arrays in the file; `notes` : its attributes, which HDF5
    has, read in the same way; `in_parts` : whether a part of an array can be read without the rest.
    Reading raises FileError for whatever is not a plain array of numbers stored in this very file.
    """

    def __init__(
        self,
        path: Path,
        names: list[str],
        find: Callable[[str], Any],
        notes: list[str],
        in_parts: bool,
    ) -> None:
        self.names, self.notes, self.in_parts = names, notes, in_parts
        self._path, self._find = path, find
        self._held: dict[str, Any] = {}

    def __contains__(self, name: str) -> bool:
        return name in self.names or name in self.notes

    def get(self, name: str) -> np.ndarray | None:
        """The array, None where there is none of this name."""
        if name not in self:
            return None
        return self[name]

    def __getitem__(self, name: str) -> np.ndarray:
        return self._get(name, ())

    def part(self, name: str, start: int, stop: int) -> np.ndarray:
        """Elements [start, stop) of a one-dimensional array; they belong to the caller."""
        if name not in self._held:
            with self._explained(name):
                # Kept, for what HDF5 has unpacked of it goes when nobody has it open.
                self._held[name] = self._find(name)
        return self._get(name, slice(start, stop))

    def form(self, name: str) -> tuple[np.dtype, tuple[int, ...]]:
        """Type and shape of an array."""
        with self._explained(name):
            found = self._find(name)
        if found.dtype.kind not in "biuf":
            raise FileError(f"{self._path}: {name} holds {found.dtype}, not numbers")
        return found.dtype, found.shape

    def _get(self, name: str, where: Any) -> np.ndarray:
        with self._explained(name):
            found = self._held[name] if name in self._held else self._find(name)
            array = np.asarray(found[where])
        if array.dtype.kind not in "biuf":
            raise FileError(f"{self._path}: {name} holds {array.dtype}, not numbers")
        return array

    @contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        try:
            yield
        except FileError:
            raise
        except MemoryError as error:
            raise FileError(f"{self._path}: {name} does not fit the memory: {error}") from error
        except Exception as error:  # h5py and zipfile raise nearly anything on damaged files
            reason = str(error).strip("'\"").split("\n")[0] or type(error).__name__
            raise FileError(f"{self._path}: {name} cannot be read: {reason}") from error


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
            chunk = _largest_chunk(file)
            if chunk > CHUNK_CACHE:
                # Else every part that is read would unpack its whole chunk again.
                file.close()
                file = h5py.File(path, "r", locking=False, rdcc_nbytes=chunk)
        except (OSError, RuntimeError, KeyError, ValueError) as error:
            raise damaged(path, path.stat().st_size, error) from error
        with file:
            find = functools.partial(_hdf5_array, file)
            yield ForeignArrays(path, list(file), find, list(file.attrs), in_parts=True)
        return
    if not zipfile.is_zipfile(path):
        raise FileError(f"{path} is neither an npz nor an HDF5 file, or only a part of one")
    try:
        npz = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise FileError(f"{path} is not an npz file: {error}") from error
    with npz:
        yield ForeignArrays(path, list(npz.files), npz.__getitem__, [], in_parts=False)


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

        sink = Sink(temporary)
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


def _largest_chunk(file: Any) -> int:
    """Bytes of the largest chunk of an array in this file, unpacked; 0 where there are none."""
    import h5py

    largest = 0
    for name in file:
        if isinstance(file.get(name, getlink=True), h5py.HardLink):
            found = file.get(name)
            if isinstance(found, h5py.Dataset) and found.chunks:
                largest = max(largest, math.prod(found.chunks) * found.dtype.itemsize)
    return largest


def _hdf5_array(file: Any, name: str) -> Any:
    """An attribute, or a dataset whose numbers lie in this file under a filter of HDF5's own."""
    import h5py

    if name in file.attrs and name not in file:
        return np.asarray(file.attrs[name])
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
    return dataset
