"""Figures: which curves there are, and that they become files."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest

from distq_mpi.errors import ConfigError
from distq_mpi.study.figures import Curve, curve_of, draw, require
from distq_mpi.study.judging import Told


def told(at: Any) -> Told:
    return Told("live, 50 steps", "agents", at, [1.0, 0.5], -0.5, -0.6, -0.4, "", "pass")


def test_numbers_are_a_curve_and_names_are_none() -> None:
    assert curve_of(told(["count", "mean"])) is None
    curve = curve_of(told([1.0, 4.0]))
    assert curve == Curve(
        "live, 50 steps; slope -0.50", "agents", "mean over runs", [1.0, 4.0], [1.0, 0.5], True
    )


def test_a_curve_becomes_a_file(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    folder = tmp_path / "figures"
    require(str(folder))
    curve = curve_of(told([1.0, 4.0]))
    assert curve is not None
    assert draw([curve], str(folder)) == [folder / "live-50-steps.png"]
    assert (folder / "live-50-steps.png").read_bytes()[:4] == b"\x89PNG"


def test_without_matplotlib_it_is_said_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *more: Any) -> Any:
        if name == "matplotlib":
            raise ImportError(name)
        return real(name, *more)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ConfigError, match=r"pip install 'distq_mpi\[figures\]'"):
        require("anywhere")
