"""What the launcher's environment says about this process, without starting MPI."""

from __future__ import annotations

import os
import time

RANKS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "SLURM_PROCID")
SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_NTASKS")


def launched_rank() -> int:
    """Rank of this process; 0 without a launcher."""
    return _first(RANKS) or 0


def launched_size() -> int | None:
    """Ranks the launcher started; None without a launcher.

    SLURM_NTASKS alone says nothing: a batch script has it, too, without being a task.
    """
    if "SLURM_PROCID" not in os.environ or "SLURM_STEP_ID" not in os.environ:
        return _first(SIZES[:2])
    return _first(SIZES)


def process_age_s() -> float:
    """Seconds since this process began, its imports included; 0 where the system does not say."""
    try:
        with open("/proc/self/stat", encoding="ascii") as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])
    except OSError:
        return 0.0
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def _first(names: tuple[str, ...]) -> int | None:
    for name in names:
        value = os.environ.get(name, "")
        if value.isdigit():
            return int(value)
    return None


def survives_deaths() -> bool:
    """Whether the launcher lets a job go on without ranks that died (`mpirun --with-ft ulfm`).

    The library's own word is not enough: it has the calls all the same.
    """
    return os.environ.get("OMPI_MCA_mpi_ft_enable") == "1"  # noqa: SIM112


def give_up_hanging_ranks() -> None:
    """Let a rank that hangs be given up after twenty seconds, where deaths are survived. Local.

    By itself only a dead one would be. Heartbeats are sent whenever MPI is called, which
    `Transport` sees to while a rank computes, or waits for a disk; Open MPI's own thread for it
    (`_thread`) lets some jobs in a hundred crash when they begin. MPI reads this when it begins.
    """
    if survives_deaths():
        for name, value in (("", "1"), ("_period", "1"), ("_timeout", "20")):
            os.environ.setdefault(f"OMPI_MCA_mpi_ft_detector{name}", value)
