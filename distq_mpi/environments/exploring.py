"""Exploring starts: the same environment, begun in any state."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from distq_mpi.environments.base import Environment
from distq_mpi.kernels.draws import scaled

u8 = np.uint64


def _told(params):  # type: ignore[no-untyped-def]
    return params[-1]


def _of_model(params):  # type: ignore[no-untyped-def]
    return params[-1][0]


def uniform_functions(n_states: Callable[..., Any]) -> dict[str, Any]:
    """`law_start` and `start` where every state is equally likely. n_states : of params, for what
    is compiled should serve every size."""

    def law_start(bits, params):  # type: ignore[no-untyped-def]
        return scaled(bits, u8(n_states(params)))

    def start(i, params):  # type: ignore[no-untyped-def]
        return 1.0 / n_states(params), i

    return {"law_start": law_start, "start": start}


def model_functions() -> dict[str, Any]:
    """`law_start` and `start` of an explicit model that is begun in any state."""
    return uniform_functions(_of_model)


def exploring_starts(environment: Environment) -> Environment:
    """Return the environment with a uniform start distribution over all states. Local.

    All that speaks of starts, values over the start distribution and reachable states included,
    then speaks of these. Bits 0 to 63 of a RESET draw's first word decide. The `params` of a law
    then end with the number of states.
    """
    functions = model_functions() if environment.kind == "explicit" else _of_law(environment)
    text = f"{environment.model_id} exploring starts"
    return replace(
        environment,
        **functions,
        n_starts=environment.n_states,
        explores_starts=True,
        model_id=hashlib.sha256(text.encode()).hexdigest(),
    )


def _of_law(environment: Environment) -> dict[str, Any]:
    inner_step, inner = environment.law_step, environment.outcome
    inner_outcomes = environment.outcomes

    def law_step(state, action, bits, params):  # type: ignore[no-untyped-def]
        return inner_step(state, action, bits, params[:-1])

    def outcomes(state, action, params):  # type: ignore[no-untyped-def]
        return inner_outcomes(state, action, params[:-1])

    def outcome(state, action, i, params):  # type: ignore[no-untyped-def]
        return inner(state, action, i, params[:-1])

    return {
        "params": (*environment.params, environment.n_states),
        "law_step": law_step, "outcomes": outcomes, "outcome": outcome,
        **uniform_functions(_told),
    }  # fmt: skip
