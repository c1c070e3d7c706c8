"""Refuse a law that leaves its states, before it can do harm."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from distq_mpi.environments.base import Environment
from distq_mpi.errors import ModelError
from distq_mpi.kernels.checking import FINE, NEXT_STATE, PROBABILITY, REWARD

CHECK_LIMIT = 50_000_000
"""Outcomes of a law up to which all are looked at; beyond, those that `make` sampled must do."""


def check_all(environment: Environment, kernel: Callable[..., None]) -> None:
    """Look at every outcome of a law, with the compiled `check`. Local.

    Explicit models were checked when they were read.

    Raises
    ------
    ModelError
        Naming state, action, outcome and the value, for the first one that cannot be.
    """
    if environment.kind != "law" or environment.n_transitions > CHECK_LIMIT:
        return
    n_states, where, value = environment.n_states, np.zeros(4, np.int64), np.zeros(1)
    sizes = np.array([n_states, environment.n_actions], np.int64)
    kernel(environment.params, sizes, where, value)
    kind, state, action, i = where.tolist()
    if kind == FINE:
        return
    wrong = {
        PROBABILITY: f"probability {value[0]:g} must be from 0 to 1",
        NEXT_STATE: f"next_state {value[0]:.0f} is not in 0..{n_states - 1}",
        REWARD: f"reward {value[0]:g} must be a finite number",
    }
    if kind in wrong:
        place = f"outcome(state={state}, action={action}, i={i})"
        raise ModelError(f"{environment.id}: {place}: {wrong[kind]}")
    raise ModelError(
        f"{environment.id}: state {state}, action {action}: the probabilities sum to "
        f"{value[0]:.12g}, not 1"
    )
