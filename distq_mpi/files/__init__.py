"""Files that are whole or absent, arrays in HDF5 that are checked, and files of others."""

from distq_mpi.files.foreign import (
    ForeignArrays,
    open_arrays,
    read_array,
    read_sparse,
    write_arrays,
)
from distq_mpi.files.hdf5 import (
    SLICE_ROWS,
    Stored,
    StoredArray,
    checksum,
    create_hdf5,
    hdf5_version,
    open_hdf5,
    read_slices,
)
from distq_mpi.files.publishing import (
    AnyPath,
    explain,
    flush,
    make_folder,
    plain,
    publish,
    read_json,
    temporary_name,
    write_json,
)

__all__ = [
    "SLICE_ROWS", "AnyPath", "ForeignArrays", "Stored", "StoredArray", "checksum", "create_hdf5",
    "explain", "flush", "hdf5_version", "make_folder", "open_arrays", "open_hdf5", "plain",
    "publish", "read_array", "read_json", "read_slices", "read_sparse", "temporary_name",
    "write_arrays", "write_json",
]  # fmt: skip
