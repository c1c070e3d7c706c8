"""The environments of an agent's lanes, stepped in Python, and how they are brought back.

Every episode is seeded by (seed, lane, step at which it begins), and every lane keeps the actions
of its current episode: to roll back or to resume they are made again (but for a round that is run
again as it was, see `tape`). Where an environment then
shows something else than it did, its own randomness is not seeded; the lane begins its next
episode, and the run is not reproducible.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from distq_mpi.environments.calls import beginning, check_parts, flag, number, refusal, transition
from distq_mpi.environments.silence import shut, silence
from distq_mpi.environments.spaces import Range
from distq_mpi.environments.tape import Tape
from distq_mpi.errors import Interrupted, ModelError
from distq_mpi.kernels.draws import CERTIFICATE, EVALUATION_RESET, RESET, threefry

if TYPE_CHECKING:
    from distq_mpi.lanes import Lanes

u8 = np.uint64

WORLD_DTYPE = np.dtype(
    [("start", np.uint64), ("n_actions", np.uint32), ("truncated", np.bool_), ("idle", np.bool_)]
)
"""What a checkpoint holds of a lane besides `lanes.LANE_DTYPE`; its actions follow apart."""
SEED_SHIFT = u8(32)
TRIED_STEPS = 20


def _as_it_is(x: Any) -> Any:
    return x


@dataclass(frozen=True)
class Kind:
    """What all worlds of a stepped environment have in common.

    Parameters
    ----------
    id : as in `env.id`.
    states, actions : its spaces as ranges.
    make : a new environment of Gymnasium; the caller closes it.
    make_vector : number -> vector environment, where it exists only as that (`make` then gives one
        of one as a single environment), else None.
    bare : a new environment before it is cut into bins.
    space, observe, act : its observation space, what an observation of it is in `states`, and what
        an element of `actions` is for it.
    """

    id: str
    states: Range
    actions: Range
    make: Callable[[], Any]
    make_vector: Callable[[int], Any] | None = None
    bare: Callable[[], Any] | None = None
    space: Any = None
    observe: Callable[[Any], Any] = _as_it_is
    act: Callable[[Any], Any] = _as_it_is


def reset_seeds(seed: int, lanes: np.ndarray, step: int, purpose: np.uint64 = RESET) -> list[int]:
    """Seeds of the episodes that these lanes begin at a step: the high half of a draw. Local."""
    with np.errstate(over="ignore"):
        words = threefry(u8(step), lanes.astype(u8), u8(seed), purpose)[0]
    found: list[int] = (words >> SEED_SHIFT).tolist()
    return found


class Worlds:
    """One environment per lane of `lanes`, which hold what was seen; local.

    Attributes, per lane: `start` uint64 and `truncated`, `idle` bool as `stepping.learn` takes
    them; `matched`, whether every episode that was made again showed what it had shown.
    """

    def __init__(self, kind: Kind, first: int, n: int, seed: int) -> None:
        self.kind, self.first, self.n, self.seed = kind, first, n, seed
        self.start, self.matched = np.zeros(n, u8), True
        self.truncated, self.idle = np.zeros(n, np.bool_), np.zeros(n, np.bool_)
        self._numbers = np.arange(first, first + n)
        self._made = [kind.make() for _ in range(n)]
        self._steps = [world.step for world in self._made]
        self._resets = [world.reset for world in self._made]
        self._actions: list[list[int]] = [[] for _ in range(n)]
        self._committed, self._tape = self._snapshot(), Tape()
        self._moved = False

    def begin(self, step: int = 0) -> None:
        """Begin an episode of every lane in a step; one more is tried for whether its seed decides
        it."""
        seeds = reset_seeds(self.seed, self._numbers, step)
        self.matched = repeats(self.kind, seeds[0])
        for lane, seed in enumerate(seeds):
            self.start[lane] = self._reset(lane, seed)

    def step(self, lanes: Lanes, now: int) -> None:
        """Make every lane's chosen transition, in step `now`; write what comes of it. Begins the
        next episode of those that end.

        Raises ModelError naming lane, state and action where an environment raises, leaves its
        space, or gives a reward that is not finite. What it does with the action it was given stays
        its own affair.
        """
        arrays = lanes.arrays()
        shown = (*arrays[2:5], self.truncated, self.start, self.idle)
        if self._tape.play(arrays[1], shown):
            return
        chosen, history = arrays[1].tolist(), self._actions
        index, element = self.kind.states.index, self.kind.actions.element
        following, rewards, ends, cuts, over = [], [], [], [], []
        lane, given = 0, (None,) * 5
        self._moved = True
        try:
            for lane, step in enumerate(self._steps):
                action = chosen[lane]
                # As `transition` does it, without a call for every step.
                given = step(element(action))
                seen, reward, terminated, truncated, _ = given
                if type(reward) is not float:
                    reward = number(reward)
                if type(terminated) is not bool:
                    terminated = flag("terminated", terminated)
                if type(truncated) is not bool:
                    truncated = flag("truncated", truncated)
                following.append(index(seen))
                rewards.append(reward)
                ends.append(terminated)
                cuts.append(truncated)
                if terminated or truncated:
                    over.append(lane)
                else:
                    history[lane].append(action)
        except BaseException as error:  # whatever the user's environment raises
            raise self._mistake(lanes, lane, check_parts(given) or error) from error
        arrays[2][:], arrays[3][:], arrays[4][:] = following, rewards, ends
        self.truncated[:], self.idle[:] = cuts, False
        if not np.isfinite(arrays[3]).all():
            lane = int(np.argmin(np.isfinite(arrays[3])))
            raise self._mistake(lanes, lane, ValueError(f"reward {rewards[lane]} is not finite"))
        if over:
            numbers = self._numbers[over]
            for lane, seed in zip(over, reset_seeds(self.seed, numbers, now + 1), strict=True):
                self.start[lane] = self._reset(lane, seed)
        self._tape.record(arrays[1], shown)

    def commit(self) -> None:
        """Take what was made since the last commit for good."""
        self._committed, self._moved = self._snapshot(), False
        self._tape.clear()

    def rewind(self, lanes: Lanes, n_steps: int, again: bool = False) -> None:
        """Return to the last commit.

        lanes : as committed, after `n_steps` steps of every lane. again : the very same steps will
        be made; environments are then left where they are, and what they showed is shown again.
        """
        if not self._moved:
            return
        start, truncated, idle, actions = self._committed
        self.start[:], self.truncated[:], self.idle[:] = start, truncated, idle
        if again and self._tape.again():
            return
        self._tape.clear()
        self._actions = [list(made[:length]) for made, length in actions]
        for lane in range(self.n):
            self._replay(lane, lanes, n_steps)
        self._committed, self._moved = self._snapshot(), False

    def pack(self, committed: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """The committed state as checkpoints hold it: rows (n,) of WORLD_DTYPE, all actions.

        committed : False takes the state that `commit` would.
        """
        start, truncated, idle, actions = self._committed if committed else self._snapshot()
        packed = np.zeros(self.n, WORLD_DTYPE)
        packed["start"], packed["truncated"], packed["idle"] = start, truncated, idle
        packed["n_actions"] = [length for _, length in actions]
        flat = [action for made, length in actions for action in made[:length]]
        return packed, np.array(flat, np.uint32)

    def unpack(self, packed: np.ndarray, actions: np.ndarray, lanes: Lanes, n_steps: int) -> None:
        """Become what a checkpoint holds. Arguments as `pack` gives and `rewind` takes them."""
        stops = np.cumsum(packed["n_actions"])
        made = [part.tolist() for part in np.split(actions, stops[:-1])]
        self._committed = (
            packed["start"].copy(), packed["truncated"].copy(), packed["idle"].copy(),
            [(part, len(part)) for part in made],
        )  # fmt: skip
        self._moved = True
        self.rewind(lanes, n_steps)

    def close(self) -> None:
        """Close all environments."""
        for world in self._made:
            shut(world)

    def _snapshot(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[tuple[list[int], int]]]:
        # An episode's list only grows, and the next episode begins another: a length is enough.
        actions = [(made, len(made)) for made in self._actions]
        return self.start.copy(), self.truncated.copy(), self.idle.copy(), actions

    def _reset(self, lane: int, seed: int) -> int:
        self._actions[lane] = []
        try:
            return beginning(self.kind.states.index, self._resets[lane](seed=seed))
        except BaseException as error:  # whatever the user's environment raises
            where = f"{self.kind.id}: lane {self.first + lane}: reset(seed={seed})"
            raise refusal(where, error) from error

    def _replay(self, lane: int, lanes: Lanes, n_steps: int) -> None:
        """Make a lane's episode again, up to the commit."""
        _, _, next_state, reward, terminated, age, _ = lanes.arrays()
        ended = bool(terminated[lane] or self.truncated[lane])
        begun = n_steps + 1 if ended or self.idle[lane] else n_steps - int(age[lane])
        actions = self._actions[lane]
        numbers = self._numbers[lane : lane + 1]
        seen = self._reset(lane, reset_seeds(self.seed, numbers, begun)[0])
        if ended or self.idle[lane]:
            same = seen == self.start[lane]
        else:
            same = self._made_again(lane, actions, int(next_state[lane]), float(reward[lane]))
        self._actions[lane] = actions if same else []
        if not same:
            self.matched = False
            seen = self._reset(lane, reset_seeds(self.seed, numbers, n_steps + 1)[0])
            self.start[lane] = seen
            # The end of an episode that was seen stays; one that went on is dropped.
            self.idle[lane] = self.idle[lane] or not ended

    def _made_again(self, lane: int, actions: list[int], state: int, reward: float) -> bool:
        """Whether these actions lead to the same state and last reward once more."""
        index, element = self.kind.states.index, self.kind.actions.element
        seen, gained = -1, 0.0
        try:
            for action in actions:
                seen, gained, over, cut = transition(index, self._steps[lane](element(action)))
                if over or cut:
                    return False
            return seen == state and gained == reward
        except Interrupted:
            raise
        except BaseException:  # whatever it raises, it did not before
            return False

    def _mistake(self, lanes: Lanes, lane: int, error: BaseException) -> ModelError:
        state, action = (int(array[lane]) for array in lanes.arrays()[:2])
        lane += self.first
        return refusal(f"{self.kind.id}: lane {lane}, state {state}, action {action}", error)


def repeats(kind: Kind, seed: int) -> bool:
    """Tell whether an environment shows the same twice after `reset(seed=seed)`. Local.

    An open mind where it raises: whoever steps it will say so, with lane, state and action.
    """
    world, index = kind.make(), kind.states.index
    try:
        found = []
        for _ in range(2):
            seen: list[float] = [beginning(index, world.reset(seed=seed))]
            for k in range(TRIED_STEPS):
                made = transition(index, world.step(kind.actions.element(k % kind.actions.n)))
                seen += made
                if made[2] or made[3]:
                    break
            found.append(seen)
    except Interrupted:
        raise
    except BaseException:  # whatever the user's environment raises
        return True
    finally:
        shut(world)
    return found[0] == found[1]


def play(
    kind: Kind, greedy: list[int], seed: int, first: int, returns: np.ndarray, longest: int,
    ended: np.ndarray,
) -> Iterator[None]:  # fmt: skip
    """Play episodes [first, first + n) of a policy, and write their returns, float64 (n,), and
    whether they terminated, float64 (n,). Yields after every step; to be run under `silence`.
    Local.

    greedy : the action of every state. Every episode is a function of (seed, its number), as far
    as the environment is one of its seed.

    Raises ModelError naming episode, state and action where the environment raises.
    """
    numbers = np.arange(first, first + len(returns))
    index, element = kind.states.index, kind.actions.element
    world = kind.make()

    def refused(where: str, error: BaseException) -> ModelError:
        return refusal(f"{kind.id}: evaluation, episode {first + k}, {where}", error)

    try:
        for k, word in enumerate(reset_seeds(seed, numbers, 0, EVALUATION_RESET)):
            try:
                state, total, made = beginning(index, world.reset(seed=word)), 0.0, 0
            except BaseException as error:  # whatever the user's environment raises
                raise refused(f"reset(seed={word})", error) from error
            over = terminated = False
            while not over and made < longest:
                action = greedy[state]
                try:
                    given = world.step(element(action))
                    following, reward, terminated, truncated = transition(index, given)
                    total, made, over = total + reward, made + 1, terminated or truncated
                    if not math.isfinite(total):
                        raise ValueError(f"the return is {total}")
                except BaseException as error:  # whatever the user's environment raises
                    raise refused(f"state {state}, action {action}", error) from error
                state = following
                yield
            returns[k], ended[k] = total, terminated
    finally:
        shut(world)


def wander(
    kind: Kind, seed: int, check: int, episodes: range, longest: int
) -> list[tuple[int, float, int, bool]]:
    """Play episodes of uniformly random actions; return (pair, reward, next state, terminated) of
    all their steps, in order. Local.

    Every episode is a function of (seed, check, its number), as far as the environment is one of
    its seed; one of a check is one of another, or of learning, by the chance of equal 32 bits only.

    Raises ModelError naming episode, state and action where the environment raises.
    """
    index, element, n = kind.states.index, kind.actions.element, kind.actions.n
    numbers = np.array(episodes, np.uint64)
    seeds = reset_seeds(seed, numbers, check, CERTIFICATE)
    world, met, where, k = kind.make(), [], "", 0
    try:
        with silence():
            for k, word in enumerate(seeds):
                where = f"reset(seed={word})"
                draws = np.random.default_rng([seed, check, episodes[k]])
                state, made = beginning(index, world.reset(seed=word)), 0
                over = False
                while not over and made < longest:
                    action = int(draws.integers(n))
                    where = f"state {state}, action {action}"
                    following, reward, terminated, truncated = transition(
                        index, world.step(element(action))
                    )
                    met.append((state * n + action, reward, following, terminated))
                    state, made, over = following, made + 1, terminated or truncated
    except BaseException as error:  # whatever the user's environment raises
        where = f"{kind.id}: certificate, episode {episodes[k]}, {where}"
        raise refusal(where, error) from error
    finally:
        shut(world)
    return met
