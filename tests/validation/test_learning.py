"""What the whole program learns, against exact numbers and regression numbers.

V ids: published and exact values (docs/validation.md). The regression numbers are medians over
seeds of samples to a target, for `rescaled_linear` where not said; the limit is 2.5 x the largest
one seen.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.launching import distq


def train(path: Path, *options: str) -> dict[str, Any]:
    ended = distq(2, "train", "--run.dir", str(path / "run"), *options, cwd=path)
    assert ended.code == 0, ended.out + ended.err
    found: dict[str, Any] = json.loads((path / "run" / "summary.json").read_text())
    return found


def test_V3_success_rate_of_the_learned_policy(tmp_path: Path) -> None:
    found = train(tmp_path, "--env.id", "FrozenLake-v1", "--stop.policy_loss", "1e-6")
    assert found["certificate"]["policy_return"] == pytest.approx(0.7401648978, abs=1e-9)


def test_V4_success_rate_on_the_larger_lake(tmp_path: Path) -> None:
    found = train(tmp_path, "--stop.policy_gap", "1e-5", "--run.seed", "3")
    assert found["certificate"]["optimal_value"] == pytest.approx(0.4146403618, abs=1e-8)
    assert found["certificate"]["optimal_policy_return"] == pytest.approx(0.8629553800, abs=1e-9)


def test_V5_the_lake_without_ice(tmp_path: Path) -> None:
    found = train(
        tmp_path, "--env.id", "FrozenLake-v1", "--env.kwargs.is_slippery", "false",
        "--stop.policy_loss", "1e-9",
    )  # fmt: skip
    assert found["certificate"]["policy_value"] == pytest.approx(0.9509900499, abs=1e-9)
    assert found["certificate"]["policy_return"] == 1.0


@pytest.mark.parametrize(("discount", "value"), [("0.99", -12.2478977001), ("0.95", -9.7331583344)])
def test_V6_V8_cliff_in_thirteen_steps(discount: str, value: float, tmp_path: Path) -> None:
    found = train(
        tmp_path, "--env.id", "CliffWalking-v1", "--learn.discount", discount,
        "--stop.policy_loss", "1e-9",
    )  # fmt: skip
    assert found["certificate"]["optimal_value"] == pytest.approx(value, abs=1e-8)
    assert found["certificate"]["policy_return"] == pytest.approx(-13, abs=1e-9)


@pytest.mark.parametrize(
    ("discount", "value"),
    [("0.99", 6.3274643149), ("0.95", 1.7299300168), ("0.9", -1.2633230990)],
)
def test_V10_V11_taxi(discount: str, value: float, tmp_path: Path) -> None:
    found = train(
        tmp_path, "--env.id", "Taxi-v4", "--learn.discount", discount, "--stop.policy_loss", "1e-3"
    )
    assert found["certificate"]["optimal_value"] == pytest.approx(value, abs=1e-8)
    if discount == "0.99":
        assert found["certificate"]["policy_return"] == pytest.approx(7.93, abs=1e-9)


@pytest.mark.parametrize("seed", ["101", "102", "103"])
def test_regression_cliff_samples_of_one_agent(seed: str, tmp_path: Path) -> None:
    loss = 0.01 * 12.125  # 1 % of the value range
    found = train(
        tmp_path, "--env.id", "CliffWalking-v1", "--parallel.agents", "1",
        "--parallel.steps_per_round", "8", "--stop.policy_loss", str(loss), "--run.seed", seed,
    )  # fmt: skip
    assert found["steps"] <= 2.5 * 1.6e4


@pytest.mark.parametrize("seed", ["101", "102", "103"])
def test_regression_taxi_samples_of_eight_agents(seed: str, tmp_path: Path) -> None:
    loss = 0.01 * 18.847  # 1 % of the value range
    found = train(
        tmp_path, "--env.id", "Taxi-v4", "--parallel.agents", "8", "--stop.policy_loss", str(loss),
        "--run.seed", seed,
    )  # fmt: skip
    assert found["steps"] <= 2.5 * 1.7e5


def test_regression_taxi_samples_of_eight_agents_by_signs(tmp_path: Path) -> None:
    found = train(
        tmp_path, "--env.id", "Taxi-v4", "--parallel.agents", "8", "--learn.step_size",
        "sign_change", "--stop.policy_loss", str(0.01 * 18.847), "--run.seed", "101",
    )  # fmt: skip
    assert found["steps"] <= 2.5 * 2.1e5
