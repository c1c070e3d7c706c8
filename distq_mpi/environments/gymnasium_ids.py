"""From an id, or a class, to environments of Gymnasium, with the wrappers that were asked for."""

from __future__ import annotations

import contextlib
import importlib.metadata
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

from distq_mpi.environments.arguments import suggestion
from distq_mpi.environments.calls import own, refusal
from distq_mpi.environments.laws import import_module
from distq_mpi.environments.silence import silence
from distq_mpi.errors import ModelError


def maker(id: str, source: Any, config: Any, built_in: tuple[str, ...]) -> Callable[[], Any]:
    """Return what makes environments of an `[env]` configuration: `env.kwargs`, the time limit,
    `env.wrappers` and `env.reset_options` included. Local.

    source : a class or function that makes them; None: what Gymnasium knows by the id. built_in :
    names that join the suggestions for an unknown id.
    """
    kwargs = dict(config.kwargs)
    if config.max_episode_steps:
        kwargs["max_episode_steps"] = config.max_episode_steps
    wrappers = [(name, _import_wrapper(name)) for name in config.wrappers]

    def make() -> Any:
        made = gymnasium_environment(id, source, kwargs, built_in)
        for name, wrap in wrappers:
            made = _wrapped(name, wrap, made)
        return with_options(made, config.reset_options)

    return make


def gymnasium_environment(
    id: str, source: Any, kwargs: Mapping[str, Any], built_in: tuple[str, ...]
) -> Any:
    """Return what `gymnasium.make` does; the caller closes it. Local.

    Raises
    ------
    ModelError
        If the id is unknown or renamed, or the arguments do not fit.
    """
    import gymnasium
    from gymnasium.envs.registration import EnvSpec

    module, _, name = id.rpartition(":")
    if source is None and module:
        with silence():
            import_module(id, module)
    if source is None and name not in gymnasium.registry:
        raise ModelError(_unknown(id, list(gymnasium.registry), built_in))
    known_as = name if source is None else EnvSpec(source.__name__, entry_point=source)
    try:
        with silence():
            return gymnasium.make(known_as, disable_env_checker=True, **own(dict(kwargs)))
    except BaseException as error:  # whatever the environment's own constructor raises
        raise refusal(f"{id} could not be made", error) from error


def only_vector(id: str, kwargs: Mapping[str, Any]) -> Callable[[int], Any] | None:
    """What makes the environment of an id that exists only as vector; None for any other."""
    import gymnasium

    module, _, name = id.rpartition(":")
    if module:
        with silence(), contextlib.suppress(ModelError):  # raised when it is made
            import_module(id, module)
    spec = gymnasium.registry.get(name)
    if spec is None or spec.entry_point is not None or spec.vector_entry_point is None:
        return None
    return lambda n: gymnasium.make_vec(id, num_envs=n, **own(dict(kwargs)))


def with_options(made: Any, options: Mapping[str, Any]) -> Any:
    """An environment whose every `reset` gets these options; itself if there are none."""
    if not options:
        return made
    import gymnasium

    class ResetOptions(gymnasium.Wrapper):
        """Gives `env.reset_options` to every reset."""

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            return self.env.reset(seed=seed, options=own(given) | (options or {}))

    given = dict(options)
    return ResetOptions(made)


def _import_wrapper(name: str) -> Any:
    module, mark, attribute = name.rpartition(":")
    if not mark:
        raise ModelError(f"env.wrappers: {name} must be module:Wrapper")
    wrapper = getattr(import_module(name, module, "env.wrappers"), attribute, None)
    if not callable(wrapper):
        raise ModelError(f"env.wrappers: {name}: the module {module} has no wrapper {attribute}")
    return wrapper


def _wrapped(name: str, wrap: Any, made: Any) -> Any:
    import gymnasium

    try:
        with silence():
            wrapped = wrap(made)
    except BaseException as error:  # whatever the wrapper's constructor raises
        raise refusal(f"env.wrappers: {name} could not be made", error) from error
    if not isinstance(wrapped, gymnasium.Env):
        raise ModelError(
            f"env.wrappers: {name} must make an environment of Gymnasium, not {type(wrapped)}"
        )
    return wrapped


def _unknown(id: str, known: list[str], built_in: tuple[str, ...]) -> str:
    module, _, name = id.rpartition(":")
    stem, mark, version = name.rpartition("-v")
    if not mark or not version.isdigit():
        stem = name
    here = f"{module} registers" if module else "Gymnasium has"
    versions = [other for other in known if other.rpartition("-v")[0] == stem]
    if versions:
        newest = max(versions, key=lambda other: int(other.rpartition("-v")[2]))
        return f"env.id: {here} no {name}; use {f'{module}:' * bool(module)}{newest}"
    if name in _known_to_gym():
        return (
            f"env.id: {id} is registered with gym, not gymnasium, which replaced it: register it "
            "with gymnasium, or wrap it (the package shimmy does)"
        )
    close = suggestion(name if module else id, [*([] if module else built_in), *known])
    if module:
        return f"env.id: {here} no environment {name!r}{close}"
    return (
        f"env.id: unknown environment {id!r}{close} (a Gymnasium id, {', '.join(built_in)}, "
        f"module:Law or a file.npz; an id of another package is module:Id{_package_of(id)})"
    )


def _known_to_gym() -> Any:
    """The registry of the old package gym, if something has imported it."""
    old = sys.modules.get("gym")
    registry = getattr(getattr(old, "envs", None), "registry", None)
    return getattr(registry, "env_specs", registry) or ()


def _package_of(id: str) -> str:
    """A hint which of the installed packages may register an id."""
    modules: dict[str, list[str]] = {}
    for module, packages in importlib.metadata.packages_distributions().items():
        for package in packages:
            modules.setdefault(package, []).append(module)
    word = _letters(id)
    hints = []
    for package, its in modules.items():
        needed: list[str] = []
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            needed = importlib.metadata.distribution(package).requires or []
        if not any(re.match(r"gymnasium\b", line, re.IGNORECASE) for line in needed):
            continue
        for module in its:
            name = _letters(module)
            starts = (name, name.removesuffix("py"), name.removesuffix("env"))
            if word.startswith(tuple(filter(None, starts))):
                hints.append(f"{module}:{id}")
    return f", as in {hints[0]}" if hints else ""


def _letters(text: str) -> str:
    return re.sub("[^a-z]", "", text.lower())
