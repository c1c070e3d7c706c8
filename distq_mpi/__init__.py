"""Distributed tabular Q-learning: one Q-table learned by as many MPI ranks as there are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distq_mpi.api import QLearning
    from distq_mpi.evaluation import evaluate_policy

__version__ = "0.1.0"
__all__ = ["QLearning", "__version__", "evaluate_policy"]

MODULES = {"QLearning": "api", "evaluate_policy": "evaluation"}


def __getattr__(name: str) -> Any:
    """Import what is asked for only then: `import distq_mpi` alone stays free."""
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *MODULES])
