"""Exploring starts: the same environment, begun in any state."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np

from distq_mpi.environments.base import Environment

u8 = np.uint64
LOW32, SHIFT32 = u8(0xFFFFFFFF), u8(32)


def uniform_start(n_states: int) -> Any:
    """Return law_start(bits, params): every state equally likely, floor(bits n / 2^64)."""
    low, high = u8(n_states & 0xFFFFFFFF), u8(n_states >> 32)

    def law_start(bits, params):  # type: ignore[no-untyped-def]
        carried = (bits & LOW32) * low >> SHIFT32
        middle = (bits >> SHIFT32) * low + carried
        other = (bits & LOW32) * high + (middle & LOW32)
        return (bits >> SHIFT32) * high + (middle >> SHIFT32) + (other >> SHIFT32)

    return law_start


def uniform_law(n_states: int) -> Any:
    """Return start(i, params) -> (probability, state) for the same distribution."""
    probability = 1.0 / n_states

    def start(i, params):  # type: ignore[no-untyped-def]
        return probability, i

    return start


def exploring_starts(environment: Environment) -> Environment:
    """Return the environment with a uniform start distribution over all states. Local.

    All that speaks of starts, values over the start distribution and reachable states included,
    then speaks of these. Bits 0 to 63 of a RESET draw's first word decide.
    """
    text = f"{environment.model_id} exploring starts"
    return replace(
        environment,
        law_start=uniform_start(environment.n_states),
        start=uniform_law(environment.n_states),
        n_starts=environment.n_states,
        explores_starts=True,
        model_id=hashlib.sha256(text.encode()).hexdigest(),
    )
