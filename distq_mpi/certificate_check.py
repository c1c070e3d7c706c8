"""`verify --certificate`: whether what a file claims of a table is found again, on any ranks."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distq_mpi import certificate_file
from distq_mpi.certificate import solvable
from distq_mpi.errors import ConfigError
from distq_mpi.files import plain
from distq_mpi.finite import at_most
from distq_mpi.fresh import Asked, Sampled
from distq_mpi.judging import certified, kernels_of, opened

if TYPE_CHECKING:
    from distq_mpi.transport import Transport

SAME = 1e-9
"""Difference of a number, as a share of itself or of the range of V*, that machines may have: their
linear algebra rounds differently. Of a gap: as a share of 1."""
FRESH_SEED = 0x5EED
"""Added to the seed of the samples: the other ones."""


def recompute(command: Any, transport: Transport) -> int:
    """Compute a certificate again, and print whether it is the same; return 0, or 3 where it is
    not. COLLECTIVE.

    What is exact must be equal. What is by samples must be equal with the same samples, and not be
    refuted by others: with those, |Q - Q*| may be proved to be larger than is claimed.

    Raises
    ------
    FileError
        If the file is no certificate, or the table is damaged.
    ConfigError
        If more than one table is named.
    """
    claim: dict[str, Any] | None = None
    with transport.same_outcome():
        if command is not None:
            if len(command.operands) != 1:
                raise ConfigError("--certificate: verify takes one table with it, not two")
            claim = certificate_file.read(Path(command.options["certificate"]))
    claim = transport.broadcast(claim)
    table = opened(command, transport)
    with transport.same_outcome():
        reason = solvable(table.environment, table.config.learn.discount)
        if claim["exact"] is not None and reason is not None:
            raise ConfigError(f"--certificate: claims exact values, but {reason}")
    # What the file claims decides, not how the run was configured.
    table.exact = claim["exact"] is not None
    asked = _asked(claim["sampled"])
    exact, found_by_samples, _ = certified(table, asked, kernels_of(table, asked))
    sampled, other = found_by_samples or (None, None)
    header = table.found.header if table.found else None
    sha256 = table.holding.sha256() if header or table.holding.blocks is not None else ""
    code = 0
    if header is not None:
        found = {
            "model_id": header.model_id,
            "table_sha256": sha256,
            "exact": asdict(exact) if claim["exact"] is not None else None,
            "sampled": asdict(sampled) if sampled else None,
        }
        faults = _faults(claim, plain(found), other)
        told = {"holds": not faults, "faults": faults, "found": found,
                "other_samples": asdict(other) if other else None}  # fmt: skip
        text = json.dumps(plain(told), indent=2, allow_nan=False)
        print(text if command.json else "\n".join(_lines(command, claim, faults, other)))
        code = 3 if faults else 0
    code = transport.broadcast(code)
    transport.close()
    return code


def _asked(told: dict[str, Any] | None) -> list[Asked]:
    """The same samples, and other ones; nothing where none were asked for."""
    if told is None:
        return []
    names = ("samples", "delta", "check", "seed", "steps", "least_reward", "most_reward")
    same = Asked(**{name: told[name] for name in names})
    return [same, replace(same, seed=same.seed + FRESH_SEED)]


def _faults(claim: dict[str, Any], found: dict[str, Any], other: Sampled | None) -> list[str]:
    faults = [
        f"{key} is {str(found[key])[:16]}, not {str(claim[key])[:16]}"
        for key in ("model_id", "table_sha256")
        if claim[key] != found[key]
    ]
    for part in ("exact", "sampled"):
        if claim[part] is None:
            continue
        claimed, computed = claim[part], found[part]
        extent = computed.get("value_range") or 0.0
        for key, number in computed.items():
            size = abs(number) if isinstance(number, float) else 0.0
            size = max(size, 1.0 if key == "policy_gap" else extent)
            if not _agree(claimed.get(key), number, SAME * size):
                faults.append(f"{part} {key} is {number}, not {claimed.get(key)}")
    claimed = (claim["sampled"] or {}).get("q_error_bound")
    if claimed is not None and other is not None and (other.q_error_floor or 0.0) > claimed:
        faults.append(
            f"by other samples |Q - Q*| is at least {other.q_error_floor:g}, which is more than "
            f"{claimed:g}"
        )
    return faults


def _agree(claimed: Any, computed: Any, close: float) -> bool:
    """Whether two entries of certificates say the same; what is unknown agrees with nothing but
    what is unknown."""
    if not isinstance(claimed, float) or not isinstance(computed, float):
        return bool(claimed == computed)
    return at_most(abs(claimed - computed), close)


def _lines(
    command: Any, claim: dict[str, Any], faults: list[str], other: Sampled | None
) -> list[str]:
    path = command.options["certificate"]
    if faults:
        return [f"{path} does not hold for {command.operands[0]}:", *(f"  {f}" for f in faults)]
    lines = [f"{path} holds for {command.operands[0]}: every number is found again"]
    if other is not None:
        floor, bound, claimed = (
            "-" if x is None else f"{x:.4g}"
            for x in (other.q_error_floor, other.q_error_bound, claim["sampled"]["q_error_bound"])
        )
        lines.append(
            f"  by other samples, q error {floor} to {bound} (claimed: at most {claimed})"
            if other.q_error_bound is not None
            else "  by other samples no pair is certified"
        )
    return lines
