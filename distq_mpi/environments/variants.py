"""Agents in different environments: several models of one shape, and the mean of them.

A table that agents fuse cannot be right in each of their environments. Where every agent learns
from every pair alike (`learn.sampling` generative), one local step and the fusion `mean` converge
to Q* of the mean model: chances and rewards averaged over the variants (Jin, Peng, Yang, Wang &
Zhang 2022).
That model is what exact values and certificates speak of. On trajectories an agent says nothing of
pairs that it does not visit, and each environment weighs by the visits of its agents, whatever the
fusion.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from distq_mpi.environments.base import Environment
from distq_mpi.environments.explicit import explicit_model
from distq_mpi.errors import ModelError

SEPARATOR = ","
"""Between the variants in `env.id`; `garnet?seed=1,garnet?seed=2` are two with other arguments."""
STARTS = slice(4, 7)
"""Where `params` of explicit models have the starts."""


def mean_model(id: str, variants: Sequence[Environment]) -> Environment:
    """Return the mean of explicit models, with their `params` as its `variants`. Local.

    All variants begin as the mean does.

    Raises
    ------
    ModelError
        If one is no explicit model, or they differ in shape or time limit.
    """
    first = variants[0]
    for one in variants:
        if one.kind != "explicit" or one.source is not None:
            raise ModelError(f"{id}: {one.id} is no table of transitions, and cannot be a variant")
        for name in ("n_states", "n_actions", "max_episode_steps"):
            found, wanted = getattr(one, name), getattr(first, name)
            if found != wanted:
                raise ModelError(f"{id}: {one.id} has {name} {found}, {first.id} {wanted}")
    n_rows, n = first.n_states * first.n_actions, len(variants)
    rows = np.concatenate([np.repeat(np.arange(n_rows), np.diff(v.params[0])) for v in variants])
    codes = np.concatenate([v.params[1][1::2] for v in variants])
    reward, chance = (np.concatenate([v.params[k] for v in variants]) for k in (2, 3))
    order = np.argsort(rows, kind="stable")
    bit = np.uint64(1)
    mean = explicit_model(
        id, first.n_states, first.n_actions,
        np.searchsorted(rows[order], np.arange(n_rows + 1)),
        (codes[order] >> bit).astype(np.int64), chance[order] / n, reward[order],
        (codes[order] & bit).astype(bool), _starts(variants),
        max_episode_steps=first.max_episode_steps, grid=first.grid, marks=first.marks,
        arrows=first.arrows,
    )  # fmt: skip
    begin = mean.params[STARTS]
    text = "\n".join(("variants", mean.model_id, *(v.model_id for v in variants)))
    return replace(
        mean,
        variants=tuple((*v.params[: STARTS.start], *begin, v.params[-1]) for v in variants),
        model_id=hashlib.sha256(text.encode()).hexdigest(),
        summary=f"{mean.summary}: the mean of {n} environments, agent k in number k % {n}",
    )


def _starts(variants: Sequence[Environment]) -> np.ndarray | None:
    """The mean start distribution; None where all begin uniformly."""
    if all(v.params[4].size == 0 for v in variants):
        return None
    found = np.zeros(variants[0].n_states)
    for one in variants:
        for i in range(one.n_starts):
            probability, state = one.start(i, one.params)
            found[int(state)] += probability
    return found / found.sum()


def mistakes(environment: Environment, config: Any) -> list[str]:
    """Why a resolved `Config` cannot learn on an environment that is a mean; one line each. Local.
    """
    parallel, n, found = config.parallel, len(environment.variants), []
    if not n:
        return []
    if parallel.architecture == "sharded":
        return ["parallel.architecture: sharded has no agents that could be in different "
                "environments; it must be allreduce or server"]  # fmt: skip
    if parallel.agents % n:
        found.append(
            f"parallel.agents: {parallel.agents} must be a multiple of {n}, as many for each "
            "environment in env.id"
        )
    if parallel.fusion == "importance":
        found.append(
            "parallel.fusion: importance weighs agents by their visits, and so solves a mixture "
            "of the environments in env.id that depends on where agents go; it must be mean"
        )
    return found


def warnings(environment: Environment, config: Any) -> list[str]:
    """What a user should know of learning on a mean. Local."""
    if not environment.variants:
        return []
    parallel, found = config.parallel, []
    in_step = parallel.architecture == "allreduce" or parallel.staleness == 0
    if config.learn.sampling != "generative":
        found.append(
            "learn.sampling: on trajectories each environment in env.id weighs by the visits of "
            "its agents; generative learns their mean, which values speak of"
        )
    elif in_step and parallel.fusion not in ("mean", "pooled", "count"):
        found.append(
            f"parallel.fusion: {parallel.fusion} does not converge to the mean of the environments "
            "in env.id, which values speak of; mean does"
        )
    if parallel.steps_per_round != 1:
        found.append(
            f"parallel.steps_per_round: with {parallel.steps_per_round} the table ends off the "
            "mean of the environments in env.id, the further the more steps; with 1 it does not "
            "(Wang, Yang & Su 2024)"
        )
    return found
