"""Schedules: pure functions of reduced numbers, so that all ranks decide alike."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
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
PIECES = 1024
"""Equal steps in which a schedule goes from its first value to its last."""


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


class Exploring:
    """How much is explored in each step: a function of the step alone, never of rounds or ranks.

    A schedule goes to its last value in `PIECES` equal pieces, or in steps of all lanes where it
    has fewer, and is constant within one: so loops that are called for many steps at once are
    called for each piece of them.

    Parameters
    ----------
    learn : `[learn]`. per_step : steps of all lanes while each makes one.
    """

    def __init__(self, learn: Any, per_step: int) -> None:
        self.learn, self.per_step = learn, per_step
        exploration = EXPLORATIONS[learn.exploration]
        self.key, self._encode = exploration.key, exploration.encode
        constant = getattr(learn, f"{self.key}_schedule") == "constant"
        acts = learn.sampling != "generative"
        length = getattr(learn, f"{self.key}_steps") if acts and not constant else 0
        self.piece = max(1, length // (PIECES * per_step))
        """Steps of a lane in which nothing changes."""
        self._last = -(-length // per_step)
        """Steps of a lane after which nothing changes any more, and the piece that then begins."""
        self._settled = -(-self._last // self.piece)
        self._known: tuple[int, int] = (-1, 0)

    def _number(self, n_made: int) -> int:
        return self._settled if n_made >= self._last else n_made // self.piece

    def value(self, n_made: int) -> float:
        """Epsilon or temperature of the step after `n_made` steps of a lane."""
        begun = min(self._number(n_made) * self.piece, self._last)
        return exploration_at(self.learn, begun * self.per_step)

    def code(self, n_made: int) -> int:
        """As `value`, as kernels take it."""
        number = self._number(n_made)
        if self._known[0] != number:
            self._known = number, self._encode(self.value(n_made))
        return self._known[1]

    def pieces(self, first: int, n: int) -> Sequence[tuple[int, int, int]]:
        """Cut steps [first, first + n) of a lane, which are counted from 1, into such as explore
        alike: (first step, steps, what kernels take) of each."""
        if not self._settled or self._number(first - 1) == self._number(first + n - 2):
            return ((first, n, self.code(first - 1)),)
        found, stop = [], first + n
        while first < stop:
            number = self._number(first - 1)
            end = stop
            if number < self._settled:
                end = min(stop, min((number + 1) * self.piece, self._last) + 1)
            found.append((first, end - first, self.code(first - 1)))
            first = end
        return found


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
