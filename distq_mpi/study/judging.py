"""Slopes with their uncertainty, and what is said of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

N_RESAMPLED, SHARE = 2000, 0.95


@dataclass(frozen=True)
class Told:
    """One line of a study.

    over : what was changed, say agents, and at : its values. means : of the runs' errors there.
    slope, low, high : of log mean over log `over` and its bootstrap interval; None without one.
    expected : in words. verdict : pass or fail.
    """

    name: str
    over: str
    at: list[float] | list[str]
    means: list[float]
    slope: float | None
    low: float | None
    high: float | None
    expected: str
    verdict: str

    def in_words(self) -> str:
        """A line or two for the terminal."""
        places = [place if isinstance(place, str) else f"{place:.3g}" for place in self.at]
        pairs = zip(places, self.means, strict=True)
        numbers = "  ".join(f"{place}: {mean:.4g}" for place, mean in pairs)
        line = f"{self.verdict}  {self.name}\n      {self.over}  {numbers}\n      "
        if self.slope is None:
            return line + self.expected
        interval = f"[{self.low:.3f}, {self.high:.3f}]"
        return line + f"slope {self.slope:.3f} {interval}  {self.expected}"


def slope_of(at: Sequence[float], means: np.ndarray) -> float:
    """Slope of log means (n,) over log `at`."""
    return float(np.polyfit(np.log(at), np.log(means), 1)[0])


def bootstrap(at: Sequence[float], found: np.ndarray) -> tuple[float, float, float]:
    """Return the slope and its interval of `SHARE`, from runs that are drawn again.

    found : (n, runs), what each run found at each place.
    """
    rng, (n, n_runs) = np.random.default_rng(0), found.shape
    drawn = rng.integers(n_runs, size=(N_RESAMPLED, n, n_runs))
    means = np.take_along_axis(np.broadcast_to(found, drawn.shape), drawn, axis=2).mean(axis=2)
    slopes = np.polyfit(np.log(at), np.log(means).T, 1)[0]
    low, high = np.quantile(slopes, [(1 - SHARE) / 2, (1 + SHARE) / 2])
    return slope_of(at, found.mean(axis=1)), float(low), float(high)


def judged(
    name: str, over: str, at: Sequence[float], found: np.ndarray, low: float, high: float,
    source: str,
) -> Told:  # fmt: skip
    """Judge a slope: it must lie between low and high."""
    slope, least, most = bootstrap(at, found)
    verdict = "pass" if low <= slope <= high else "fail"
    means = found.mean(axis=1).tolist()
    expected = f"{source}: {low:g} to {high:g}"
    return Told(name, over, list(at), means, slope, least, most, expected, verdict)
