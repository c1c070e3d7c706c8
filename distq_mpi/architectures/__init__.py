"""Architectures: how what was learned reaches the owners. One interface."""

from typing import Any

from distq_mpi.architectures.allreduce import Allreduce
from distq_mpi.architectures.progress import Agreement, Progress
from distq_mpi.architectures.sharded import Sharded

ARCHITECTURES: dict[str, Any] = {"allreduce": Allreduce, "sharded": Sharded}

__all__ = ["ARCHITECTURES", "Agreement", "Allreduce", "Progress", "Sharded"]
