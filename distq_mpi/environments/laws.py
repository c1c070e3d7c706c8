"""Laws: environments that are two plain functions, for any number of states."""

from __future__ import annotations

import importlib
import inspect
import math
import os
import random
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from distq_mpi.environments.arguments import call, suggestion
from distq_mpi.environments.base import Environment
from distq_mpi.environments.calls import described, refusal
from distq_mpi.environments.checking import CHECK_LIMIT
from distq_mpi.environments.own_step import check_step, own_step
from distq_mpi.environments.silence import marked_interrupts
from distq_mpi.errors import ModelError
from distq_mpi.kernels.draws import scaled
from distq_mpi.kernels.fingerprint import fingerprint, used_values
from distq_mpi.probabilities import TOLERANCE, coarsest, given_as, tolerance_of

u8, i8, f8 = np.uint64, np.int64, np.float64

ARRAYS = (
    "bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32",
    "float64",
)  # fmt: skip
"""What arrays among a law's `params` may hold."""

N_CHECKED = 1000
"""Pseudo-random pairs looked at before a law is believed."""

N_STEPPED = 14
MOST_STARTS = 1_000_000
"""Start states, all equally likely, that are all looked at in Python; of more, `N_CHECKED`."""
"""Those at which a law's own step is compared with its outcomes."""


def sampled(outcome: Callable[..., Any], n_outcomes: int) -> Callable[..., Any]:
    """Derive a sampling step from `outcome`.

    It counts the cumulative probabilities a draw has passed, then asks for that outcome: no
    branch depends on the draw, and model and simulation cannot disagree.
    """

    def step(state, action, bits, params):  # type: ignore[no-untyped-def]
        u, passed, i = f8(bits >> u8(32)) * 2.0**-32, 0.0, 0
        for k in range(n_outcomes - 1):
            passed += outcome(i8(state), i8(action), k, params)[0]
            i += u >= passed
        _, new, reward, terminated = outcome(i8(state), i8(action), i, params)
        return u8(new), f8(reward), bool(terminated)

    return step


def sampled_start(start: Callable[..., Any], n_starts: int) -> Callable[..., Any]:
    """Derive the sampling of start states from `start`, in time proportional to `n_starts`."""

    def first(bits, params):  # type: ignore[no-untyped-def]
        u, passed, i = f8(bits >> u8(11)) * 2.0**-53, 0.0, 0
        for k in range(n_starts - 1):
            passed += start(k, params)[0]
            i += u >= passed
        return u8(start(i, params)[1])

    return first


def uniform_starts(start: Callable[..., Any], n_starts: int) -> Callable[..., Any]:
    """Derive the sampling of equally likely start states from `start`, however many they are."""

    def first(bits, params):  # type: ignore[no-untyped-def]
        return u8(start(i8(scaled(bits, u8(n_starts))), params)[1])

    return first


def normal(outcome: Callable[..., Any], n_outcomes: int, tolerance: float) -> Callable[..., Any]:
    """Derive outcomes whose probabilities sum to 1 from those of a law that gives them in fewer
    digits than float64. Sums further from 1 than the tolerance stay, to be refused."""

    def at_least_0(chance):  # type: ignore[no-untyped-def]
        return max(chance, 0.0) if chance >= -tolerance else chance

    def normal_outcome(state, action, i, params):  # type: ignore[no-untyped-def]
        total = f8(0.0)
        for k in range(n_outcomes):
            total += at_least_0(f8(outcome(state, action, k, params)[0]))
        probability, new, reward, terminated = outcome(state, action, i, params)
        share = at_least_0(f8(probability))
        if abs(total - 1.0) <= tolerance:
            share = share / total
        return share, new, reward, terminated

    return normal_outcome


def normal_start(start: Callable[..., Any], total: float) -> Callable[..., Any]:
    """Derive start states whose probabilities sum to 1 from those of a law that sum to `total`,
    where what is negative by rounding counts as 0."""

    def normal_first(i, params):  # type: ignore[no-untyped-def]
        probability, state = start(i, params)
        return max(f8(probability), 0.0) / total, state

    return normal_first


@marked_interrupts()
def import_module(id: str, name: str, key: str = "env.id") -> types.ModuleType:
    """Import a module that the configuration names; the current directory is searched first. Local.

    Raises
    ------
    ModelError
        If the module is missing, or fails when imported.
    """
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except BaseException as error:  # the user's module may raise anything
        missing = getattr(error, "name", None) if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and (name + ".").startswith(missing + "."):
            raise ModelError(
                f"{key}: {id}: there is no module {missing}, neither in {os.getcwd()} "
                "nor among the installed packages"
            ) from error
        raise refusal(f"{key}: {id}: importing {name} failed", error) from error


def named(id: str) -> Any:
    """Return what `module:Name` names: a class, or a function that makes environments; None where
    Gymnasium knows an environment by the name, once the module is imported. Local.

    Raises
    ------
    ModelError
        If the module or the name is missing.
    """
    module_name, _, name = id.partition(":")
    module = import_module(id, module_name)
    source = getattr(module, name, None)
    if source is None or is_environment_source(source):
        gymnasium = sys.modules.get("gymnasium")
        known = () if gymnasium is None else gymnasium.registry
        versions = source is None and any(other.startswith(f"{name}-v") for other in known)
        if name in known or versions:  # of versions, one must be named
            return None
    if isinstance(source, type) or is_environment_source(source):
        return source
    classes = [k for k, v in vars(module).items() if isinstance(v, type)]
    laws = [k for k in classes if hasattr(getattr(module, k), "outcome")]
    raise ModelError(
        f"env.id: {id}: {module.__file__} has no class {name}"
        + (suggestion(name, classes) or (f"; it has {', '.join(laws)}" if laws else ""))
    )


def is_environment_source(source: Any) -> bool:
    """Whether something makes environments of Gymnasium: one of their classes, or a function."""
    if isinstance(source, type):
        return not hasattr(source, "outcome") and all(
            callable(getattr(source, name, None)) for name in ("reset", "step")
        )
    return isinstance(source, types.FunctionType)


@marked_interrupts()
def law_environment(
    id: str, law_class: Callable[..., Any], kwargs: Mapping[str, Any], built_in: bool = False
) -> Environment:
    """Construct a law with `kwargs`, look hard at it, and wrap it as an `Environment`.

    Parameters
    ----------
    law_class : what makes a law, with `n_states`, `n_actions`, `n_outcomes`, `params` (a
        tuple of int, float, bool and arrays of these) and the static functions `outcome(state,
        action, i, params) -> (probability, next_state, reward, terminated)` and `start(i, params)
        -> (probability, state)`; optionally `step(state, action, bits, params) -> (next_state,
        reward, terminated)`, which kernels take instead of deriving one, `n_starts` (1),
        `uniform_starts`, `max_episode_steps` (0 = no limit), `return_bound` (None),
        `deterministic`, `grid`, `marks`, `arrows`.
    built_in : it is ours, and needs no guard where it is too large to be looked at whole.

    Raises
    ------
    ModelError
        If something is missing or of the wrong kind, a function cannot be compiled safely, or one
        of the pairs looked at (first, last, 1000 pseudo-random) is not a distribution.
    """
    try:
        law = call(id, law_class, kwargs)
    except ModelError as error:
        if str(error).startswith("env.kwargs"):
            raise
        raise ModelError(f"env.kwargs: {id}: {error}") from error
    except BaseException as error:  # the user's constructor may raise anything
        raise refusal(f"{id} could not be made", error) from error
    n_states = _count(id, law, "n_states", None, 1)
    n_actions = _count(id, law, "n_actions", None, 1)
    n_outcomes = _count(id, law, "n_outcomes", None, 1)
    n_starts = _count(id, law, "n_starts", 1, 1)
    limit = _count(id, law, "max_episode_steps", 0, 0, 2**32 - 1)
    params = _params(id, law)
    outcome, start = _function(id, law, "outcome", 4), _function(id, law, "start", 2)
    deterministic = bool(getattr(law, "deterministic", n_outcomes == 1))
    uniform = bool(getattr(law, "uniform_starts", False))
    written = {"outcome": outcome, "start": start}
    with np.errstate(all="ignore"):  # as compiled code: integers wrap, nothing warns
        tolerance = _check_outcomes(
            id, outcome, params, n_states, n_actions, n_outcomes, deterministic
        )
        total, exact = _check_starts(id, start, params, n_states, n_starts, uniform)
        if tolerance > TOLERANCE:
            outcome = normal(outcome, n_outcomes, tolerance)  # type: ignore[assignment]
        if not exact:
            start = normal_start(start, total)  # type: ignore[assignment]
        step = None if getattr(law, "step", None) is None else _function(id, law, "step", 4)
        if step is not None:
            pairs = _pairs(n_states, n_actions, N_STEPPED)
            check_step(id, step, outcome, n_outcomes, params, pairs)
    grid, marks, arrows = _drawing(id, law, n_states, n_actions)

    def outcomes(state, action, params):  # type: ignore[no-untyped-def]
        return n_outcomes

    n_transitions = n_states * n_actions * n_outcomes
    trusted = built_in or (n_transitions <= CHECK_LIMIT and step is None)
    unseen = "its own step watched" if step else "checked on a sample and watched"
    return Environment(
        id=id,
        kind="law",
        n_states=n_states,
        n_actions=n_actions,
        params=params,
        law_step=own_step(step) if step else sampled(outcome, n_outcomes),
        law_start=(uniform_starts if uniform else sampled_start)(start, n_starts),
        outcomes=outcomes,
        outcome=outcome,
        start=start,
        n_starts=n_starts,
        n_transitions=n_transitions,
        max_episode_steps=limit,
        return_bound=_return_bound(id, law),
        deterministic=deterministic,
        model_id=fingerprint(
            {
                **written,
                **({"step": step} if step else {}),
                "params": params,
                "sizes": (n_states, n_actions, n_outcomes, n_starts, limit),
            }
        ),
        trusted=trusted,
        steps_itself=step is not None,
        grid=grid,
        marks=marks,
        arrows=arrows,
        summary=f"law {id}: {n_states:,} states x {n_actions:,} actions, "
        f"{n_outcomes:,} outcome{'s' if n_outcomes > 1 else ''} each"
        f"{'' if trusted else f', {unseen} while learning'}",
    )


def _count(
    id: str, law: object, name: str, default: int | None, low: int, high: int = 2**62
) -> int:
    value = getattr(law, name, default)
    if value is None:
        raise ModelError(f"{id}: the law has no {name}")
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise ModelError(f"{id}: {name} must be a whole number, not {value!r}")
    if not low <= value <= high:
        raise ModelError(f"{id}: {name} must be from {low} to {high}, not {value}")
    return int(value)


def _params(id: str, law: object) -> tuple[Any, ...]:
    params = getattr(law, "params", None)
    if not isinstance(params, tuple):
        raise ModelError(
            f"{id}: params must be a tuple of int, float, bool and arrays of these, not {params!r}"
        )
    values: list[Any] = []
    for i, item in enumerate(params):
        if isinstance(item, np.ndarray) and item.ndim > 0:
            if item.dtype.name not in ARRAYS or not item.dtype.isnative:
                raise ModelError(
                    f"{id}: params[{i}] is an array of {item.dtype}; an array of a law holds "
                    f"{', '.join(ARRAYS)}"
                )
            values.append(np.ascontiguousarray(item))
            continue
        value = item.item() if isinstance(item, np.generic | np.ndarray) else item
        if not isinstance(value, bool | int | float):
            raise ModelError(
                f"{id}: params[{i}] must be an int, float or bool, or an array, not {item!r}"
            )
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ModelError(f"{id}: params[{i}] = {value} does not fit 64 bits")
        values.append(value)
    return tuple(values) or (0,)  # the compiled functions take a tuple with something in it


def _return_bound(id: str, law: object) -> float | None:
    bound = getattr(law, "return_bound", None)
    if bound is None:
        return None
    if not isinstance(bound, int | float) or not math.isfinite(bound):
        raise ModelError(f"{id}: return_bound must be a finite number or None, not {bound!r}")
    return float(bound)


def _function(id: str, law: object, name: str, n_arguments: int) -> types.FunctionType:
    """Return a function of the law, once nothing in it can escape compilation or the cache."""
    function = getattr(law, name, None)
    if function is None:
        raise ModelError(f"{id}: the law has no function {name}")
    if isinstance(function, types.MethodType):
        raise ModelError(f"{id}: {name} takes self; make it a @staticmethod")
    if not isinstance(function, types.FunctionType):
        raise ModelError(f"{id}: {name} must be a plain Python function, not {type(function)}")
    if len(inspect.signature(function).parameters) != n_arguments:
        wanted = {
            "outcome": "(state, action, i, params)",
            "step": "(state, action, bits, params)",
            "start": "(i, params)",
        }[name]
        raise ModelError(f"{id}: {name} must take {wanted}")
    pending, seen = [function], {function}
    while pending:
        current = pending.pop()
        for key, value in used_values(current).items():
            root = value.__name__.partition(".")[0] if isinstance(value, types.ModuleType) else ""
            if root and root != "numpy":
                raise ModelError(
                    f"{id}: {current.__name__} reads the module {key}; what hangs on a module can "
                    "change unseen by the cache of compiled code: bind what is needed to a name "
                    f"of its own (from {root} import ...)"
                )
            if isinstance(value, types.FunctionType) and value not in seen:
                seen.add(value)
                pending.append(value)
    fingerprint({name: function})
    return function


def _pairs(n_states: int, n_actions: int, n: int) -> list[tuple[int, int]]:
    """The first pair, the last and `n` others, the same in every process."""
    draw = random.Random(n_states)
    pairs = [(0, 0), (n_states - 1, n_actions - 1)]
    return pairs + [(draw.randrange(n_states), draw.randrange(n_actions)) for _ in range(n)]


def _check_outcomes(
    id: str,
    outcome: types.FunctionType,
    params: tuple[Any, ...],
    n_states: int,
    n_actions: int,
    n_outcomes: int,
    deterministic: bool,
) -> float:
    """Look at pairs; return how far the law's sums of probabilities may be from 1."""
    tolerance = TOLERANCE
    for state, action in _pairs(n_states, n_actions, N_CHECKED):
        total, largest, least, chances = 0.0, 0.0, 0.0, []
        for i in range(n_outcomes):
            where = f"{id}: outcome(state={state}, action={action}, i={i})"
            try:
                result = outcome(i8(state), i8(action), i, params)
            except BaseException as error:  # the user's function may raise anything
                raise ModelError(f"{where} raised {described(error)}") from error
            if not isinstance(result, tuple) or len(result) != 4:
                raise ModelError(
                    f"{where} must return (probability, next_state, reward, terminated), "
                    f"not {result!r}"
                )
            probability, new, reward, terminated = result
            _check_probability(where, probability)
            _check_state(where, "next_state", new, n_states)
            if not _is_number(reward) or not math.isfinite(reward):
                raise ModelError(f"{where}: reward {reward!r} must be a finite number")
            boolean = isinstance(terminated, bool | np.bool_ | int | np.integer)
            if not boolean or terminated not in (0, 1):
                raise ModelError(f"{where}: terminated {terminated!r} must be a bool")
            chances.append(probability)
            least, largest = min(least, float(probability)), max(largest, float(probability))
            total += max(float(probability), 0.0)
        where = f"{id}: state {state}, action {action}"
        if max(abs(total - 1.0), -least) > TOLERANCE:
            tolerance = max(tolerance, float(tolerance_of(given_as(chances), n_outcomes)))
        if abs(total - 1.0) > tolerance:
            raise ModelError(f"{where}: the probabilities sum to {total:.12g}, not 1")
        if deterministic and abs(largest - 1.0) > tolerance:
            raise ModelError(
                f"{where}: the law says deterministic, but no outcome has probability 1"
            )
    return tolerance


def _check_starts(
    id: str,
    start: types.FunctionType,
    params: tuple[Any, ...],
    n_states: int,
    n_starts: int,
    uniform: bool,
) -> tuple[float, bool]:
    """Look at starts; return the sum of their probabilities, 1 where not all are looked at, and
    whether they are exact for float64."""
    all_looked_at = not uniform or n_starts <= MOST_STARTS
    total = lost = least = 0.0
    coarse = np.dtype(f8)
    for i in range(n_starts) if all_looked_at else [i for i, _ in _pairs(n_starts, 1, N_CHECKED)]:
        where = f"{id}: start(i={i})"
        try:
            result = start(i, params)
        except BaseException as error:  # the user's function may raise anything
            raise ModelError(f"{where} raised {described(error)}") from error
        if not isinstance(result, tuple) or len(result) != 2:
            raise ModelError(f"{where} must return (probability, state), not {result!r}")
        _check_probability(where, result[0])
        _check_state(where, "state", result[1], n_states)
        if isinstance(result[0], np.float32 | np.float16):
            coarse = coarsest([coarse, result[0].dtype])
        off = abs(float(result[0]) * n_starts - 1.0) if uniform else 0.0
        if off > TOLERANCE and off > tolerance_of(coarse):
            raise ModelError(
                f"{where}: probability {result[0]:g}, but the law says uniform_starts, and there "
                f"are {n_starts}"
            )
        least = min(least, float(result[0]))
        # Kahan (1965): a hundred million of them add up to 1.
        term = max(float(result[0]), 0.0) - lost
        lost = (total + term - total) - term
        total += term
    if all_looked_at and abs(total - 1.0) > tolerance_of(coarse, n_starts):
        raise ModelError(f"{id}: the start probabilities sum to {total:.12g}, not 1")
    total = total if all_looked_at else 1.0
    return total, max(abs(total - 1.0), -least) <= TOLERANCE


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.integer | np.floating)


def _check_probability(where: str, value: Any) -> None:
    if _is_number(value):
        if 0.0 <= value <= 1.0:
            return
        tolerance = tolerance_of(given_as([value]))
        if -tolerance <= value <= 1.0 + tolerance:
            return
    raise ModelError(f"{where}: probability {value!r} must be from 0 to 1")


def _check_state(where: str, name: str, value: Any, n_states: int) -> None:
    if not isinstance(value, int | np.integer):
        raise ModelError(f"{where}: {name} {value!r} must be an integer (use // to divide)")
    if not 0 <= value < n_states:
        raise ModelError(f"{where}: {name} {value} is not in 0..{n_states - 1}")


def _drawing(
    id: str, law: object, n_states: int, n_actions: int
) -> tuple[tuple[int, int] | None, str, str]:
    grid, marks = getattr(law, "grid", None), getattr(law, "marks", "")
    arrows = getattr(law, "arrows", "")
    if grid is not None:
        grid = tuple(int(side) for side in grid)
        if len(grid) != 2 or grid[0] * grid[1] != n_states:
            raise ModelError(f"{id}: grid must be (rows, columns) of {n_states} cells, not {grid}")
    if len(marks) not in (0, n_states):
        raise ModelError(f"{id}: marks has {len(marks)} characters for {n_states} states")
    if len(arrows) not in (0, n_actions):
        raise ModelError(f"{id}: arrows has {len(arrows)} characters for {n_actions} actions")
    return grid, marks, arrows
