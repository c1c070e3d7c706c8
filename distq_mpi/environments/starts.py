"""Start distributions of explicit models: one state, all states alike, or a table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from distq_mpi.environments.alias import alias_tables
from distq_mpi.environments.rows import RUN_ENTRIES, check_kind
from distq_mpi.errors import ModelError
from distq_mpi.kernels.draws import slot_of
from distq_mpi.probabilities import ROUNDED, nonnegative, tolerance_of

u8, i8 = np.uint64, np.int64


def law_start(bits, params):  # type: ignore[no-untyped-def]
    """Sample a start state: see `draws.slot_of`."""
    indptr, alias, reward, probability, start_state, start_alias, start_probability, shape = params
    i, within = slot_of(bits, u8(start_state.size))
    packed = start_alias[i]
    i = i if within < (packed >> u8(32)) else packed & u8(0xFFFFFFFF)
    return start_state[i]


def law_start_uniform(bits, params):  # type: ignore[no-untyped-def]
    """What `law_start` draws where all states are alike: every slot then is its state's own."""
    indptr, alias, reward, probability, start_state, start_alias, start_probability, shape = params
    return slot_of(bits, u8(shape[0]))[0]


def law_start_single(bits, params):  # type: ignore[no-untyped-def]
    """Return the only start state."""
    indptr, alias, reward, probability, start_state, start_alias, start_probability, shape = params
    return start_state[0]


def start(i, params):  # type: ignore[no-untyped-def]
    """Return start state i: (probability, state); where all states are alike it is state i."""
    indptr, alias, reward, probability, start_state, start_alias, start_probability, shape = params
    if start_state.size == 0:
        return start_probability[0], i8(i)
    return start_probability[i], i8(start_state[i])


@dataclass(frozen=True)
class Starts:
    """A start distribution over n_states states.

    state uint64 (n,), alias uint64 (n,), probability float64 (n,) of the states that can be the
    first; where all are alike the first two are empty and probability has one element.
    """

    n_states: int
    state: np.ndarray
    alias: np.ndarray
    probability: np.ndarray

    @property
    def n(self) -> int:
        """Start states."""
        return self.state.size or self.n_states

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As they stand among the params of a model."""
        return self.state, self.alias, self.probability

    def parts(self) -> Iterator[np.ndarray]:
        """Yield the start states, int64 and ascending, then the probabilities of all states."""
        n = self.n_states
        cuts = [(start, min(start + RUN_ENTRIES, n)) for start in range(0, n, RUN_ENTRIES)]
        if not self.state.size:
            yield from (np.arange(start, stop) for start, stop in cuts)
            yield from (np.full(stop - start, self.probability[0]) for start, stop in cuts)
            return
        yield self.state.astype(i8)
        for start, stop in cuts:
            part = np.zeros(stop - start)
            low, high = np.searchsorted(self.state, np.array([start, stop], u8))
            part[self.state[low:high].astype(i8) - start] = self.probability[low:high]
            yield part


def start_functions(n_starts: int, n_listed: int) -> dict[str, Any]:
    """`law_start` and `start` of a model whose params list `n_listed` of its start states."""
    drawn = law_start if n_starts > 1 else law_start_single
    return {"law_start": drawn if n_listed else law_start_uniform, "start": start}


def uniform(n_states: int, probability: float | None = None) -> Starts:
    """All states alike. probability : of each, 1 / n_states unless somebody rounded otherwise."""
    chance = np.array([1.0 / n_states if probability is None else probability])
    if n_states == 1:
        return _listed(1, np.zeros(1, i8), chance)
    return Starts(n_states, np.empty(0, u8), np.empty(0, u8), chance)


def checked_starts(id: str, n_states: int, distribution: np.ndarray | None) -> Starts:
    """Return the start distribution somebody wrote, numbers (n_states,); None: all states alike.

    Raises
    ------
    ModelError
        If it is none; names the state and the value.
    """
    if distribution is None:
        return uniform(n_states)
    check_kind(id, "start", distribution.dtype, distribution.shape)
    first = nonnegative(np.ascontiguousarray(distribution, np.float64), distribution.dtype)
    if first.size != n_states:
        raise ModelError(f"{id}: start has {first.size} numbers for {n_states} states")
    bad = ~((first >= 0) & np.isfinite(first))
    if np.any(bad):
        state = int(np.argmax(bad))
        raise ModelError(f"{id}: start probability {first[state]} of state {state} is negative "
                         "or not finite")
    total = float(first.sum())
    if abs(total - 1.0) > tolerance_of(distribution.dtype, n_states):
        raise ModelError(f"{id}: the start probabilities sum to {total:.12g}, not 1")
    if abs(total - 1.0) > ROUNDED:
        first = first / total
    if first.min() == first.max():
        return uniform(n_states, float(first[0]))
    listed = np.flatnonzero(first)
    return _listed(n_states, listed, first[listed])


def _listed(n_states: int, state: np.ndarray, probability: np.ndarray) -> Starts:
    alias = alias_tables(np.array([0, state.size], i8), probability)
    return Starts(n_states, state.astype(u8), alias, probability)
