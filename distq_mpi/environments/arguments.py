"""Checked reading of what the user wrote into `env.kwargs`."""

from __future__ import annotations

import difflib
import inspect
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from distq_mpi.errors import ModelError


def whole_number(name: str, value: object, low: int, high: int) -> int:
    """Return `value` as an int in [low, high], or raise `ModelError` naming it."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ModelError(f"{name} must be a whole number from {low} to {high}, not {value!r}")
    return value


def real_number(name: str, value: object, low: float = -math.inf, high: float = math.inf) -> float:
    """Return `value` as a finite float in [low, high], or raise `ModelError` naming it."""
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not math.isfinite(value)
        or not low <= value <= high
    ):
        limits = f" from {low:g} to {high:g}" if math.isfinite(low) else ""
        raise ModelError(f"{name} must be a finite number{limits}, not {value!r}")
    return float(value)


def time_limit(value: object) -> int:
    """Return a valid `max_episode_steps`; lanes count their age in 32 bits."""
    return whole_number("max_episode_steps", value, 0, 2**32 - 1)


def call(id: str, function: Callable[..., Any], kwargs: Mapping[str, Any]) -> Any:
    """Call `function(**kwargs)`; a name it does not take or misses is a `ModelError`."""
    signature = inspect.signature(function)
    names = list(signature.parameters)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    for name in kwargs:
        if name not in names and not open_ended:
            takes = ", ".join(names) or "nothing"
            raise ModelError(
                f"env.kwargs: {id} takes no {name!r}{suggestion(name, names)} (it takes {takes})"
            )
    try:
        signature.bind(**kwargs)
    except TypeError as error:
        raise ModelError(f"env.kwargs: {id}: {error}") from error
    return function(**kwargs)


def suggestion(word: str, words: Iterable[str]) -> str:
    """Return `; did you mean X?` for the closest of `words`, or nothing."""
    close = difflib.get_close_matches(word, list(words), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


NONE = re.compile(r"(\\*)None")
"""A text that stands for None, or with backslashes before it for a text that looks so."""


def decoded_argument(value: Any) -> Any:
    """Return an argument as it is meant: TOML has no None, for which the text None stands. Local.

    `\\None` is the text None, and so on. Lists and dictionaries are read through.
    """
    if isinstance(value, str) and (match := NONE.fullmatch(value)):
        return value[1:] if match[1] else None
    if isinstance(value, list):
        return [decoded_argument(item) for item in value]
    if isinstance(value, dict):
        return {name: decoded_argument(item) for name, item in value.items()}
    return value
