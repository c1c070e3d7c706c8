"""What a round's steps showed, for a round that is run again from the same base.

There the choices are the same, and so is what environments would show: to step them again, and to
bring them back first, would cost more than the round did.
"""

from __future__ import annotations

import numpy as np

LONGEST = 1 << 20
"""Transitions of an agent up to which a round is kept, 46 bytes each."""


class Tape:
    """The steps since the last commit; owns copies of what it was given."""

    def __init__(self) -> None:
        self._steps: list[tuple[np.ndarray, ...]] = []
        self._next = 0
        self._whole = True

    def record(self, chosen: np.ndarray, shown: tuple[np.ndarray, ...]) -> None:
        """Keep a step: `chosen` actions and what was shown, arrays (n,)."""
        if (len(self._steps) + 1) * len(chosen) > LONGEST:
            self._whole = False
            self._steps.clear()
        if self._whole:
            self._steps.append((chosen.copy(), *(array.copy() for array in shown)))
            self._next = len(self._steps)

    def play(self, chosen: np.ndarray, shown: tuple[np.ndarray, ...]) -> bool:
        """Write what was shown in the next step into `shown`; False where there is none."""
        if self._next == len(self._steps):
            return False
        made, *kept = self._steps[self._next]
        assert np.array_equal(made, chosen), "a round that is run again chooses as it did"
        for array, values in zip(shown, kept, strict=True):
            array[:] = values
        self._next += 1
        return True

    def again(self) -> bool:
        """Go to the first step; False where the steps were too many to be kept."""
        self._next = 0
        return self._whole

    def clear(self) -> None:
        """Begin anew, at a commit."""
        self._steps.clear()
        self._next, self._whole = 0, True
