"""Environments of Gymnasium that exist only as vector: all lanes of an agent are one object.

They reset themselves, so their episodes cannot be seeded one by one or brought back: a run on them
is not reproducible.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from distq_mpi.environments.calls import PARTS, flags, numbers, refusal
from distq_mpi.environments.silence import shut
from distq_mpi.environments.tape import Tape
from distq_mpi.environments.worlds import WORLD_DTYPE, Kind, reset_seeds
from distq_mpi.errors import ModelError

if TYPE_CHECKING:
    from distq_mpi.lanes import Lanes

NEXT_STEP, SAME_STEP = "NextStep", "SameStep"


class VectorWorlds:
    """The lanes [first, first + n) as one vector environment; attributes as of `Worlds`.

    What the environment gives where it resets instead of stepping (autoreset in the next step) is
    no transition: the lane is `idle`, and nothing is learned from it.
    """

    def __init__(self, kind: Kind, first: int, n: int, seed: int) -> None:
        assert kind.make_vector is not None
        self.kind, self.first, self.n, self.seed = kind, first, n, seed
        self.start, self.matched = np.zeros(n, np.uint64), False
        self.truncated, self.idle = np.zeros(n, np.bool_), np.zeros(n, np.bool_)
        self._over, self._tape = np.zeros(n, np.bool_), Tape()
        self._committed = self._snapshot()
        try:
            self._vector = kind.make_vector(n)
        except BaseException as error:  # whatever the user's environment raises
            raise refusal(f"{kind.id} could not be made", error) from error
        mode = self._vector.metadata.get("autoreset_mode", NEXT_STEP)
        self._mode = str(getattr(mode, "value", mode))

    def begin(self, step: int = 0) -> None:
        """Begin an episode of every lane in a step."""
        self._reset(step)

    def step(self, lanes: Lanes, now: int) -> None:
        """Make every lane's chosen transition; write what comes of it.

        Raises ModelError naming the lanes, or lane, state and action, where it cannot be learned
        from.
        """
        arrays = lanes.arrays()
        showing = (*arrays[2:5], self.truncated, self.start, self.idle)
        if self._tape.play(arrays[1], showing):
            return
        chosen = [self.kind.actions.element(a) for a in arrays[1].tolist()]
        actions = batch_of(self._vector.single_action_space, chosen)
        try:
            given = self._vector.step(actions)
            if not isinstance(given, tuple | list) or len(given) != 5:
                raise ValueError(f"step did not return {PARTS}")
            seen, rewards, ends, cuts, info = given
            shown = self._indices(seen)
            # Copies: what the environment returned it may change, at its next reset for one.
            rewards = numbers(rewards, self.n)
            ends, cuts = flags("terminated", ends, self.n), flags("truncated", cuts, self.n)
            over = ends | cuts
            self.idle[:] = False
            if self._mode == NEXT_STEP:
                self.idle[:] = self._over
                self.start[self._over] = shown[self._over]
                over &= ~self._over
            elif over.any():
                self.start[over] = shown[over]
                if self._mode == SAME_STEP:
                    last = info["final_obs"]
                    if isinstance(last, dict | tuple):
                        last = list(each_of(self._vector.observation_space, last))
                    for lane in np.flatnonzero(over):
                        shown[lane] = self.kind.states.index(last[lane])
                if self._mode != SAME_STEP:
                    fresh = self._vector.reset(options={"reset_mask": over.copy()})[0]
                    self.start[over] = self._indices(fresh)[over]
        except BaseException as error:  # whatever the user's environment raises
            raise self._mistake(error) from error
        bad = ~np.isfinite(rewards) & ~self.idle
        if bad.any():
            where = int(np.argmax(bad))
            raise ModelError(
                f"{self.kind.id}: lane {self.first + where}, state {arrays[0][where]}, action "
                f"{arrays[1][where]}: reward {rewards[where]} is not finite"
            )
        arrays[2][:], arrays[3][:], arrays[4][:] = shown, rewards, ends & ~self.idle
        self.truncated[:] = cuts & ~self.idle
        self._over = over
        self._tape.record(arrays[1], showing)

    def commit(self) -> None:
        """As `Worlds.commit`."""
        self._committed = self._snapshot()
        self._tape.clear()

    def rewind(self, lanes: Lanes, n_steps: int, again: bool = False) -> None:
        """Begin new episodes in all lanes; but with `again` as `Worlds.rewind`."""
        if again and self._tape.again():
            self.start[:], self.truncated[:], self.idle[:] = self._committed
            return
        self._tape.clear()
        self._reset(n_steps + 1)
        self.idle[:], self._over[:], self.truncated[:] = True, False, False

    def pack(self, committed: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """As `Worlds.pack`; every lane begins anew where this is taken up."""
        packed = np.zeros(self.n, WORLD_DTYPE)
        packed["idle"] = True
        return packed, np.zeros(0, np.uint32)

    def unpack(self, packed: np.ndarray, actions: np.ndarray, lanes: Lanes, n_steps: int) -> None:
        """As `Worlds.unpack`: begin new episodes."""
        self.rewind(lanes, n_steps)

    def close(self) -> None:
        """Close the environment."""
        shut(self._vector)

    def _snapshot(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.start.copy(), self.truncated.copy(), self.idle.copy()

    def _reset(self, step: int) -> None:
        word = reset_seeds(self.seed, np.array([self.first]), step)[0]
        try:
            self.start[:] = self._indices(self._vector.reset(seed=word)[0])
        except BaseException as error:  # whatever the user's environment raises
            raise self._mistake(error) from error

    def _mistake(self, error: BaseException) -> ModelError:
        lanes = f"lanes {self.first} to {self.first + self.n - 1}"
        return refusal(f"{self.kind.id}: {lanes}", error)

    def _indices(self, seen: Any) -> np.ndarray:
        index = self.kind.states.index
        found = [index(one) for one in each_of(self._vector.observation_space, seen)]
        if len(found) != self.n:
            raise ValueError(f"{len(found)} observations, not {self.n}")
        return np.array(found, np.uint64)


class Single:
    """A vector environment of one, as one environment: `reset`, `step` and `close`."""

    def __init__(self, vector: Any) -> None:
        self._vector, self.close = vector, vector.close
        self.observation_space = vector.single_observation_space
        self.action_space = vector.single_action_space
        self.spec = getattr(vector, "spec", None)

    def reset(self, seed: int | None = None) -> tuple[Any, Any]:
        """As of Gymnasium's environments."""
        seen, info = self._vector.reset(seed=seed)
        return next(iter(each_of(self._vector.observation_space, seen))), info

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, Any]:
        """As of Gymnasium's environments; after an end, `reset` before the next."""
        seen, reward, ended, cut, info = self._vector.step(batch_of(self.action_space, [action]))
        one = next(iter(each_of(self._vector.observation_space, seen)))
        if (ended[0] or cut[0]) and "final_obs" in info:
            one = info["final_obs"][0]
        return one, reward[0], ended[0], cut[0], info


def each_of(space: Any, batch: Any) -> Any:
    """The elements of a batch of a space of many."""
    from gymnasium.vector.utils import iterate

    return iterate(space, batch)


def batch_of(space: Any, elements: list[Any]) -> Any:
    """The elements of a single space as a batch."""
    from gymnasium.vector.utils import concatenate, create_empty_array

    empty: Any = create_empty_array(space, len(elements))
    return concatenate(space, elements, empty)
