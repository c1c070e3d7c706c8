"""From the `env` section of the configuration to an environment."""

from __future__ import annotations

import functools
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Protocol, cast

from distq_mpi.environments.arguments import call, decoded_argument
from distq_mpi.environments.base import Environment
from distq_mpi.environments.garnet import garnet
from distq_mpi.environments.grid import Grid
from distq_mpi.environments.laws import is_environment_source, law_environment, named
from distq_mpi.environments.logged import PREFIX, read_log
from distq_mpi.environments.model_file import SUFFIXES, look_over, read_model
from distq_mpi.environments.sparse import ACTION, read_sparse_model
from distq_mpi.environments.variants import SEPARATOR, mean_model
from distq_mpi.errors import ModelError

BUILT_IN = ("garnet", "grid")


class EnvironmentConfig(Protocol):
    """What is read of the `[env]` configuration."""

    @property
    def id(self) -> str: ...

    @property
    def kwargs(self) -> Mapping[str, Any]: ...

    @property
    def max_episode_steps(self) -> int: ...

    @property
    def bins(self) -> int | list[int]: ...

    @property
    def clip(self) -> float | list[float]: ...

    @property
    def step(self) -> bool: ...

    @property
    def reset_options(self) -> Mapping[str, Any]: ...

    @property
    def wrappers(self) -> list[str]: ...


PYTHON_NAME = re.compile(r"[\w.]+:(?!.*-v\d+$)\w+")
"""`module:Name`, which may be a law, or a class or function that makes environments."""


def make(
    config: EnvironmentConfig, held_below: int | None = None, discount: float | None = None
) -> Environment:
    """Make the environment a configuration names. Local, not collective.

    `config.id` is a Gymnasium id (`Taxi-v4`, `module:Name-v0`), `garnet`, `grid`, `module:Law` or
    a file `*.npz`, `*.h5`, `*.hdf5`, files `*{action}*.npz`, or `log:FILE`, or several of these
    with commas between them (see `variants`); `config.kwargs` go to whatever makes it. held_below :
    HDF5 files of so many transitions or more are looked over and not held (see
    `model_file.look_over`); None = all are held. discount : what logs take an untried action to be
    worth depends on it; None = unknown.

    Raises
    ------
    ModelError
        If the id is unknown, the arguments do not fit, or the result is not a Markov decision
        process.
    """
    if _are_several(config.id):
        parts = [make(part, discount=discount) for part in _parts(config)]
        return mean_model(config.id, parts)
    config = decoded(config)
    found, source = _without_gymnasium(config, held_below, discount)
    if found is not None:
        return _unchanged(found, config)
    from distq_mpi.environments.gymnasium_models import gymnasium_model

    return gymnasium_model(config, BUILT_IN, source=source)


def _are_several(id: str) -> bool:
    """Whether an id names several environments: with commas, unless a file is called so."""
    return SEPARATOR in id.strip(SEPARATOR) and not os.path.exists(id.removeprefix(PREFIX))


def _parts(config: EnvironmentConfig) -> Iterator[Any]:
    """The configuration of each variant: `id?name=value&name=value` adds to the arguments."""
    for text in config.id.split(SEPARATOR):
        id, _, added = text.partition("?")
        kwargs = dict(config.kwargs)
        for pair in filter(None, added.split("&")):
            name, _, value = pair.partition("=")
            try:
                kwargs[name] = tomllib.loads(f"x = {value}")["x"]
            except tomllib.TOMLDecodeError:
                kwargs[name] = value
        yield replace(cast(Any, config), id=id, kwargs=kwargs)


def make_world(config: EnvironmentConfig) -> Any:
    """Make what episodes can be played in: `Environment`, or what Gymnasium makes of its id. Local.

    Raises ModelError as `make` does; the caller closes what Gymnasium made.
    """
    if _are_several(config.id):
        return make(config)
    config = decoded(config)
    found, source = _without_gymnasium(config)
    if found is not None:
        return found
    from distq_mpi.environments.gymnasium_ids import maker

    return maker(config.id, source, config, BUILT_IN)()


def decoded(config: EnvironmentConfig) -> Any:
    """The configuration with None for the texts that stand for it. Local."""
    return replace(
        cast(Any, config), kwargs=decoded_argument(dict(config.kwargs)),
        reset_options=decoded_argument(dict(config.reset_options)),
    )  # fmt: skip


def _without_gymnasium(
    config: EnvironmentConfig, held_below: int | None = None, discount: float | None = None
) -> tuple[Environment | None, Any]:
    """The environment, where Gymnasium is not needed; else None, and what makes it (or None)."""
    id, kwargs = config.id, config.kwargs
    if id == "garnet":
        return call(id, garnet, kwargs), None
    if id == "grid":
        return law_environment(id, Grid, kwargs, built_in=True), None
    if ACTION in id:
        return call(id, functools.partial(read_sparse_model, id), kwargs), None
    if id.startswith(PREFIX):
        read = functools.partial(read_log, id.removeprefix(PREFIX), discount)
        return call(id, read, kwargs), None
    if id.endswith(SUFFIXES):
        if held_below is not None:
            return call(id, functools.partial(look_over, held_below, id), kwargs), None
        return call(id, functools.partial(read_model, id), kwargs), None
    source = named(id) if PYTHON_NAME.fullmatch(id) else None
    if source is None or is_environment_source(source):
        return None, source
    return law_environment(id, source, kwargs), None


def _unchanged(environment: Environment, config: EnvironmentConfig) -> Environment:
    """The environment itself, to which keys of stepped ones do not apply. Raises ModelError if one
    of them is set."""
    for key, empty in (("bins", "0"), ("clip", "0")):
        if getattr(config, key):
            raise ModelError(
                f"env.{key}: {environment.id} has no continuous space to cut; it must be {empty}"
            )
    for key, empty in (("step", "false"), ("reset_options", "empty"), ("wrappers", "empty")):
        if getattr(config, key):
            raise ModelError(
                f"env.{key}: {environment.id} is no environment of Gymnasium; it must be {empty}"
            )
    return environment


def object_id(given: Any) -> str:
    """Return what an object that `from_object` takes is called in a configuration. Local."""
    if isinstance(given, Environment):
        return given.id
    spec = getattr(given, "spec", None)
    if is_gymnasium(given) and spec is not None:
        return str(spec.id)
    kind = given if isinstance(given, type) else type(getattr(given, "unwrapped", given))
    return f"{kind.__module__}:{kind.__qualname__}"


def is_gymnasium(given: Any) -> bool:
    """Tell whether an object steps as Gymnasium's environments do. Local; imports nothing."""
    return not isinstance(given, type) and all(
        hasattr(given, name) for name in ("reset", "step", "observation_space", "action_space")
    )


def is_environment_class(given: Any) -> bool:
    """Tell whether something is the class of a law or of an environment of Gymnasium. Local."""
    return isinstance(given, type) and (
        hasattr(given, "outcome") or is_environment_source(given)
    )


def from_object(given: Any, config: EnvironmentConfig) -> Environment:
    """Make the environment that an object of the user stands for. Local, not collective.

    given : an `Environment`; a law or an environment of Gymnasium, or the class of one, which
        `config.kwargs` construct. An object is only looked at, never stepped or changed.

    Raises
    ------
    ModelError
        If it is none of these, or no Markov decision process.
    """
    config = decoded(config)
    id, kwargs = object_id(given), config.kwargs
    if isinstance(given, type) and hasattr(given, "outcome"):
        return _unchanged(law_environment(id, given, kwargs), config)
    if isinstance(given, type) and is_environment_source(given):
        from distq_mpi.environments.gymnasium_models import gymnasium_model

        return gymnasium_model(config, BUILT_IN, id, given)
    if kwargs:
        raise ModelError(f"env.kwargs: {id} is made already and takes no arguments")
    if isinstance(given, Environment):
        return _unchanged(given, config)
    if hasattr(given, "outcome"):
        return _unchanged(law_environment(id, lambda: given, {}), config)
    if is_gymnasium(given):
        if config.wrappers:
            raise ModelError(f"env.wrappers: {id} is made already; wrap the object")
        from distq_mpi.environments.gymnasium_models import gymnasium_object

        return gymnasium_object(id, given, config)
    if isinstance(given, list | tuple) and any(map(is_gymnasium, given)):
        raise ModelError(
            f"env: a {type(given).__name__} of {len(given)} environments; give a single one: as "
            "many are made as there are lanes"
        )
    raise ModelError(
        f"env: {given!r} is no environment (an id, an Environment, a law or an environment of "
        "Gymnasium, or the class of one)"
    )
