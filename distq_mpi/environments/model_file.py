"""Explicit models in files, npz and HDF5."""

from __future__ import annotations

import os

import numpy as np

from distq_mpi.environments.arguments import suggestion, time_limit
from distq_mpi.environments.base import Environment
from distq_mpi.environments.explicit import explicit_model
from distq_mpi.errors import FileError, ModelError
from distq_mpi.files import ForeignArrays, open_arrays, write_arrays

SUFFIXES = (".npz", ".h5", ".hdf5")
REQUIRED = ("n_states", "n_actions", "indptr", "indices", "probability", "reward")
OPTIONAL = ("terminated", "start", "max_episode_steps")

u8 = np.uint64


def read_model(path: str, max_episode_steps: int | None = None) -> Environment:
    """Read an explicit model from an npz or HDF5 file.

    The file holds `n_states`, `n_actions` (scalars, or attributes), `indptr`, `indices`,
    `probability`, `reward` and, optionally, `terminated`, `start` and `max_episode_steps`, as
    `explicit_model` takes them. `max_episode_steps` overrides what the file says. Nothing in the
    file is executed, and no other file is opened.

    Raises
    ------
    ModelError
        If the file is missing, is of another kind, lacks or has foreign arrays, or is no valid
        model.
    """
    if not os.path.isfile(path):
        raise ModelError(f"env.id: there is no file {path}")
    try:
        with open_arrays(path) as file:
            _check_names(path, file)
            n_states, n_actions = (_scalar(path, name, file) for name in ("n_states", "n_actions"))
            if max_episode_steps is None and "max_episode_steps" in file:
                max_episode_steps = _scalar(path, "max_episode_steps", file)
            arrays = [file.get(name) for name in (*REQUIRED[2:], "terminated", "start")]
    except FileError as error:
        raise ModelError(str(error)) from error
    return explicit_model(
        path,
        n_states,
        n_actions,
        *arrays,  # type: ignore[arg-type]
        max_episode_steps=time_limit(max_episode_steps or 0),
        verb="read",
    )


def write_model(path: str | os.PathLike[str], environment: Environment) -> None:
    """Write an explicit model (of whatever origin) so that `read_model` gives it back bit for bit.

    path : ends in .npz, .h5 or .hdf5, which decides the format; replaced as a whole.

    Raises
    ------
    ModelError
        If the environment is no explicit model, or the name has another end.
    FileError
        If the file cannot be written.
    """
    path = os.fspath(path)
    if environment.kind != "explicit":
        raise ModelError(f"{environment.id} is a {environment.kind}, not a table of transitions")
    if environment.rows is not None:
        raise ModelError(f"{environment.id} is cut, and its rows {environment.rows} are no model")
    if not path.endswith(SUFFIXES):
        raise ModelError(f"{path}: the name of a model must end in {', '.join(SUFFIXES)}")
    indptr, alias, reward, probability, start_state, _, start_probability, shape = (
        environment.params
    )
    code, start = alias[1::2], np.full(environment.n_states, start_probability[0])
    if start_state.size:
        start[:] = 0.0
        start[start_state] = start_probability
    arrays = {
        "n_states": shape[0],
        "n_actions": shape[1],
        "indptr": indptr,
        "indices": (code >> u8(1)).astype(np.int64),
        "probability": probability,
        "reward": reward,
        "terminated": (code & u8(1)).astype(np.bool_),
        "start": start,
        "max_episode_steps": np.int64(environment.max_episode_steps),
    }
    write_arrays(path, {name: np.asarray(array) for name, array in arrays.items()})


def _check_names(path: str, file: ForeignArrays) -> None:
    if {"format", "shape", "data"} <= set(file.names):
        raise ModelError(
            f"{path} is one sparse matrix of scipy, not a model: name the matrices of all actions "
            "at once, as P_{action}.npz, with env.kwargs.reward"
        )
    missing = [name for name in REQUIRED if name not in file]
    if missing:
        raise ModelError(
            f"{path} is not a model: it lacks {', '.join(missing)}"
            f" (it holds {', '.join(file.names) or 'nothing'})"
        )
    for name in file.names:
        if name not in REQUIRED + OPTIONAL:
            close = suggestion(name, OPTIONAL)
            raise ModelError(f"{path}: an array {name!r} has no meaning in a model{close}")


def _scalar(path: str, name: str, file: ForeignArrays) -> int:
    array = file[name]
    if array.size != 1 or array.dtype.kind not in "iu":
        raise ModelError(
            f"{path}: {name} must be one integer, not {array.dtype} of shape {array.shape}"
        )
    return int(array.reshape(-1)[0])
