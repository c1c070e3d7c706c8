"""`verify A [B]`: whether files are whole, and whether two hold the same table. Local, no MPI."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from distq_mpi.checkpoint import Header, read_header
from distq_mpi.comparison import Comparison, compare, parts_of
from distq_mpi.errors import ConfigError, FileError
from distq_mpi.files import SLICE_ROWS, plain, read_slices
from distq_mpi.operands import summary_of, table_file
from distq_mpi.table import table_sha256

FAULTS_TOLD = 10


@dataclass(frozen=True)
class Checked:
    """A file all of whose checksums are right."""

    header: Header
    table_sha256: str
    n_slices: int
    in_summary: bool
    """Whether summary.json of the run speaks of this round; it then has the same hash."""

    def facts(self) -> dict[str, Any]:
        """As JSON knows it."""
        header = self.header
        return {
            "file": str(header.path), "format_version": header.format_version,
            "creator": header.creator, "created": header.created, "size_bytes": header.size_bytes,
            "round": header.round, "n_states": header.n_states, "n_actions": header.n_actions,
            "dtype": header.dtype.name, "n_lanes": header.n_lanes, "model_id": header.model_id,
            "datasets": list(header.stored.arrays), "slices": self.n_slices,
            "table_sha256": self.table_sha256, "in_summary": self.in_summary,
        }  # fmt: skip


def verify(operands: Sequence[str], as_json: bool) -> int:
    """Print what was found of one or two files; return the exit code: 3 where tables differ.

    Raises
    ------
    FileError
        If one is damaged; it names dataset and slice of all that is.
    ConfigError
        If two tables are of other shapes or models and so cannot be compared.
    """
    headers = [read_header(table_file(operand)) for operand in operands]
    if len(headers) == 2:
        _refuse_other_things(*headers)
    checked = [check(header) for header in headers]
    compared = compare(*headers) if len(headers) == 2 else None
    same = len({file.table_sha256 for file in checked}) == 1
    if as_json:
        told: dict[str, Any] = {"files": [file.facts() for file in checked]}
        if compared is not None:
            told["comparison"] = {"same_table": same, **asdict(compared)}
        print(json.dumps(plain(told), indent=2, allow_nan=False))
    else:
        for file in checked:
            print("\n".join(_told_of_one(file)))
        if compared is not None:
            print("\n".join(_told_of_two(compared, same)))
    return 0 if same else 3


def check(header: Header) -> Checked:
    """Read all of a file. Raises FileError with every slice that is not as it was written."""
    faults: list[str] = []
    stored = header.stored
    values = parts_of(header)
    hashed = table_sha256(rows for name in values for rows in _good(header, name, faults))
    for name in stored.arrays.keys() - set(values):
        for _ in _good(header, name, faults):
            pass
    if faults:
        more = [f"{len(faults) - FAULTS_TOLD} more slices are wrong"]
        raise FileError("\n".join(faults[:FAULTS_TOLD] + more * (len(faults) > FAULTS_TOLD)))
    summary = summary_of(header)
    told = summary.get("table_sha256") if summary else None
    if told not in (None, hashed):
        raise FileError(
            f"{header.path} is whole, but it is not the table of its run: its table_sha256 is "
            f"{hashed[:16]}, summary.json says {str(told)[:16]}"
        )
    n_slices = sum(array.n_slices for array in stored.arrays.values())
    return Checked(header, hashed, n_slices, told is not None)


def _refuse_other_things(a: Header, b: Header) -> None:
    shapes = [f"{h.n_states} states x {h.n_actions} actions" for h in (a, b)]
    if shapes[0] != shapes[1]:
        raise ConfigError(
            f"{a.path} and {b.path} cannot be compared: {shapes[0]} against {shapes[1]}"
        )
    if a.model_id != b.model_id:
        raise ConfigError(
            f"{a.path} and {b.path} cannot be compared: they were learned on different "
            f"environments (model_id {a.model_id[:12]} against {b.model_id[:12]})"
        )


def _good(header: Header, name: str, faults: list[str]) -> Iterator[np.ndarray]:
    """Yield the slices whose checksums are right; what is wrong with the others goes to faults."""
    n_rows = header.stored.arrays[name].shape[0]
    for start in range(0, n_rows, SLICE_ROWS):
        try:
            for _, rows in read_slices(header.stored, name, start, min(start + SLICE_ROWS, n_rows)):
                yield rows
        except FileError as error:
            faults.append(str(error))


def _told_of_one(checked: Checked) -> list[str]:
    header = checked.header
    summary = "summary.json says the same" if checked.in_summary else "no summary of this round"
    return [
        f"{header.path}: whole, all {checked.n_slices} checksums are right",
        f"  table         {header.n_states:,} states x {header.n_actions} actions, {header.dtype}, "
        f"round {header.round}",
        f"  datasets      {', '.join(header.stored.arrays)}",
        f"  table sha256  {checked.table_sha256[:16]} ({summary})",
        f"  model id      {header.model_id[:16]}",
    ]


def _told_of_two(found: Comparison, same: bool) -> list[str]:
    at, lines = found.largest, []
    if same:
        lines.append("the same table, bit for bit")
    else:
        lines += [
            "the tables differ",
            f"  largest       {at.difference:.6g} at state {at.state}, action {at.action} of "
            f"/{at.dataset or 'q'}: {at.first:.10g} against {at.second:.10g}",
            f"  mean          {found.mean_difference:.6g} over {found.pairs:,} pairs",
            f"  pairs         {found.differing_pairs:,} differ"
            + (f", {found.not_finite:,} by no finite number" if found.not_finite else ""),
            f"  policy        {found.differing_policy:,} states have another greedy action",
        ]
    for name, count in found.others.items():
        lines.append(f"  {name:<13} {f'{count:,} entries differ' if count else 'the same'}")
    width = max([13, *map(len, found.configuration)])
    for key, (left, right) in found.configuration.items():
        lines.append(f"  {key:<{width}} {left} against {right}")
    return lines
