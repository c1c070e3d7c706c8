"""stable-baselines3's own functions take the model as one of theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.launching import run

pytest.importorskip("stable_baselines3")

SCRIPT = """
import gymnasium
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

import distq_mpi
from distq_mpi import QLearning


class Count(BaseCallback):
    def _on_step(self):
        return self.n_calls < 100


model = QLearning(Monitor(gymnasium.make("FrozenLake8x8-v1")), seed=0, agents=2)
model.learn(1_000_000, callback=Count())
print("rounds", model.progress.round)
model.learn(400_000)
print("exact", model.certificate().policy_return)

world = DummyVecEnv([lambda: Monitor(gymnasium.make("FrozenLake8x8-v1"))] * 4)
world.seed(0)
mean, deviation = evaluate_policy(model, world, n_eval_episodes=400)
print("theirs", mean, deviation)

taxi = QLearning("Taxi-v4", seed=0).learn(3_000_000)
for evaluate in (evaluate_policy, distq_mpi.evaluate_policy):
    world = Monitor(gymnasium.make("Taxi-v4"))
    world.reset(seed=1)
    mean, deviation = evaluate(taxi, world, n_eval_episodes=100, warn=False)
    print(evaluate.__module__, float(mean), float(deviation))
"""


def test_their_evaluation_and_their_callbacks_take_the_model(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    ended = run(0, [str(script)], tmp_path, limit_s=300)
    assert ended.code == 0, ended.err
    print(ended.out)
    told: dict[str, Any] = dict(line.split(maxsplit=1) for line in ended.out.splitlines())
    assert told["rounds"] == "100"
    exact = float(told["exact"])
    assert exact > 0.84
    mean, deviation = map(float, told["theirs"].split())
    # Five standard errors of 400 episodes that earn 0 or 1.
    assert mean == pytest.approx(exact, abs=5 * 0.5 / 20)
    assert deviation == pytest.approx((mean * (1 - mean)) ** 0.5)
    assert told["distq_mpi.evaluation"] == told["stable_baselines3.common.evaluation"]
