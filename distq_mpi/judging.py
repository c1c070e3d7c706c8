"""`evaluate`: how good the table of a run or of one file is, sampled and exact."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distq_mpi import certificate_file, checkpoint, fresh
from distq_mpi.architectures import Progress
from distq_mpi.certificate import Certificate, Solver, solvable
from distq_mpi.certificate import requests as certificate_requests
from distq_mpi.checkpoint import Header
from distq_mpi.config import Config
from distq_mpi.environments.base import Environment
from distq_mpi.environments.sharing import share
from distq_mpi.errors import FileError
from distq_mpi.files import SLICE_ROWS, plain
from distq_mpi.fresh import Asked, Sampled
from distq_mpi.holding import Holding
from distq_mpi.kernels import Kernel
from distq_mpi.kernels.evaluation import evaluation_kernel
from distq_mpi.kernels.objects import load
from distq_mpi.memory import CUT_TRANSITIONS, cuts_of
from distq_mpi.monitor.console import count, number, summary_lines
from distq_mpi.operands import table_file
from distq_mpi.partition import Partition
from distq_mpi.preparation import build
from distq_mpi.sampling import sample
from distq_mpi.table import Record, Rows, record_of

if TYPE_CHECKING:
    from distq_mpi.transport import Transport

SAMPLED = ("sampled return", "table sha256")
EXACT = ("policy value", "policy return", "policy gap, loss")


@dataclass
class _Found:
    """What rank 0 finds before anybody works."""

    header: Header
    config: Config
    environment: Environment
    reason: str | None
    """Why there are no exact values; None where there are."""
    refusals: list[str]


@dataclass
class Opened:
    """A table that all ranks hold, whole or in blocks, and what it was learned on.

    `found` is None on ranks other than 0.
    """

    found: _Found | None
    config: Config
    environment: Environment
    record: Record
    holding: Holding
    exact: bool


def opened(command: Any, transport: Transport) -> Opened:
    """Read the table that a command names. COLLECTIVE.

    Rank 0 alone reads the command and the file; a host holds the table once, or, where it was
    learned `sharded`, a rank its block.

    Raises
    ------
    FileError
        If the file is damaged, or was learned on another environment than its configuration makes
        now.
    """
    found: _Found | None = None
    with transport.same_outcome():
        if transport.rank == 0:
            found = _find(command, transport.size)
    config, exact = transport.broadcast(found and (found.config, found.reason is None))
    make = functools.partial(
        build, config.env, config.learn.exploring_starts, discount=config.learn.discount
    )
    cuts = cuts_of(config, found.environment, transport.size) if found else None
    environment = share(found.environment if found else None, make, transport, cuts)
    if found is not None:
        found.environment = environment  # else it would keep a model whole that was cut
    record = record_of(config.learn, environment.n_actions)
    read = _read_blocks if config.parallel.architecture == "sharded" else _read
    header = found.header if found else None
    holding = read(header, record, environment.n_states, transport)
    return Opened(found, config, environment, record, holding, exact)


def certified(
    table: Opened, asked: Sequence[Asked], kernels: dict[str, Any]
) -> tuple[Certificate, list[Sampled], int | None]:
    """Return the exact certificate (of kind `none` where there is none), those by samples that are
    asked for, and the number of reachable states. COLLECTIVE."""
    certificate, n_reachable, reachable = Certificate(kind="none"), None, None
    holding, discount = table.holding, table.config.learn.discount
    if table.exact:
        solver = Solver(table.environment, discount, kernels, holding.transport)
        solver.solve()
        certificate, n_reachable = solver.certify(holding, tight=True), solver.n_reachable
        reachable = solver.reachable() if asked else None
    sampled = [
        fresh.certify(holding, table.environment, kernels, discount, one, reachable)
        for one in asked
    ]
    return certificate, sampled, n_reachable


def kernels_of(table: Opened, asked: Sequence[Asked]) -> dict[str, Any]:
    """Load what `certified` and sampled evaluation need. COLLECTIVE."""
    transport = table.holding.transport
    with transport.same_outcome():
        requested = None
        if transport.leads_node:
            requested = _requests(table, bool(asked))
        return load(requested, transport)


def evaluate(command: Any, transport: Transport) -> int:
    """Judge a table and print what is known of it; return the exit code. COLLECTIVE.

    The numbers are those that `train` ends with, and the same on any number of ranks. Nothing is
    written but the file that `--certificate` names. Raises as `opened` and `fresh.certify`.
    """
    with transport.same_outcome():
        one = certificate_file.asked_of(command.options) if command is not None else None
    one = transport.broadcast(one)
    asked = [one] if one is not None else []
    table = opened(command, transport)
    found, config, environment, holding = (
        table.found, table.config, table.environment, table.holding
    )  # fmt: skip
    kernels = kernels_of(table, asked)
    certificate, found_by_samples, n_reachable = certified(table, asked, kernels)
    sampled = found_by_samples[0] if asked else None
    evaluation = sample(config, environment, kernels, holding)
    sha256 = holding.sha256() if found or holding.blocks is not None else ""
    with transport.same_outcome():
        if found is not None and "certificate" in command.options:
            path = Path(command.options["certificate"])
            certificate_file.write(path, found.header, sha256, certificate, sampled)
    if found is not None:
        told = {
            **_facts(found),
            "states_reachable": n_reachable,
            "table_sha256": sha256,
            "certificate": asdict(certificate),
            "sampled_certificate": asdict(sampled) if sampled else None,
            "evaluation": evaluation,
        }
        text = json.dumps(plain(told), indent=2, allow_nan=False)
        print(text if command.json else "\n".join(_lines(found, told)))
    transport.close()
    return 0


def _find(command: Any, size: int) -> _Found:
    operand = Path(command.operands[0])
    path = table_file(operand)
    refusals: list[str] = []
    if operand.is_dir() and path.parent != operand:
        newest, refusals = checkpoint.newest_good(path.parent)
        if newest is None:
            told = "".join(f"\n  {refusal}" for refusal in refusals)
            raise FileError(f"{path.parent}: no good checkpoint to evaluate{told}")
        path = newest
    header = checkpoint.read_header(path)
    config = command.override(header.config_toml, f"/config of {path}")
    cut = size > 1 and config.parallel.architecture == "sharded"
    held_below = CUT_TRANSITIONS if cut else None
    environment = build(
        config.env, config.learn.exploring_starts, None, held_below, config.learn.discount
    )
    checkpoint.read_header(path, environment.model_id)
    reason = solvable(environment, config.learn.discount)
    if not config.evaluate.exact:
        reason = "evaluate.exact is false"
    return _Found(header, config, environment, reason, refusals)


def _requests(table: Opened, sampled: bool) -> dict[str, Kernel]:
    environment, record = table.environment, table.record
    if environment.kind == "stepped":
        return {}
    found = evaluation_kernel(table.config.learn, environment, record)
    if table.exact:
        found |= certificate_requests(environment, record.dtype)
    return found | (fresh.requests(environment, record.dtype) if sampled else {})


def _read_blocks(
    header: Header | None, record: Record, n_states: int, transport: Transport
) -> Holding:
    """Return the file's rows, which only rank 0 reads, a block on each rank. COLLECTIVE."""
    blocks = Partition.balanced(n_states, transport.size)
    first, stop = blocks.block(transport.rank)
    holding = Holding(Rows(record, stop - first), first, blocks, transport)
    parts = iter(checkpoint.iter_rows(header)) if header is not None else None
    for start in range(0, n_states, SLICE_ROWS):
        stored: Any = None
        with transport.same_outcome():
            if parts is not None:
                _, *stored = next(parts)
        holding.take(start, min(start + SLICE_ROWS, n_states), stored)
    return holding


def _read(
    header: Header | None, record: Record, n_states: int, transport: Transport
) -> Holding:
    """The same, where every rank has all of it: as views of one copy a host. COLLECTIVE."""
    rows: Rows | None = None
    with transport.same_outcome():
        if header is not None:
            rows = Rows(record, n_states)
            for start, q, clock, _ in checkpoint.iter_rows(header):
                rows.values[start : start + len(q)] = q
                rows.clock[start : start + len(q)] = clock
    if transport.size > 1 or rows is None:
        (raw,) = transport.share_on_node((rows.raw,) if rows is not None else None)
        rows = Rows(record, n_states, raw)
    return Holding(rows, 0, None, transport)


def _facts(found: _Found) -> dict[str, Any]:
    header, environment = found.header, found.environment
    progress = Progress.from_json(header.attributes["state"])
    return {
        "file": str(header.path),
        "env": environment.id,
        "rounds": progress.round,
        "steps": progress.steps,
        "seed": found.config.run.seed,
        "discount": found.config.learn.discount,
        "states": environment.n_states,
        "actions": environment.n_actions,
        "no_exact_values": found.reason,
    }


def _lines(found: _Found, told: dict[str, Any]) -> list[str]:
    certificate = told["certificate"]
    lines = [f"refused: {refusal}" for refusal in found.refusals]
    lines += [
        f"{found.header.path}: round {told['rounds']}, {count(told['steps'])} steps",
        found.environment.summary,
    ]
    if found.reason is not None:
        lines.append(f"no exact values: {found.reason}")
    shown = SAMPLED if found.reason is not None else EXACT + SAMPLED
    lines += [f"  {title:<20} {text}" for title, text in summary_lines(told) if title in shown]
    if found.reason is None:
        bounds = (number(certificate[name]) for name in ("q_error", "q_error_bound"))
        lines.append("  {:<20} {}, bound {}".format("q error", *bounds))
        lines.append(
            f"  {'never learned':<20} {certificate['uncertified_pairs']:,} pairs of "
            f"{told['states_reachable']:,} reachable states"
        )
    if told["sampled_certificate"]:
        lines += certificate_file.lines_of(told["sampled_certificate"])
    return lines

