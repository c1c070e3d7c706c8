"""Figures of curves. The only door to matplotlib, which is asked for when something is drawn."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from distq_mpi.errors import ConfigError
from distq_mpi.files import explain, make_folder
from distq_mpi.study.judging import Told


@dataclass(frozen=True)
class Curve:
    """Values over something, and what both are called; logarithmic : both axes."""

    name: str
    over: str
    what: str
    at: list[float]
    values: list[float]
    logarithmic: bool = False


def curve_of(told: Told) -> Curve | None:
    """Return the curve of a study's line, None where it compares names. Local."""
    at = [float(place) for place in told.at if not isinstance(place, str)]
    if len(at) < len(told.at):
        return None
    slope = "" if told.slope is None else f"; slope {told.slope:.2f}"
    return Curve(f"{told.name}{slope}", told.over, "mean over runs", at, told.means, True)


def require(folder: str) -> None:
    """Make sure before the work that figures can be drawn into a folder. Local.

    Raises
    ------
    ConfigError
        If matplotlib is not installed.
    FileError
        If the folder cannot be made.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "--figures needs matplotlib, which is not installed: pip install 'distq_mpi[figures]'"
        ) from error
    make_folder(folder)


def draw(curves: Iterable[Curve], folder: str) -> list[Path]:
    """Write one PNG for each curve, named after it; return their paths. Local.

    Raises FileError where one cannot be written.
    """
    from matplotlib.figure import Figure

    written = []
    for curve in curves:
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.add_subplot()
        axes.plot(curve.at, curve.values, marker="o" if len(curve.at) < 20 else "")
        axes.set(title=curve.name, xlabel=curve.over, ylabel=curve.what)
        if curve.logarithmic:
            axes.set(xscale="log", yscale="log")
        axes.grid(alpha=0.3)
        name = re.sub(r"[^a-z0-9]+", "-", curve.name.split(";")[0].lower()).strip("-")
        path = Path(folder, f"{name}.png")
        try:
            figure.savefig(path, dpi=150)
        except OSError as error:
            raise explain(error, path, "written") from error
        written.append(path)
    return written
