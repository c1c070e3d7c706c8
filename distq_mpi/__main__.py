"""`python -m distq_mpi`: every rank runs this; rank 0 reads the command line for all."""

from __future__ import annotations

import os
import sys
from typing import Any

from distq_mpi.errors import ConfigError, DistqError
from distq_mpi.launcher import launched_rank, launched_size

WITHOUT_MPI = {"--help", "-h", "--version", "--dry-run"}


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code. COLLECTIVE for `train` and `resume`."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    argv = sys.argv[1:] if argv is None else argv
    if WITHOUT_MPI.isdisjoint(argv) and (not argv or argv[0] != "info"):
        return _run_on_all_ranks(argv)
    if launched_rank() != 0:
        return 0
    return _guarded(_run_alone, argv)


def _guarded(action: Any, *arguments: Any) -> Any:
    """Run an action of this rank alone; a mistake is printed and gives its exit code."""
    try:
        return action(*arguments)
    except DistqError as error:
        _print_error(error)
        return error.exit_code


def _print_error(error: DistqError) -> None:
    for line in str(error).splitlines():
        print(f"error: {line}" if not line.startswith(" ") else line, file=sys.stderr)
    sys.stderr.flush()


def _run_alone(argv: list[str]) -> int:
    from distq_mpi.cli import parse, show_help

    if not {"--help", "-h", "--version"}.isdisjoint(argv):
        show_help(argv)
        return 0
    command = parse(argv)
    if command.name == "info":
        from distq_mpi.checkpoint import describe

        print(describe(command.file))
        return 0
    if command.name != "train":
        raise ConfigError(f"--dry-run: {command.name} has none")
    from distq_mpi.dry_run import dry_run

    print(dry_run(command, command.ranks or launched_size() or 1))
    return 0


def _run_on_all_ranks(argv: list[str]) -> int:
    from distq_mpi.transport import Transport, abort_on_exception

    sys.excepthook = abort_on_exception
    rank = launched_rank()
    try:
        transport = Transport.connect()
        rank = transport.rank
        with transport.same_outcome():
            command = None
            if rank == 0:
                from distq_mpi.cli import parse

                command = parse(argv)
        command = transport.broadcast(command)
        from distq_mpi.trainer import run

        return run(command, transport)
    except DistqError as error:
        if rank == 0:
            _print_error(error)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
