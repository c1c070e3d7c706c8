"""`probe`: this machine's ceilings, beside which the rates of runs and benchmarks are read."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from distq_mpi.files import publish
from distq_mpi.kernels.ceilings import ceiling_kernels
from distq_mpi.kernels.objects import cache_folder, load
from distq_mpi.memory import host_bytes, readable
from distq_mpi.probe.ceilings import (
    BucketedExchange,
    RandomRows,
    disk_bytes_per_s,
    host_memory_bytes_per_s,
    moved_bytes_per_s,
    reduced_bytes_per_s,
    triad_bytes_per_s,
)

if TYPE_CHECKING:
    from distq_mpi.transport import Transport

MB = 1 << 20
TABLES = (1 * MB, 64 * MB, 1024 * MB)
"""Of the random rows: within the cache of a core, beyond it, beyond what its page tables reach."""
EXCHANGES = (1024, 8192, 65536)
EXCHANGE_TABLE = 64 * MB
TRIAD_BYTES = 192 * MB
REDUCED = (2048, 1 * MB)
SHARED, WRITTEN = 32 * MB, 64 * MB
SHARE = 8
"""A table takes at most this part of the memory that a rank has."""
FILE = "probe.json"


@dataclass(frozen=True)
class Ceiling:
    """One rate of this machine: `name` for programs, `what` for people."""

    name: str
    what: str
    per_s: float
    unit: str


def probe(as_json: bool, transport: Transport, tables: tuple[int, ...] = TABLES) -> int:
    """Measure, print and store what this machine can do; return the exit code. COLLECTIVE.

    tables : bytes of the tables of random rows; those too large for this host are left out.
    """
    found = measure(transport, tables)
    if transport.rank == 0:
        told: dict[str, Any] = {
            "ranks": transport.size,
            "hosts": len(set(transport.hosts)),
            "machine": platform.machine(),
            "ceilings": [asdict(ceiling) for ceiling in found],
        }
        with publish(os.path.join(cache_folder(), FILE)) as temporary:
            temporary.write_text(json.dumps(told, indent=2), encoding="utf-8")
        print(json.dumps(told, indent=2) if as_json else "\n".join(_lines(transport, found)))
    transport.close()
    return 0


def measure(transport: Transport, tables: tuple[int, ...]) -> list[Ceiling]:
    """Return the ceilings, the same on every rank but for rounding. COLLECTIVE."""
    with transport.same_outcome():
        kernels = load(ceiling_kernels() if transport.leads_node else None, transport)
    most = np.array([transport.node_size], np.int64)
    transport.max_int(most)
    room = transport.broadcast(host_bytes()) // int(most[0]) // SHARE
    found = []
    for table_bytes in (size for size in tables if size <= max(room, tables[0])):
        rows, label = RandomRows(kernels, table_bytes), readable(table_bytes)
        for alone in (True, False) if transport.size > 1 else (True,):
            who = "one rank alone" if alone else "each rank, all at once"
            name = f"random_rows_{table_bytes >> 20}mb{'' if alone else '_all'}"
            found.append(Ceiling(
                name, f"random rows updated, table of {label}, {who}",
                rows.per_s(transport, alone), "rows",
            ))  # fmt: skip
        del rows
    exchange_table = min(EXCHANGE_TABLE, max(tables))
    for n_updates in EXCHANGES if transport.size > 1 else ():
        exchange = BucketedExchange(kernels, transport, exchange_table, n_updates)
        found.append(Ceiling(
            f"exchange_{n_updates}", f"random 8-byte updates, {n_updates:,} an exchange, all ranks",
            exchange.per_s(), "updates",
        ))  # fmt: skip
        exchange.close()
    found.append(Ceiling(
        "triad", "memory read and written, each rank, all at once",
        triad_bytes_per_s(transport, kernels, min(TRIAD_BYTES, 3 * max(tables))), "bytes",
    ))  # fmt: skip
    if transport.size > 1:
        calls = reduced_bytes_per_s(transport, 8) / 8
        found.append(Ceiling("allreduce_calls", "Allreduce of 8 bytes", calls, "calls"))
    for n_bytes in REDUCED if transport.size > 1 else ():
        found.append(Ceiling(
            f"allreduce_{n_bytes}", f"Allreduce of {readable(n_bytes)}",
            reduced_bytes_per_s(transport, n_bytes), "bytes",
        ))  # fmt: skip
    if transport.size > 1:
        moved, shared = moved_bytes_per_s(transport, MB), host_memory_bytes_per_s(transport, SHARED)
        found.append(Ceiling("alltoallv", "Alltoallv of 1 MB to every rank, each", moved, "bytes"))
        if shared is not None:
            what = "copied into common memory of the host, each rank, all at once"
            found.append(Ceiling("host_memory", what, shared, "bytes"))
    disk = disk_bytes_per_s(transport, os.getcwd(), WRITTEN)
    if disk is not None:
        what = f"written and safe on the disk here, {readable(WRITTEN)}"
        found.append(Ceiling("disk", what, disk, "bytes"))
    return found


def stored() -> dict[str, float]:
    """What the last probe on this machine found, name -> rate; empty if there was none. Local."""
    try:
        with open(os.path.join(cache_folder(), FILE), encoding="utf-8") as file:
            told = json.load(file)
        return {one["name"]: float(one["per_s"]) for one in told["ceilings"]} | {
            "ranks": float(told["ranks"])
        }
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _lines(transport: Transport, found: list[Ceiling]) -> list[str]:
    hosts = len(set(transport.hosts))
    lines = [
        f"{transport.size} rank{'s' * (transport.size > 1)} on {hosts} host{'s' * (hosts > 1)}; "
        "medians"
    ]
    for one in found:
        value = f"{one.per_s / 1e6:.3g} M {one.unit}/s"
        if one.unit == "bytes":
            value = f"{readable(one.per_s)}/s"
        elif one.unit == "calls":
            value = f"{1e6 / one.per_s:.3g} us"
        lines.append(f"  {one.what:<66} {value:>18}")
    return lines
