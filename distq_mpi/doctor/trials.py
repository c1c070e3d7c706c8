"""Small trials of what a run will do: files, a compiled kernel, messages."""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from distq_mpi.doctor.rows import Row
from distq_mpi.errors import DistqError
from distq_mpi.files import create_hdf5, open_hdf5, read_slices
from distq_mpi.partition import Partition

if TYPE_CHECKING:
    from distq_mpi.transport import Transport

NUMBERS = 65_536
REPEATS = 20


def file_row() -> Row:
    """Write an HDF5 file, read it back and lock a file, where runs will be. Local."""
    name = "files"
    here = os.getcwd() if os.access(".", os.W_OK | os.X_OK) else None
    try:
        with tempfile.TemporaryDirectory(prefix=".distq_mpi-doctor-", dir=here) as folder:
            path = Path(folder, "trial.h5")
            numbers = np.arange(1000.0).reshape(-1, 4)
            with create_hdf5(path) as file:
                file.create("q", numbers.shape, numbers.dtype)
                file.put("q", 0, numbers)
                file.finish({"format": "trial", "format_version": 1})
            stored = open_hdf5(path, "trial", "trial", 1)
            ((_, found),) = read_slices(stored, "q", 0, len(numbers))
            if not np.array_equal(found, numbers):
                return Row(name, f"what was written to {folder} came back changed", "wrong",
                           "use another disk")  # fmt: skip
            where = "here" if here else folder
            return _locked(Row(name, f"an HDF5 file written and read {where}, a file locked"), path)
    except (DistqError, OSError, ImportError, ValueError) as error:
        advice = "give --run.dir a folder on a working disk, or reinstall h5py"
        return Row(name, f"an HDF5 file cannot be written and read: {error}", "wrong", advice)


def _locked(fine: Row, path: Path) -> Row:
    try:
        with open(path, "r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return Row(fine.name, f"an HDF5 file written and read, but no file can be locked: {error}",
                   "note", "nothing keeps two jobs out of one run directory here")  # fmt: skip
    return fine


def halved(numbers: np.ndarray) -> None:
    """The kernel of the trial: halve float64 (n,) in place."""
    for k in range(numbers.size):
        numbers[k] = 0.5 * numbers[k]


def kernel_row() -> Row:
    """Compile a tiny kernel, load and run it. Local; imports numba, needs a second or two."""
    name = "compiler"
    begin = time.perf_counter()
    try:
        from distq_mpi.kernels import Kernel, describe
        from distq_mpi.kernels.compiler import export
        from distq_mpi.kernels.objects import LoadedKernel

        numbers = np.arange(8.0)
        kernel = Kernel(halved, {}, (numbers,))
        with tempfile.TemporaryDirectory(prefix="distq_mpi-doctor-") as folder:
            path = os.path.join(folder, "halved")
            export(kernel, [describe(numbers)], path)
            LoadedKernel(path)(numbers)
    except (DistqError, OSError, ImportError, AttributeError, RuntimeError) as error:
        text = str(error).strip().splitlines() or [type(error).__name__]
        return Row(name, f"a kernel cannot be compiled: {text[0]}", "wrong",
                   "reinstall numba and llvmlite in the versions above")  # fmt: skip
    if not np.array_equal(numbers, np.arange(8.0) / 2):
        return Row(name, f"a compiled kernel computes nonsense: {numbers}", "wrong",
                   "reinstall numba and llvmlite")  # fmt: skip
    return Row(name, f"a kernel compiled and run in {time.perf_counter() - begin:.1f} s")


def message_row(transport: Transport) -> Row:
    """Sum, spread and collect known numbers among all ranks. COLLECTIVE; the row is rank 0's."""
    rank, size = transport.rank, transport.size
    ramp = np.arange(NUMBERS, dtype=np.int64)
    times = []
    for _ in range(REPEATS):
        numbers = ramp * (rank + 1)
        begin = time.perf_counter()
        transport.sum_int(numbers)
        times.append(time.perf_counter() - begin)
    right = np.array_equal(numbers, ramp * (size * (size + 1) // 2))
    told = ramp.copy() if rank == 0 else np.zeros_like(ramp)
    transport.broadcast_array(told)
    right &= np.array_equal(told, ramp)
    cut = Partition.balanced(NUMBERS, size)
    first, stop = cut.block(rank)
    gathered = transport.gather_rows(ramp[first:stop], cut)
    right &= gathered is None or np.array_equal(gathered, ramp)
    wrong = np.array([not right], np.int64)
    transport.sum_int(wrong)
    if wrong[0]:
        return Row("messages", f"{wrong[0]} of {size} ranks got wrong numbers", "wrong",
                   "this MPI library cannot be trusted: take another")  # fmt: skip
    median = sorted(times)[REPEATS // 2]
    ranks = f"{size} rank{'s' * (size > 1)}"
    return Row("messages", f"right among {ranks}; Allreduce of 512 KB in {1e3 * median:.2g} ms")
