"""Callbacks: when each falls due, who is called, and who ends learning."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distq_mpi.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    ConvertCallback,
    EvalCallback,
    EveryNTimesteps,
    StopTrainingOnRewardThreshold,
    as_callback,
)


class Model:
    """What callbacks need of a model; `learn` makes rounds of `period` steps of 4 lanes."""

    n_envs, rank, seed = 4, 0, 0

    def __init__(self, actions: Callable[[int], int] = lambda steps: 0) -> None:
        self.num_timesteps = 0
        self.saved: list[str] = []
        self.actions = actions

    def save(self, path: Path) -> None:
        self.saved.append(f"{path.name} at {self.num_timesteps}")

    def from_rank_0(self, work: Callable[[], Any]) -> Any:
        return work()

    def predict(self, observation: Any, **kwargs: Any) -> tuple[int, None]:
        return self.actions(self.num_timesteps), None

    def learn(self, callback: Any, n_rounds: int, period: int = 3) -> int:
        """Return the rounds made before a callback ended it."""
        callback.init_callback(self)
        callback.on_training_start({"round": 0}, {})
        for k in range(1, n_rounds + 1):
            callback.on_rollout_start()
            self.num_timesteps += period * self.n_envs
            callback.update_locals({"round": k})
            if not callback.on_step():
                return k
            callback.on_rollout_end()
        callback.on_training_end()
        return n_rounds


class Line:
    """Gymnasium's methods over one step of reward = action."""

    observation_space = action_space = None

    def reset(self, seed: int | None = None) -> tuple[int, dict[str, Any]]:
        return 0, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        return 0, float(action), True, False, {}


class Recorder(BaseCallback):
    """Writes down what it is called for; ends learning at round `end`."""

    def __init__(self, end: int = 10**9) -> None:
        super().__init__()
        self.calls: list[Any] = []
        self.end = end

    def _init_callback(self) -> None:
        self.calls.append("init")

    def _on_training_start(self) -> None:
        self.calls.append(("start", self.num_timesteps))

    def _on_rollout_start(self) -> None:
        self.calls.append("rollout")

    def _on_step(self) -> bool:
        self.calls.append((self.n_calls, self.num_timesteps, self.locals["round"]))
        return self.n_calls < self.end

    def _on_rollout_end(self) -> None:
        self.calls.append("rolled")

    def _on_training_end(self) -> None:
        self.calls.append("end")


def test_order_of_calls_and_counters() -> None:
    recorder = Recorder()
    Model().learn(recorder, 2)
    assert recorder.calls == [
        "init", ("start", 0), "rollout", (1, 12, 1), "rolled", "rollout", (2, 24, 2), "rolled",
        "end",
    ]  # fmt: skip


def test_false_ends_learning_there() -> None:
    recorder = Recorder(end=3)
    assert Model().learn(recorder, 9) == 3
    assert recorder.calls[-1] == (3, 36, 3)


def test_a_list_calls_all_whatever_the_first_says() -> None:
    first, second = Recorder(end=2), Recorder()
    assert Model().learn(CallbackList([first, second]), 9) == 2
    assert first.calls == second.calls
    assert second.calls[-1] == (2, 24, 2)


def test_checkpoints_fall_due_by_steps_of_every_lane() -> None:
    """7 steps are passed by rounds of 3 in the rounds 3, 5, 7 and 10 (9, 15, 21, 30 steps)."""
    model = Model()
    model.learn(CheckpointCallback(7, "folder", name_prefix="q"), 10)
    assert model.saved == [f"q_{n}_steps.h5 at {n}" for n in (36, 60, 84, 120)]


def test_checkpoints_go_on_in_a_second_learn() -> None:
    model, callback = Model(), CheckpointCallback(7, "folder")
    for _ in range(5):
        model.learn(callback, 2)
    assert [text.split()[-1] for text in model.saved] == ["36", "60", "84", "120"]


def test_every_n_timesteps_counts_all_lanes() -> None:
    """50 steps of four lanes together: after rounds of 12 at 60 and 120."""
    recorder = Recorder()
    Model().learn(EveryNTimesteps(50, recorder), 10)
    assert [call for call in recorder.calls if isinstance(call[0], int)] == [
        (1, 60, 5), (2, 120, 10),
    ]  # fmt: skip


def test_every_n_timesteps_lets_its_callback_end_learning() -> None:
    assert Model().learn(EveryNTimesteps(50, Recorder(end=1)), 10) == 5


def test_evaluation_keeps_the_best_and_ends_at_the_threshold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Returns are 2, 1, 3 and 5 at the evaluations; the threshold of 3 holds at the third."""
    returns = {12: 2, 24: 1, 36: 3, 48: 5}
    model, after = Model(lambda steps: returns[steps]), Recorder()
    callback = EvalCallback(
        Line(), StopTrainingOnRewardThreshold(3, verbose=1), after, n_eval_episodes=2, eval_freq=3,
        log_path=str(tmp_path / "log"), best_model_save_path=str(tmp_path),
    )  # fmt: skip
    assert model.learn(callback, 4) == 3
    assert model.saved == ["best_model at 12", "best_model at 36"]
    assert callback.evaluations_results == [[2, 2], [1, 1], [3, 3]]
    assert (callback.last_mean_reward, callback.best_mean_reward) == (3, 3)
    assert [call[1] for call in after.calls if isinstance(call[0], int)] == [12, 24, 36]
    with np.load(tmp_path / "log" / "evaluations.npz") as file:
        assert file["timesteps"].tolist() == [12, 24, 36]
        assert file["results"].tolist() == [[2, 2], [1, 1], [3, 3]]
        assert file["ep_lengths"].tolist() == [[1, 1], [1, 1], [1, 1]]
    told = capsys.readouterr().out
    assert "evaluation at 12 steps: mean return 2.00 +/- 0.00, length 1.00" in told
    assert "ending: mean return 3.00 >= 3" in told


def test_evaluation_without_children_ends_nothing() -> None:
    model = Model(lambda steps: 1)
    callback = EvalCallback(Line(), n_eval_episodes=1, eval_freq=6, verbose=0)
    assert model.learn(callback, 5) == 5
    assert callback.evaluations_timesteps == [24, 48]


def test_a_threshold_needs_an_evaluation() -> None:
    with pytest.raises(TypeError, match="EvalCallback"):
        Model().learn(StopTrainingOnRewardThreshold(1.0), 1)


def test_a_frequency_below_one_is_refused() -> None:
    for make in (lambda: CheckpointCallback(0, "x"), lambda: EvalCallback(Line(), eval_freq=0)):
        with pytest.raises(ValueError, match="must be >= 1"):
            make()


def test_what_learn_takes_for_a_callback() -> None:
    seen = []

    def function(locals_: dict[str, Any], globals_: dict[str, Any]) -> bool | None:
        seen.append(locals_["round"])
        return False if locals_["round"] == 4 else None

    assert isinstance(as_callback(function), ConvertCallback)
    assert Model().learn(as_callback([function, Recorder()]), 9) == 4
    assert seen == [1, 2, 3, 4]
    assert Model().learn(as_callback(None), 2) == 2
    recorder = Recorder()
    assert as_callback(recorder) is recorder
    for wrong in (3, "text", Recorder):
        with pytest.raises(TypeError, match="callback"):
            as_callback(wrong)
