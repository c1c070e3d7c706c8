"""What a run needs in memory, said before it is taken."""

from __future__ import annotations

import os
from typing import Any

from distq_mpi.architectures import Allreduce, Sharded
from distq_mpi.errors import ConfigError

KEEPS = {
    "allreduce": ("the whole table", "; sharded keeps a block of it"),
    "sharded": ("its block", "; take more ranks"),
}
"""What every rank has of the table, and what to do where that is too much."""


def host_bytes() -> int:
    """Physical memory of this host, or the control group's limit where that is lower."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        with open("/sys/fs/cgroup/memory.max", encoding="ascii") as file:
            text = file.read().strip()
    except OSError:
        return total
    return min(total, int(text)) if text.isdigit() else total


def readable(n_bytes: float) -> str:
    """A size in the unit that suits it."""
    for unit in ("B", "KB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.4g} TB"


def memory_bytes(config: Any, n_states: int, n_actions: int, size: int) -> dict[str, int]:
    """Bytes one rank will need, part by part, under a resolved `Config` on `size` ranks. Local."""
    architecture = Sharded if config.parallel.architecture == "sharded" else Allreduce
    return architecture.memory_bytes(config, n_states, n_actions, size)


def limit_bytes(config: Any, per_host: int) -> int:
    """What one rank may use: `parallel.memory_bytes`, or this host's memory over its ranks."""
    return config.parallel.memory_bytes or host_bytes() // per_host


def check_memory(config: Any, n_states: int, n_actions: int, size: int, per_host: int) -> None:
    """Raise ConfigError where what a rank keeps does not fit `parallel.memory_bytes`. Local."""
    need = sum(memory_bytes(config, n_states, n_actions, size).values())
    limit = limit_bytes(config, per_host)
    if need <= limit:
        return
    keeps, way = KEEPS[config.parallel.architecture]
    raise ConfigError(
        f"parallel.architecture: {config.parallel.architecture} keeps {keeps} on every rank and "
        f"needs {readable(need)} per rank for {n_states} states x {n_actions} actions; the limit "
        f"is {readable(limit)} (parallel.memory_bytes; {per_host} ranks a host){way}"
    )
