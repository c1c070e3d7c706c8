"""What is committed at the end of a round, besides table and lanes."""

from __future__ import annotations

import json
import math
from typing import NamedTuple

import numpy as np

from distq_mpi.fusion import FixedPoint
from distq_mpi.kernels.rounds import LIMB

WINDOW_EPISODES = 100


class Progress(NamedTuple):
    """Counters and control state after a committed round; the same on every rank.

    Parameters
    ----------
    round : rounds committed. lane_steps : steps every lane has made (`sharded`: ticks).
    steps, episodes : summed over all lanes.
    period : steps per lane of the next round.
    exponent, peak : the fixed-point scale of the next round (`fusion.FixedPoint`).
    window_episodes, window_return : the open window of finished episodes.
    mean_return : mean over the last closed window (at least 100 episodes), None before the first.
    square_sum : sum of squared TD errors of the last round; round_steps : its steps.
    agent_steps : steps of every lane of each agent, where they are not `lane_steps` of all.
    """

    round: int = 0
    lane_steps: int = 0
    steps: int = 0
    episodes: int = 0
    period: int = 1
    exponent: int = 0
    peak: int = 0
    window_episodes: int = 0
    window_return: float = 0.0
    mean_return: float | None = None
    square_sum: float = 0.0
    round_steps: int = 0
    agent_steps: tuple[int, ...] = ()

    @property
    def td_rms(self) -> float | None:
        """Root mean square TD error of the last round, reward units."""
        return math.sqrt(self.square_sum / self.round_steps) if self.round_steps else None

    def after(
        self, n_steps: int, learned: int, agreement: Agreement, period: int, scale: FixedPoint
    ) -> Progress:
        """After one more round of `n_steps` steps of every lane, in which `learned` transitions
        were learned from; period, scale : of the next one.

        The window of episodes closes once it holds enough.
        """
        n_window = self.window_episodes + agreement.episodes
        total, mean = self.window_return + agreement.return_sum, self.mean_return
        if n_window >= WINDOW_EPISODES:
            mean, n_window, total = total / n_window, 0, 0.0
        return Progress(
            self.round + 1, self.lane_steps + n_steps, self.steps + learned,
            self.episodes + agreement.episodes, period, scale.exponent, scale.peak, n_window,
            total, mean, agreement.square_sum, learned,
        )  # fmt: skip

    def to_json(self) -> str:
        """As checkpoints hold it."""
        return json.dumps(self._asdict())

    @classmethod
    def from_json(cls, text: str) -> Progress:
        """The inverse of `to_json`."""
        told = json.loads(text)
        return cls(**{**told, "agent_steps": tuple(told.get("agent_steps", ()))})

    def steps_of(self, agent: int) -> int:
        """Steps that every lane of an agent has made."""
        return self.agent_steps[agent] if self.agent_steps else self.lane_steps


# The agreed vector: int64 numbers that ride in front of the contributions and are summed. The first
# ten come from agents (`rounds.report`), the last three are what ranks have to say.
FIELDS = (
    "overflows", "large", "non_finite", "length", "visits", "episodes", "return_whole",
    "return_fraction", "square_whole", "square_fraction", "unstable", "want_stop",
    "want_checkpoint", "want_time",
)  # fmt: skip
UNSTABLE = FIELDS.index("unstable")
RETURNS = slice(FIELDS.index("return_whole"), FIELDS.index("return_fraction") + 1)
WISHES = slice(FIELDS.index("want_stop"), len(FIELDS))
HEADER = 16


class Agreement(NamedTuple):
    """What all ranks agreed on in a round: sums over agents (and over ranks, for wishes)."""

    overflows: int = 0
    large: int = 0
    non_finite: int = 0
    length: int = 0
    visits: int = 0
    episodes: int = 0
    return_sum: float = 0.0
    square_sum: float = 0.0
    unstable: int = 0
    """Pairs that the round before moved beyond their target (`fusing.GAIN_LIMIT`)."""
    want_stop: bool = False
    want_checkpoint: bool = False
    want_time: bool = False

    @classmethod
    def read(cls, header: np.ndarray) -> Agreement:
        """From the summed vector, int64 (HEADER,)."""
        (
            overflows, large, non_finite, length, visits, episodes, return_whole, return_fraction,
            square_whole, square_fraction, unstable, want_stop, want_checkpoint, want_time, _, _,
        ) = header.tolist()  # fmt: skip
        return cls(
            overflows, large, non_finite, length, visits, episodes,
            return_whole + return_fraction / LIMB, square_whole + square_fraction / LIMB,
            unstable, want_stop > 0, want_checkpoint > 0, want_time > 0,
        )  # fmt: skip
