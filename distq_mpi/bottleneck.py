"""Why a run was no faster: what took most of its time, and how near that came to the machine."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from distq_mpi.memory import readable

IN_CACHE = 1 << 20
"""A table up to so large lies in the cache of a core, as `probe` has it."""
MB = 1 << 20
NAMES = {"certify": "certificates", "io": "I/O"}


@dataclass(frozen=True)
class Bottleneck:
    """name : startup, in-cache compute, random rows, environment, exchange, certificates or I/O.

    share : of the wall time. of_ceiling : of the rate that `probe` found for random rows of such a
    table, between those it has tried in proportion, learning has run at; None where environments
    are stepped in Python, nothing was learned, or `probe` has not been run.
    """

    name: str
    share: float
    of_ceiling: float | None
    sentence: str


def bottleneck(
    seconds: Mapping[str, float], wall_s: float, table_bytes: int, stepped: bool,
    rate: float, ceilings: Mapping[str, float],
) -> Bottleneck:  # fmt: skip
    """Say what bound a run. Local.

    seconds : by phase: startup, learn, exchange, certify, io. table_bytes : that a rank learns on.
    rate : steps per second of learning of one rank. ceilings : of `probe.stored`.
    """
    phase = max(seconds, key=lambda name: seconds[name])
    share = seconds[phase] / wall_s if wall_s > 0 else 0.0
    name = NAMES.get(phase, phase)
    told, of_ceiling = f"{100 * share:.0f} % of the time", None
    if phase == "learn":
        name = "environment" if stepped else "in-cache compute"
        if not stepped and table_bytes > IN_CACHE:
            name = "random rows"
    if not stepped and rate > 0:
        ceiling = _ceiling(table_bytes, ceilings)
        of_ceiling = rate / ceiling if ceiling else None
        told += (
            f"; learning in a table of {readable(table_bytes)} a rank ran at "
            f"{100 * of_ceiling:.0f} % of the {ceiling / 1e6:.3g} M random rows/s of `probe`"
            if of_ceiling is not None and ceiling
            else "; `python -m distq_mpi probe` would say how near learning came to the machine"
        )  # fmt: skip
    return Bottleneck(name, share, of_ceiling, f"{name}: {told}")


def _ceiling(table_bytes: int, ceilings: Mapping[str, float]) -> float | None:
    """Random rows per second of a rank in a table of this size: between two probed ones rates fall
    as a power of the size."""
    sizes = {
        int(name.removeprefix("random_rows_").partition("mb")[0]): name
        for name in ceilings
        if name.startswith("random_rows_") and (
            name.endswith("_all") or f"{name}_all" not in ceilings
        )
    }  # fmt: skip
    if not sizes:
        return None
    known = sorted(sizes)
    places = [math.log(size * MB) for size in known]
    rates = [math.log(ceilings[sizes[size]]) for size in known]
    return math.exp(float(np.interp(math.log(max(1, table_bytes)), places, rates)))
