"""A law's own step: a faster way to draw a transition, held against the law's outcomes."""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from distq_mpi.errors import ModelError

u8, i8, f8 = np.uint64, np.int64, np.float64

NUMBERS = int | float | np.integer | np.floating | np.bool_
N_DRAWS = 4000
"""Draws per pair: a probability that is off by .1 is 12 standard errors away."""
SURPRISE = 6.0
"""Standard errors of a normal law beyond which a step is refused: once in 1e9 sound ones."""
EXPECTED = 5.0
"""Outcomes expected less often are counted together, as the test's approximation wants."""


def own_step(step: Callable[..., Any]) -> Callable[..., Any]:
    """Return a law's `step(state, action, bits, params)` as kernels call it.

    It gets 64-bit integers; `bits` is uniform in [0, 2^32): bits 32 to 63 of the draw.
    """

    def law_step(state, action, bits, params):  # type: ignore[no-untyped-def]
        new, reward, terminated = step(i8(state), i8(action), i8(bits >> u8(32)), params)
        return u8(i8(new)), f8(reward), bool(terminated)

    return law_step


def check_step(
    id: str,
    step: types.FunctionType,
    outcome: Callable[..., Any],
    n_outcomes: int,
    params: tuple[Any, ...],
    pairs: Iterable[tuple[int, int]],
) -> None:
    """Compare what `step` draws with what `outcome` says, by a chi-square test for each pair.

    The draws are the same in every process.

    Raises
    ------
    ModelError
        If the step raises, returns something else than (next_state, reward, terminated), or draws
        what has no probability, or draws too often or too seldom.
    """
    draws = np.random.Philox(0).random_raw(N_DRAWS) >> u8(32)
    for state, action in pairs:
        where = f"{id}: step(state={state}, action={action})"
        chances: dict[Any, float] = {}
        for i in range(n_outcomes):
            probability, *what = outcome(i8(state), i8(action), i, params)
            key = _plain(what)
            chances[key] = chances.get(key, 0.0) + float(probability)
        counts = dict.fromkeys(chances, 0)
        for bits in draws:
            try:
                result = step(i8(state), i8(action), i8(bits), params)
            except Exception as error:  # the user's function may raise anything
                raise ModelError(f"{where} raised {type(error).__name__}: {error}") from error
            numbers = isinstance(result, tuple) and all(isinstance(x, NUMBERS) for x in result)
            if not numbers or len(result) != 3:
                raise ModelError(
                    f"{where} must return (next_state, reward, terminated), not {result!r}"
                )
            key = _plain(result)
            if chances.get(key, 0.0) <= 0.0:
                raise ModelError(
                    f"{where} with bits {int(bits)} gives {key}, which no outcome with a "
                    "probability is"
                )
            counts[key] += 1
        _compare(where, chances, counts)


def _plain(what: Any) -> tuple[int, float, bool]:
    new, reward, terminated = what
    return int(new), float(reward), bool(terminated)


def _compare(where: str, chances: dict[Any, float], counts: dict[Any, int]) -> None:
    rare = [key for key, chance in chances.items() if chance * N_DRAWS < EXPECTED]
    cells = [(chances[key] * N_DRAWS, counts[key]) for key in chances if key not in rare]
    together = sum(chances[key] for key in rare) * N_DRAWS
    if together >= EXPECTED:
        cells.append((together, sum(counts[key] for key in rare)))
    degrees = len(cells) - 1
    if degrees < 1:
        return
    square = sum((count - expected) ** 2 / expected for expected, count in cells)
    # Wilson & Hilferty (1931): the cube root of chi-square is nearly normal.
    spread = 2.0 / (9.0 * degrees)
    root = 1.0 - spread + SURPRISE * math.sqrt(spread)
    limit = degrees * root * root * root
    if square > limit:
        key = max(chances, key=lambda k: abs(counts[k] - chances[k] * N_DRAWS))
        raise ModelError(
            f"{where} does not draw what outcome says: {key} came {counts[key]} times in "
            f"{N_DRAWS}, and its probability is {chances[key]:.6g} (chi-square {square:.4g} at "
            f"{degrees} degrees of freedom, limit {limit:.4g})"
        )
