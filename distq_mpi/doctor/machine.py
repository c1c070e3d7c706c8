"""The machine a rank sees: cores, memory, folders; and what that means for the ranks on a host."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from distq_mpi.doctor.rows import Row
from distq_mpi.errors import FileError
from distq_mpi.memory import host_bytes, readable

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS", "MKL_NUM_THREADS")
NETWORK = {"nfs", "nfs4", "lustre", "gpfs", "cifs", "smb3", "smbfs", "beegfs", "ceph", "afs",
           "glusterfs", "pvfs2", "orangefs", "panfs", "9p", "wekafs"}  # fmt: skip
SMALL_SHM = 128 << 20
SMALL_MEMORY = 256 << 20
OVERSUBSCRIBE = {
    "Open MPI": "mpirun --map-by :oversubscribe, with OMPI_MCA_mpi_yield_when_idle=1 exported",
    "MPICH": "MPICH starts them as they are (mpirun -n N)",
}
UNBIND = {"Open MPI": "mpirun --bind-to none", "MPICH": "mpirun -bind-to none"}


@dataclass(frozen=True)
class Place:
    """What one rank finds where it runs; picklable."""

    host: str
    cores: frozenset[int]
    quota: float
    """Cores that the control group grants, infinite where it sets no limit."""
    memory: int
    shm: tuple[int, int] | None
    """Bytes of /dev/shm: size and free."""
    large_pages: bool
    """Whether memory of /dev/shm can be on pages of 2 MB."""
    threads: dict[str, str]
    cache: Row
    folder: Row
    versions: dict[str, str | None] = field(default_factory=dict)


def look(host: str, threads: dict[str, str], versions: dict[str, str | None]) -> Place:
    """Look around. Local; leaves nothing behind but an empty cache folder."""
    shm: tuple[int, int] | None = None
    try:
        stat = os.statvfs("/dev/shm")
        shm = stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize
    except OSError:
        pass
    cores = frozenset(os.sched_getaffinity(0))
    large = options_of("/dev/shm").get("huge", "never") != "never" and not shm_denied()
    return Place(
        host, cores, cpu_quota(), host_bytes(), shm, large, threads, _cache_row(), _folder_row(),
        versions,
    )  # fmt: skip


def cpu_quota(root: str = "/sys/fs/cgroup", own: str = "/proc/self/cgroup") -> float:
    """Cores that the control groups of this process grant: the least of all above it."""
    try:
        lines = Path(own).read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    found = [float("inf")]
    for line in lines or ["0::/"]:
        _, kinds, path = line.split(":", 2)
        if kinds and "cpu" not in kinds.split(","):
            continue
        base = Path(root, "cpu") if kinds else Path(root)
        steps = [part for part in path.split("/") if part]
        for depth in range(len(steps) + 1):
            found.append(_quota_of(base.joinpath(*steps[:depth])))
    return min(found)


def _quota_of(folder: Path) -> float:
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        return float(quota) / float(period) if quota not in ("max", "-1") else float("inf")
    except (OSError, ValueError, ZeroDivisionError):
        return float("inf")


def core_row(places: Sequence[Place], family: str, launched: bool) -> Row:
    """Cores of a host against the ranks on it. family : of the MPI library."""
    n_ranks = len(places)
    cores = frozenset().union(*(place.cores for place in places))
    quota = places[0].quota
    usable = min(len(cores), quota)
    limit = f", the control group grants {quota:g}" if quota < len(cores) else ""
    ranks = f"{n_ranks} rank{'s' * (n_ranks > 1)}"
    found = f"{ranks} on {len(cores)} core{'s' * (len(cores) > 1)}{limit}"
    present = os.cpu_count() or len(cores)
    if n_ranks > len(cores) and present >= n_ranks:
        flag = UNBIND.get(family, "mpirun's option that binds no ranks")
        return Row("cores", f"{found}, of {present} on the host", "note",
                   f"the ranks are bound to few cores: {flag}")  # fmt: skip
    if n_ranks > usable:
        flag = OVERSUBSCRIBE.get(family, "the launcher's option for it")
        return Row("cores", f"{found}: oversubscribed", "note",
                   f"fine for trying out, slow: ranks wait for each other; {flag}")  # fmt: skip
    if not launched and usable >= 2:
        extra = f"mpirun -n {int(usable)} python -m distq_mpi"
        return Row("cores", found, "ok", f"this machine takes more ranks: {extra}")
    return Row("cores", found)


def thread_row(places: Sequence[Place]) -> Row:
    """Threads that libraries would start in every rank of a host."""
    said = places[0].threads
    found = ", ".join(f"{name}={value}" for name, value in said.items()) or "unset: 1 each"
    most = max([int(value) for value in said.values() if value.isdigit()], default=1)
    if most > 1 and most * len(places) > len(frozenset().union(*(p.cores for p in places))):
        return Row("threads", found, "note", f"unset {', '.join(said)}: more threads than cores")
    return Row("threads", found)


def shm_row(place: Place) -> Row:
    """Shared memory of a host: where ranks meet, and explicit models lie."""
    if place.shm is None:
        return Row("/dev/shm", "missing", "note", "every rank keeps its own copy of the model")
    size, free = place.shm
    found = f"{readable(free)} free of {readable(size)}"
    if free < SMALL_SHM:
        return Row("/dev/shm", found, "note", "large models are copied to every rank; "
                   "in a container: docker run --shm-size=1g")  # fmt: skip
    if not place.large_pages:
        return Row("/dev/shm", found, "ok", "tables of more than a cache, if ranks have them in "
                   "common, learn a tenth faster on pages of 2 MB: as root, mount -o "
                   "remount,huge=advise /dev/shm")  # fmt: skip
    return Row("/dev/shm", f"{found}, pages of 2 MB")


def memory_row(places: Sequence[Place]) -> Row:
    """Memory of a host, and what is left for each of its ranks."""
    memory = min(place.memory for place in places)
    each = memory // len(places)
    found = f"{readable(memory)}, {readable(each)} per rank"
    if each < SMALL_MEMORY:
        return Row("memory", found, "note", "start fewer ranks per host")
    return Row("memory", found)


def _mount_of(folder: str, mounts: str) -> list[str]:
    """The words of the line on the file system that a folder lies on; none where the system does
    not say."""
    best, found = "", list[str]()
    try:
        lines = Path(mounts).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    real = os.path.realpath(folder)
    for line in lines:
        words = line.split()
        if len(words) < 4:
            continue
        point = words[1].replace("\\040", " ")
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, found = point, words
    return found


def file_system(folder: str, mounts: str = "/proc/mounts") -> str:
    """Type of the file system a folder lies on, "" where the system does not say."""
    words = _mount_of(folder, mounts)
    return words[2] if words else ""


def shm_denied(file: str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled") -> bool:
    """Whether this system hands out no large pages of shared memory, whatever a mount asks for."""
    try:
        return "[deny]" in Path(file).read_text(encoding="ascii")
    except OSError:
        return True


def options_of(folder: str, mounts: str = "/proc/mounts") -> dict[str, str]:
    """Options that the file system a folder lies on is mounted with, and their values."""
    words = _mount_of(folder, mounts)
    told = words[3].split(",") if words else []
    return dict((*one.split("=", 1), "")[:2] for one in told)  # type: ignore[misc]


def on_network(kind: str) -> bool:
    """Whether a type of file system is reached over a network."""
    return kind in NETWORK or kind.startswith("fuse.") and "overlay" not in kind


def _cache_row() -> Row:
    name = "kernel cache"
    try:
        from distq_mpi.kernels.objects import cache_folder

        folder = cache_folder()
        n_files = sum(entry.endswith(".o") for entry in os.listdir(folder))
    except (ImportError, OSError, FileError) as error:
        return Row(name, str(error), "wrong", "export DISTQ_CACHE_DIR=a folder of yours")
    kind = file_system(folder)
    found = f"{folder} ({kind or 'unknown file system'}), {n_files} compiled kernels"
    asked = os.environ.get("DISTQ_CACHE_DIR")
    if asked and os.path.realpath(asked) != os.path.realpath(folder):
        return Row(name, f"{found}; DISTQ_CACHE_DIR={asked} is not writable", "note",
                   "correct DISTQ_CACHE_DIR")  # fmt: skip
    if on_network(kind):
        return Row(name, found, "note", "on a network: export DISTQ_CACHE_DIR=/tmp/$USER-distq "
                   "for faster starts")  # fmt: skip
    return Row(name, found)


def _folder_row() -> Row:
    name, advice = "run directories", "change to a folder of yours, or give --run.dir"
    try:
        folder = os.getcwd()
        stat = os.statvfs(folder)
    except OSError as error:
        return Row(name, f"the current directory is gone: {error.strerror}", "wrong", advice)
    kind = file_system(folder)
    free = stat.f_bavail * stat.f_frsize
    found = f"{folder} ({kind or 'unknown file system'}), {readable(free)} free"
    if not os.access(folder, os.W_OK | os.X_OK):
        return Row(name, f"{found}, not writable", "wrong", advice)
    if free < SMALL_SHM:
        return Row(name, found, "note", "checkpoints may not fit")
    return Row(name, found)
