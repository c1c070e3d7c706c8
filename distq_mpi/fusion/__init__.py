"""Fusion: how what the agents learned becomes one table. Arithmetic only, no messages."""

from distq_mpi.fusion.fixed_point import FixedPoint, join_float, split_float
from distq_mpi.fusion.strategies import FUSIONS, Fusion, fusion_kernels

__all__ = ["FUSIONS", "FixedPoint", "Fusion", "fusion_kernels", "join_float", "split_float"]
