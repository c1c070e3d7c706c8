"""What is learned on environments stepped in Python, against exact dynamic programming."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distq_mpi import checkpoint
from tests.launching import distq

CARDS = {card: (4 if card == 10 else 1) / 13 for card in range(1, 11)}


def drawn(total: int, ace: bool, card: int) -> tuple[int, bool]:
    """Sum and usable ace of a hand with one more card; beyond 21 it is bust."""
    total += card
    if card == 1 and not ace and total + 10 <= 21:
        return total + 10, True
    if total > 21 and ace:
        return total - 10, False
    return total, ace


@functools.cache
def dealer(total: int, ace: bool) -> dict[int, float]:
    """Chances of the dealer's final score, 0 for bust, drawing to 17."""
    if total > 21:
        return {0: 1.0}
    if total >= 17:
        return {total: 1.0}
    found: dict[int, float] = {}
    for card, chance in CARDS.items():
        for score, p in dealer(*drawn(total, ace, card)).items():
            found[score] = found.get(score, 0.0) + chance * p
    return found


@functools.cache
def stick(total: int, shown: int, natural: bool) -> float:
    """Mean reward of standing; a natural beats all but a natural (Sutton & Barto's rules)."""
    value = 0.0
    for hidden, chance in CARDS.items():
        if natural:
            value += chance * (0.0 if {shown, hidden} == {1, 10} else 1.0)
            continue
        hand = drawn(*drawn(0, False, shown), hidden)
        for score, p in dealer(*hand).items():
            value += chance * p * ((total > score) - (total < score))
    return value


def value_of(hits: Any) -> float:
    """Mean return of a policy: hits(total, shown, ace) -> bool, or None for the best one."""

    @functools.cache
    def value(total: int, shown: int, ace: bool, natural: bool) -> float:
        if total > 21:
            return -1.0
        stood = stick(total, shown, natural)
        hit = 0.0
        for card, chance in CARDS.items():
            hit += chance * value(*_with(total, ace, card, shown), False)
        if hits is None:
            return max(stood, hit)
        return hit if hits(total, shown, ace) else stood

    def _with(total: int, ace: bool, card: int, shown: int) -> tuple[int, int, bool]:
        new, usable = drawn(total, ace, card)
        return new, shown, usable

    mean = 0.0
    for shown, p in CARDS.items():
        for first, q in CARDS.items():
            for second, r in CARDS.items():
                total, ace = drawn(*drawn(0, False, first), second)
                mean += p * q * r * value(total, shown, ace, {first, second} == {1, 10})
    return mean


def test_no_threshold_is_better_than_the_best() -> None:
    best = value_of(None)
    values = [value_of(lambda total, shown, ace, k=k: total < k) for k in range(12, 22)]
    assert best > max(values) > -0.1 and min(values) < -0.3


def test_blackjack_is_played_as_well_as_it_can_be(tmp_path: Path) -> None:
    """After 400,000 steps: sampled within three standard errors, and by enumeration to .01."""
    ended = distq(
        2, "train", "--env.id", "Blackjack-v1", "--learn.discount", "1", "--learn.step_size",
        "polynomial", "--learn.epsilon", "0.5", "--parallel.agents", "2", "--stop.steps", "400000",
        "--evaluate.episodes", "20000", "--run.dir", "run", cwd=tmp_path, limit_s=400,
    )  # fmt: skip
    assert ended.code == 0, ended.out + ended.err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    best, sampled = value_of(None), summary["evaluation"]
    error = sampled["std_return"] / math.sqrt(sampled["episodes"])
    assert abs(sampled["mean_return"] - best) < 3 * error
    assert summary["reproducible"] and summary["certificate"]["kind"] == "none"
    q = checkpoint.read_rows(tmp_path / "run" / "result.h5", 0, 704)[0]
    greedy = q.argmax(axis=1).reshape(32, 11, 2)
    exact = value_of(lambda total, shown, ace: bool(greedy[total, shown, int(ace)]))
    assert best - 0.01 < exact <= best + 1e-12
    assert exact == pytest.approx(sampled["mean_return"], abs=4 * error)


def test_a_pole_is_balanced(tmp_path: Path) -> None:
    for n_ranks in (1, 2):
        ended = distq(
            n_ranks, "train", "--env.id", "CartPole-v1", "--env.bins", "1,1,6,12", "--env.clip",
            "2.4,1,0.21,2", "--learn.step_size", "constant", "--learn.initial", "zeros",
            "--learn.epsilon_schedule", "linear", "--learn.epsilon_steps", "200000",
            "--learn.epsilon_final", "0.02", "--parallel.agents", "2", "--stop.mean_return", "195",
            "--stop.steps", "1000000", "--run.dir", f"run{n_ranks}", cwd=tmp_path, limit_s=300,
        )  # fmt: skip
        assert ended.code == 0, ended.out + ended.err
    found = [json.loads((tmp_path / f"run{n}" / "summary.json").read_text()) for n in (1, 2)]
    assert found[0]["table_sha256"] == found[1]["table_sha256"]
    assert found[0]["evaluation"]["mean_return"] > 150


def test_V_table_of_a_hand() -> None:
    """A dealer showing 7 with 10 below stands on 17; with an ace below on a soft 18."""
    assert dealer(17, False) == {17: 1.0} and drawn(*drawn(0, False, 7), 1) == (18, True)
    assert np.isclose(sum(dealer(7, False).values()), 1.0)
