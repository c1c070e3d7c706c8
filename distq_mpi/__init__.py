"""Distributed tabular Q-learning: one Q-table learned by as many MPI ranks as there are."""

__version__ = "0.1.0"
