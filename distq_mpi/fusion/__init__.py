"""Fusion: how what the agents learned becomes one table. Arithmetic only, no messages."""

from distq_mpi.fusion.fixed_point import FixedPoint
from distq_mpi.fusion.strategies import (
    FUSIONS,
    Fusion,
    adopts,
    fusion_kernels,
    fusion_of,
)

__all__ = [
    "FUSIONS", "FixedPoint", "Fusion", "adopts", "fusion_kernels", "fusion_of",
]  # fmt: skip
