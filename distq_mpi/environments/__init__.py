"""What can be learned on: explicit models, laws, Gymnasium; built-in worlds."""

from distq_mpi.environments.base import Environment
from distq_mpi.environments.explicit import explicit_model
from distq_mpi.environments.exploring import exploring_starts
from distq_mpi.environments.model_file import read_model, write_model
from distq_mpi.environments.registry import (
    from_object,
    is_environment_class,
    is_gymnasium,
    make,
    make_world,
    object_id,
)
from distq_mpi.environments.sparse import sparse_model
from distq_mpi.environments.timed import time_aware

__all__ = [
    "Environment",
    "explicit_model",
    "exploring_starts",
    "from_object",
    "is_environment_class",
    "is_gymnasium",
    "make",
    "make_world",
    "object_id",
    "read_model",
    "sparse_model",
    "time_aware",
    "write_model",
]
