"""Why a run was no faster: what took most of its time, and how near that came to the machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from distq_mpi.memory import readable

IN_CACHE = 1 << 20
"""A table up to so large lies in the cache of a core, as `probe` has it."""
MB = 1 << 20
NAMES = {"certify": "certificates", "io": "I/O"}


@dataclass(frozen=True)
class Bottleneck:
    """name : startup, in-cache compute, random rows, environment, exchange, certificates or I/O.

    share : of the wall time. of_ceiling : of the rate that `probe` found for random rows of such a
    table; None where the table is in the cache, or `probe` has not been run.
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
            ceiling = _ceiling(table_bytes, ceilings)
            of_ceiling = rate / ceiling if ceiling else None
            told += f", in a table of {readable(table_bytes)} a rank"
            told += (
                f", at {100 * of_ceiling:.0f} % of what `probe` found" if of_ceiling is not None
                else "; `python -m distq_mpi probe` would say how near it came to the machine"
            )  # fmt: skip
    return Bottleneck(name, share, of_ceiling, f"{name}: {told}")


def _ceiling(table_bytes: int, ceilings: Mapping[str, float]) -> float | None:
    """Random rows per second of a rank, in the probed table that is nearest in size."""
    sizes = {
        int(name.removeprefix("random_rows_").partition("mb")[0]): name
        for name in ceilings
        if name.startswith("random_rows_") and (
            name.endswith("_all") or f"{name}_all" not in ceilings
        )
    }  # fmt: skip
    if not sizes:
        return None
    nearest = min(sizes, key=lambda size: abs(size * MB - table_bytes))
    return ceilings[sizes[nearest]]
