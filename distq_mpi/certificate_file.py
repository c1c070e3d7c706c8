"""Certificates as files: what is claimed of a table, and all that it takes to find it again."""

from __future__ import annotations

import math
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from distq_mpi.certificate import Certificate
from distq_mpi.checkpoint import Header
from distq_mpi.errors import ConfigError, FileError
from distq_mpi.files import plain, read_json, write_json
from distq_mpi.fresh import Asked, Sampled

FORMAT = "distq_mpi certificate 2"


def asked_of(options: dict[str, str]) -> Asked | None:
    """Return what the options of `evaluate` ask for; None without `--samples`. Local.

    Raises ConfigError with one line per mistake.
    """
    if "samples" not in options:
        needless = [key for key in ("delta", "check", "steps", "rewards") if key in options]
        if needless:
            raise ConfigError(f"--{needless[0]}: speaks of fresh samples; say --samples, too")
        return None
    mistakes: list[str] = []
    least: float | None = None
    most: float | None = None
    samples = _whole("samples", options["samples"], 2, 2**40, mistakes)
    check = _whole("check", options.get("check", "1"), 1, 2**23, mistakes)
    steps = _whole("steps", options.get("steps", str(Asked.steps)), 1, 2**62, mistakes)
    seed = _whole("run.seed", options.get("run.seed", str(Asked.seed)), 0, 2**63, mistakes)
    delta = float(options.get("delta", Asked.delta))
    if not 0 < delta < 1:
        mistakes.append(f"--delta: {options['delta']} must be between 0 and 1")
    if "rewards" in options:
        try:
            least, most = map(float, options["rewards"].split(","))
            if not (-math.inf < least <= most < math.inf):
                mistakes.append(f"--rewards: {options['rewards']} must be finite, the least first")
        except ValueError:
            mistakes.append(f"--rewards: {options['rewards']} must be two numbers, LEAST,MOST")
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return Asked(samples, delta, check, seed, steps, least, most)


def _whole(key: str, text: str, least: int, below: int, mistakes: list[str]) -> int:
    """A whole number of an option, `1e6` and `7.0` among them; else a mistake is noted."""
    value = float(text)
    if not (value.is_integer() and least <= value < below):
        mistakes.append(f"--{key}: {text} must be a whole number >= {least} and < {below:g}")
        return least
    return int(text) if text.lstrip("+-").isdigit() else int(value)


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
        older = isinstance(told, dict) and str(told.get("format")).startswith(FORMAT[:-1])
        made = ": it is of another version; make the claim anew" * older
        raise FileError(f"{path} is no certificate ({FORMAT}){made}")
    parts = {"exact": Certificate, "sampled": Sampled}
    lacks = [key for key in ("model_id", "table_sha256", *parts) if key not in told]
    for part, kind in parts.items():
        claimed = told.get(part)
        if claimed is not None and not isinstance(claimed, dict):
            raise FileError(f"{path}: {part} is no section")
        names = [field.name for field in fields(kind)]
        lacks += [f"{part}.{name}" for name in names if claimed and name not in claimed]
    if lacks:
        raise FileError(f"{path} lacks {', '.join(lacks)}")
    _refuse_samples(path, told["sampled"])
    return told


def _refuse_samples(path: Path, sampled: dict[str, Any] | None) -> None:
    """Raise FileError where samples cannot have been asked for like that."""
    if sampled is None:
        return
    names = ("samples", "delta", "check", "steps")
    options = {name: str(sampled[name]) for name in names} | {"run.seed": str(sampled["seed"])}
    options["rewards"] = f"{sampled['least_reward']},{sampled['most_reward']}"
    try:
        asked_of(options)
    except (ConfigError, ValueError) as mistake:
        raise FileError(f"{path}: sampled: {mistake}") from mistake


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
