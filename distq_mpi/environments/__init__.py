"""What can be learned on: explicit models, laws, Gymnasium; built-in worlds."""

from distq_mpi.environments.base import Environment
from distq_mpi.environments.explicit import explicit_model
from distq_mpi.environments.exploring import exploring_starts
from distq_mpi.environments.registry import (
    from_object,
    is_gymnasium,
    is_law,
    make,
    make_world,
    object_id,
)

__all__ = [
    "Environment",
    "explicit_model",
    "exploring_starts",
    "from_object",
    "is_gymnasium",
    "is_law",
    "make",
    "make_world",
    "object_id",
]
