"""What a run needs in memory, said before it is taken."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from distq_mpi.architectures import Allreduce, Sharded
from distq_mpi.environments.base import Environment
from distq_mpi.environments.cutting import Cuts, can_be_cut, n_entries
from distq_mpi.errors import ConfigError

KEEPS = {
    "allreduce": ("the whole table", "; sharded keeps a block of it"),
    "sharded": ("its block", "; take more ranks"),
}
"""What every rank has of the table, and what to do where that is too much."""

ROW_BYTES, ENTRY_BYTES = 8, 32
"""Of a pair and of a transition of an explicit model."""


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


def model_bytes(environment: Environment, cuts: Cuts | None = None, per_host: int = 1) -> int:
    """Bytes of the model that one rank accounts for, the largest of all ranks. Local.

    cuts : as in `sharing.share`: a table of transitions is then rows of its own on each rank, and
    start states once per host; None, and anything else: all of it once per host, a share of which
    each of its per_host ranks accounts for. Works on an environment of which nobody holds rows.
    """
    arrays = [p for p in environment.params if isinstance(p, np.ndarray)]
    if not can_be_cut(environment):
        return -(-sum(array.nbytes for array in arrays) // per_host)

    def rows_bytes(low: int, high: int) -> int:
        n_rows = (high - low) * environment.n_actions + 1
        return n_rows * ROW_BYTES + n_entries(environment, low, high) * ENTRY_BYTES

    starts = sum(array.nbytes for array in arrays[4:7])
    if cuts is None:
        return -(-(rows_bytes(0, environment.n_states) + starts) // per_host)
    return max(rows_bytes(low, high) for low, high in cuts) - (-starts // per_host)


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
