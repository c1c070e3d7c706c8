"""Schedules: pure functions of reduced numbers, so that all ranks decide alike."""

from __future__ import annotations

import functools
import math
from typing import Any

from distq_mpi.kernels.elementary import exponential, logarithm
from distq_mpi.kernels.exploration import EXPLORATIONS
from distq_mpi.kernels.fusing import UNIT

MAX_PERIOD = 512
LONE_PERIOD = 512
GROWN_PERIOD, GROWN_SHARE = 4096, 64
LONE_STEPS = 10_000_000
STEPPED_STEPS = 32_768
SETTLE_BITS = 31
LENGTH_UNIT = UNIT
MAX_TICKS, ROUND_STEPS, TICK_SHARE = 2048, 1 << 22, 8


def exploration_at(learn: Any, n_steps: int) -> float:
    """Epsilon or temperature after `n_steps` steps of all lanes, under `[learn]`. Local."""
    key = EXPLORATIONS[learn.exploration].key
    first, schedule = getattr(learn, key), getattr(learn, f"{key}_schedule")
    if schedule == "constant":
        return float(first)
    final, length = getattr(learn, f"{key}_final"), getattr(learn, f"{key}_steps")
    share = min(1.0, n_steps / length) if length else 1.0
    if schedule == "linear":
        return float(first + share * (final - first))
    if share == 1.0:
        return float(final)
    # Not `**`: each rank computes this, and its last bit depends on a host's C library.
    if final <= first:
        return float(first * exponential(-share * _logarithm(first / final)))
    return float(first / exponential(-share * _logarithm(final / first)))


@functools.lru_cache(maxsize=4)
def _logarithm(ratio: float) -> float:
    return float(logarithm(ratio))


def next_period(
    period: int, n_visits: int, length: int, n_agents: int, kappa: float, most: int = MAX_PERIOD
) -> int:
    """Steps per lane of the next round: floor(T kappa S / (K X)), at most doubling, at most `most`.

    n_visits : S, visits of all agents in the last round; length : X in units of 1 / `LENGTH_UNIT`,
    the sum over agents and pairs of alpha N (N - 1). X = 0 doubles. Rounds so long keep the
    agents' drift apart below what one of them learns (docs/architecture.md, Period).
    """
    longest = min(2 * period, most)
    if length == 0:
        return longest
    wanted = math.floor(period * kappa * n_visits * LENGTH_UNIT / (n_agents * length))
    return max(1, min(wanted, longest))


def lone_period(n_pairs: int, n_lanes: int, n_made: int = 0, stepped: bool = False) -> int:
    """Steps per lane of the next round of a single agent: nothing drifts apart, so only what ends a
    round counts: the calls of a small table, the passes over a large one. The passes are kept
    below an eighth of the steps, as long as a round stays within seconds: signals wait for it. The
    calls are hidden by rounds that grow, but not beyond a 64th of the steps a lane has made
    (`n_made`): a run stops between rounds, and short ones should not be longer for it.

    stepped : in Python, a thousand times slower."""
    if stepped:
        return max(1, STEPPED_STEPS // n_lanes)
    grown = max(LONE_PERIOD, min(GROWN_PERIOD, n_made // GROWN_SHARE))
    longest = LONE_STEPS // n_lanes
    return max(LONE_PERIOD, min(max(grown, -(-8 * n_pairs // n_lanes)), longest))


def settles(n_steps: int, n_after: int) -> bool:
    """Whether the clocks of agents that nothing fuses are limited at the end of a round, which
    begins after `n_steps` steps of all lanes and ends after `n_after`: before one leaves its 32
    bits."""
    return n_steps >> SETTLE_BITS != n_after >> SETTLE_BITS


def sweep_period(n_pairs: int) -> int:
    """Sweeps over all pairs in every round of a single agent: as `lone_period`."""
    return max(1, STEPPED_STEPS // n_pairs)


def tick_period(n_lanes: int, n_ticks: int) -> int:
    """Ticks of the next round of lanes that cross between owners, after `n_ticks` ticks.

    Nothing is fused, so only what ends a round counts: how long signals wait for it, and that it
    is not longer than the time between two certificates, which fall due by steps.
    """
    return max(1, min(n_ticks // TICK_SHARE, MAX_TICKS, ROUND_STEPS // n_lanes))


def is_balance_round(round: int) -> bool:
    """Whether borders may move after a round: often at first, while lanes spread out, then rarely.
    """
    return round % 8 == 0 if round <= 64 else round & (round - 1) == 0
