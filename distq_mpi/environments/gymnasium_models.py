"""Explicit models out of Gymnasium environments that carry their table of transitions."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from distq_mpi.environments.arguments import suggestion
from distq_mpi.environments.base import Environment
from distq_mpi.environments.explicit import explicit_model
from distq_mpi.errors import ModelError

NEUTRAL = (
    "TimeLimit", "OrderEnforcing", "PassiveEnvChecker", "RecordEpisodeStatistics", "RecordVideo",
    "HumanRendering", "RenderCollection", "Monitor",
)  # fmt: skip
"""Wrappers that change nothing but the length of episodes: the table below them tells all."""


def gymnasium_model(id: str, kwargs: Mapping[str, Any], built_in: tuple[str, ...]) -> Environment:
    """Compile `gymnasium.make(id, **kwargs)` to an explicit model through its `P`.

    The time limit is the one Gymnasium applies. `built_in` names join the suggestions for an
    unknown id. Imports Gymnasium: call on one rank and share the result.

    Raises
    ------
    ModelError
        If the id is unknown or renamed, the arguments do not fit, the spaces are not `Discrete`,
        or there is no table that tells all of the dynamics.
    """
    made = gymnasium_environment(id, kwargs, built_in)
    try:
        return _compiled(id, made, made.spec.max_episode_steps or 0)
    finally:
        made.close()


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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return gymnasium.make(id, disable_env_checker=True, **kwargs)
    except Exception as error:  # whatever the environment's own constructor raises
        raise ModelError(f"{id} could not be made: {type(error).__name__}: {error}") from error


def gymnasium_object(id: str, made: Any) -> Environment:
    """Compile an environment object through its `P`; the time limit is that of its wrappers. Local.

    Raises
    ------
    ModelError
        If `P` does not tell all: there is none, or a wrapper changes what happens.
    """
    limit, layer = 0, made
    while layer is not made.unwrapped:
        kind = type(layer)
        ours = kind.__module__.startswith(("gymnasium.wrappers", "stable_baselines3.common"))
        if kind.__name__ not in NEUTRAL or not ours:
            raise ModelError(
                f"{id}: its wrapper {kind.__name__} may change what happens, and the table of "
                "transitions below it does not tell; take it off (environments that are stepped "
                "are not supported yet)"
            )
        if kind.__name__ == "TimeLimit":
            limit = min(limit or layer._max_episode_steps, layer._max_episode_steps)
        layer = layer.env
    return _compiled(id, made, limit)


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
    from gymnasium import spaces

    bare = made.unwrapped
    for name, space in (("observation", made.observation_space), ("action", made.action_space)):
        if isinstance(space, spaces.Box):
            raise ModelError(
                f"{id}: its {name} space {space} is continuous; only Discrete spaces "
                "with a table of transitions can be learned on"
            )
        if not isinstance(space, spaces.Discrete):
            raise ModelError(f"{id}: its {name} space {space} is not Discrete; not supported yet")
        if space.start != 0:
            raise ModelError(
                f"{id}: its {name} space {space} begins at {space.start}; "
                "only Discrete spaces that begin at 0 are supported"
            )
    table = getattr(bare, "P", None)
    first = getattr(bare, "initial_state_distrib", None)
    if table is None or first is None:
        raise ModelError(
            f"{id} has no table of transitions (P and initial_state_distrib); not supported yet"
        )
    if getattr(bare, "fickle_passenger", False):
        raise ModelError(
            f"{id}: its table of transitions does not tell of fickle_passenger; leave it off"
        )
    n_states, n_actions = int(made.observation_space.n), int(made.action_space.n)
    try:
        rows = [list(table[s][a]) for s in range(n_states) for a in range(n_actions)]
        entries = [
            (float(p), int(new), float(reward), bool(ended))
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
