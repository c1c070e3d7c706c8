"""Architectures: how what was learned reaches the owners. One interface, `allreduce` so far."""

from distq_mpi.architectures.allreduce import Allreduce
from distq_mpi.architectures.progress import Agreement, Progress

ARCHITECTURES = {"allreduce": Allreduce}

__all__ = ["ARCHITECTURES", "Agreement", "Allreduce", "Progress"]
