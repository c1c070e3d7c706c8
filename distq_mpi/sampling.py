"""Sampled evaluation: greedy episodes, spread over the ranks or over the owners of the rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from distq_mpi.environments.guard import refuse_noted
from distq_mpi.environments.worlds import play
from distq_mpi.kernels.evaluation import DONE, N_ROWS, NOT_BEGUN, STATE, STEP
from distq_mpi.partition import Partition

if TYPE_CHECKING:
    from distq_mpi.config import Config
    from distq_mpi.environments.base import Environment
    from distq_mpi.holding import Holding
    from distq_mpi.kernels.objects import LoadedKernel

NO_LIMIT_STEPS = 100_000
STEPPED_LIMIT_STEPS = 10_000
"""Longest episode of environments without a time limit."""


def sample(
    config: Config,
    environment: Environment,
    kernels: dict[str, LoadedKernel],
    holding: Holding,
) -> dict[str, Any] | None:
    """Returns of `evaluate.episodes` greedy episodes; COLLECTIVE. None on ranks other than 0.

    Every episode is a function of (seed, its number). kernels : `evaluate` among them, where the
    environment is not stepped.
    """
    n_episodes, transport = config.evaluate.episodes, holding.transport
    returns: np.ndarray | None
    if n_episodes == 0:
        return None
    if holding.blocks is not None and environment.kind != "stepped":
        returns = _crossing(config, environment, kernels["evaluate"], holding)
    else:
        episodes = Partition.balanced(n_episodes, transport.size)
        mine = _apart(config, environment, kernels, holding, episodes.block(transport.rank))
        returns = transport.gather_rows(mine, episodes)
    refuse_noted(environment, transport, config.run.seed, 0, range(0))
    if returns is None or transport.rank > 0:
        return None
    return {
        "mean_return": float(returns.mean()),
        "std_return": float(returns.std()),
        "episodes": n_episodes,
    }


def _apart(
    config: Config,
    environment: Environment,
    kernels: dict[str, LoadedKernel],
    holding: Holding,
    episodes: tuple[int, int],
) -> np.ndarray:
    """Returns, float64, of this rank's episodes [first, stop). COLLECTIVE."""
    first, stop = episodes
    returns, seed = np.zeros(stop - first), config.run.seed
    if environment.kind == "stepped":
        longest = environment.max_episode_steps or STEPPED_LIMIT_STEPS
        greedy = _greedy(holding)
        with holding.transport.same_outcome():
            play(environment.worlds, greedy, seed, first, returns, longest)
        return returns
    longest = environment.max_episode_steps or NO_LIMIT_STEPS
    state = np.zeros((stop - first, 3), np.int64)
    state[:, STEP] = NOT_BEGUN
    control = np.array([first, seed, longest, 0, environment.n_states], np.uint64)
    kernels["evaluate"](holding.rows.q, state, returns, environment.params, control)
    return returns


def _greedy(holding: Holding) -> Any:
    """The greedy action of every state, in as few bytes as will do. COLLECTIVE.

    Where the environment is stepped, its table is small enough for this on every rank.
    """
    n_actions = holding.rows.record.n_actions
    kind = np.min_scalar_type(n_actions - 1)
    greedy = np.zeros(holding.n_states, kind)
    if holding.blocks is None:
        return holding.rows.policy_values().argmax(axis=1).tolist()
    stop = holding.first + holding.rows.n_rows
    greedy[holding.first : stop] = holding.rows.policy_values().argmax(axis=1)
    holding.transport.allgather_rows(greedy, holding.blocks)
    return greedy


def _crossing(
    config: Config, environment: Environment, kernel: LoadedKernel, holding: Holding
) -> np.ndarray:
    """Returns of all episodes, on every rank: each is played on by the owner of its state, until it
    leaves its rows; then all ranks are told. COLLECTIVE."""
    transport, blocks, n = holding.transport, holding.blocks, config.evaluate.episodes
    assert blocks is not None
    longest = environment.max_episode_steps or NO_LIMIT_STEPS
    control = np.array([0, config.run.seed, longest, holding.first, 0], np.uint64)
    state, returns = np.zeros((n, 3), np.int64), np.zeros(n)
    state[:, STEP] = NOT_BEGUN
    # Without rows every rank finds the starts only, and so their owners.
    kernel(holding.rows.q, state, returns, environment.params, control)
    control[N_ROWS] = holding.rows.n_rows
    while not state[:, DONE].all():
        owner = blocks.owner(state[:, STATE])
        kernel(holding.rows.q, state, returns, environment.params, control)
        told = np.concatenate([state, returns.view(np.int64)[:, None]], axis=1)
        told[owner != transport.rank] = 0
        transport.sum_int(told)  # of one rank's words and zeros
        state = np.ascontiguousarray(told[:, :3])
        returns = np.ascontiguousarray(told[:, 3]).view(np.float64)
    return returns
