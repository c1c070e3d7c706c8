"""Gymnasium's environments: explicit models where they carry their table, or stepped."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from distq_mpi.environments.arguments import suggestion
from distq_mpi.environments.base import Environment
from distq_mpi.environments.calls import flag, number, own, refusal, whole
from distq_mpi.environments.explicit import explicit_model
from distq_mpi.environments.silence import errors_ignored, shut, silence
from distq_mpi.environments.stepped import copies_of, stepped_environment
from distq_mpi.errors import ModelError
from distq_mpi.probabilities import given_as

NEUTRAL = (
    "TimeLimit", "OrderEnforcing", "PassiveEnvChecker", "RecordEpisodeStatistics", "RecordVideo",
    "HumanRendering", "RenderCollection", "Monitor",
)  # fmt: skip
"""Wrappers that change nothing but the length of episodes: the table below them tells all."""


def gymnasium_model(config: Any, built_in: tuple[str, ...]) -> Environment:
    """Make what can be learned on of a Gymnasium id: its table, or the environment stepped. Local.

    config : `[env]` configuration. An environment that tells all of its dynamics by `P` becomes an
    explicit model; any other, or one to be cut into bins, is stepped in Python. The time limit is
    the one Gymnasium applies, or the configuration's. `built_in` names join the suggestions for an
    unknown id.

    Raises
    ------
    ModelError
        If the id is unknown or renamed, the arguments do not fit, or a space is not finite.
    """
    id, kwargs, limit = config.id, dict(config.kwargs), config.max_episode_steps
    cut = {"bins": config.bins, "clip": config.clip, "max_episode_steps": limit}
    vector = _only_vector(id, kwargs)
    if vector is not None and limit:
        raise ModelError(
            f"env.max_episode_steps: {id} exists only as vector environment, which sets its own "
            f"limit; {limit} must be 0"
        )
    if vector is not None:
        return stepped_environment(id, lambda: vector(1), vector, **cut)
    made = gymnasium_environment(id, kwargs, built_in)
    try:
        neutral, own_limit = _neutral(made)
        if neutral and tells_all(made) and not (config.bins or config.clip):
            return _compiled(id, made, own_limit)
    finally:
        shut(made)
    if limit:
        kwargs["max_episode_steps"] = limit
    return stepped_environment(id, lambda: gymnasium_environment(id, kwargs, built_in), **cut)


def _only_vector(id: str, kwargs: Mapping[str, Any]) -> Callable[[int], Any] | None:
    """What makes the environment of an id that exists only as vector; None for any other."""
    import gymnasium

    module, _, name = id.rpartition(":")
    if module:
        with silence(), errors_ignored():  # told when it is made
            importlib.import_module(module)
    spec = gymnasium.registry.get(name)
    if spec is None or spec.entry_point is not None or spec.vector_entry_point is None:
        return None
    return lambda n: gymnasium.make_vec(id, num_envs=n, **own(dict(kwargs)))


def tells_all(made: Any) -> bool:
    """Whether an environment's `P` and `initial_state_distrib` tell all of its dynamics. Local."""
    from gymnasium import spaces

    bare = made.unwrapped
    found = (made.observation_space, made.action_space)
    if not all(isinstance(space, spaces.Discrete) and space.start == 0 for space in found):
        return False
    named = (getattr(bare, name, None) for name in ("P", "initial_state_distrib"))
    return all(x is not None for x in named) and not getattr(bare, "fickle_passenger", False)


def gymnasium_environment(id: str, kwargs: Mapping[str, Any], built_in: tuple[str, ...]) -> Any:
    """Return `gymnasium.make(id, **kwargs)`; the caller closes it. Local.

    Raises
    ------
    ModelError
        If the id is unknown or renamed, or the arguments do not fit.
    """
    import gymnasium

    if ":" not in id and id not in gymnasium.registry:
        raise ModelError(_unknown(id, list(gymnasium.registry), built_in))
    try:
        with silence():
            return gymnasium.make(id, disable_env_checker=True, **own(dict(kwargs)))
    except BaseException as error:  # whatever the environment's own constructor raises
        raise refusal(f"{id} could not be made", error) from error


def gymnasium_object(id: str, made: Any, config: Any) -> Environment:
    """Make what can be learned on of an environment object, which is not stepped itself. Local.

    Its table, under the time limit of its wrappers; or, where there is none, or a wrapper may
    change what happens, copies of it, stepped.

    Raises
    ------
    ModelError
        If a space is not finite, or no copies can be made.
    """
    neutral, limit = _neutral(made)
    if neutral and tells_all(made) and not (config.bins or config.clip):
        return _compiled(id, made, limit)
    limit = config.max_episode_steps or limit
    return stepped_environment(
        id,
        functools.partial(_limited, copies_of(id, made), config.max_episode_steps),
        bins=config.bins,
        clip=config.clip,
        max_episode_steps=limit,
    )


def _neutral(made: Any) -> tuple[bool, int]:
    """Whether no wrapper may change what happens, and the time limit that they set; 0 = none."""
    limit, layer, neutral = 0, made, True
    while layer is not made.unwrapped:
        kind = type(layer)
        ours = kind.__module__.startswith(("gymnasium.wrappers", "stable_baselines3.common"))
        neutral = neutral and kind.__name__ in NEUTRAL and ours
        if kind.__name__ == "TimeLimit":
            limit = min(limit or layer._max_episode_steps, layer._max_episode_steps)
        layer = layer.env
    return neutral, limit


def _limited(copy: Callable[[], Any], limit: int) -> Any:
    """A copy under another time limit than its own; 0 = its own."""
    from gymnasium.wrappers import TimeLimit

    made, found = copy(), False
    layer = made
    while limit and layer is not made.unwrapped:
        if isinstance(layer, TimeLimit):
            layer._max_episode_steps, found = limit, True
        layer = layer.env
    return made if found or not limit else TimeLimit(made, limit)


def _unknown(id: str, known: list[str], built_in: tuple[str, ...]) -> str:
    stem, mark, version = id.rpartition("-v")
    if not mark or not version.isdigit():
        stem = id
    versions = [name for name in known if name.rpartition("-v")[0] == stem]
    if versions:
        newest = max(versions, key=lambda name: int(name.rpartition("-v")[2]))
        return f"env.id: Gymnasium has no {id}; use {newest}"
    close = suggestion(id, [*built_in, *known])
    return (
        f"env.id: unknown environment {id!r}{close} (a Gymnasium id, {', '.join(built_in)}, "
        "module:Law or a file.npz)"
    )


def _compiled(id: str, made: Any, limit: int) -> Environment:
    bare = made.unwrapped
    table, first = bare.P, bare.initial_state_distrib
    n_states, n_actions = int(made.observation_space.n), int(made.action_space.n)
    try:
        rows = [list(table[s][a]) for s in range(n_states) for a in range(n_actions)]
        entries = [
            (number(p), whole("next state", new), number(reward), flag("terminated", ended))
            for row in rows
            for p, new, reward, ended in row
        ]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ModelError(
            f"{id}: P is not {n_states} states x {n_actions} actions of "
            f"(probability, next state, reward, terminated): {type(error).__name__}: {error}"
        ) from error
    probability, indices, reward, terminated = zip(*entries, strict=True) if entries else ((),) * 4
    return explicit_model(
        id,
        n_states,
        n_actions,
        np.cumsum([0, *map(len, rows)]),
        np.array(indices, np.int64),
        np.array(probability, np.float64),
        np.array(reward, np.float64),
        np.array(terminated, np.bool_),
        first,
        max_episode_steps=limit,
        given_as=given_as(p for row in rows for p, *_ in row),
        **_drawing(bare),
    )


def _drawing(bare: Any) -> dict[str, Any]:
    """Return grid, marks and arrows of the worlds that are grids."""
    kind = type(bare).__name__
    if kind == "FrozenLakeEnv":
        marks = b"".join(bare.desc.ravel()).decode()
        return {"grid": bare.desc.shape, "marks": marks, "arrows": "←↓→↑"}
    if kind == "CliffWalkingEnv":
        marks = "." * 36 + "S" + "C" * 10 + "G"
        return {"grid": (4, 12), "marks": marks, "arrows": "↑→↓←"}
    return {}


def moved_ids() -> dict[str, str]:
    """Ids of Gymnasium's discrete worlds that are gone -> the ids that took their place.

    Computed from the registry: the version before the oldest one of a name. Imports Gymnasium.
    """
    import gymnasium

    versions: dict[str, list[int]] = {}
    for id, spec in gymnasium.registry.items():
        stem, mark, version = id.rpartition("-v")
        if mark and version.isdigit() and "toy_text" in str(spec.entry_point):
            versions.setdefault(stem, []).append(int(version))
    return {
        f"{stem}-v{min(found) - 1}": f"{stem}-v{max(found)}"
        for stem, found in sorted(versions.items())
        if min(found) > 0
    }
