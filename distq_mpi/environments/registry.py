"""From the `env` section of the configuration to an environment."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any, Protocol

from distq_mpi.environments.arguments import call
from distq_mpi.environments.base import Environment
from distq_mpi.environments.garnet import garnet
from distq_mpi.environments.grid import Grid
from distq_mpi.environments.laws import import_law, law_environment
from distq_mpi.environments.model_file import SUFFIXES, read_model
from distq_mpi.environments.sparse import ACTION, read_sparse_model

BUILT_IN = ("garnet", "grid")


class EnvironmentConfig(Protocol):
    """What is read of the configuration: `env.id` and `env.kwargs`."""

    @property
    def id(self) -> str: ...

    @property
    def kwargs(self) -> Mapping[str, Any]: ...


def is_law(id: str) -> bool:
    """Tell whether `id` names a law, which every rank makes for itself, without importing it.

    Anything else is an explicit model, made on one rank and shared.
    """
    return id == "grid" or bool(re.fullmatch(r"[\w.]+:(?!.*-v\d+$)\w+", id))


def make(config: EnvironmentConfig) -> Environment:
    """Make the environment a configuration names. Local, not collective.

    `config.id` is a Gymnasium id (`Taxi-v4`, `module:Name-v0`), `garnet`, `grid`, `module:Law` or
    a file `*.npz`, `*.h5`, `*.hdf5`, or files `*{action}*.npz`; `config.kwargs` go to whatever
    makes it.

    Raises
    ------
    ModelError
        If the id is unknown, the arguments do not fit, or the result is not a Markov decision
        process.
    """
    id, kwargs = config.id, config.kwargs
    if id == "garnet":
        return call(id, garnet, kwargs)
    if id == "grid":
        return law_environment(id, Grid, kwargs, built_in=True)
    if ACTION in id:
        return call(id, functools.partial(read_sparse_model, id), kwargs)
    if id.endswith(SUFFIXES):
        return call(id, functools.partial(read_model, id), kwargs)
    if is_law(id):
        return law_environment(id, import_law(id), kwargs)
    from distq_mpi.environments.gymnasium_models import gymnasium_model

    return gymnasium_model(id, kwargs, BUILT_IN)
