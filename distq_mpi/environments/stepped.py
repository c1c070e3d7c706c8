"""Any environment of Gymnasium with finite spaces, stepped in Python."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from distq_mpi.environments.base import Environment
from distq_mpi.environments.calls import described, refusal
from distq_mpi.environments.contents import contents_hash, is_plain
from distq_mpi.environments.copies import NEUTRAL
from distq_mpi.environments.silence import shut, silence
from distq_mpi.environments.spaces import MOST, counted, range_of, whole_numbers
from distq_mpi.environments.vector import Single, VectorWorlds
from distq_mpi.environments.worlds import Kind, Worlds
from distq_mpi.errors import ModelError

Bins = int | Sequence[int]
Clip = float | Sequence[float]

OPEN_ENDED = 1e30
"""Limits beyond this stand for none: the largest float32 is one that many environments tell."""
MOST_BINS = 1 << 24
"""Bins of one dimension: the wrappers list their borders, and float32 tells no more apart."""


def stepped_environment(
    id: str,
    make: Callable[[], Any],
    make_vector: Callable[[int], Any] | None = None,
    bins: Bins = 0,
    clip: Clip = 0.0,
    max_episode_steps: int = 0,
    *,
    note: str = "",
    contents: tuple[Any, ...] = (),
    unidentified: str = "",
) -> Environment:
    """Return the facts of an environment that `make` gives any number of; makes one to look. Local.

    Parameters
    ----------
    make : a new environment of Gymnasium. make_vector : number -> vector environment, where it
        exists only as that; `make` is then not called.
    bins : equal bins of each dimension of a Box, observations first, then actions; one number for
        all; 0 = none: a Box of whole numbers is then taken as it is. clip : symmetric limits of
        each dimension of the observation, one number for all; 0 = none.
    max_episode_steps : what `make` limits episodes to; 0 = unknown or none.
    note : for the summary, why it is stepped.
    contents : what else it is known by. unidentified : why that is not all, "" if it is.

    Raises
    ------
    ModelError
        If a space is not finite, with what to do about it.
    """

    def uncut() -> Any:
        with silence():
            try:
                return make() if make_vector is None else Single(make_vector(1))
            except ModelError:
                raise
            except BaseException as error:  # whatever the user's environment raises
                raise refusal(f"{id} could not be made", error) from error

    borders: dict[str, Any] = {}

    def cut() -> Any:
        with silence():
            world = discretised(id, uncut(), bins, clip, make_vector is not None)
            _share_borders(world, borders)
            return world

    world = cut()
    try:
        _refuse_old_spaces(id, world)
        states = range_of(id, "observation", world.observation_space)
        actions = range_of(id, "action", world.action_space)
        spaces = f"{world.observation_space} {world.action_space}"
        whole, observe, act = _uncut(world)
        # Of the environment itself: a wrapper's spec is a copy, which not all arguments allow.
        bare = getattr(getattr(whole, "unwrapped", whole), "spec", None)
        arguments, why = _known(getattr(bare, "kwargs", {}))
        with silence():  # a spec that cannot be copied warns
            spec, limit = whole.spec, getattr(world.spec, "max_episode_steps", None)
        limit = max_episode_steps or limit or 0
        around = [_known(wrapper.kwargs or {}, wrapper.name)
                  for wrapper in getattr(spec, "additional_wrappers", ())
                  if wrapper.name not in NEUTRAL]  # fmt: skip
    finally:
        shut(world)
    if states.n * actions.n >= MOST:
        raise ModelError(
            f"{id}: {counted(states.sizes)} states x {counted(actions.sizes)} actions; the limit "
            "is 2^62"
        )
    kind = Kind(
        id, states, actions, cut, make_vector, uncut, whole.observation_space, observe, act
    )
    facts = ("distq_mpi stepped 1", id, arguments, bins, clip, spaces, limit)
    more = (*contents, *(known for known, _ in around))
    text = repr((*facts, *more))
    why = next(filter(None, (unidentified, why, *(reason for _, reason in around))), "")
    return Environment(
        id=id,
        kind="stepped",
        n_states=states.n,
        n_actions=actions.n,
        params=(),
        law_step=None,
        law_start=None,
        outcomes=None,
        outcome=None,
        start=None,
        n_starts=0,
        n_transitions=0,
        max_episode_steps=limit,
        return_bound=None,
        deterministic=False,
        model_id=hashlib.sha256(text.encode()).hexdigest(),
        unidentified=why,
        summary=f"stepped in Python {id}: {states.n:,} states x {actions.n:,} actions"
        + (f", {note}" if note else ""),
        worlds=kind,
    )


def _known(arguments: Mapping[str, Any], of: str = "") -> tuple[list[tuple[str, Any]], str]:
    """Arguments as an identity holds them, plain ones as they are, others by a hash of their
    contents; and why one cannot be hashed, "" if all can be.

    of : the wrapper that takes them, if it is one.
    """
    known: list[tuple[str, Any]] = [("wrapper", of)] if of else []
    why = ""
    for name, value in sorted(arguments.items()):
        if is_plain(value):
            known.append((name, value))
            continue
        try:
            label = f"argument {name}{f' of {of}' if of else ''}"
            known.append((name, contents_hash(label, value)))
        except ModelError as error:
            known.append((name, type(value).__qualname__))
            why = why or str(error)
    return known, why


def _refuse_old_spaces(id: str, world: Any) -> None:
    for space in (world.observation_space, world.action_space):
        if is_old(space):
            raise ModelError(
                f"{id}: its space {space} is of gym, not gymnasium; import spaces from gymnasium"
            )


def is_old(thing: Any) -> bool:
    """Whether an object or a class is of the package gym, which Gymnasium replaced. Local."""
    kinds = thing.__mro__ if isinstance(thing, type) else type(thing).__mro__
    return any(kind.__module__.partition(".")[0] == "gym" for kind in kinds)


def old_interface(world: Any, action: Any) -> str:
    """Return in words how `reset` and `step` are those of gym before 0.26; "" if they are not.

    An environment that raises is left to whoever steps it, who names lane, state and action. Local.
    """
    try:
        with silence():
            seen = world.reset(seed=0)
            pair = isinstance(seen, tuple | list) and len(seen) == 2
            if not pair or not isinstance(seen[1], Mapping | None):
                return "reset must return (observation, info)"
            given = world.step(action)
            if isinstance(given, tuple | list) and len(given) != 5:
                return (
                    "step must return (observation, reward, terminated, truncated, info), not "
                    f"{len(given)} values"
                )
    except TypeError as error:
        return "reset must take seed and options" if "'seed'" in str(error) else ""
    except BaseException as error:  # whatever the user's environment raises
        described(error)  # an interrupt goes on
        return ""
    return ""


def open_worlds(kind: Kind, first: int, n: int, seed: int) -> Worlds | VectorWorlds:
    """Make the environments of lanes [first, first + n); the caller closes them. Local."""
    return (Worlds if kind.make_vector is None else VectorWorlds)(kind, first, n, seed)


def discretised(id: str, world: Any, bins: Bins, clip: Clip, vector: bool = False) -> Any:
    """Wrap an environment so that its boxes are cut into bins, by Gymnasium's wrappers.

    A Box of whole numbers is cut where bins are given, unless there are as many as the continuous
    dimensions without it. vector : it is one of a vector environment, which cannot be wrapped so.

    Raises ModelError where they cannot be, naming the dimension and what to write.
    """
    from gymnasium import spaces
    from gymnasium.wrappers import DiscretizeAction, DiscretizeObservation, TransformObservation

    seen, done = world.observation_space, world.action_space
    boxes = [math.prod(x.shape) if isinstance(x, spaces.Box) else 0 for x in (seen, done)]
    whole = [isinstance(x, spaces.Box) and whole_numbers(x) for x in (seen, done)]
    continuous = [0 if skip else n for n, skip in zip(boxes, whole, strict=True)]
    only_continuous = not isinstance(bins, int) and len(bins) == sum(continuous)
    n_seen, n_done = boxes if bins and not only_continuous else continuous
    if not (n_seen or n_done):
        if bins or clip:
            key = "bins" if bins else "clip"
            raise ModelError(
                f"env.{key}: {id} has no continuous space to cut ({seen}, {done}); "
                "a Box within another space is not one"
            )
        return world
    if vector:
        raise ModelError(
            f"{id}: {seen if n_seen else done} is continuous, and what exists only as vector "
            "environment cannot be cut into bins"
        )
    if not bins:
        space, name = (seen, "observation") if n_seen else (done, "action")
        raise ModelError(
            f"{id}: its {name} space {space} is continuous: --env.bins N cuts each of "
            f"{n_seen + n_done} dimensions into N equal bins (or N,N,... for each)"
        )
    counts = [bins] * (n_seen + n_done) if isinstance(bins, int) else [int(n) for n in bins]
    if len(counts) != n_seen + n_done or min(counts) < 1:
        raise ModelError(
            f"env.bins: {id} has {n_seen + n_done} continuous dimensions (observation {n_seen}, "
            f"action {n_done}), each of which needs at least 1 bin, not {counts}"
        )
    _check_counts(id, counts[:n_seen], counts[n_seen:])
    if n_seen:
        low, high, clipped = _clipped(id, seen, clip)
        limits = _Limits(low, high, clipped)
        box = spaces.Box(low.astype(seen.dtype), high.astype(seen.dtype), dtype=seen.dtype)
        world = TransformObservation(world, limits, box)
        world = DiscretizeObservation(world, tuple(counts[:n_seen]))
    if n_done:
        world = DiscretizeAction(world, tuple(counts[n_seen:]))
    return world


def _check_counts(id: str, seen: list[int], done: list[int]) -> None:
    """Raise ModelError where bins are more than can be counted, before anything is made of them."""
    most = max([*seen, *done])
    if most > MOST_BINS:
        raise ModelError(
            f"env.bins: {id}: {most:,} bins of one dimension; the limit is {MOST_BINS:,}"
        )
    for sizes, name in ((seen, "states"), (done, "actions")):
        if math.prod(sizes) >= MOST:
            raise ModelError(f"env.bins: {id}: {counted(sizes)} {name}; the limit is 2^62")


def _share_borders(world: Any, borders: dict[str, Any]) -> None:
    """Let every environment read the borders of the bins of the first one, which has put them into
    `borders`; the wrappers would keep their own for every lane. Local."""
    from gymnasium.wrappers import DiscretizeAction, DiscretizeObservation

    if isinstance(world, DiscretizeAction):
        world.bin_centers = borders.setdefault("actions", world.bin_centers)
        world = world.env
    if isinstance(world, DiscretizeObservation):
        world.bin_edges = borders.setdefault("observations", world.bin_edges)


def _uncut(world: Any) -> tuple[Any, Callable[[Any], Any], Callable[[Any], Any]]:
    """What `discretised` wrapped, and its wrappers as functions: of observations, of actions."""
    from gymnasium.wrappers import DiscretizeAction, DiscretizeObservation, TransformObservation

    seen: list[Callable[[Any], Any]] = []
    done: list[Callable[[Any], Any]] = []
    if isinstance(world, DiscretizeAction):
        done, world = [world.action], world.env
    if isinstance(world, DiscretizeObservation):
        seen, world = [world.observation], world.env
        if type(world) is TransformObservation and isinstance(world.func, _Limits):
            seen, world = [world.observation, *seen], world.env

    def observe(x: Any) -> Any:
        for function in seen:
            x = function(x)
        return x

    def act(x: Any) -> Any:
        for function in done:
            x = function(x)
        return x

    return world, observe, act


class _Limits:
    """Holds an observation to [low, high]: limits it where `clipped`, refuses others beyond."""

    def __init__(self, low: np.ndarray, high: np.ndarray, clipped: np.ndarray) -> None:
        self.low, self.high = low, high
        # Limits told in float32 are met by float64 but for rounding.
        slack = 1e-6 * np.maximum(1.0, np.maximum(np.abs(low), np.abs(high)))
        self._least = np.where(clipped, -np.inf, low - slack)
        self._most = np.where(clipped, np.inf, high + slack)

    def __call__(self, x: Any) -> Any:
        seen = np.asarray(x)
        if seen.shape != self.low.shape:
            raise ValueError(f"{x!r} is not of the shape {self.low.shape}")
        # So written that NaN is refused, too.
        if not ((seen >= self._least) & (seen <= self._most)).all():
            hint = "" if np.isnan(seen).any() else "; env.clip would limit it"
            raise ValueError(f"{x!r} is not from {self.low.tolist()} to {self.high.tolist()}{hint}")
        return np.clip(seen, self.low, self.high)


def _clipped(id: str, space: Any, clip: Clip) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Limits of a Box after clipping, finite in every dimension, and which ones are clipped."""
    limits = np.full(space.shape, clip) if isinstance(clip, int | float) else np.array(clip, float)
    if limits.size != math.prod(space.shape) or (limits < 0).any():
        raise ModelError(
            f"env.clip: {id} has {math.prod(space.shape)} observed dimensions, each of which needs "
            f"a limit above 0 (0 = the space's own), not {limits.ravel().tolist()}"
        )
    clipped = (limits > 0).reshape(space.shape)
    limits = np.where(clipped, limits.reshape(space.shape), np.inf)
    low = np.maximum(space.low.astype(np.float64), -limits)
    high = np.minimum(space.high.astype(np.float64), limits)
    open_ended = np.flatnonzero((low < -OPEN_ENDED) | (high > OPEN_ENDED))
    if open_ended.size:
        raise ModelError(
            f"{id}: dimensions {open_ended.tolist()} of its observation space {space} are "
            "infinite: --env.clip LIMIT (or LIMIT,LIMIT,... for each) bounds them"
        )
    empty = np.flatnonzero(low > high)
    if empty.size:
        raise ModelError(
            f"env.clip: {limits.ravel()[empty].tolist()} leave nothing of dimensions "
            f"{empty.tolist()} of {id}'s observation space {space}"
        )
    return low, high, clipped
