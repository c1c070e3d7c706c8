"""Explicit models from files."""

from __future__ import annotations

import os
import zipfile

import numpy as np

from distq_mpi.environments.arguments import suggestion, time_limit
from distq_mpi.environments.base import Environment
from distq_mpi.environments.explicit import explicit_model
from distq_mpi.errors import ModelError

REQUIRED = ("n_states", "n_actions", "indptr", "indices", "probability", "reward")
OPTIONAL = ("terminated", "start", "max_episode_steps")


def read_model(path: str, max_episode_steps: int | None = None) -> Environment:
    """Read an explicit model from an npz file.

    The file holds `n_states`, `n_actions` (scalars), `indptr`, `indices`, `probability`, `reward`
    and, optionally, `terminated`, `start` and `max_episode_steps`, as `explicit_model` takes them.
    `max_episode_steps` overrides what the file says. Nothing in the file is executed.

    Raises
    ------
    ModelError
        If the file is missing, is no npz, lacks or has foreign arrays, or is no valid model.
    """
    if not os.path.isfile(path):
        raise ModelError(f"env.id: there is no file {path}")
    if not zipfile.is_zipfile(path):
        raise ModelError(f"{path} is not an npz file of a model, or only a part of one")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ModelError(f"{path} is not an npz file of a model: {error}") from error
    missing = [name for name in REQUIRED if name not in arrays]
    if missing:
        raise ModelError(
            f"{path} is not a model: it lacks {', '.join(missing)}"
            f" (it holds {', '.join(arrays) or 'nothing'})"
        )
    for name in arrays:
        if name not in REQUIRED + OPTIONAL:
            close = suggestion(name, OPTIONAL)
            raise ModelError(f"{path}: an array {name!r} has no meaning in a model{close}")
    n_states, n_actions = (_scalar(path, name, arrays[name]) for name in ("n_states", "n_actions"))
    if max_episode_steps is None and "max_episode_steps" in arrays:
        max_episode_steps = _scalar(path, "max_episode_steps", arrays["max_episode_steps"])
    return explicit_model(
        path,
        n_states,
        n_actions,
        arrays["indptr"],
        arrays["indices"],
        arrays["probability"],
        arrays["reward"],
        arrays.get("terminated"),
        arrays.get("start"),
        max_episode_steps=time_limit(max_episode_steps or 0),
        verb="read",
    )


def _scalar(path: str, name: str, array: np.ndarray) -> int:
    if array.size != 1 or array.dtype.kind not in "iu":
        raise ModelError(
            f"{path}: {name} must be one integer, not {array.dtype} of shape {array.shape}"
        )
    return int(array.reshape(-1)[0])
