"""`validate`: the program's own numbers beside published and exact ones."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from distq_mpi.errors import DistqError
from distq_mpi.files import plain
from distq_mpi.study.figures import draw, require
from distq_mpi.validation.bench import Bench, missing
from distq_mpi.validation.rows import ROWS, Row

if TYPE_CHECKING:
    from distq_mpi.transport import Transport


@dataclass(frozen=True)
class Judged:
    """What came of a row; `error` : largest |ours - expected|, None where nothing was computed."""

    id: str
    task: str
    expected: Any
    ours: Any
    error: float | None
    tolerance: float
    verdict: str
    """pass, fail or skipped."""
    why: str = ""


def validate(command: Any, transport: Transport) -> int:
    """Compute the rows, print the table; return 0, or 1 where one fails. COLLECTIVE."""
    told, folder = None, ""
    with transport.same_outcome():
        if command is not None:
            folder = command.options.get("figures", "")
            if folder:
                require(folder)
            told = command.json, "full" in command.options
    as_json, full = transport.broadcast(told)
    bench, found = Bench(transport), []
    if transport.rank == 0 and not as_json:
        print(_line("id", "task", "expected", "ours", "error", "verdict"), flush=True)
    for row in ROWS:
        found.append(judged(row, bench, full))
        if transport.rank == 0 and not as_json:
            print("\n".join(_lines(found[-1])), flush=True)
    if transport.rank == 0:
        print(summary(found) if not as_json else told_as_json(found))
    with transport.same_outcome():
        if folder:
            draw(bench.curves, folder)
    transport.close()
    return int(any(one.verdict == "fail" for one in found))


def judged(row: Row, bench: Bench, full: bool = True) -> Judged:
    """Compute one row and judge it. COLLECTIVE."""
    lacking = missing(row.needs)
    why = row.absent or (f"needs {lacking}" if lacking else "")
    if not why and row.full and not full:
        why = "in --full"
    if why:
        return _of(row, None, None, "skipped", why)
    try:
        ours = row.ours(bench)
    except DistqError as mistake:
        if not mistake.agreed:
            raise
        return _of(row, None, None, "fail", str(mistake))
    if any(x is None for x in np.ravel(np.array(ours, dtype=object))):
        return _of(row, None, None, "fail", "no such number was found")
    expected, values = np.atleast_1d(row.expected), np.atleast_1d(ours).astype(np.float64)
    if expected.shape != values.shape:
        return _of(row, ours, None, "fail", f"{values.size} numbers, not {expected.size}")
    error = float(np.abs(values - expected).max())
    fine = error <= row.tolerance  # false for nan
    return _of(row, ours, error if np.isfinite(error) else None, "pass" if fine else "fail", "")


def summary(found: Iterable[Judged]) -> str:
    """Return how many rows passed, failed and were skipped."""
    verdicts = [one.verdict for one in found]
    counts = (f"{verdicts.count(name)} {name}" for name in ("pass", "fail", "skipped"))
    return ", ".join(counts)


def told_as_json(found: Iterable[Judged]) -> str:
    """Return the rows as a JSON list."""
    return json.dumps(plain([vars(one) for one in found]), indent=2, allow_nan=False)


def _of(row: Row, ours: Any, error: float | None, verdict: str, why: str) -> Judged:
    values = None if ours is None else np.ravel(ours).astype(np.float64).tolist()
    values = values and [value if np.isfinite(value) else None for value in values]
    if values and not isinstance(row.expected, tuple):
        (values,) = values if len(values) == 1 else (values,)
    return Judged(
        row.id, row.task, row.expected, values, error, row.tolerance, verdict, why
    )


def _lines(one: Judged) -> list[str]:
    expected = np.ravel(np.array(one.expected, dtype=object)).tolist()
    ours = [] if one.ours is None else np.ravel(np.array(one.ours, dtype=object)).tolist()
    error = "" if one.error is None else f"{one.error:.1e}/{one.tolerance:.0e}"
    lines = []
    for k in range(max(len(expected), len(ours), 1)):
        numbers = [_number(some[k]) if k < len(some) else "" for some in (expected, ours)]
        head = (one.id, one.task, *numbers, error, one.verdict) if k == 0 else (
            "", "", *numbers, "", ""
        )
        lines.append(_line(*head))
    return lines + ([f"{'':<14}{one.why}"] if one.why else [])


def _line(id: str, task: str, expected: str, ours: str, error: str, verdict: str) -> str:
    cells = f"{id:<13} {task:<66} {expected:>14} {ours:>14} {error:>15} {verdict}"
    return cells.rstrip()


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:.10g}"
