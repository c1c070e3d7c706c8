"""What a run needs in memory, said before it is taken."""

from __future__ import annotations

import os
from typing import Any

from distq_mpi.architectures.allreduce import memory_bytes
from distq_mpi.errors import ConfigError


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


def check_memory(config: Any, n_states: int, n_actions: int, size: int, per_host: int) -> None:
    """Raise ConfigError where a replica per rank does not fit `parallel.memory_bytes`. Local.

    memory_bytes is what one rank may use; 0 stands for this host's memory over its ranks.
    """
    need = sum(memory_bytes(config, n_states, n_actions, size).values())
    limit = config.parallel.memory_bytes or host_bytes() // per_host
    if need > limit:
        raise ConfigError(
            f"parallel.architecture: allreduce keeps the whole table on every rank and needs "
            f"{readable(need)} per rank for {n_states} states x {n_actions} actions; "
            f"the limit is {readable(limit)} (parallel.memory_bytes; {per_host} ranks a host)"
        )
