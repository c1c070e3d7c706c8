"""What a run needs in memory, said before it is taken."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from distq_mpi.architectures import architecture_of
from distq_mpi.architectures.balance import slack_rows
from distq_mpi.environments.base import Environment
from distq_mpi.environments.cutting import Cuts, can_be_cut, hulls, n_entries
from distq_mpi.errors import ConfigError
from distq_mpi.fusion import fusion_of
from distq_mpi.partition import Partition
from distq_mpi.planning import BLOCK_TRANSITIONS, planner_bytes, planner_rows

KEEPS = {
    "allreduce": ("the whole table on every rank", "; sharded keeps a block of it"),
    "hogwild": ("one table on the host, a share of which counts for every rank", "; take sharded"),
    "sharded": ("its block on every rank", "; take more ranks"),
    "server": (
        "a block on every server, rows on every worker",
        "; take more servers, or parallel.cache_rows with parallel.staleness, or sharded",
    ),
}
"""What every rank has of the table, and what to do where that is too much."""

ROW_BYTES, ENTRY_BYTES = 8, 32
"""Of a pair and of a transition of an explicit model."""
CUT_TRANSITIONS = 8 * BLOCK_TRANSITIONS
"""Transitions from which on no rank holds a whole model under `sharded`; so many are planned by all
ranks together, for one alone would need them all."""


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
    others = sum(p.nbytes for v in environment.variants for p in v if isinstance(p, np.ndarray))
    if not can_be_cut(environment):
        return -(-(sum(array.nbytes for array in arrays) + others) // per_host)

    def rows_bytes(low: int, high: int) -> int:
        n_rows = (high - low) * environment.n_actions + 1
        return n_rows * ROW_BYTES + n_entries(environment, low, high) * ENTRY_BYTES

    starts = sum(array.nbytes for array in arrays[4:7])
    if cuts is None:
        return -(-(rows_bytes(0, environment.n_states) + starts + others) // per_host)
    return max(rows_bytes(low, high) for low, high in cuts) - (-starts // per_host)


def cuts_of(config: Any, environment: Environment, size: int) -> Cuts | None:
    """The states [low, high) whose rows each rank holds of a model; None where a host holds all.

    Those of its block, with some to spare where borders move, and of the rows it plans. Local.
    """
    if config.parallel.architecture != "sharded" or size == 1 or not can_be_cut(environment):
        return None
    if environment.n_transitions < CUT_TRANSITIONS:
        return None
    n = environment.n_states
    even, spare = Partition.balanced(n, size).starts, slack_rows(n, size)
    borders = [even]
    for by in (-spare, spare) if config.parallel.rebalance else ():
        moved = np.clip(even + by, 0, n)
        moved[0], moved[-1] = 0, n
        borders.append(moved)
    planned = planner_rows(n, environment.n_transitions, size)
    return hulls(planned, *(Partition(starts) for starts in borders))


def memory_bytes(
    config: Any, environment: Environment, exact: bool, size: int, per_host: int
) -> dict[str, int]:
    """Bytes one rank will need, part by part, under a resolved `Config` on `size` ranks. Local.

    exact : whether there will be exact values. per_host : most ranks on one host.
    """
    architecture = architecture_of(config, environment, size)
    shape = environment.n_states, environment.n_actions
    found = architecture.memory_bytes(config, *shape, size)
    found["model"] = model_bytes(environment, cuts_of(config, environment, size), per_host)
    if exact:
        found["exact values"] = planner_bytes(*shape, environment.n_transitions, size)
    return found


def limit_bytes(config: Any, per_host: int) -> int:
    """What one rank may use: `parallel.memory_bytes`, or this host's memory over its ranks."""
    return config.parallel.memory_bytes or host_bytes() // per_host


def check_memory(config: Any, need: dict[str, int], shape: tuple[int, int], per_host: int) -> None:
    """Raise ConfigError where what a rank keeps does not fit `parallel.memory_bytes`. Local.

    need : of `memory_bytes`. shape : states, actions.
    """
    total, limit = sum(need.values()), limit_bytes(config, per_host)
    if total <= limit:
        return
    shared = fusion_of(config).shared and config.parallel.agents > 1
    keeps, way = KEEPS["hogwild" if shared else config.parallel.architecture]
    parts = ", ".join(f"{name} {readable(n)}" for name, n in need.items())
    raise ConfigError(
        f"parallel.architecture: {config.parallel.architecture} keeps {keeps} and "
        f"needs {readable(total)} per rank for {shape[0]} states x {shape[1]} actions ({parts}); "
        f"the limit is {readable(limit)} (parallel.memory_bytes; {per_host} ranks a host){way}"
    )
