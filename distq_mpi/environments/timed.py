"""Time in the state: what an episode's step number decides, a policy may see."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np

from distq_mpi.environments.base import Environment
from distq_mpi.errors import ModelError

u8, i8 = np.uint64, np.int64


def time_aware(environment: Environment) -> Environment:
    """Return the environment whose states are (step of the episode, state): step * S + state.

    Local.

    The last step before the time limit terminates: its value is known to be 0 behind it, so
    nothing bootstraps there. An episode begins in step 0.

    Raises
    ------
    ModelError
        If there is no time limit, the environment is stepped in Python, or there are too many
        states.
    """
    horizon, n = environment.max_episode_steps, environment.n_states
    if environment.kind == "stepped":
        raise ModelError(
            f"env.time_aware: {environment.id} is stepped in Python; it must be false (Gymnasium's "
            "TimeAwareObservation does the same)"
        )
    if not horizon:
        raise ModelError(
            f"env.time_aware: {environment.id} has no time limit; env.max_episode_steps sets one"
        )
    if horizon * n * environment.n_actions >= 2**62:
        raise ModelError(f"env.time_aware: {environment.id}: {horizon} x {n} states are too many")
    text = f"{environment.model_id} time aware"
    functions: dict[str, Any] = {}
    if environment.law_step is not None:
        functions = {
            "law_step": _law_step(environment.law_step, n, horizon),
            "outcomes": _outcomes(environment.outcomes, n),
            "outcome": _outcome(environment.outcome, n, horizon),
        }
    return replace(
        environment,
        **functions,
        kind="law",
        n_states=n * horizon,
        n_transitions=environment.n_transitions * horizon,
        explores_starts=False,
        grid=None,
        marks="",
        model_id=hashlib.sha256(text.encode()).hexdigest(),
        summary=f"{environment.summary}; in each of {horizon} steps",
    )


def _law_step(inner: Any, n_states: int, horizon: int) -> Any:
    n, last = u8(n_states), u8(horizon - 1)

    def law_step(state, action, bits, params):  # type: ignore[no-untyped-def]
        step = state // n
        ahead, reward, terminated = inner(state - step * n, action, bits, params)
        return min(step + u8(1), last) * n + ahead, reward, terminated or step == last

    return law_step


def _outcomes(inner: Any, n_states: int) -> Any:
    def outcomes(state, action, params):  # type: ignore[no-untyped-def]
        return inner(state % n_states, action, params)

    return outcomes


def _outcome(inner: Any, n_states: int, horizon: int) -> Any:
    last = horizon - 1

    def outcome(state, action, i, params):  # type: ignore[no-untyped-def]
        step = state // n_states
        probability, ahead, reward, terminated = inner(state - step * n_states, action, i, params)
        return (
            probability, i8(min(step + 1, last) * n_states + ahead), reward,
            terminated or step == last,
        )  # fmt: skip

    return outcome
