"""`python -m distq_mpi`: every rank runs this; rank 0 reads the command line for all."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

from distq_mpi.commands import starts_mpi
from distq_mpi.errors import DistqError
from distq_mpi.launcher import give_up_hanging_ranks, launched_rank, launched_size

WORKERS = {
    "evaluate": "judging", "verify": "certificate_check", "probe": "probe", "study": "study",
    "validate": "validation",
}  # fmt: skip
"""Where the work of a command on all ranks is; of all others, in `trainer`."""
WITHOUT_MPI = {"--help", "-h", "--version", "--dry-run"}


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code. COLLECTIVE for those that start MPI."""
    give_up_hanging_ranks()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    argv = sys.argv[1:] if argv is None else argv
    if WITHOUT_MPI.isdisjoint(argv) and starts_mpi(argv):
        return _run_on_all_ranks(argv)
    try:
        code = _run_without_mpi(argv)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever read, `head` say, has enough; what is left goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except DistqError as error:
        if launched_rank() != 0:
            return 0  # launchers end all at the first bad code: of the rank that has printed
        _print_error(error)
        return error.exit_code


def _print_error(error: DistqError) -> None:
    for line in str(error).splitlines():
        print(f"error: {line}" if not line.startswith(" ") else line, file=sys.stderr)
    sys.stderr.flush()


def _run_without_mpi(argv: list[str]) -> int:
    """The first rank works and its code is the job's; the others leave with 0. Local."""
    first = launched_rank() == 0
    own = argv[: argv.index("--")] if "--" in argv else argv
    if not {"--help", "-h", "--version"}.isdisjoint(own):
        if first:
            from distq_mpi.usage import show

            show(argv)
        return 0
    from distq_mpi.cli import parse

    command = parse(argv)
    if command.name == "supervise":
        from distq_mpi.supervision import Limits, supervise

        return supervise(command.operands, Limits.of(command.options))
    if command.name == "doctor":
        from distq_mpi.doctor import examine

        return examine(command.json)  # starts MPI by itself, and on every rank, if it can
    return _read_files(command) if first else 0


def _read_files(command: Any) -> int:
    if command.name == "info":
        from distq_mpi.description import describe

        print(describe(command.operands[0]))
        return 0
    if command.name == "verify":
        from distq_mpi.verification import verify

        return verify(command.operands, command.json)
    if command.name == "upgrade":
        from distq_mpi.upgrading import upgrade

        print("\n".join(upgrade(command.operands[0], command.output)))
        return 0
    from distq_mpi.dry_run import dry_run

    print(dry_run(command, command.ranks or launched_size() or 1))
    return 0


def _run_on_all_ranks(argv: list[str]) -> int:
    from distq_mpi.transport import Transport, abort_on_exception

    sys.excepthook = abort_on_exception
    transport: Transport | None = None
    try:
        if argv[:1] == ["rejoin"]:  # by a run that lost ranks, for no user to say
            from distq_mpi.trainer import rejoin

            transport = Transport.rejoin()
            return rejoin(transport)
        transport = Transport.connect()
        if transport.rank > 0:  # while the first reads the command line
            import_module("distq_mpi." + WORKERS.get(argv[0] if argv else "", "trainer"))
        with transport.same_outcome():
            command = None
            if transport.rank == 0:
                from distq_mpi.cli import parse

                command = parse(argv)
        # Rank 0 alone has the command: to unpickle it the others would import its parser.
        if argv[:1] == ["evaluate"]:
            from distq_mpi.judging import evaluate

            return evaluate(command, transport)
        if argv[:1] == ["verify"]:
            from distq_mpi.certificate_check import recompute

            return recompute(command, transport)
        if argv[:1] == ["probe"]:
            from distq_mpi.probe import probe

            return probe("--json" in argv, transport)
        if argv[:1] == ["study"]:
            from distq_mpi.study import study

            return study(command, transport)
        if argv[:1] == ["validate"]:
            from distq_mpi.validation import validate

            return validate(command, transport)
        from distq_mpi.trainer import run

        return run(command, transport)
    except DistqError as error:
        rank = transport.rank if transport is not None else launched_rank()
        if not error.agreed or rank == 0:
            _print_error(error)
        if transport is not None and not error.agreed:
            transport.abort(error.exit_code)
        if transport is not None and transport.lost:
            transport.leave(error.exit_code)
        return error.exit_code
    except SystemExit as error:  # of code we run for the user, and of no part of ours
        # Passed on, it would end this rank with that code, and its peers would wait for it.
        _print_error(DistqError(f"code that runs in this process called sys.exit({error.code!r})"))
        if transport is not None:
            transport.abort(1)
        return 1


if __name__ == "__main__":
    sys.exit(main())
