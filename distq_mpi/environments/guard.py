"""A law that cannot be looked at whole is watched while it is learned on: one too large, or one
that draws by a step of its own.

Kernels check no bounds: an outcome that leaves the states would read and write outside the table.
The guard puts the lane back where it was and notes the first such outcome; the round in which that
happens is never committed. Laws that were looked at whole, and our own, run without it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from distq_mpi.environments.base import Environment
from distq_mpi.environments.checking import mistake
from distq_mpi.errors import ModelError
from distq_mpi.kernels.checking import END, FINE, NEXT_STATE, PROBABILITY, REWARD, SUM
from distq_mpi.kernels.draws import TRANSITION, threefry
from distq_mpi.probabilities import TOLERANCE

if TYPE_CHECKING:
    from distq_mpi.transport import Transport

u8, i8, f8 = np.uint64, np.int64, np.float64

KIND, STATE, ACTION, OUTCOME, BITS = range(5)
INFINITE = float("inf")


def guarded(environment: Environment) -> Environment:
    """Return the environment as kernels may run it: itself, or under guard if not `trusted`. Local.

    Under guard `params` are (the law's params, n_states, noted int64 (5,), number float64 (1,)).
    The two arrays belong to this rank and to the kernels, which write the first mistake there.
    Functions that are None stay None.
    """
    if environment.trusted:
        return environment
    params = (environment.params, environment.n_states, np.zeros(5, i8), np.zeros(1))
    if environment.outcome is None:
        return replace(environment, params=params)
    if environment.steps_itself:
        law_step = _own_step(environment.law_step)
    else:
        n_outcomes = int(environment.outcomes(0, 0, environment.params))
        law_step = _step(environment.outcome, n_outcomes)
    return replace(
        environment,
        params=params,
        law_step=law_step,
        law_start=_inner_start(environment.law_start),
        outcomes=_inner_outcomes(environment.outcomes),
        outcome=_inner_outcome(environment.outcome),
        start=_inner_start(environment.start),
    )


def refuse_noted(
    environment: Environment, transport: Transport, seed: int, n_lanes: int, steps: range
) -> None:
    """Raise on all ranks what the guard of any of them has noted. COLLECTIVE, free if trusted.

    seed, n_lanes, steps : of what was learned since the last call, to name the lane; no lane is
    named where none of them made the draw (in an evaluation).

    Raises
    ------
    ModelError
        Naming state, action, what is wrong there, and the lane and the rank that met it.
    """
    if environment.trusted:
        return
    with transport.same_outcome():
        _, n_states, noted, number = environment.params
        kind, state, action, i, bits = noted.tolist()
        if kind != FINE:
            told = mistake(kind, state, action, i, float(number[0]), n_states)
            lane = _lane_of(bits % 2**64, seed, n_lanes, steps)
            rank = f" on rank {transport.rank}" if transport.size > 1 else ""
            raise ModelError(f"{environment.id}: {told}{lane}{rank}")


def _lane_of(bits: int, seed: int, n_lanes: int, steps: range) -> str:
    lanes = np.arange(n_lanes, dtype=u8)
    with np.errstate(over="ignore"):
        for step in steps:
            words = threefry(u8(step), lanes, u8(seed), TRANSITION)[1]
            if np.any(words == u8(bits)):
                return f" (met by lane {int(np.argmax(words == u8(bits)))} in its step {step})"
    return ""


def _step(outcome: Callable[..., Any], n_outcomes: int) -> Callable[..., Any]:
    """`laws.sampled`, which draws the same, with a look at all that a transition depends on."""

    def step(state, action, bits, params):  # type: ignore[no-untyped-def]
        plain, n_states, noted, number = params
        u, passed, i, least = f8(bits >> u8(32)) * 2.0**-32, 0.0, 0, 0.0
        for k in range(n_outcomes):
            probability = outcome(i8(state), i8(action), k, plain)[0]
            passed += probability
            least = min(least, probability)
            i += (u >= passed) & (k < n_outcomes - 1)
        _, new, reward, terminated = outcome(i8(state), i8(action), i, plain)
        kind, value = FINE, 0.0
        if least < -TOLERANCE:
            kind, value = PROBABILITY, least
        elif not abs(passed - 1.0) <= TOLERANCE:
            kind, value = SUM, passed
        elif u8(i8(new)) >= u8(n_states):
            kind, value = NEXT_STATE, f8(i8(new))
        elif not abs(reward) < INFINITE:
            kind, value = REWARD, f8(reward)
        elif terminated != 0 and terminated != 1:
            kind, value = END, f8(terminated)
        if kind != FINE:
            if noted[KIND] == FINE:
                noted[KIND], noted[STATE], noted[ACTION] = kind, i8(state), i8(action)
                noted[OUTCOME], noted[BITS], number[0] = i, i8(bits), value
            return u8(state), 0.0, False
        return u8(new), f8(reward), bool(terminated)

    return step


def _own_step(inner: Callable[..., Any]) -> Callable[..., Any]:
    """The law's own step, with a look at what it returns."""

    def step(state, action, bits, params):  # type: ignore[no-untyped-def]
        plain, n_states, noted, number = params
        new, reward, terminated = inner(state, action, bits, plain)
        kind, value = FINE, 0.0
        if new >= u8(n_states):
            kind, value = NEXT_STATE, f8(i8(new))
        elif not abs(reward) < INFINITE:
            kind, value = REWARD, reward
        if kind != FINE:
            if noted[KIND] == FINE:
                noted[KIND], noted[STATE], noted[ACTION] = kind, i8(state), i8(action)
                noted[OUTCOME], noted[BITS], number[0] = -1, i8(bits), value
            return u8(state), 0.0, False
        return new, reward, terminated

    return step


def _inner_start(function: Callable[..., Any]) -> Callable[..., Any]:
    def start(which, params):  # type: ignore[no-untyped-def]
        return function(which, params[0])

    return start


def _inner_outcomes(function: Callable[..., Any]) -> Callable[..., Any]:
    def outcomes(state, action, params):  # type: ignore[no-untyped-def]
        return function(state, action, params[0])

    return outcomes


def _inner_outcome(function: Callable[..., Any]) -> Callable[..., Any]:
    def outcome(state, action, i, params):  # type: ignore[no-untyped-def]
        return function(state, action, i, params[0])

    return outcome
