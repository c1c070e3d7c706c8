"""Gymnasium's environments: explicit models where they carry their table, or stepped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from distq_mpi.environments.attached_table import (
    AttachedTable,
    has_own_step,
    is_ours_to_trust,
    overridden,
    read_table,
)
from distq_mpi.environments.base import Environment
from distq_mpi.environments.calls import described
from distq_mpi.environments.contents import contents_hash
from distq_mpi.environments.copies import copies_of, is_neutral, layers, object_contents
from distq_mpi.environments.explicit import explicit_model
from distq_mpi.environments.gymnasium_ids import maker, only_vector, with_options
from distq_mpi.environments.silence import errors_ignored, shut, silence
from distq_mpi.environments.stepped import is_old, old_interface, stepped_environment
from distq_mpi.environments.table_check import contradiction
from distq_mpi.errors import ModelError
from distq_mpi.probabilities import given_as

DRAWN = (
    "each one that is made draws another table P; an argument of env.kwargs may fix it (desc of "
    "FrozenLake)"
)


def gymnasium_model(
    config: Any, built_in: tuple[str, ...], id: str = "", source: Any = None
) -> Environment:
    """Make what can be learned on of a Gymnasium id: its table, or the environment stepped. Local.

    config : `[env]` configuration. An environment that tells all of its dynamics by `P` becomes an
    explicit model; any other, or one to be cut into bins, is stepped in Python. The time limit is
    the one Gymnasium applies, or the configuration's. `built_in` names join the suggestions for an
    unknown id. source : a class or function that makes environments, called `id`; None: what
    Gymnasium knows by the configuration's id.

    Raises
    ------
    ModelError
        If the id is unknown or renamed, the arguments do not fit, or a space is not finite.
    """
    id, limit = id or config.id, config.max_episode_steps
    _refuse_old(id, source)
    cut = {"bins": config.bins, "clip": config.clip, "max_episode_steps": limit}
    vector = only_vector(id, config.kwargs) if source is None else None
    if vector is not None:
        _refuse_for_vector(id, config)
        return stepped_environment(id, lambda: vector(1), vector, **cut)
    unlimited = maker(id, source, replace(config, max_episode_steps=0), built_in)
    made = unlimited()
    other = unlimited() if "P" in vars(made.unwrapped) else made
    try:
        drawn = other is not made and _have_other_tables(made, other)
        compiled, note = _by_table(
            id, made, config, lambda: unlimited() if other is made else other
        )
    finally:
        shut(made)
        shut(other)
    if compiled is not None:
        return replace(compiled, unidentified=DRAWN) if drawn else compiled
    if drawn:
        raise ModelError(f"{id}: {DRAWN}, so that no two lanes would learn on the same")
    asked = (tuple(config.wrappers), sorted(config.reset_options.items()))
    contents = asked if any(asked) else ()
    make = maker(id, source, config, built_in)
    return _modern(stepped_environment(id, make, note=note, contents=contents, **cut))


def _have_other_tables(made: Any, other: Any) -> bool:
    """Whether two environments that are made alike carry different tables. Local."""
    table, again = (vars(world.unwrapped).get("P") for world in (made, other))
    if not isinstance(table, Mapping | Sequence):
        return False
    with silence(), errors_ignored():  # arrays, and objects of users, may not be comparable
        if bool(table == again):  # fast, but NaN is unlike NaN
            return False
    try:
        return contents_hash("P", table) != contents_hash("P", again)
    except ModelError:  # it holds what cannot be hashed
        return False


def _refuse_for_vector(id: str, config: Any) -> None:
    for key in ("max_episode_steps", "wrappers", "reset_options"):
        value = getattr(config, key)
        if value:
            limit = key == "max_episode_steps"
            why = "which sets its own limit" if limit else "which has no single environments"
            raise ModelError(
                f"env.{key}: {id} exists only as vector environment, {why}; {value} must be "
                f"{'0' if limit else 'empty'}"
            )


def gymnasium_object(id: str, made: Any, config: Any) -> Environment:
    """Make what can be learned on of an environment object, which is not stepped itself. Local.

    Its table, under the time limit of its wrappers; or, where there is none, or a wrapper may
    change what happens, copies of it, stepped.

    Raises
    ------
    ModelError
        If it is not of Gymnasium, a space is not finite, or no copies can be made.
    """
    _refuse_foreign(id, made)
    copies: list[Callable[[], Any]] = []

    def copied() -> Any:
        if not copies:
            copies.append(copies_of(id, made))
        return copies[0]()

    compiled, note = _by_table(id, made, config, copied)
    if compiled is not None:
        return compiled
    limit = config.max_episode_steps or _limit_of(made)

    def make() -> Any:
        return with_options(_limited(copied(), config.max_episode_steps), config.reset_options)

    contents, why = object_contents(make)
    return _modern(stepped_environment(
        id, make, bins=config.bins, clip=config.clip, max_episode_steps=limit, note=note,
        contents=(contents, sorted(config.reset_options.items())), unidentified=why,
    ))  # fmt: skip


def _modern(environment: Environment) -> Environment:
    """The environment itself. Raises ModelError where it has the interface of the old gym."""
    kind = environment.worlds
    world = kind.make()
    try:
        old = old_interface(world.unwrapped, kind.act(kind.actions.element(0)))
    finally:
        shut(world)
    if old:
        raise ModelError(
            f"{kind.id}: {old}: it has the interface of gym before 0.26, which Gymnasium replaced"
        )
    return environment


def _refuse_old(id: str, made: Any) -> None:
    """Raise ModelError for an environment, or a class of them, of the package gym."""
    if is_old(made):
        raise ModelError(
            f"env: {id} is an environment of gym, not gymnasium, which replaced it: make it with "
            "gymnasium, or wrap it (the package shimmy does)"
        )


def _refuse_foreign(id: str, made: Any) -> None:
    """Raise ModelError for what only steps like an environment of Gymnasium."""
    from gymnasium import Env
    from gymnasium.vector import VectorEnv

    kind = type(made)
    _refuse_old(id, made)
    single = isinstance(made, Env)
    if isinstance(made, VectorEnv) or (not single and hasattr(made, "num_envs")):
        raise ModelError(
            f"env: {id} ({kind.__name__}) is a vector environment of {made.num_envs}; give a "
            "single one, or its id: as many are made as there are lanes"
        )
    if not single:
        raise ModelError(
            f"env: {id} ({kind.__module__}.{kind.__qualname__}) must inherit from gymnasium.Env"
        )


def _by_table(
    id: str, made: Any, config: Any, make: Callable[[], Any]
) -> tuple[Environment | None, str]:
    """The explicit model of an environment's table; or None, and why its table, if it has one, does
    not tell what happens. Local. make : another like it, for trials."""
    from gymnasium import spaces

    bare, sizes = made.unwrapped, (made.observation_space, made.action_space)
    finite = all(isinstance(space, spaces.Discrete) and space.start == 0 for space in sizes)
    if not finite or config.bins or config.clip:
        return None, ""
    try:
        with silence():
            written, first = (getattr(bare, name, None) for name in ("P", "initial_state_distrib"))
    except BaseException as error:  # whatever the user's property raises
        return None, f"not by its table P, which raises {described(error)}"
    if written is None or first is None:
        return None, ""
    reason = _reason_to_step(made, config)
    if reason:
        return None, f"not by its table P: {reason}"
    try:
        table = read_table(written, first, int(sizes[0].n), int(sizes[1].n))
        compiled = _compiled(id, bare, table, _limit_of(made))
    except ModelError as error:
        reason = str(error).removeprefix(f"{id}: ")
        if not has_own_step(bare):
            raise ModelError(f"{id}: {reason}") from error
        return None, f"not by its table P: {reason}"
    if has_own_step(bare) and not is_ours_to_trust(bare):
        reason = _tried(make, table)
    if reason:
        return None, f"not by its table P: {reason}"
    return replace(compiled, summary=", ".join((compiled.summary, *table.repairs))), ""


def _reason_to_step(made: Any, config: Any) -> str:
    """Why a table cannot speak for an environment, without a look at the table; "" if it can."""
    changing = [type(layer).__name__ for layer in layers(made)
                if layer is not made.unwrapped and not is_neutral(layer)]  # fmt: skip
    if config.step:
        return "env.step is true"
    if config.reset_options:
        return "env.reset_options may change where episodes begin"
    if changing:
        return f"{changing[0]} may change what happens"
    if getattr(made.unwrapped, "fickle_passenger", False):
        return "it does not know of fickle passengers"
    return overridden(made.unwrapped)


def _tried(make: Callable[[], Any], table: AttachedTable) -> str:
    """What a trial contradicts of a table; "" for nothing, or where no trial can be made."""
    try:
        world = make()
    except ModelError:  # an object that cannot be copied
        return ""
    try:
        bare = world.unwrapped
        return "" if old_interface(bare, 0) else contradiction(bare, table)
    finally:
        shut(world)


def _limit_of(made: Any) -> int:
    """The time limit that wrappers set, the shortest; 0 = none."""
    limits = [layer._max_episode_steps for layer in layers(made)
              if layer is not made.unwrapped and type(layer).__name__ == "TimeLimit"]  # fmt: skip
    return min(limits, default=0)


def _limited(made: Any, limit: int) -> Any:
    """An environment under another time limit than its own; 0 = its own."""
    from gymnasium.wrappers import TimeLimit

    limited = False
    for layer in layers(made) if limit else ():
        if isinstance(layer, TimeLimit):
            layer._max_episode_steps, limited = limit, True
    return made if limited or not limit else TimeLimit(made, limit)


def _compiled(id: str, bare: Any, table: AttachedTable, limit: int) -> Environment:
    pointers, following, chances, rewards, ends = table.arrays()
    return explicit_model(
        id,
        table.n_states,
        table.n_actions,
        pointers,
        following,
        chances,
        rewards,
        ends,
        table.first,
        max_episode_steps=limit,
        given_as=given_as(entry[0] for row in table.rows for entry in row),
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
