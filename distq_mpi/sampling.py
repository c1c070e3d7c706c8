"""Sampled evaluation: greedy episodes, spread over the ranks or over the owners of the rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from distq_mpi.environments.guard import refuse_noted
from distq_mpi.environments.silence import silence
from distq_mpi.environments.worlds import play
from distq_mpi.kernels.evaluation import DONE, ENDED, N_ROWS, NOT_BEGUN, PAUSE, STATE, STEP
from distq_mpi.partition import Partition

if TYPE_CHECKING:
    from distq_mpi.config import Config
    from distq_mpi.environments.base import Environment
    from distq_mpi.holding import Holding
    from distq_mpi.kernels.objects import LoadedKernel

NO_LIMIT_STEPS = 100_000
STEPPED_LIMIT_STEPS = 10_000
"""Longest episode of environments without a time limit."""
SLICE_STEPS, SLICE_S = 1 << 21, 0.25
"""How long a rank plays before it looks whether it is asked to stop: steps of compiled episodes,
seconds of those stepped in Python."""


def sample(
    config: Config,
    environment: Environment,
    kernels: dict[str, LoadedKernel],
    holding: Holding,
    asked_to_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any] | None:
    """Returns of `evaluate.episodes` greedy episodes; COLLECTIVE. None on ranks other than 0, and
    where any rank was asked to stop meanwhile.

    Every episode is a function of (seed, its number). kernels : `evaluate` among them, where the
    environment is not stepped. asked_to_stop : whether this rank is; several times a second.
    """
    n_episodes, transport = config.evaluate.episodes, holding.transport
    returns: np.ndarray | None
    if n_episodes == 0:
        return None
    if holding.blocks is not None and environment.kind != "stepped":
        returns = _crossing(config, environment, kernels["evaluate"], holding, asked_to_stop)
    else:
        episodes = Partition.balanced(n_episodes, transport.size)
        block = episodes.block(transport.rank)
        mine = _apart(config, environment, kernels, holding, block, asked_to_stop)
        returns = None if mine is None else transport.gather_rows(mine, episodes)
    refuse_noted(environment, transport, config.run.seed, 0, range(0))
    if returns is None or transport.rank > 0:
        return None
    return {
        "mean_return": float(returns[:, 0].mean()),
        "std_return": float(returns[:, 0].std()),
        "episodes": n_episodes,
        "terminated": int(returns[:, 1].sum()),
    }


def _apart(
    config: Config,
    environment: Environment,
    kernels: dict[str, LoadedKernel],
    holding: Holding,
    episodes: tuple[int, int],
    asked_to_stop: Callable[[], bool],
) -> np.ndarray | None:
    """Returns of this rank's episodes [first, stop), and whether each terminated, float64 (n, 2);
    None on all ranks where one was asked to stop. COLLECTIVE."""
    first, stop = episodes
    returns, ended, seed = np.zeros(stop - first), np.zeros(stop - first), config.run.seed
    if environment.kind == "stepped":
        longest = environment.max_episode_steps or STEPPED_LIMIT_STEPS
        steps = play(environment.worlds, _greedy(holding), seed, first, returns, longest, ended)
        slices = in_time(steps)
    else:
        longest = environment.max_episode_steps or NO_LIMIT_STEPS
        control = np.array([first, seed, longest, 0, environment.n_states, 0], np.uint64)
        slices = _compiled(kernels["evaluate"], holding, environment, returns, control, ended)
    going = True
    while going:
        with holding.transport.same_outcome():
            mine = next(slices, None) is not None
        votes = np.array([mine, asked_to_stop()], np.int64)
        holding.transport.max_int(votes)
        going, stopped = bool(votes[0]), bool(votes[1])
        if going and stopped:
            slices.close()
            return None
    return np.stack([returns, ended], axis=1)


def in_time(steps: Iterator[None]) -> Generator[bool, None, None]:
    """Make steps of environments, and yield whenever `SLICE_S` have passed. Local."""
    going = True
    while going:
        until = time.perf_counter() + SLICE_S
        with silence():
            for _ in steps:
                if time.perf_counter() >= until:
                    break
            else:
                going = False
        if going:
            yield True


def _compiled(
    kernel: LoadedKernel,
    holding: Holding,
    environment: Environment,
    returns: np.ndarray,
    control: np.ndarray,
    ended: np.ndarray,
) -> Generator[bool, None, None]:
    """Play compiled episodes, and yield after `SLICE_STEPS` of them all. Local."""
    state = np.zeros((returns.size, 3), np.int64)
    state[:, STEP] = NOT_BEGUN
    while not state[:, DONE].all():
        control[PAUSE] += np.uint64(max(1, SLICE_STEPS // returns.size))
        kernel(holding.rows.q, state, returns, environment.params, control)
        if not state[:, DONE].all():
            yield True
    ended[:] = state[:, DONE] == ENDED


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
    config: Config,
    environment: Environment,
    kernel: LoadedKernel,
    holding: Holding,
    asked_to_stop: Callable[[], bool],
) -> np.ndarray | None:
    """As `_apart`, of all episodes and on every rank: each is played on by the owner of its state
    until it leaves its rows; then all ranks receive it. COLLECTIVE."""
    transport, blocks, n = holding.transport, holding.blocks, config.evaluate.episodes
    assert blocks is not None
    longest = environment.max_episode_steps or NO_LIMIT_STEPS
    pause = np.uint64(max(1, SLICE_STEPS // n))
    control = np.array([0, config.run.seed, longest, holding.first, 0, pause], np.uint64)
    state, returns = np.zeros((n, 3), np.int64), np.zeros(n)
    state[:, STEP] = NOT_BEGUN
    # Without rows every rank finds the starts only, and so their owners.
    kernel(holding.rows.q, state, returns, environment.params, control)
    control[N_ROWS] = holding.rows.n_rows
    while not state[:, DONE].all():
        owner = blocks.owner(state[:, STATE])
        kernel(holding.rows.q, state, returns, environment.params, control)
        control[PAUSE] += pause
        told = np.concatenate([state, returns.view(np.int64)[:, None]], axis=1)
        told[owner != transport.rank] = 0
        votes = np.array([asked_to_stop()], np.int64)
        told = np.concatenate([told.reshape(-1), votes])
        transport.sum_int(told)  # of one rank's words and zeros
        if told[-1]:
            return None
        told = told[:-1].reshape(n, 4)
        state = np.ascontiguousarray(told[:, :3])
        returns = np.ascontiguousarray(told[:, 3]).view(np.float64)
    return np.stack([returns, state[:, DONE] == ENDED], axis=1)
