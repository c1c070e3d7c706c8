"""Pearson's chi-square test of counts against probabilities."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

SURPRISE = 6.0
"""Standard errors of a normal law beyond which counts are refused: once in 1e9 sound ones."""
EXPECTED = 5.0
"""Outcomes expected less often are counted together, as the test's approximation wants."""

MOST_RARE = 24
"""What is expected less than EXPECTED times comes more often than this once in 1e9 sound tests."""


def misfit(chances: Mapping[Any, float], counts: Mapping[Any, int]) -> str:
    """Return in words how counts contradict the probabilities of outcomes; "" if they do not.

    Local. Both have the same keys.
    """
    n = sum(counts.values())
    rare = [key for key, chance in chances.items() if chance * n < EXPECTED]
    cells = [(chances[key] * n, counts[key]) for key in chances if key not in rare]
    together = sum(chances[key] for key in rare) * n
    if together >= EXPECTED:
        cells.append((together, sum(counts[key] for key in rare)))
    elif sum(counts[key] for key in rare) > MOST_RARE:
        key = max(rare, key=lambda k: counts[k])
        return f"{key} came {counts[key]} times in {n}, and its probability is {chances[key]:.6g}"
    degrees = len(cells) - 1
    if degrees < 1:
        return ""
    square = sum((count - expected) ** 2 / expected for expected, count in cells)
    # Wilson & Hilferty (1931): the cube root of chi-square is nearly normal.
    spread = 2.0 / (9.0 * degrees)
    root = 1.0 - spread + SURPRISE * math.sqrt(spread)
    limit = degrees * root * root * root  # exact operations: the same on every host
    if square <= limit:
        return ""
    key = max(chances, key=lambda k: abs(counts[k] - chances[k] * n))
    return (
        f"{key} came {counts[key]} times in {n}, and its probability is {chances[key]:.6g} "
        f"(chi-square {square:.4g} at {degrees} degrees of freedom, limit {limit:.4g})"
    )
