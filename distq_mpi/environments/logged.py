"""Logged transitions as an environment: the empirical model, in which every row is drawn again."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from distq_mpi.environments.arguments import real_number, time_limit, whole_number
from distq_mpi.environments.base import Environment
from distq_mpi.environments.explicit import LIMIT, explicit_model
from distq_mpi.errors import FileError, ModelError
from distq_mpi.files import open_arrays

PREFIX = "log:"
INTEGERS, OTHERS = ("state", "action", "next_state"), ("reward", "terminated")
LONGEST = 1e6
"""Steps that an episode is taken to last where no discount says how much later ones weigh."""


def read_log(
    path: str,
    discount: float | None = None,
    /,
    n_states: int = 0,
    n_actions: int = 0,
    unseen: float | None = None,
    max_episode_steps: int | None = None,
) -> Environment:
    """Read transitions (s, a, r, s', terminated) from an npz or HDF5 file; return their model.

    A step draws one of the rows of its pair, all alike, so learning goes to the fixed point of the
    empirical model: P(s', terminated | s, a) are the shares of the rows, rewards their means.
    Episodes begin in the states that were logged, as often as they were. An action never tried in a
    state ends the episode with `unseen`; a state that was only arrived at ends it, for 0.

    The default of `unseen` is below every return of what was tried, by the largest |reward| (1
    where all are 0): the smallest reward, at most 0, in every step of a horizon 1 / (1 - discount).

    Parameters
    ----------
    path : holds `state`, `action`, `next_state` (integers from 0), `reward`, `terminated`, (n,).
    discount : of the returns that are learned; None or 1: the horizon is `LONGEST`.
    n_states, n_actions : 0 = one more than the largest that occurs.
    unseen : None = as above.

    Raises
    ------
    ModelError
        If the file is no such log; names the array, the row and the value.
    """
    n_states = whole_number("n_states", n_states, 0, LIMIT - 1)
    n_actions = whole_number("n_actions", n_actions, 0, LIMIT - 1)
    limit = time_limit(0 if max_episode_steps is None else max_episode_steps)
    worst = None if unseen is None else real_number("unseen", unseen)
    rows = _read(path)
    # Python's integers: those of the file may be unsigned, and have more than 63 bits.
    n_states = n_states or 1 + max(int(rows["state"].max()), int(rows["next_state"].max()))
    n_actions = n_actions or 1 + int(rows["action"].max())
    for name, n in (("state", n_states), ("next_state", n_states), ("action", n_actions)):
        _refuse(path, name, rows[name], (rows[name] < 0) | (rows[name] >= n), f"0 to {n - 1}")
    if n_states * n_actions >= LIMIT:
        raise ModelError(
            f"{path}: {n_states:,} states x {n_actions:,} actions, of which each pair is kept; the "
            f"limit is {LIMIT - 1:,}: number what occurs from 0 without gaps"
        )
    state, action, following = (rows[name].astype(np.int64) for name in INTEGERS)
    reward, ends = rows["reward"].astype(np.float64), rows["terminated"].astype(np.bool_)
    _refuse(path, "reward", reward, ~np.isfinite(reward), "finite")
    _refuse(path, "terminated", rows["terminated"], rows["terminated"] != ends, "0 or 1")
    if worst is None:
        worst = _below_all(reward, discount)
    logged = np.bincount(state, minlength=n_states)
    # What was only arrived at ends there: nothing is known of what would follow.
    ends = ends | (logged[following] == 0)
    pair = state * n_actions + action
    key = (pair * n_states + following) * 2 + ends
    distinct, place, times = np.unique(key, return_inverse=True, return_counts=True)
    mean = np.bincount(place, weights=reward) / times
    of_pair = distinct // (2 * n_states)
    tried = np.bincount(pair, minlength=n_states * n_actions)
    missing = np.flatnonzero(tried == 0)
    for_nothing = logged[missing // n_actions] == 0
    return _assembled(
        PREFIX + path, n_states, n_actions, logged / logged.sum(),
        np.concatenate([of_pair, missing]),
        np.concatenate([distinct // 2 % n_states, missing // n_actions]),
        np.concatenate([times / tried[of_pair], np.ones(missing.size)]),
        np.concatenate([mean, np.where(for_nothing, 0.0, worst)]),
        np.concatenate([distinct % 2 == 1, np.ones(missing.size, np.bool_)]),
        limit,
    )  # fmt: skip


def _below_all(reward: np.ndarray, discount: float | None) -> float:
    """A return that is worse than any of what was tried."""
    horizon = LONGEST if discount is None or discount == 1 else 1 / (1 - discount)
    return min(0.0, float(reward.min())) * horizon - (float(np.abs(reward).max()) or 1.0)


def _assembled(
    id: str, n_states: int, n_actions: int, start: np.ndarray, pairs: np.ndarray,
    indices: np.ndarray, probability: np.ndarray, reward: np.ndarray, ends: np.ndarray, limit: int,
) -> Environment:  # fmt: skip
    order = np.argsort(pairs, kind="stable")
    counts = np.bincount(pairs, minlength=n_states * n_actions)
    return explicit_model(
        id, n_states, n_actions, np.concatenate([[0], np.cumsum(counts)]), indices[order],
        probability[order], reward[order], ends[order], start, max_episode_steps=limit, verb="read",
    )  # fmt: skip


def _read(path: str) -> dict[str, np.ndarray]:
    if not os.path.isfile(path):
        raise ModelError(f"env.id: there is no file {path}")
    try:
        with open_arrays(path) as file:
            missing = [name for name in (*INTEGERS, *OTHERS) if name not in file]
            if missing:
                raise ModelError(
                    f"{path} is no log: it lacks {', '.join(missing)} "
                    f"(it holds {', '.join(file.names) or 'nothing'})"
                )
            rows: dict[str, Any] = {name: np.asarray(file[name]) for name in (*INTEGERS, *OTHERS)}
    except FileError as error:
        raise ModelError(str(error)) from error
    n = rows["state"].size
    for name, array in rows.items():
        kinds = "iu" if name in INTEGERS else "iufb" if name == "reward" else "iub"
        if array.shape != (n,) or n == 0 or array.dtype.kind not in kinds:
            raise ModelError(
                f"{path}: {name} must be an array ({n},) of "
                f"{'integers' if name in INTEGERS else 'numbers'}, not {array.dtype} of shape "
                f"{array.shape}"
            )
    return rows


def _refuse(path: str, name: str, array: np.ndarray, wrong: np.ndarray, wanted: str) -> None:
    if wrong.any():
        row = int(wrong.argmax())
        raise ModelError(f"{path}: {name} of row {row} is {array[row]}; it must be {wanted}")
