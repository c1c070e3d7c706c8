"""Refuse a law that leaves its states, before it can do harm."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from distq_mpi.environments.base import Environment
from distq_mpi.errors import ModelError
from distq_mpi.kernels.checking import (
    END,
    FINE,
    NEXT_STATE,
    PROBABILITY,
    REWARD,
    START_PROBABILITY,
    START_STATE,
    START_SUM,
    SUM,
)

CHECK_LIMIT = 50_000_000
"""Outcomes of a law up to which all are looked at; beyond, those that `make` sampled must do."""


def check_all(environment: Environment, kernel: Callable[..., None]) -> None:
    """Look at every start and, up to CHECK_LIMIT, every outcome of a law, compiled. Local.

    Explicit models were checked when they were read.

    Raises
    ------
    ModelError
        Naming state, action, outcome and the value, for the first one that cannot be.
    """
    if environment.kind != "law":
        return
    n_states, where, value = environment.n_states, np.zeros(4, np.int64), np.zeros(1)
    n_checked = n_states if environment.n_transitions <= CHECK_LIMIT else 0
    n_starts = 0 if environment.explores_starts else environment.n_starts  # ours, not the law's
    sizes = (n_states, environment.n_actions, n_starts, n_checked)
    kernel(environment.params, np.array(sizes, np.int64), where, value)
    kind, state, action, i = where.tolist()
    if kind == FINE:
        return
    raise ModelError(f"{environment.id}: {mistake(kind, state, action, i, value[0], n_states)}")


def mistake(kind: int, state: int, action: int, i: int, number: float, n_states: int) -> str:
    """What is wrong with a law: one of the kinds of `kernels.checking`, where, and the number.

    i : number of the outcome; negative where the law's own step drew it.
    """
    pair = f"outcome(state={state}, action={action}, i={i})"
    if i < 0:
        pair = f"step(state={state}, action={action})"
    return {
        PROBABILITY: f"{pair}: probability {number:g} must be from 0 to 1",
        NEXT_STATE: f"{pair}: next_state {number:.0f} is not in 0..{n_states - 1}",
        END: f"{pair}: terminated {number:g} must be a bool",
        REWARD: f"{pair}: reward {number:g} must be a finite number",
        SUM: f"state {state}, action {action}: the probabilities sum to {number:.12g}, not 1",
        START_PROBABILITY: f"start(i={i}): probability {number:g} must be from 0 to 1",
        START_STATE: f"start(i={i}): state {number:.0f} is not in 0..{n_states - 1}",
        START_SUM: f"the start probabilities sum to {number:.12g}, not 1",
    }[kind]
