"""What passes between us and a user's environment: results are checked, and whatever it raises,
`sys.exit` included, becomes a ModelError that names it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from distq_mpi.errors import Interrupted, ModelError

PARTS = "(observation, reward, terminated, truncated, info)"


def refusal(where: str, error: BaseException) -> ModelError:
    """Return what to raise where a user's code raised `error`: one message with its place. Local.

    Raises Interrupted where that is the error.
    """
    return ModelError(f"{where}: {described(error)}")


def described(error: BaseException) -> str:
    """What a user's code raised, in words. Local.

    Raises Interrupted where that is the error: it ends the program, not the environment.
    """
    if isinstance(error, Interrupted):
        raise error
    name = type(error).__name__
    try:
        text = str(error)
    except BaseException:  # the user's exception may not even have a text
        text = ""
    return f"{name}: {text}" if text else name


def own(value: Any) -> Any:
    """A copy of an argument that shares no list, dict or array with it; other objects are shared.

    Local. An environment may change what it is made of, and the next lane's is made of the same.
    """
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, dict):
        return {key: own(item) for key, item in value.items()}
    if type(value) in (list, tuple, set):
        return type(value)(own(item) for item in value)
    return value


def beginning(index: Callable[[Any], int], given: Any) -> int:
    """The state that `reset` returned with its info. Raises ValueError for anything else. Local."""
    pair = isinstance(given, tuple | list) and len(given) == 2
    if not pair or not (given[1] is None or isinstance(given[1], Mapping)):
        raise ValueError(f"reset returned {_short(given)}, not (observation, info)")
    return index(given[0])


def transition(index: Callable[[Any], int], given: Any) -> tuple[int, float, bool, bool]:
    """(state, reward, terminated, truncated) of what `step` returned. Local.

    Raises ValueError for what is none. Numbers may come in any type, and in arrays of one element.
    """
    mistake = check_parts(given)
    if mistake is not None:
        raise mistake
    seen, reward, terminated, truncated, _ = given
    ends = flag("terminated", terminated), flag("truncated", truncated)
    return index(seen), number(reward), *ends


def check_parts(given: Any) -> ValueError | None:
    """What is wrong with the parts that `step` returned; None where they are five. Local."""
    if isinstance(given, tuple | list) and len(given) == 5:
        return None
    return ValueError(f"step returned {_short(given)}, not {PARTS}")


def number(reward: Any) -> float:
    """A reward as float64. Local. Raises ValueError for what is no number."""
    if isinstance(reward, int | float | np.integer | np.floating):
        return float(reward)
    array = _one_element(reward, "biuf")
    if array is None:
        raise ValueError(f"reward {_short(reward)} is not a number")
    return float(array.item())


def flag(name: str, value: Any) -> bool:
    """The end of an episode as bool; None is none. Local.

    Raises ValueError for what is neither true nor false, 2 included.
    """
    if value is None or isinstance(value, bool | np.bool_):
        return bool(value)
    array = _one_element(value, "biuf")
    if array is None or array.item() not in (0, 1):
        raise ValueError(f"{name} {_short(value)} is neither true nor false")
    return bool(array.item())


def whole(name: str, value: Any) -> int:
    """A whole number of any type. Local. Raises ValueError for any other, 2.7 included."""
    if type(value) is int:
        return value
    array = _one_element(value, "biuf")
    if array is None or array.item() != array.item() // 1:
        raise ValueError(f"{name} {_short(value)} is not a whole number")
    return int(array.item())


def flags(name: str, values: Any, n: int) -> np.ndarray:
    """The ends of n episodes as an array of our own, bool (n,). Local. Raises ValueError as `flag`.
    """
    array = np.array(values)
    if array.size != n or array.dtype.kind not in "biuf" or np.any((array != 0) & (array != 1)):
        raise ValueError(f"{name} {_short(values)} are not {n} of true and false")
    return array.reshape(n).astype(np.bool_)


def numbers(values: Any, n: int) -> np.ndarray:
    """n rewards as an array of our own, float64 (n,). Local. Raises ValueError for anything else.
    """
    array = np.array(values)
    if array.size != n or array.dtype.kind not in "biuf":
        raise ValueError(f"rewards {_short(values)} are not {n} numbers")
    return array.reshape(n).astype(np.float64)


def _one_element(value: Any, kinds: str) -> np.ndarray | None:
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):  # lists of unequal lengths
        return None
    return array if array.size == 1 and array.dtype.kind in kinds else None


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
