"""Environments like one that was given as an object, which itself is never stepped or changed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

from distq_mpi.environments.calls import described
from distq_mpi.environments.contents import contents_hash
from distq_mpi.environments.silence import shut, silence
from distq_mpi.errors import ModelError

LINKS = ("env", "spec", "_cached_spec", "_np_random", "_np_random_seed")
"""Attributes that make no difference: what is compared by itself, and what `reset(seed)` sets."""
NEUTRAL = (
    "TimeLimit", "OrderEnforcing", "PassiveEnvChecker", "RecordEpisodeStatistics", "RecordVideo",
    "HumanRendering", "RenderCollection", "Monitor",
)  # fmt: skip
"""Wrappers that change nothing but the length of episodes."""


def layers(world: Any) -> Iterator[Any]:
    """Yield an environment's wrappers, the outermost first, and the environment itself."""
    while world is not world.unwrapped:
        yield world
        world = world.env
    yield world


def is_neutral(wrapper: Any) -> bool:
    """Whether a wrapper is known to change nothing but the length of episodes."""
    kind, home = type(wrapper), ("gymnasium.wrappers.", "stable_baselines3.common.")
    replaced = {"step", "reset"} & vars(wrapper).keys()
    return kind.__name__ in NEUTRAL and kind.__module__.startswith(home) and not replaced


def copies_of(id: str, given: Any) -> Callable[[], Any]:
    """Return what makes environments like the one given, wrappers and attributes included. Local.

    By its spec where that gives the same; else by copying it, or its attributes. Each way is tried
    once, and its result compared with the original, attribute by attribute.

    Raises
    ------
    ModelError
        If none gives a faithful copy; names the attribute, or what copying raises.
    """
    with silence():  # a spec that cannot be copied warns
        spec = given.spec
    failures: list[str] = []
    opaque: Callable[[], Any] | None = None
    for way, make in (
        ("gymnasium.make", lambda: _made_again(spec)),
        ("copying it", lambda: copy.deepcopy(given)),
        ("copying its attributes", lambda: _twin(given)),
    ):
        if way == "gymnasium.make" and spec is None:
            continue
        try:
            with silence():
                made = make()
        except BaseException as error:  # whatever the object's own constructor or copying raises
            failures.append(f"{way} raises {described(error)}")
            continue
        differs, unsure = difference(given, made)
        shut(made)
        if not differs and (not unsure or way != "gymnasium.make"):
            return make
        if differs:
            failures.append(f"{way} gives another {differs}")
        else:
            opaque = make
    if opaque is not None:
        return opaque
    raise ModelError(
        f"{id}: one environment per lane is needed, but no faithful copy of the object can be "
        f"made: {'; '.join(failures)}; give its class, or register it and give its id"
    )


def difference(given: Any, made: Any) -> tuple[str, bool]:
    """Return the first attribute in which two environments differ, "" for none, and whether there
    are some that cannot be compared. Local."""
    ours, theirs = (
        [layer for layer in layers(world) if type(layer).__name__ != "PassiveEnvChecker"]
        for world in (given, made)
    )
    if [type(layer) for layer in ours] != [type(layer) for layer in theirs]:
        return "set of wrappers", False
    unsure = False
    for mine, other in zip(ours, theirs, strict=True):
        a_all, b_all = _attributes(mine), _attributes(other)
        for name in sorted(a_all.keys() | b_all.keys()):
            if name in LINKS:
                continue
            label = f"{type(mine).__name__}.{name}"
            if (name in a_all) != (name in b_all):
                return label, unsure
            a, b = a_all[name], b_all[name]
            if a is b:
                continue
            try:
                if contents_hash(name, a) != contents_hash(name, b):
                    return label, unsure
            except ModelError:
                if type(a) is not type(b):
                    return label, unsure
                unsure = True
    return "", unsure


def object_contents(make: Callable[[], Any]) -> tuple[tuple[tuple[str, str], ...], str]:
    """Return hashes of all attributes of environments that `make` gives, by name; and why some
    could not be hashed, "" if all were. Local.

    Taken after `reset(seed=0)`, so that it does not matter how an object was used before; what
    differs between two that are made and reset alike, such as a time of day, is left out.
    """
    tries, why = [], ""
    for _ in range(2):
        hashes: dict[str, str] = {}
        with silence():
            world = make()
            try:
                world.reset(seed=0)
                changing = (layer for layer in layers(world) if not is_neutral(layer))
                for depth, layer in enumerate(changing):
                    kind = f"{depth} {type(layer).__module__}.{type(layer).__qualname__}"
                    hashes[kind] = ""
                    for name, value in _attributes(layer).items():
                        if name in LINKS:
                            continue
                        label = f"{type(layer).__name__}.{name}"
                        try:
                            hashes[f"{kind}.{name}"] = contents_hash(label, value)
                        except ModelError as error:
                            why = str(error)
            except BaseException as error:  # whatever the user's environment raises
                why = f"reset(seed=0) raises {described(error)}"
            finally:
                shut(world)
        tries.append(hashes)
    first, second = tries
    return tuple(sorted(first.items() & second.items())), why


def _attributes(layer: Any) -> dict[str, Any]:
    return getattr(layer, "__dict__", {})


def _made_again(spec: Any) -> Any:
    import gymnasium

    return gymnasium.make(spec, disable_env_checker=True)


def _twin(given: Any) -> Any:
    """Copy attributes one by one: classes may define copies that lack some (`EzPickle`)."""
    memo: dict[int, Any] = {}
    for layer in reversed(list(layers(given))):
        twin = object.__new__(type(layer))
        memo[id(layer)] = twin  # before its attributes, for those that lead back to it
        twin.__dict__.update(copy.deepcopy(_attributes(layer), memo))
    return memo[id(given)]
