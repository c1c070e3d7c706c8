"""Generated models: the GARNET family of Archibald, McKinnon and Thomas (1995)."""

from __future__ import annotations

import numpy as np

from distq_mpi.environments.arguments import time_limit, whole_number
from distq_mpi.environments.base import Environment
from distq_mpi.environments.explicit import LIMIT, explicit_model
from distq_mpi.errors import ModelError


def garnet(
    states: int, actions: int, branching: int, seed: int = 0, max_episode_steps: int = 0
) -> Environment:
    """Generate a random model in which every pair has `branching` distinct next states.

    The set of next states of a pair is uniform; its probabilities are the gaps between
    branching - 1 uniform cuts of [0, 1]; its reward is normal(0, 1), rounded to float32. Nothing
    terminates; episodes start uniformly over the states. `seed` drives a Philox generator.

    Raises
    ------
    ModelError
        If an argument is out of range.
    """
    states = whole_number("states", states, 1, 2**31 - 1)
    actions = whole_number("actions", actions, 1, 2**31 - 1)
    branching = whole_number("branching", branching, 1, states)
    seed = whole_number("seed", seed, 0, 2**63 - 1)
    rows = states * actions
    if rows * branching >= LIMIT:
        raise ModelError(
            f"garnet: {states} states x {actions} actions x {branching} next states are "
            f"{rows * branching} transitions; the limit is {LIMIT - 1}"
        )
    random = np.random.Generator(np.random.Philox(seed))
    following = np.empty((rows, branching), np.int64)
    for k in range(branching):
        # Floyd's sampling without replacement: a repeated draw is replaced by the newest value.
        newest = states - branching + k
        drawn = random.integers(0, newest + 1, rows)
        repeated = (following[:, :k] == drawn[:, None]).any(axis=1)
        following[:, k] = np.where(repeated, newest, drawn)
    following.sort(axis=1)
    cuts = np.sort(random.random((rows, branching - 1)), axis=1)
    probability = np.diff(cuts, axis=1, prepend=0.0, append=1.0)
    reward = random.standard_normal(rows).astype(np.float32).astype(np.float64)
    return explicit_model(
        "garnet",
        states,
        actions,
        np.arange(rows + 1, dtype=np.int64) * branching,
        following.ravel(),
        probability.ravel(),
        np.repeat(reward, branching),
        max_episode_steps=time_limit(max_episode_steps),
        verb="generated",
    )
