"""Explicit models from one matrix of transitions per action, as toolboxes for MDPs keep them."""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from distq_mpi.environments.arguments import time_limit
from distq_mpi.environments.base import Environment
from distq_mpi.environments.explicit import LIMIT, explicit_model
from distq_mpi.errors import FileError, ModelError
from distq_mpi.files import read_array, read_sparse
from distq_mpi.probabilities import coarsest

ACTION = "{action}"


def sparse_model(
    transitions: Sequence[Any],
    rewards: Any,
    start: Any = None,
    terminated: Any = None,
    max_episode_steps: int = 0,
    *,
    id: str = "matrices",
    verb: str = "compiled",
) -> Environment:
    """Build an environment from one (S, S) matrix of probabilities per action.

    Parameters
    ----------
    transitions : matrices or arrays of scipy.sparse of any format, or NumPy arrays; row = state,
        column = next state. They are not changed.
    rewards : numbers (S, A), or (S,) for every action alike, or one (S, S) matrix per action: the
        reward of each transition, 0 where nothing is stored.
    start : numbers (S,), the start distribution; None = uniform over the states that end nothing.
    terminated : booleans (S,): reaching such a state ends the episode. Nothing is learned there,
        so its own rows may be empty, and no reward but 0 may wait in it. None = no state ends an
        episode: one that absorbs keeps its lanes until `max_episode_steps`.

    Raises
    ------
    ModelError
        If shapes disagree or the result is no decision process; names state and action.
    """
    matrices = [_csr(f"{id}: transitions[{a}]", m) for a, m in enumerate(transitions)]
    if not matrices:
        raise ModelError(f"{id}: a model needs at least one action, not an empty list")
    n_states, n_actions = matrices[0][3][0], len(matrices)
    for a, (_, _, _, shape) in enumerate(matrices):
        if shape != (n_states, n_states):
            raise ModelError(
                f"{id}: transitions[{a}] has the shape {shape}, not {(n_states, n_states)}"
            )
    ends = _flags(id, terminated, n_states)
    matrices = [_with_loops(m, ends) for m in matrices]
    counts = np.stack([np.diff(m[0]) for m in matrices], axis=1)  # (S, A)
    indptr = np.zeros(n_states * n_actions + 1, np.int64)
    np.cumsum(counts.ravel(), out=indptr[1:])
    n_entries = int(indptr[-1])
    if n_entries >= LIMIT:
        raise ModelError(f"{id}: {n_entries} transitions; the limit is {LIMIT - 1}")
    reward_of = _rewards(id, rewards, n_states, n_actions)
    indices, probability = np.empty(n_entries, np.int64), np.empty(n_entries)
    reward = np.empty(n_entries)
    for a, matrix in enumerate(matrices):
        pointers, columns, data, _ = matrix
        place = np.arange(columns.size) + np.repeat(
            indptr[a:-1:n_actions] - pointers[:-1], counts[:, a]
        )
        indices[place], probability[place] = columns, data
        reward[place] = reward_of(a, matrix)
    states = np.repeat(np.arange(n_states), counts.sum(axis=1))
    waiting = ends[states] & (reward != 0.0)
    if waiting.any():
        state = int(states[np.argmax(waiting)])
        raise ModelError(
            f"{id}: state {state} ends the episode, so its reward "
            f"{reward[np.argmax(waiting)]:g} would never be paid: put it on the transitions that "
            "lead there, or do not mark the state as terminated"
        )
    model = explicit_model(
        id,
        n_states,
        n_actions,
        indptr,
        indices,
        probability,
        reward,
        ends[indices],
        _start(id, start, ends),
        max_episode_steps=time_limit(max_episode_steps),
        verb=verb,
        given_as=coarsest(data.dtype for _, _, data, _ in matrices),
    )
    stuck = 0 if max_episode_steps else _absorbing(matrices, ends)
    if not stuck:
        return model
    return replace(model, summary=f"{model.summary}, {stuck:,} states absorb and end no episode "
                   "(give terminated or max_episode_steps)")


def read_sparse_model(
    pattern: str,
    reward: str,
    start: str | None = None,
    terminated: str | None = None,
    max_episode_steps: int = 0,
) -> Environment:
    """Read a model from one file of `scipy.sparse.save_npz` per action.

    Parameters
    ----------
    pattern : file name with `{action}` in the place of 0, 1, 2, ...
    reward : an npy file (S, A) or (S,), or a pattern like that of the transitions.
    start, terminated : npy files (S,).

    Raises
    ------
    ModelError
        If a file is missing, of another kind, or the model is none (see `sparse_model`).
    """
    for name, value in (("reward", reward), ("start", start), ("terminated", terminated)):
        if not isinstance(value, str) and (name == "reward" or value is not None):
            raise ModelError(f"env.kwargs.{name} must be the name of a file, not {value!r}")
    try:
        transitions = [read_sparse(path) for path in _files(pattern)]
        if ACTION in reward:
            paths = _files(reward)
            if len(paths) != len(transitions):
                raise ModelError(
                    f"env.kwargs.reward: {reward} are {len(paths)} files, and {pattern} "
                    f"{len(transitions)}"
                )
            rewards: Any = [read_sparse(path) for path in paths]
        else:
            rewards = read_array(reward)
        first, ends = (None if path is None else read_array(path) for path in (start, terminated))
    except FileError as error:
        raise ModelError(str(error)) from error
    return sparse_model(
        transitions, rewards, first, ends, max_episode_steps, id=pattern, verb="read"
    )


def _files(pattern: str) -> list[str]:
    """Files of a pattern for the actions 0, 1, 2, ... without a gap."""
    before, _, after = pattern.partition(ACTION)
    wanted = re.compile(re.escape(before) + r"(\d+)" + re.escape(after))
    found = glob.glob(f"{glob.escape(before)}*{glob.escape(after)}")
    numbers = {int(match[1]) for match in map(wanted.fullmatch, found) if match}
    paths = [f"{before}{action}{after}" for action in range(len(numbers))]
    for action, path in enumerate(paths):
        if path not in found:
            raise ModelError(
                f"there is no file {path}, though there is {before}{max(numbers)}{after}: actions "
                f"are numbered 0 to {len(numbers) - 1}"
                if action not in numbers
                else f"there is no file {path}: the numbers of actions have no leading zeros"
            )
    if not paths:
        raise ModelError(f"env.id: there is no file {before}0{after}")
    return paths


def _csr(name: str, matrix: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[int, ...]]:
    """(indptr, indices, data in their own dtype, shape) of a matrix, its indices ascending within a
    row, once each."""
    if hasattr(matrix, "tocsr"):
        csr = matrix.tocsr()
        if not csr.has_canonical_format:
            csr = csr.copy() if csr is matrix else csr
            csr.sum_duplicates()
        indptr, indices, data, shape = csr.indptr, csr.indices, csr.data, csr.shape
    else:
        dense = np.asarray(matrix)
        if dense.ndim != 2:
            raise ModelError(f"{name} must be a matrix, not an array of shape {dense.shape}")
        rows, indices = np.nonzero(dense)
        indptr = np.searchsorted(rows, np.arange(dense.shape[0] + 1))
        data, shape = dense[rows, indices], dense.shape
    if data.dtype.kind not in "biuf":
        raise ModelError(f"{name} must hold numbers, not {data.dtype}")
    return indptr.astype(np.int64), indices, np.asarray(data), tuple(shape)


def _flags(id: str, terminated: Any, n_states: int) -> np.ndarray:
    if terminated is None:
        return np.zeros(n_states, np.bool_)
    flags = np.asarray(terminated)
    if flags.shape != (n_states,) or flags.dtype.kind not in "biu":
        raise ModelError(
            f"{id}: terminated must be {n_states} booleans, one per state, not {flags.dtype} of "
            f"shape {flags.shape}"
        )
    if np.any((flags != 0) & (flags != 1)):
        raise ModelError(f"{id}: terminated must hold 0 and 1 only")
    return flags.astype(np.bool_)


def _with_loops(matrix: Any, ends: np.ndarray) -> Any:
    """The matrix with a loop in every empty row of a state that ends the episode."""
    pointers, columns, data, shape = matrix
    empty = ends & (np.diff(pointers) == 0)
    if not empty.any():
        return matrix
    states = np.flatnonzero(empty)
    grown = pointers.copy()
    grown[1:] += np.cumsum(empty)
    columns = np.insert(columns.astype(np.int64), pointers[states], states)
    return grown, columns, np.insert(data, pointers[states], 1.0), shape


def _absorbing(matrices: list[Any], ends: np.ndarray) -> int:
    """How many states, none of which ends the episode, cannot be left by any action."""
    stuck = ~ends
    for pointers, columns, _, _ in matrices:
        stuck = stuck & (np.diff(pointers) == 1)
        candidates = np.flatnonzero(stuck)
        stuck[candidates] = columns[pointers[candidates]] == candidates
    return int(np.count_nonzero(stuck))


def _start(id: str, start: Any, ends: np.ndarray) -> np.ndarray | None:
    if start is None:
        if not ends.any():
            return None
        if ends.all():
            raise ModelError(f"{id}: every state is terminated; no episode can begin")
        return (~ends) / np.count_nonzero(~ends)
    first = np.asarray(start)
    if first.shape == ends.shape and first.dtype.kind in "biuf" and np.any(ends & (first > 0)):
        state = int(np.argmax(ends & (first > 0)))
        raise ModelError(f"{id}: state {state} is terminated, so no episode can start there")
    return first


def _rewards(
    id: str, rewards: Any, n_states: int, n_actions: int
) -> Callable[[int, Any], np.ndarray]:
    """Return (action, matrix of transitions) -> the reward of each of its entries."""
    if hasattr(rewards, "toarray"):
        rewards = rewards.toarray()
    several = isinstance(rewards, list | tuple) and any(
        hasattr(r, "tocsr") or np.ndim(r) == 2 for r in rewards
    )
    if several or np.ndim(rewards) == 3:
        return _transition_rewards(id, rewards, n_states, n_actions)
    table = np.asarray(rewards)
    if table.dtype.kind not in "biuf" or table.shape not in ((n_states, n_actions), (n_states,)):
        raise ModelError(
            f"{id}: rewards must be numbers of shape {(n_states, n_actions)} or {(n_states,)}, or "
            f"{n_actions} matrices of shape {(n_states, n_states)}, not {table.dtype} of shape "
            f"{table.shape}"
        )
    table = np.broadcast_to(table.reshape(n_states, -1), (n_states, n_actions))
    return lambda action, matrix: np.repeat(table[:, action], np.diff(matrix[0]))


def _transition_rewards(
    id: str, rewards: Any, n_states: int, n_actions: int
) -> Callable[[int, Any], np.ndarray]:
    if len(rewards) != n_actions:
        raise ModelError(f"{id}: rewards are {len(rewards)} matrices for {n_actions} actions")
    paid = [_csr(f"{id}: rewards[{a}]", r) for a, r in enumerate(rewards)]
    for a, (_, _, _, shape) in enumerate(paid):
        if shape != (n_states, n_states):
            raise ModelError(f"{id}: rewards[{a}] has the shape {shape}, not "
                             f"{(n_states, n_states)}")

    def reward_of(action: int, matrix: Any) -> np.ndarray:
        pointers, columns, _, _ = matrix
        theirs, where, data, _ = paid[action]
        if np.array_equal(pointers, theirs) and np.array_equal(columns, where):
            return data
        keys, known = _keys(pointers, columns, n_states), _keys(theirs, where, n_states)
        if not known.size:
            return np.zeros(keys.size)
        at = np.minimum(np.searchsorted(known, keys), known.size - 1)
        return np.where(known[at] == keys, data[at], 0.0)

    return reward_of


def _keys(indptr: np.ndarray, indices: np.ndarray, n_states: int) -> np.ndarray:
    """Place of each entry in the matrix, counted row by row; ascending."""
    rows = np.repeat(np.arange(indptr.size - 1), np.diff(indptr))
    return rows * n_states + indices
