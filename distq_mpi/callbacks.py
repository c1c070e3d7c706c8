"""Callbacks of `QLearning.learn`, with the names and meanings of stable-baselines3.

A step of a callback is a round: `on_step` is called after every committed round, on every rank, and
`num_timesteps` counts the steps of all lanes on all ranks. Frequencies count steps of every lane,
as stable-baselines3 counts calls of a vectorised environment, and fall due at the first end of a
round that has reached them. A callback of stable-baselines3 itself works, too, where it needs
neither `logger` nor `training_env`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distq_mpi.evaluation import evaluate_policy, playable


class BaseCallback:
    """Base of all callbacks: override the methods that begin with `_on`.

    Every rank has its own instance; what it calls that is COLLECTIVE (`model.save`,
    `model.certificate`) it must call on every rank.

    Attributes
    ----------
    model : the `QLearning` that learns. n_calls : rounds seen. num_timesteps : steps of all lanes.
    locals : `self`, `total_timesteps`, and `round`, `episodes`, `mean_return`, `td_rms` of the
        last round. parent : the callback that calls this one, or None.
    """

    def __init__(self, verbose: int = 0) -> None:
        self.verbose = verbose
        self.model: Any = None
        self.n_calls = self.num_timesteps = 0
        self.locals: dict[str, Any] = {}
        self.globals: dict[str, Any] = {}
        self.parent: BaseCallback | None = None

    def init_callback(self, model: Any) -> None:
        """Take the model; called at the beginning of every `learn`."""
        self.model = model
        self._init_callback()

    def on_training_start(self, locals_: dict[str, Any], globals_: dict[str, Any]) -> None:
        """Before the first round of a `learn`."""
        self.locals, self.globals = locals_, globals_
        self.num_timesteps = self.model.num_timesteps
        self._on_training_start()

    def on_rollout_start(self) -> None:
        """Before every round."""
        self._on_rollout_start()

    def on_step(self) -> bool:
        """After every committed round. Return False to end `learn` there, on all ranks."""
        self.n_calls += 1
        self.num_timesteps = self.model.num_timesteps
        return self._on_step()

    def on_rollout_end(self) -> None:
        """After every round, when nobody has ended `learn`."""
        self._on_rollout_end()

    def on_training_end(self) -> None:
        """After the last round of a `learn`."""
        self._on_training_end()

    def update_locals(self, locals_: dict[str, Any]) -> None:
        """Take new values into `locals`, here and in the callbacks that this one calls."""
        self.locals.update(locals_)
        self.update_child_locals(locals_)

    def update_child_locals(self, locals_: dict[str, Any]) -> None:
        """Pass new values on to the callbacks that this one calls."""

    def _init_callback(self) -> None:
        pass

    def _on_training_start(self) -> None:
        pass

    def _on_rollout_start(self) -> None:
        pass

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        pass

    def _on_training_end(self) -> None:
        pass

    def _lane_steps(self) -> int:
        """Steps that every lane has made."""
        return int(self.num_timesteps // self.model.n_envs)


class _Every:
    """When something falls due that is done every so many steps."""

    def __init__(self, n_steps: int) -> None:
        if n_steps < 1:
            raise ValueError(f"a frequency of {n_steps} steps must be >= 1")
        self.n_steps, self._done = n_steps, 0

    def begin(self, n_steps: int) -> None:
        self._done = n_steps // self.n_steps

    def due(self, n_steps: int) -> bool:
        before, self._done = self._done, n_steps // self.n_steps
        return self._done > before


class EventCallback(BaseCallback):
    """A callback that calls another one at events of its own."""

    def __init__(self, callback: BaseCallback | None = None, verbose: int = 0) -> None:
        super().__init__(verbose)
        self.callback = callback
        if callback is not None:
            callback.parent = self

    def init_callback(self, model: Any) -> None:
        """Take the model."""
        super().init_callback(model)
        if self.callback is not None:
            self.callback.init_callback(model)

    def update_child_locals(self, locals_: dict[str, Any]) -> None:
        """Pass new values on."""
        if self.callback is not None:
            self.callback.update_locals(locals_)

    def _on_training_start(self) -> None:
        if self.callback is not None:
            self.callback.on_training_start(self.locals, self.globals)

    def _on_event(self) -> bool:
        return self.callback is None or self.callback.on_step()


class CallbackList(BaseCallback):
    """Several callbacks, called in order; any of them ends `learn`, after all were called."""

    def __init__(self, callbacks: Sequence[BaseCallback]) -> None:
        super().__init__()
        self.callbacks = list(callbacks)

    def _init_callback(self) -> None:
        for callback in self.callbacks:
            callback.init_callback(self.model)

    def _on_training_start(self) -> None:
        for callback in self.callbacks:
            callback.on_training_start(self.locals, self.globals)

    def _on_rollout_start(self) -> None:
        for callback in self.callbacks:
            callback.on_rollout_start()

    def _on_step(self) -> bool:
        # All are called, whatever the first says: what they do may be collective.
        return all([callback.on_step() for callback in self.callbacks])

    def _on_rollout_end(self) -> None:
        for callback in self.callbacks:
            callback.on_rollout_end()

    def _on_training_end(self) -> None:
        for callback in self.callbacks:
            callback.on_training_end()

    def update_child_locals(self, locals_: dict[str, Any]) -> None:
        """Pass new values on to all."""
        for callback in self.callbacks:
            callback.update_locals(locals_)


class ConvertCallback(BaseCallback):
    """A function (locals, globals) -> bool or None as a callback; False ends `learn`."""

    def __init__(
        self, callback: Callable[[dict[str, Any], dict[str, Any]], Any], verbose: int = 0
    ) -> None:
        super().__init__(verbose)
        self.callback = callback

    def _on_step(self) -> bool:
        return self.callback(self.locals, self.globals) is not False


class CheckpointCallback(BaseCallback):
    """Save the model every `save_freq` steps of every lane; COLLECTIVE.

    As `save_path`/`name_prefix`_N_steps.h5, N being `num_timesteps`. verbose : 2 prints the name.
    """

    def __init__(
        self, save_freq: int, save_path: str, name_prefix: str = "rl_model", verbose: int = 0
    ) -> None:
        super().__init__(verbose)
        self.save_freq, self.save_path, self.name_prefix = save_freq, save_path, name_prefix
        self._every = _Every(save_freq)

    def _on_training_start(self) -> None:
        self._every.begin(self._lane_steps())

    def _on_step(self) -> bool:
        if self._every.due(self._lane_steps()):
            path = Path(self.save_path, f"{self.name_prefix}_{self.num_timesteps}_steps.h5")
            self.model.save(path)
            if self.verbose >= 2 and self.model.rank == 0:
                print(f"saved {path}")
        return True


class EvalCallback(EventCallback):
    """Evaluate the model every `eval_freq` steps of every lane, and keep the best. COLLECTIVE.

    Rank 0 plays; all ranks are told what it found, and decide alike.

    Parameters
    ----------
    eval_env : as `evaluate_policy` takes; used on rank 0 only. What is made here of a name begins
        with the model's seed.
    callback_on_new_best, callback_after_eval : called after such an evaluation.
    n_eval_episodes : >= 1. eval_freq : steps of every lane.
    log_path : folder for `evaluations.npz` with `timesteps` (n,), `results` and `ep_lengths`
        (n, n_eval_episodes). best_model_save_path : folder for `best_model.h5`.
    deterministic, render, warn : as `evaluate_policy` takes them.
    verbose : 1 prints a line for every evaluation.

    Attributes
    ----------
    last_mean_reward, best_mean_reward : mean undiscounted returns; -inf before the first.
    evaluations_timesteps, evaluations_results, evaluations_length : all so far.
    """

    def __init__(
        self,
        eval_env: Any,
        callback_on_new_best: BaseCallback | None = None,
        callback_after_eval: BaseCallback | None = None,
        n_eval_episodes: int = 5,
        eval_freq: int = 10_000,
        log_path: str | None = None,
        best_model_save_path: str | None = None,
        deterministic: bool = True,
        render: bool = False,
        verbose: int = 1,
        warn: bool = True,
    ) -> None:
        super().__init__(callback_after_eval, verbose)
        self.eval_env, self.n_eval_episodes, self.eval_freq = eval_env, n_eval_episodes, eval_freq
        self.callback_on_new_best = callback_on_new_best
        if callback_on_new_best is not None:
            callback_on_new_best.parent = self
        self.log_path, self.best_model_save_path = log_path, best_model_save_path
        self.deterministic, self.render, self.warn = deterministic, render, warn
        self.last_mean_reward = self.best_mean_reward = -np.inf
        self.evaluations_timesteps: list[int] = []
        self.evaluations_results: list[list[float]] = []
        self.evaluations_length: list[list[int]] = []
        self._every = _Every(eval_freq)
        self._world: Any = None

    def _init_callback(self) -> None:
        if self.callback_on_new_best is not None:
            self.callback_on_new_best.init_callback(self.model)

    def update_child_locals(self, locals_: dict[str, Any]) -> None:
        """Pass new values on to both."""
        super().update_child_locals(locals_)
        if self.callback_on_new_best is not None:
            self.callback_on_new_best.update_locals(locals_)

    def _on_training_start(self) -> None:
        super()._on_training_start()
        if self.callback_on_new_best is not None:
            self.callback_on_new_best.on_training_start(self.locals, self.globals)
        self._every.begin(self._lane_steps())

    def _on_step(self) -> bool:
        if not self._every.due(self._lane_steps()):
            return True
        returns, lengths = self.model.from_rank_0(self._evaluate)
        self.evaluations_timesteps.append(self.num_timesteps)
        self.evaluations_results.append(returns)
        self.evaluations_length.append(lengths)
        self.last_mean_reward = float(np.mean(returns))
        if self.log_path is not None:
            self.model.from_rank_0(self._keep)
        if self.verbose >= 1 and self.model.rank == 0:
            print(
                f"evaluation at {self.num_timesteps} steps: mean return "
                f"{self.last_mean_reward:.2f} +/- {np.std(returns):.2f}, "
                f"length {np.mean(lengths):.2f}"
            )
        go_on = True
        if self.last_mean_reward > self.best_mean_reward:
            self.best_mean_reward = self.last_mean_reward
            if self.best_model_save_path is not None:
                self.model.save(Path(self.best_model_save_path, "best_model"))
            if self.callback_on_new_best is not None:
                go_on = self.callback_on_new_best.on_step()
        return self._on_event() and go_on

    def _evaluate(self) -> tuple[list[float], list[int]]:
        if self._world is None:
            self._world = playable(self.eval_env)
            if self._world is not self.eval_env:
                self._world.reset(seed=self.model.seed)
        found: Any = evaluate_policy(
            self.model, self._world, self.n_eval_episodes, self.deterministic, self.render,
            return_episode_rewards=True, warn=self.warn,
        )  # fmt: skip
        return found

    def _keep(self) -> None:
        folder = Path(str(self.log_path))
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(
            folder / "evaluations.npz",
            timesteps=self.evaluations_timesteps,
            results=self.evaluations_results,
            ep_lengths=self.evaluations_length,
        )


class StopTrainingOnRewardThreshold(BaseCallback):
    """End `learn` once the best mean return of an `EvalCallback` is at least `reward_threshold`.

    To be its `callback_on_new_best`.
    """

    def __init__(self, reward_threshold: float, verbose: int = 0) -> None:
        super().__init__(verbose)
        self.reward_threshold = reward_threshold

    def _on_step(self) -> bool:
        if not isinstance(self.parent, EvalCallback):
            raise TypeError("StopTrainingOnRewardThreshold belongs into an EvalCallback")
        best = self.parent.best_mean_reward
        if best >= self.reward_threshold and self.verbose >= 1 and self.model.rank == 0:
            print(f"ending: mean return {best:.2f} >= {self.reward_threshold}")
        return bool(best < self.reward_threshold)


class EveryNTimesteps(EventCallback):
    """Call another callback every `n_steps` steps of all lanes together."""

    def __init__(self, n_steps: int, callback: BaseCallback) -> None:
        super().__init__(callback)
        self.n_steps, self.last_time_trigger = n_steps, 0

    def _on_training_start(self) -> None:
        super()._on_training_start()
        if not self.n_calls:
            self.last_time_trigger = self.num_timesteps

    def _on_step(self) -> bool:
        if self.num_timesteps - self.last_time_trigger < self.n_steps:
            return True
        self.last_time_trigger = self.num_timesteps
        return self._on_event()


def as_callback(given: Any) -> Any:
    """Return one callback for what `learn` was given: a callback, several, a function, or None.

    Raises TypeError for anything else.
    """
    if given is None:
        return BaseCallback()
    if isinstance(given, list | tuple):
        return CallbackList([as_callback(each) for each in given])
    if not isinstance(given, type):
        if hasattr(given, "on_step") and hasattr(given, "init_callback"):
            return given
        if callable(given):
            return ConvertCallback(given)
    raise TypeError(f"callback: {given!r} is no callback, list of callbacks or function")
