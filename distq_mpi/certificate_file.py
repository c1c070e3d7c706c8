"""Certificates as files: what is claimed of a table, and all that it takes to find it again."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from distq_mpi.certificate import Certificate
from distq_mpi.checkpoint import Header
from distq_mpi.errors import ConfigError, FileError
from distq_mpi.files import plain, read_json, write_json
from distq_mpi.fresh import Asked, Sampled

FORMAT = "distq_mpi certificate 1"


def asked_of(options: dict[str, str]) -> Asked | None:
    """Return what the options of `evaluate` ask for; None without `--samples`. Local.

    Raises ConfigError with one line per mistake.
    """
    if "samples" not in options:
        needless = [key for key in ("delta", "check", "steps", "rewards") if key in options]
        if needless:
            raise ConfigError(f"--{needless[0]}: speaks of fresh samples; say --samples, too")
        return None
    mistakes, least, most = [], None, None
    samples, delta = float(options["samples"]), float(options.get("delta", Asked.delta))
    check = float(options.get("check", Asked.check))
    if samples < 2 or samples >= 2**40:
        mistakes.append(f"--samples: {options['samples']} must be 2 to 2^40")
    if not delta < 1:
        mistakes.append(f"--delta: {options['delta']} must be below 1")
    if check < 1 or check >= 2**23:
        mistakes.append(f"--check: {options['check']} must be 1 to 2^23")
    if "rewards" in options:
        try:
            least, most = map(float, options["rewards"].split(","))
        except ValueError:
            mistakes.append(f"--rewards: {options['rewards']} must be two numbers, LEAST,MOST")
        if least is not None and most is not None and not least <= most:
            mistakes.append(f"--rewards: {options['rewards']}: the first must not be the larger")
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    steps = int(float(options.get("steps", Asked.steps)))
    seed = int(options.get("run.seed", Asked.seed))
    return Asked(int(samples), delta, int(check), seed, steps, least, most)


def write(
    path: Path, header: Header, table_sha256: str, certificate: Certificate,
    sampled: Sampled | None,
) -> None:  # fmt: skip
    """Write what is claimed of the table of a file. Local.

    Raises FileError if it cannot be written, ConfigError if there is nothing to claim.
    """
    if certificate.kind == "none" and sampled is None:
        raise ConfigError("--certificate: no exact values here; say --samples, too")
    told = {
        "format": FORMAT,
        "file": str(header.path),
        "model_id": header.model_id,
        "table_sha256": table_sha256,
        "exact": asdict(certificate) if certificate.kind != "none" else None,
        "sampled": asdict(sampled) if sampled else None,
    }
    write_json(path, plain(told))


def read(path: Path) -> dict[str, Any]:
    """Return what a file claims. Local. Raises FileError for what is no certificate."""
    told = read_json(path)
    if not isinstance(told, dict) or told.get("format") != FORMAT:
        raise FileError(f"{path} is no certificate ({FORMAT})")
    return told


def lines_of(sampled: dict[str, Any]) -> list[str]:
    """What a certificate by samples says, for the terminal. Local."""

    def shown(key: str) -> str:
        return "-" if sampled[key] is None else f"{sampled[key]:.4g}"

    lines = [
        f"by {sampled['samples']:,} fresh samples of a pair, wrong with a chance of at most "
        f"{sampled['delta']:g} (check {sampled['check']}, seed {sampled['seed']})",
        f"  q error              {shown('q_error_floor')} to {shown('q_error_bound')}",
        f"  loss bound           {shown('policy_loss_bound')}",
        f"  uncertified          {sampled['uncertified_pairs']:,} pairs of {sampled['pairs']:,}",
    ]
    if sampled["uncertified_pairs"]:
        lines.append("    the bounds hold where no certified pair leads to one of these")
    return lines
