"""A law whose values grow until no float32 holds them."""

from __future__ import annotations

from typing import Any


class Growing:
    """Two states that lead to each other, for a reward near the largest float32."""

    n_states, n_actions, n_outcomes, n_starts = 2, 1, 1, 1
    params = (0,)

    @staticmethod
    def outcome(state: Any, action: Any, i: Any, params: Any) -> Any:
        return 1.0, 1 - state, 2e37, False

    @staticmethod
    def start(i: Any, params: Any) -> Any:
        return 1.0, 0
