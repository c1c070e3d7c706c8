"""A law whose every step is a random row: nothing a cache could help with."""

from __future__ import annotations

import numpy as np

u8, i8 = np.uint64, np.int64


class Uniform:
    """Every transition leads to a state that is a hash of (state, action): any is as likely."""

    n_actions, n_outcomes, uniform_starts = 4, 1, True

    def __init__(self, states: int) -> None:
        self.n_states = self.n_starts = states
        self.params = (states,)

    @staticmethod
    def outcome(state, action, i, params):  # type: ignore[no-untyped-def]
        (states,) = params
        x = (u8(state) * u8(4) + u8(action) + u8(1)) * u8(0x9E3779B97F4A7C15)
        x = (x ^ (x >> u8(30))) * u8(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> u8(27))) * u8(0x94D049BB133111EB)
        ahead = ((x >> u8(32)) * u8(states)) >> u8(32)
        return 1.0, i8(ahead), (x & u8(255)) * (1 / 256), False

    @staticmethod
    def start(i, params):  # type: ignore[no-untyped-def]
        (states,) = params
        return 1.0 / states, i
