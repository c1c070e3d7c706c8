"""How fast a sharded run should be, before it starts. Local."""

from __future__ import annotations

from typing import Any

import numpy as np

from distq_mpi.environments.base import Environment
from distq_mpi.kernels.crossing import RECORD, TARGET
from distq_mpi.kernels.draws import EVALUATION, threefry
from distq_mpi.memory import readable
from distq_mpi.partition import Partition
from distq_mpi.probe import stored

N_SAMPLES, N_RUNS, RUN_STATES = 2000, 16, 100
CROSSING_BYTES = 8 * (RECORD + TARGET)
"""Bytes of a step that crosses a border: the lane's record, and the target that goes back."""
ASSUMED_ROWS_PER_S, ASSUMED_BYTES_PER_S = 30e6, 1e9
"""Of one rank where nobody has measured: random rows updated, bytes exchanged."""


def crossing_share(environment: Environment, blocks: Partition) -> float:
    """The share of transitions from pseudo-random pairs whose next state has another owner."""
    if environment.source is not None:
        return _share_in_runs(environment, blocks)
    k = np.arange(N_SAMPLES, dtype=np.uint64)
    zero = np.zeros_like(k)
    words = threefry(k, zero, zero, zero + EVALUATION)
    crossed = 0.0
    for state_word, other in zip(*(word.tolist() for word in words), strict=True):
        state, action = state_word % environment.n_states, other % environment.n_actions
        for i in range(int(environment.outcomes(state, action, environment.params))):
            probability, ahead, _, terminated = environment.outcome(
                state, action, i, environment.params
            )
            crossed += probability * bool(blocks.owner(state) != blocks.owner(int(ahead)))
    return crossed / N_SAMPLES


def _share_in_runs(environment: Environment, blocks: Partition) -> float:
    """The same of a model that nobody holds, from the rows of some states that lie together."""
    n_pairs, crossing = 0, 0.0
    for low in range(0, environment.n_states, -(-environment.n_states // N_RUNS)):
        pair = low * environment.n_actions
        for rows in environment.source.read(low, min(low + RUN_STATES, environment.n_states)):
            n = rows.pointers.size - 1
            pairs = pair + np.repeat(np.arange(n), np.diff(rows.pointers))
            code = rows.alias[1::2].astype(np.int64)
            there, here = blocks.owner(code >> 1), blocks.owner(pairs // environment.n_actions)
            crossing += float(rows.probability[there != here].sum())
            n_pairs, pair = n_pairs + n, pair + n
    return crossing / n_pairs


def predict(config: Any, environment: Environment, size: int) -> list[str]:
    """Bytes that a step sends to other ranks, and the rate they allow, as lines of text.

    A step costs one random row and, where it crosses a border, `CROSSING_BYTES`.
    """
    if environment.kind == "stepped":
        return ["a step sends a request to the owner of its state, and gets an action back"]
    share = crossing_share(environment, Partition.balanced(environment.n_states, size))
    sent = share * CROSSING_BYTES
    measured = stored()
    rows = measured.get("random_rows_1024mb", measured.get("random_rows_64mb", ASSUMED_ROWS_PER_S))
    # Half of the updates of an exchange between two ranks cross, eight bytes each.
    ranks = max(2.0, measured.get("ranks", 2.0))
    exchanged = measured.get("exchange_8192", 0.0) * 8 * (ranks - 1) / ranks**2
    told = ["assumed; `probe` measures it", "as `probe` measured here"]
    rows_told, exchange_told = told[bool(measured)], told[exchanged > 0]
    exchanged = exchanged or ASSUMED_BYTES_PER_S
    rate = size / (1 / rows + sent / exchanged)
    return [
        f"{100 * share:.3g} % of random transitions cross a border: {sent:.3g} bytes per step over "
        f"the network (at most {CROSSING_BYTES * (size - 1) / size:.3g} where next states are "
        "uniform)",
        f"predicted rate: {rate / 1e6:.3g} M steps/s on {size} rank{'s' * (size > 1)} among which "
        "lanes are spread evenly, at "
        f"{rows / 1e6:.3g} M random rows/s a rank ({rows_told}) and {readable(exchanged)}/s a rank "
        f"({exchange_told})",
    ]
