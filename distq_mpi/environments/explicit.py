"""Explicit models: a table of transitions, checked, merged and packed for sampling."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from distq_mpi.environments.base import Environment
from distq_mpi.environments.rows import (
    LIMIT,
    RUN_ENTRIES,
    Mistakes,
    Packed,
    Written,
    assembled,
    check_arrays,
    merged,
    packed,
)
from distq_mpi.environments.starts import Starts, checked_starts, start_functions
from distq_mpi.kernels.draws import NARROW, slot_of

__all__ = ["LIMIT", "explicit_model", "functions"]

u8, i8 = np.uint64, np.int64


def law_step(state, action, bits, params):  # type: ignore[no-untyped-def]
    """Sample one transition through the row's alias table; reads bits 32 to 63."""
    indptr, alias, reward, probability, start_state, start_alias, start_probability, shape = params
    row = (state - u8(shape[2])) * u8(shape[1]) + action
    first = u8(indptr[row])
    scaled = (bits >> u8(32)) * (u8(indptr[row + u8(1)]) - first)
    i = scaled >> u8(32)
    packed = alias[u8(2) * (first + i)]
    i = i if (scaled & u8(0xFFFFFFFF)) < (packed >> u8(32)) else packed & u8(0xFFFFFFFF)
    entry = first + i
    code = alias[u8(2) * entry + u8(1)]
    return code >> u8(1), reward[entry], (code & u8(1)) == u8(1)


def law_step_wide(state, action, bits, params):  # type: ignore[no-untyped-def]
    """As `law_step`, where a pair may have more outcomes than 32 bits tell apart evenly."""
    indptr, alias, reward, probability, start_state, start_alias, start_probability, shape = params
    row = (state - u8(shape[2])) * u8(shape[1]) + action
    first = u8(indptr[row])
    n = u8(indptr[row + u8(1)]) - first
    scaled = (bits >> u8(32)) * n
    i, within = scaled >> u8(32), scaled & u8(0xFFFFFFFF)
    if n > NARROW:
        i, within = slot_of(bits, n)
    packed = alias[u8(2) * (first + i)]
    i = i if within < (packed >> u8(32)) else packed & u8(0xFFFFFFFF)
    entry = first + i
    code = alias[u8(2) * entry + u8(1)]
    return code >> u8(1), reward[entry], (code & u8(1)) == u8(1)


def outcomes(state, action, params):  # type: ignore[no-untyped-def]
    """Return the number of outcomes of a pair."""
    indptr, alias, reward, probability, start_state, start_alias, start_probability, shape = params
    row = (state - shape[2]) * shape[1] + action
    return indptr[row + 1] - indptr[row]


def outcome(state, action, i, params):  # type: ignore[no-untyped-def]
    """Return outcome i of a pair: (probability, next_state, reward, terminated)."""
    indptr, alias, reward, probability, start_state, start_alias, start_probability, shape = params
    entry = indptr[(state - shape[2]) * shape[1] + action] + i
    code = alias[2 * entry + 1]
    return probability[entry], i8(code >> u8(1)), reward[entry], (code & u8(1)) == u8(1)


def functions(n_starts: int, params: tuple[Any, ...]) -> dict[str, Any]:
    """The functions of an explicit model with these params, whole or cut. Local."""
    return {
        "law_step": law_step_wide if params[-1][0] > NARROW else law_step,
        "outcomes": outcomes, "outcome": outcome,
        **start_functions(n_starts, params[4].size),
    }  # fmt: skip


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
    given_as: np.dtype | None = None,
) -> Environment:
    """Build an environment from a table of transitions in CSR form, row = state * A + action.

    Parameters
    ----------
    indptr : integers (S * A + 1,); the entries of row r are indptr[r] to indptr[r + 1].
    indices : integers (nnz,), next states.
    probability, reward : floats (nnz,); each row's probabilities sum to 1 within 1e-9, or what
        their dtype can tell apart: such rows are divided by their sums.
    terminated : booleans (nnz,); None = never.
    start_distribution : floats (S,) with sum 1; None = uniform.
    given_as : what the probabilities were before they came into their array; None = its dtype.

    Returns
    -------
    Environment whose `params` are C-contiguous (indptr int64 (S * A + 1,), alias uint64 (2 nnz,),
    reward float64 (nnz,), probability float64 (nnz,), start_state uint64 (n_starts,), start_alias
    uint64 (n_starts,), start_probability float64 (n_starts,), shape int64 (3,) = (S, A, first)).
    Per entry `alias` holds threshold << 32 | other and next_state << 1 | terminated. Entries that
    agree in next state, reward and end are merged, those of probability 0 dropped, and within a
    row entries ascend by next state, reward and end. Where all states start alike, start_state and
    start_alias are empty and start_probability has one element. `first` is the state of the first
    row, 0 unless the model is cut (see `cutting.py`).

    Raises
    ------
    ModelError
        If the arrays are not a Markov decision process; names the pair and the value.
    """
    given = {
        "indptr": indptr, "indices": indices, "probability": probability, "reward": reward,
        **({} if terminated is None else {"terminated": terminated}),
    }  # fmt: skip
    arrays = {name: np.asarray(array) for name, array in given.items()}
    written = Written(
        id,
        n_states,
        n_actions,
        {name: (array.dtype, array.shape) for name, array in arrays.items()},
        lambda name, start, stop: arrays[name][start:stop],
        given_as,
    )
    check_arrays(written)
    mistakes = Mistakes(written)
    for row, pointers in written.runs():
        mistakes.look(row, written.entries(pointers))
    mistakes.refuse()
    first = None if start_distribution is None else np.asarray(start_distribution)
    starts = checked_starts(id, n_states, first)
    runs = (
        packed(merged(written.normal(written.entries(pointers)))) for _, pointers in written.runs()
    )
    rows = assembled(runs, written.n_rows, written.n_entries)
    codes = rows.alias[1::2]
    parts = [slice(k, k + RUN_ENTRIES) for k in range(0, codes.size, RUN_ENTRIES)]
    facts = Facts()
    for part in parts:
        facts.add(rows.reward[part], (codes[part] & u8(1)).astype(np.bool_))
    columns = (
        [rows.pointers],
        ((codes[part] >> u8(1)).astype(i8) for part in parts),
        [rows.probability],
        [rows.reward],
        ((codes[part] & u8(1)).astype(np.bool_) for part in parts),
    )
    return environment_of(
        written,
        rows,
        starts,
        facts,
        model_id(written, columns, starts, max_episode_steps),
        max_episode_steps=max_episode_steps,
        grid=grid,
        marks=marks,
        arrows=arrows,
        verb=verb,
        note=mistakes.note,
    )


class Facts:
    """What is known of a model once all its merged entries were looked at, a part at a time."""

    def __init__(self) -> None:
        self.n_transitions = 0
        self.least_reward = np.inf
        self._pays_on_the_way = False
        self._best_end = 0.0

    def add(self, rewards: np.ndarray, ends: np.ndarray) -> None:
        """Look at a part: rewards float64 (n,), which of them end the episode bool (n,)."""
        self.n_transitions += rewards.size
        self.least_reward = min(self.least_reward, float(rewards.min(initial=np.inf)))
        self._pays_on_the_way |= bool(np.any(rewards[~ends] > 0))
        self._best_end = max(self._best_end, float(rewards[ends].max(initial=0.0)))

    @property
    def return_bound(self) -> float | None:
        """A bound on every return where only the last reward of an episode can be positive."""
        return None if self._pays_on_the_way else self._best_end


def model_id(
    written: Written,
    columns: Iterable[Iterable[np.ndarray]],
    starts: Starts,
    max_episode_steps: int,
) -> str:
    """Return the SHA-256 (hex) of a model, told in parts that may end anywhere.

    columns : pointers, next states, probabilities, rewards and ends of all merged entries.
    """
    digest = hashlib.sha256(b"distq_mpi explicit model 1")
    sizes = np.array([written.n_states, written.n_actions], i8)
    for column in ([sizes], *columns, starts.parts()):
        for part in column:
            digest.update(np.ascontiguousarray(part).data)
    digest.update(str(max_episode_steps).encode())
    return digest.hexdigest()


def environment_of(
    written: Written,
    held: Packed,
    starts: Starts,
    facts: Facts,
    model_id: str,
    *,
    verb: str,
    note: str = "",
    **more: Any,
) -> Environment:
    """Put an explicit model together. Local.

    held : all rows, or none where `more` has the `source` of those that nobody holds. verb : how it
    came to be. note : what was mended, for the summary. more : further fields of the environment.
    """
    n_states, n_actions = written.n_states, written.n_actions
    params = (*held, *starts.arrays, np.array([n_states, n_actions, 0], i8))
    return Environment(
        id=written.id,
        kind="explicit",
        n_states=n_states,
        n_actions=n_actions,
        params=params,
        **functions(starts.n, params),
        n_starts=starts.n,
        n_transitions=facts.n_transitions,
        return_bound=facts.return_bound,
        least_reward=facts.least_reward,
        deterministic=facts.n_transitions == n_states * n_actions,
        model_id=model_id,
        summary=f"{verb} {written.id}: {n_states:,} states x {n_actions:,} actions, "
        f"{facts.n_transitions:,} transitions{note}",
        **more,
    )
