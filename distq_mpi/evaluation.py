"""How much a model earns: episodes played in Python, as stable-baselines3 plays them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from distq_mpi import environments
from distq_mpi.config import EnvConfig
from distq_mpi.environments.base import Environment
from distq_mpi.environments.calls import number
from distq_mpi.errors import ConfigError

LONGEST = 100_000
"""Steps after which an episode without a time limit is cut."""


class Simulated:
    """An `Environment`, stepped in plain Python with the methods of Gymnasium's; local.

    Slow beside the kernels, but with no table and nothing to compile. `reset(seed=...)` begins
    the random numbers anew.
    """

    def __init__(self, environment: Environment) -> None:
        if environment.law_step is None:
            raise ConfigError(
                f"env: {environment.id}: a law that is shared is known to the first rank of a host "
                "only; name it, or evaluate there"
            )
        self.environment = environment
        self._draws = np.random.default_rng(0)
        self._state, self._age = np.uint64(0), 0

    def reset(self, seed: int | None = None) -> tuple[int, dict[str, Any]]:
        """Begin an episode; return (state, {})."""
        if seed is not None:
            self._draws = np.random.default_rng(seed)
        with np.errstate(all="ignore"):
            self._state = self.environment.law_start(self._word(), self.environment.params)
        self._age = 0
        return int(self._state), {}

    def step(self, action: Any) -> tuple[int, float, bool, bool, dict[str, Any]]:
        """Make one transition; return (state, reward, terminated, truncated, {})."""
        with np.errstate(all="ignore"):
            new, reward, ended = self.environment.law_step(
                self._state, np.uint64(action), self._word(), self.environment.params
            )
        self._state, self._age = np.uint64(new), self._age + 1
        limit = self.environment.max_episode_steps
        return int(new), float(reward), bool(ended), bool(limit and self._age >= limit), {}

    def close(self) -> None:
        """Nothing to close."""

    def _word(self) -> np.uint64:
        return np.uint64(self._draws.integers(0, 2**64, dtype=np.uint64))


def playable(env: Any) -> Any:
    """Return what has Gymnasium's `reset` and `step`, however it is named. Local.

    env : a Gymnasium environment, returned as it is; an id, a model file, `module:Law`, an
    `Environment`, a law or its class.

    Raises ConfigError for several environments in one, ModelError for what is none.
    """
    if hasattr(env, "num_envs"):
        raise ConfigError(
            f"env: {type(env).__name__} holds several environments; give one, or call "
            "stable_baselines3.common.evaluation.evaluate_policy, which takes them"
        )
    if environments.is_gymnasium(env) or isinstance(env, Simulated):
        return env
    if isinstance(env, str):
        env = environments.make_world(EnvConfig(env))
        if not isinstance(env, Environment):
            return env
    found = environments.from_object(env, EnvConfig())
    return found.worlds.bare() if found.kind == "stepped" else Simulated(found)


def evaluate_policy(
    model: Any,
    env: Any,
    n_eval_episodes: int = 10,
    deterministic: bool = True,
    render: bool = False,
    callback: Callable[[dict[str, Any], dict[str, Any]], None] | None = None,
    reward_threshold: float | None = None,
    return_episode_rewards: bool = False,
    warn: bool = True,
) -> tuple[float, float] | tuple[list[float], list[int]]:
    """Play episodes with `model.predict`; signature and results are stable-baselines3's. Local;
    with a model of `architecture="sharded"` every rank must play as many steps, on the same seed.

    Parameters
    ----------
    env : as `playable` takes; one that is made here begins with the model's seed, one that is
        given is reset without a seed and not closed.
    n_eval_episodes : >= 1.
    render : call `env.render()` at every step.
    callback : called with (locals, globals) after every step.
    reward_threshold : the mean must exceed it.
    warn : whether to warn of episodes cut after 100,000 steps for want of a time limit.

    Returns
    -------
    Mean and standard deviation of the undiscounted returns; or, with `return_episode_rewards`,
    all returns and all lengths in steps.

    Raises
    ------
    AssertionError
        If the mean does not exceed `reward_threshold`.
    ConfigError, ModelError
        If `env` cannot be played.
    """
    if n_eval_episodes < 1:
        raise ConfigError(f"n_eval_episodes: {n_eval_episodes} must be >= 1")
    world = playable(env)
    made_here = world is not env
    seed: int | None = getattr(model, "seed", 0) if made_here else None
    episode_rewards: list[float] = []
    episode_lengths: list[int] = []
    n_cut = 0
    try:
        for _ in range(n_eval_episodes):
            observation, info = world.reset(seed=seed) if seed is not None else world.reset()
            seed, done, episode_reward, episode_length = None, False, 0.0, 0
            states, episode_start = None, np.ones(1, bool)
            while not done and episode_length < LONGEST:
                action, states = model.predict(
                    observation,
                    state=states,
                    episode_start=episode_start,
                    deterministic=deterministic,
                )
                observation, reward, terminated, truncated, info = world.step(action)
                done, episode_start = terminated or truncated, np.zeros(1, bool)
                episode_reward += number(reward)
                episode_length += 1
                if callback is not None:
                    callback(locals(), globals())
                if render:
                    world.render()
            n_cut += not done
            episode_rewards.append(episode_reward)
            episode_lengths.append(episode_length)
    finally:
        if made_here:
            world.close()
    if n_cut and warn:
        warnings.warn(
            f"{n_cut} of {n_eval_episodes} episodes were cut after {LONGEST:,} steps: the "
            "environment has no time limit",
            stacklevel=2,
        )
    mean, deviation = float(np.mean(episode_rewards)), float(np.std(episode_rewards))
    if reward_threshold is not None:
        assert mean > reward_threshold, f"mean reward {mean:.2f} <= {reward_threshold:.2f}"
    if return_episode_rewards:
        return episode_rewards, episode_lengths
    return mean, deviation
