"""`doctor`: what is installed, what the machine gives, and whether it works together.

Without a launcher it starts MPI on one rank (a singleton). Under one every rank looks around and
rank 0 speaks for all. What is missing is a row, never a traceback.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from distq_mpi.doctor import installation, machine, trials
from distq_mpi.doctor.machine import Place
from distq_mpi.doctor.rows import Row, over_hosts
from distq_mpi.errors import DistqError
from distq_mpi.launcher import launched_rank, launched_size

if TYPE_CHECKING:
    from distq_mpi.transport import Transport

__all__ = ["Row", "examine"]


class _Teller:
    """Collects rows on the rank that speaks, and prints them as they come: should MPI end the
    process at its start, what was found before stands there."""

    def __init__(self, speaks: bool, as_json: bool) -> None:
        self.speaks, self.as_json = speaks, as_json
        self.rows: list[Row] = []

    def tell(self, *rows: Row) -> None:
        self.rows += rows
        if self.speaks and not self.as_json:
            for row in rows:
                print(row.line(), flush=True)

    def finish(self) -> int:
        counts = {verdict: [row.verdict for row in self.rows].count(verdict)
                  for verdict in ("ok", "note", "wrong")}  # fmt: skip
        if self.speaks and self.as_json:
            print(json.dumps([asdict(row) for row in self.rows], indent=2))
        elif self.speaks:
            print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
        return int(counts["wrong"] > 0)


def examine(as_json: bool) -> int:
    """Print a row per check; return 1 where something is wrong, else 0. COLLECTIVE if MPI starts.

    as_json : print a list of objects with name, found, verdict (ok, note, wrong) and advice.
    """
    teller = _Teller(launched_rank() == 0, as_json)
    expected = installation.wheel_family()
    starter = _started_by(expected)
    if teller.speaks:
        teller.tell(*installation.package_rows(), installation.wheel_row())
        if expected:
            teller.tell(installation.launcher_row(expected, sys.prefix), starter)
    # Started by a foreign launcher, some libraries end the process.
    transport, library, rows = (None, "", []) if starter.verdict == "wrong" else _connect()
    teller.speaks = transport.rank == 0 if transport else teller.speaks
    if teller.speaks:
        path = installation.library_path()
        if library:
            told = f"{library}, from {installation.origin(path)}{f' ({path})' if path else ''}"
            teller.tell(Row("mpi library", told))
        if not expected:
            teller.tell(installation.launcher_row(library, path), _started_by(library))
        teller.tell(*rows)
    versions = {name: installation.installed(name) for name in installation.SHOWN}
    threads = {name: os.environ[name] for name in machine.THREADS if name in os.environ}
    place = machine.look(platform.node(), threads, versions)
    places = transport.gather(place) if transport else [place]
    leads = transport.leads_node if transport else teller.speaks
    compiled = (place.host, trials.kernel_row()) if leads else None
    kernels = transport.gather(compiled) if transport else [compiled]
    if teller.speaks and places is not None and kernels is not None:
        teller.tell(*_host_rows(places, installation.family_of(library)))
        teller.tell(over_hosts(dict(row for row in kernels if row is not None)))
        teller.tell(trials.file_row(), installation.moved_ids_row())
    if transport is None:
        return teller.finish() if teller.speaks else 1
    teller.tell(trials.message_row(transport))
    code: int = transport.broadcast(teller.finish())
    transport.close()
    return code


def _connect() -> tuple[Transport | None, str, list[Row]]:
    """Start MPI; return the transport, what the library calls itself, and rows about both."""
    launched = launched_size()
    try:
        from distq_mpi.transport import Transport, abort_on_exception, library
    except (ImportError, OSError, RuntimeError) as error:
        told = "; ".join(line.strip() for line in str(error).splitlines() if line.strip())
        advice = "python -m pip install mpich, or load the cluster's MPI module"
        return None, "", [Row("mpi library", f"none can be loaded: {told}", "wrong", advice)]
    sys.excepthook = abort_on_exception
    try:
        transport = Transport.connect()
    except DistqError as error:
        return None, library(), [Row("ranks", str(error), "wrong", "see launcher")]
    found = f"{transport.size} of {launched} launched" if launched else "1, without a launcher"
    hosts = len(set(transport.hosts))
    found += f" on {hosts} hosts" if hosts > 1 else ""
    ranks = Row("ranks", found)
    if launched not in (None, transport.size):
        ranks = Row("ranks", found, "wrong", "use the mpirun that belongs to the library")
    return transport, library(), [ranks, _ulfm_row(transport, library())]


def _ulfm_row(transport: Transport, library: str) -> Row:
    goes_on = "a lost rank ends the job: go on with resume"
    if not transport.has_ulfm():
        return Row("ulfm", "not in this library", "note", goes_on)
    if installation.family_of(library) != "Open MPI":
        return Row("ulfm", "available")
    if os.environ.get("OMPI_MCA_mpi_ft_enable") == "1":  # noqa: SIM112
        return Row("ulfm", "available and switched on")
    advice = f"mpirun --with-ft ulfm; without it {goes_on}"
    return Row("ulfm", "available, not switched on", "note", advice)


def _started_by(library: str) -> Row:
    """What the environment tells of launcher and batch system."""
    environ, said = os.environ, []
    if "SLURM_JOB_ID" in environ:
        nodes, tasks = environ.get("SLURM_JOB_NUM_NODES", "?"), environ.get("SLURM_NTASKS", "?")
        said.append(f"SLURM job {environ['SLURM_JOB_ID']} ({nodes} nodes, {tasks} tasks)")
    if "OMPI_COMM_WORLD_RANK" in environ:
        said.append("Open MPI's launcher")
    elif "PMI_RANK" in environ:
        said.append("a PMI launcher (MPICH's, Intel's or srun)")
    found = ", ".join(said) or "nothing: a plain process"
    family = installation.family_of(library)
    if "OMPI_COMM_WORLD_RANK" in environ and family not in ("", "Open MPI"):
        return Row("started by", f"{found}, but the library is {family}", "wrong",
                   "use the mpirun that belongs to the library")  # fmt: skip
    if "SLURM_JOB_ID" in environ and launched_size() is None:
        return Row("started by", found, "note", "in a SLURM job start ranks with srun or mpirun")
    return Row("started by", found)


def _host_rows(places: Sequence[Place], family: str) -> list[Row]:
    """Rows about the machine, each over all hosts."""
    hosts: dict[str, list[Place]] = {}
    for place in places:
        hosts.setdefault(place.host, []).append(place)

    def every(row: Callable[[list[Place]], Row]) -> Row:
        return over_hosts({host: row(there) for host, there in hosts.items()})

    launched = launched_size() is not None
    rows = [
        every(lambda there: machine.core_row(there, family, launched)),
        every(machine.thread_row),
        every(machine.memory_row),
        every(lambda there: machine.shm_row(there[0])),
        every(lambda there: there[0].cache),
        every(lambda there: there[0].folder),
    ]
    return rows + ([_same_versions(hosts)] if len(hosts) > 1 else [])


def _same_versions(hosts: Mapping[str, Sequence[Place]]) -> Row:
    said = {host: {tuple(sorted(place.versions.items(), key=str)) for place in there}
            for host, there in hosts.items()}  # fmt: skip
    if len(set().union(*said.values())) == 1:
        return Row("same versions", f"on all {len(hosts)} hosts")
    first = next(iter(said.values()))
    others = [host for host, found in said.items() if found != first]
    return Row("same versions", f"not on {', '.join(others[:5])}", "wrong",
               "install the same versions on every host")  # fmt: skip
