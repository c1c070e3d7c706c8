"""What can be learned on: explicit models, laws, Gymnasium; built-in worlds."""

from distq_mpi.environments.base import Environment
from distq_mpi.environments.explicit import explicit_model
from distq_mpi.environments.exploring import exploring_starts
from distq_mpi.environments.model_file import read_model, write_model
from distq_mpi.environments.registry import is_law, make
from distq_mpi.environments.sparse import sparse_model

__all__ = [
    "Environment", "explicit_model", "exploring_starts", "is_law", "make", "read_model",
    "sparse_model", "write_model",
]  # fmt: skip
