"""`server` in step: servers own the table and do not learn; workers host the agents.

With `parallel.staleness` 0 nobody is ahead of anybody: what all agents contribute to a round is
added up and fused by the servers, each its block, before anybody learns on. So the bits are those
of `allreduce` with as many agents, whatever the numbers of servers and workers.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from distq_mpi.architectures.allreduce import Allreduce
from distq_mpi.errors import ConfigError
from distq_mpi.partition import Partition


def placement(config: Any, n_states: int, size: int) -> tuple[Partition, Partition]:
    """Agents on the workers, rows on the servers, which come first. Local.

    Where fewer ranks are left than there were servers, one is a worker all the same.
    """
    n_servers = max(1, min(config.parallel.servers, size - 1, n_states))
    if size == 1:  # all others were lost
        return Partition.balanced(config.parallel.agents, 1), Partition.balanced(n_states, 1)
    agents = Partition.balanced(config.parallel.agents, size - n_servers).starts
    rows = Partition.balanced(n_states, n_servers).starts
    return (
        Partition(np.concatenate([np.zeros(n_servers, np.int64), agents])),
        Partition(np.concatenate([rows, np.full(size - n_servers, n_states)])),
    )


def check_split(config: Any, size: int) -> None:
    """Raise ConfigError where the ranks cannot be split into servers and workers. Local."""
    n_servers = config.parallel.servers
    if n_servers < size:
        return
    possible = "one rank cannot be both; start two or more, or take allreduce"
    if size > 1:
        possible = f"1 to {size - 1} of {size} ranks can be servers"
    raise ConfigError(
        f"parallel.servers: {n_servers} of {size} rank{'s' * (size > 1)} leave no worker: "
        f"{possible}"
    )


class ServedInStep(Allreduce):
    """As `Allreduce`, with other ranks for rows and agents."""

    exchanges = "servers"

    @staticmethod
    def memory_bytes(config: Any, n_states: int, n_actions: int, size: int) -> dict[str, int]:
        """As `Allreduce.memory_bytes`, of as few ranks as share either rows or agents. Local."""
        n_servers = min(config.parallel.servers, max(1, size - 1))
        few = max(1, min(n_servers, size - n_servers))
        return Allreduce.memory_bytes(config, n_states, n_actions, few)

    @staticmethod
    def placement(config: Any, n_states: int, size: int) -> tuple[Partition, Partition]:
        """Agents on the workers, rows on the servers, which come first. Local."""
        return placement(config, n_states, size)
