"""Architectures: how what was learned reaches the owners. One interface."""

from __future__ import annotations

from typing import Any

from distq_mpi.architectures.allreduce import Allreduce
from distq_mpi.architectures.asking import ShardedStepped
from distq_mpi.architectures.in_place import InPlace
from distq_mpi.architectures.progress import Agreement, Progress
from distq_mpi.architectures.served import Served
from distq_mpi.architectures.server import ServedInStep
from distq_mpi.architectures.sharded import Sharded, record_in
from distq_mpi.table import Record, record_of


def architecture_of(config: Any, environment: Any, size: int) -> Any:
    """The class that learns an environment under a resolved `Config` on `size` ranks. Local."""
    stepped = environment.kind == "stepped"
    if config.parallel.architecture == "allreduce":
        shape = environment.n_states, environment.n_actions
        return InPlace if InPlace.suits(config, *shape, size, stepped) else Allreduce
    if config.parallel.architecture == "server":
        return ServedInStep if config.parallel.staleness == 0 else Served
    return ShardedStepped if stepped else Sharded


def record_of_run(config: Any, n_actions: int) -> Record:
    """The record of the rows that learning keeps under a resolved `Config`. Local."""
    keeps = record_in if config.parallel.architecture == "sharded" else record_of
    return keeps(config.learn, n_actions)


__all__ = [
    "Agreement", "Allreduce", "Progress", "Served", "ServedInStep", "Sharded", "ShardedStepped",
    "architecture_of",
    "record_of_run",
]  # fmt: skip
