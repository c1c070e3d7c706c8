"""Numbers that are finite or unknown: a NaN is never shown, compared or counted as 0.

`max(0.0, nan)` is 0.0 and `nan <= limit` is False: neither says that a number is unknown. Whatever
leaves a solver passes one of these functions, and every comparison with a limit is made here.
"""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any


def finite(value: float | None) -> float | None:
    """Return the number where it is finite, else None. Local."""
    return value if value is not None and math.isfinite(value) else None


def positive_part(value: float | None) -> float | None:
    """Return max(0, value), None where the value is unknown. Local."""
    known = finite(value)
    return None if known is None else max(0.0, known)


def at_most(value: float | None, limit: float) -> bool:
    """Whether a number is known and no larger than a limit. Local."""
    known = finite(value)
    return known is not None and known <= limit


def at_least(value: float | None, limit: float) -> bool:
    """Whether a number is known and no smaller than a limit. Local."""
    known = finite(value)
    return known is not None and known >= limit


class FiniteFields:
    """A dataclass whose real fields are finite or None: NaN and infinities become None."""

    def __post_init__(self) -> None:
        for field in fields(self):  # type: ignore[arg-type]
            value: Any = getattr(self, field.name)
            if isinstance(value, float) and not math.isfinite(value):
                object.__setattr__(self, field.name, None)
