"""Explicit models: a table of transitions, checked, merged and packed for sampling."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from distq_mpi.environments.alias import alias_tables
from distq_mpi.environments.base import Environment
from distq_mpi.errors import ModelError

u8, i8 = np.uint64, np.int64

TOLERANCE = 1e-9
"""How far the probabilities of a row may be from a sum of 1."""

LIMIT = 1 << 31
"""Transitions of one model: the running sums of the alias tables are 63-bit integers."""


def law_step(state, action, bits, params):  # type: ignore[no-untyped-def]
    """Sample one transition through the row's alias table; reads bits 32 to 63."""
    indptr, alias, reward, probability, start_state, start_alias, start_probability, shape = params
    row = state * u8(shape[1]) + action
    first = u8(indptr[row])
    scaled = (bits >> u8(32)) * (u8(indptr[row + u8(1)]) - first)
    i = scaled >> u8(32)
    packed = alias[u8(2) * (first + i)]
    i = i if (scaled & u8(0xFFFFFFFF)) < (packed >> u8(32)) else packed & u8(0xFFFFFFFF)
    entry = first + i
    code = alias[u8(2) * entry + u8(1)]
    return code >> u8(1), reward[entry], (code & u8(1)) == u8(1)


def law_start(bits, params):  # type: ignore[no-untyped-def]
    """Sample a start state: the high 32 bits pick the slot, the low 32 decide within it."""
    indptr, alias, reward, probability, start_state, start_alias, start_probability, shape = params
    i = ((bits >> u8(32)) * u8(start_state.size)) >> u8(32)
    packed = start_alias[i]
    i = i if (bits & u8(0xFFFFFFFF)) < (packed >> u8(32)) else packed & u8(0xFFFFFFFF)
    return start_state[i]


def law_start_single(bits, params):  # type: ignore[no-untyped-def]
    """Return the only start state."""
    indptr, alias, reward, probability, start_state, start_alias, start_probability, shape = params
    return start_state[0]


def outcomes(state, action, params):  # type: ignore[no-untyped-def]
    """Return the number of outcomes of a pair."""
    indptr, alias, reward, probability, start_state, start_alias, start_probability, shape = params
    row = state * shape[1] + action
    return indptr[row + 1] - indptr[row]


def outcome(state, action, i, params):  # type: ignore[no-untyped-def]
    """Return outcome i of a pair: (probability, next_state, reward, terminated)."""
    indptr, alias, reward, probability, start_state, start_alias, start_probability, shape = params
    entry = indptr[state * shape[1] + action] + i
    code = alias[2 * entry + 1]
    return probability[entry], i8(code >> u8(1)), reward[entry], (code & u8(1)) == u8(1)


def start(i, params):  # type: ignore[no-untyped-def]
    """Return start state i: (probability, state)."""
    indptr, alias, reward, probability, start_state, start_alias, start_probability, shape = params
    return start_probability[i], i8(start_state[i])


def explicit_model(
    id: str,
    n_states: int,
    n_actions: int,
    indptr: ArrayLike,
    indices: ArrayLike,
    probability: ArrayLike,
    reward: ArrayLike,
    terminated: ArrayLike | None = None,
    start_distribution: ArrayLike | None = None,
    *,
    max_episode_steps: int = 0,
    grid: tuple[int, int] | None = None,
    marks: str = "",
    arrows: str = "",
    verb: str = "compiled",
) -> Environment:
    """Build an environment from a table of transitions in CSR form, row = state * A + action.

    Parameters
    ----------
    indptr : integers (S * A + 1,); the entries of row r are indptr[r] to indptr[r + 1].
    indices : integers (nnz,), next states.
    probability, reward : floats (nnz,); each row's probabilities sum to 1 within 1e-9.
    terminated : booleans (nnz,); None = never.
    start_distribution : floats (S,) with sum 1; None = uniform.

    Returns
    -------
    Environment whose `params` are C-contiguous (indptr int64 (S * A + 1,), alias uint64 (2 nnz,),
    reward float64 (nnz,), probability float64 (nnz,), start_state uint64 (n_starts,), start_alias
    uint64 (n_starts,), start_probability float64 (n_starts,), shape int64 (2,) = (S, A)). Per
    entry `alias` holds threshold << 32 | other and next_state << 1 | terminated. Entries that
    agree in next state, reward and end are merged, those of probability 0 dropped, and within a
    row entries ascend by next state, reward and end.

    Raises
    ------
    ModelError
        If the arrays are not a Markov decision process; names the pair and the value.
    """
    pointers, following, chances, rewards, ends = _checked(
        id, n_states, n_actions, indptr, indices, probability, reward, terminated
    )
    first = _checked_start(id, n_states, start_distribution)
    pointers, following, chances, rewards, ends = _merged(
        pointers, following, chances, rewards, ends
    )
    alias = np.empty(2 * following.size, u8)
    alias[0::2] = alias_tables(pointers, chances)
    alias[1::2] = (following.astype(u8) << u8(1)) | ends.astype(u8)
    start_state = np.flatnonzero(first)
    start_probability = first[start_state]
    shape = np.array([n_states, n_actions], i8)
    params = (
        pointers,
        alias,
        rewards,
        chances,
        start_state.astype(u8),
        alias_tables(np.array([0, start_state.size], i8), start_probability),
        start_probability,
        shape,
    )
    digest = hashlib.sha256(b"distq_mpi explicit model 1")
    for array in (shape, pointers, following, chances, rewards, ends, start_state, first):
        digest.update(np.ascontiguousarray(array).tobytes())
    digest.update(str(max_episode_steps).encode())
    return Environment(
        id=id,
        kind="explicit",
        n_states=n_states,
        n_actions=n_actions,
        params=params,
        law_step=law_step,
        law_start=law_start if start_state.size > 1 else law_start_single,
        outcomes=outcomes,
        outcome=outcome,
        start=start,
        n_starts=int(start_state.size),
        n_transitions=int(following.size),
        max_episode_steps=max_episode_steps,
        return_bound=_return_bound(rewards, ends),
        deterministic=following.size == n_states * n_actions,
        model_id=digest.hexdigest(),
        grid=grid,
        marks=marks,
        arrows=arrows,
        summary=f"{verb} {id}: {n_states:,} states x {n_actions:,} actions, "
        f"{following.size:,} transitions",
    )


def _return_bound(reward: np.ndarray, terminated: np.ndarray) -> float | None:
    """Return a bound on every return where only the last reward of an episode can be positive."""
    if np.any(reward[~terminated] > 0):
        return None
    return max(0.0, float(reward[terminated].max(initial=0.0)))


def _array(id: str, name: str, value: ArrayLike, kinds: str, dtype: Any) -> np.ndarray:
    array = np.asarray(value)
    if array.ndim != 1 or array.dtype.kind not in kinds:
        wanted = {"iu": "integers", "iuf": "numbers", "biu": "booleans"}[kinds]
        raise ModelError(
            f"{id}: {name} must be a one-dimensional array of {wanted}, "
            f"not {array.dtype} of shape {array.shape}"
        )
    return np.ascontiguousarray(array, dtype)


def _checked(
    id: str,
    n_states: int,
    n_actions: int,
    indptr: ArrayLike,
    indices: ArrayLike,
    probability: ArrayLike,
    reward: ArrayLike,
    terminated: ArrayLike | None,
) -> tuple[np.ndarray, ...]:
    """Return the five arrays in their final types, or raise `ModelError` at the first mistake."""
    if n_states < 1 or n_actions < 1:
        raise ModelError(
            f"{id}: a model needs at least one state and one action, "
            f"not {n_states} states and {n_actions} actions"
        )
    pointers = _array(id, "indptr", indptr, "iu", i8)
    following = _array(id, "indices", indices, "iu", i8)
    chances = _array(id, "probability", probability, "iuf", np.float64)
    rewards = _array(id, "reward", reward, "iuf", np.float64) + 0.0  # no negative zeros
    if terminated is None:
        ends = np.zeros(following.size, np.bool_)
    else:
        flags = _array(id, "terminated", terminated, "biu", i8)
        if np.any((flags != 0) & (flags != 1)):
            raise ModelError(f"{id}: terminated must hold 0 and 1 only")
        ends = flags.astype(np.bool_)
    if pointers.size != n_states * n_actions + 1:
        raise ModelError(
            f"{id}: indptr has {pointers.size} numbers; {n_states} states x {n_actions} actions "
            f"need {n_states * n_actions + 1} (row = state * n_actions + action)"
        )
    for name, array in (("probability", chances), ("reward", rewards), ("terminated", ends)):
        if array.size != following.size:
            raise ModelError(
                f"{id}: {name} has {array.size} numbers and indices has {following.size}"
            )
    if following.size >= LIMIT:
        raise ModelError(f"{id}: {following.size} transitions; the limit is {LIMIT - 1}")
    if pointers[0] != 0 or pointers[-1] != following.size:
        raise ModelError(
            f"{id}: indptr must run from 0 to the {following.size} entries, "
            f"not from {pointers[0]} to {pointers[-1]}"
        )
    lengths = np.diff(pointers)

    def pair(row: int) -> str:
        return f"{id}: state {row // n_actions}, action {row % n_actions}"

    def entry_pair(entry: int) -> str:
        return pair(int(np.searchsorted(pointers, entry, side="right")) - 1)

    if np.any(lengths < 0):
        raise ModelError(f"{pair(int(np.argmax(lengths < 0)))}: indptr decreases")
    if np.any(lengths == 0):
        raise ModelError(f"{pair(int(np.argmax(lengths == 0)))}: no transition, so the "
                         "probabilities sum to 0, not 1")
    for bad, what, values in (
        (~(chances >= 0), "probability", chances),
        (~np.isfinite(chances), "probability", chances),
        (~np.isfinite(rewards), "reward", rewards),
    ):
        if np.any(bad):
            entry = int(np.argmax(bad))
            limit = "finite and not negative" if what == "probability" else "finite"
            raise ModelError(f"{entry_pair(entry)}: {what} {values[entry]} must be {limit}")
    bad = (following < 0) | (following >= n_states)
    if np.any(bad):
        entry = int(np.argmax(bad))
        raise ModelError(
            f"{entry_pair(entry)}: next state {following[entry]} is not in 0..{n_states - 1}"
        )
    sums = np.add.reduceat(chances, pointers[:-1])
    bad = np.abs(sums - 1.0) > TOLERANCE
    if np.any(bad):
        row = int(np.argmax(bad))
        others = int(bad.sum()) - 1
        raise ModelError(
            f"{pair(row)}: the probabilities sum to {sums[row]:.12g}, not 1"
            + (f" (and so for {others} more pairs)" if others else "")
        )
    return pointers, following, chances, rewards, ends


def _checked_start(id: str, n_states: int, distribution: ArrayLike | None) -> np.ndarray:
    if distribution is None:
        return np.full(n_states, 1.0 / n_states)
    first = _array(id, "start", distribution, "iuf", np.float64)
    if first.size != n_states:
        raise ModelError(f"{id}: start has {first.size} numbers for {n_states} states")
    bad = ~((first >= 0) & np.isfinite(first))
    if np.any(bad):
        state = int(np.argmax(bad))
        raise ModelError(f"{id}: start probability {first[state]} of state {state} is negative "
                         "or not finite")
    if abs(first.sum() - 1.0) > TOLERANCE:
        raise ModelError(f"{id}: the start probabilities sum to {first.sum():.12g}, not 1")
    return first


def _merged(
    indptr: np.ndarray,
    indices: np.ndarray,
    probability: np.ndarray,
    reward: np.ndarray,
    terminated: np.ndarray,
) -> tuple[np.ndarray, ...]:
    """Drop impossible entries and add up those that agree in all but their probability."""
    n_rows = indptr.size - 1
    rows = np.repeat(np.arange(n_rows), np.diff(indptr))
    keep = probability > 0
    if not keep.all():
        rows, indices, probability = rows[keep], indices[keep], probability[keep]
        reward, terminated = reward[keep], terminated[keep]
    same_row = rows[1:] == rows[:-1]
    if not np.all(indices[1:][same_row] > indices[:-1][same_row]):
        order = np.lexsort((terminated, reward, indices, rows))
        rows, indices, probability = rows[order], indices[order], probability[order]
        reward, terminated = reward[order], terminated[order]
        new = np.ones(rows.size, np.bool_)
        new[1:] = (
            (rows[1:] != rows[:-1])
            | (indices[1:] != indices[:-1])
            | (reward[1:] != reward[:-1])
            | (terminated[1:] != terminated[:-1])
        )
        heads = np.flatnonzero(new)
        probability = np.add.reduceat(probability, heads)
        rows, indices, reward, terminated = (
            rows[heads], indices[heads], reward[heads], terminated[heads]
        )
    pointers = np.zeros(n_rows + 1, np.int64)
    np.cumsum(np.bincount(rows, minlength=n_rows), out=pointers[1:])
    return pointers, indices, probability, reward, terminated
