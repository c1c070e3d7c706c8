"""The table of transitions that an environment of Gymnasium carries as `P`, read and repaired.

`P[state][action]` lists (probability, next state, reward, terminated); `initial_state_distrib` is
the start distribution. Both are the convention of Gymnasium's toy environments.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from distq_mpi.environments.calls import flag, number, whole
from distq_mpi.errors import ModelError

Entry = tuple[Any, int, float, bool]
"""(probability, of the type in which it was written, next state, reward, terminated)."""


@dataclass
class AttachedTable:
    """A table as it was read.

    Parameters
    ----------
    rows : the possible outcomes of each pair, row = state * n_actions + action.
    first : the start distribution, numbers (n_states,).
    repairs : what was changed in reading, in words.
    """

    n_states: int
    n_actions: int
    rows: list[list[Entry]]
    first: Any
    repairs: list[str] = field(default_factory=list)

    @property
    def alive(self) -> np.ndarray:
        """States in which an action can be taken, bool (S,): a start, or entered without an end."""
        alive = np.asarray(self.first, np.float64) > 0
        for row in self.rows:
            for _, new, _, ended in row:
                if 0 <= new < alive.size:  # others are refused where all entries are checked
                    alive[new] |= not ended
        return alive

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Pointers, next states, probabilities, rewards and ends, as `explicit_model` takes them.

        Probabilities have the type in which they were written.
        """
        entries = [entry for row in self.rows for entry in row]
        chances, following, rewards, ends = (
            zip(*entries, strict=True) if entries else ((),) * 4
        )
        return (
            np.cumsum([0, *map(len, self.rows)]), np.array(following, np.int64),
            np.array(chances), np.array(rewards, np.float64), np.array(ends, np.bool_),
        )  # fmt: skip


def read_table(written: Any, first: Any, n_states: int, n_actions: int) -> AttachedTable:
    """Return the table that `P` and a start distribution make. Local; changes neither.

    Outcomes of probability 0 are left out, whatever they say. States that nothing enters but ends
    need no rows: theirs are added.

    Raises
    ------
    ModelError
        If it is none, with the state and the action.
    """
    table = AttachedTable(n_states, n_actions, [], first)
    empty: list[int] = []
    longer = False
    for state in range(n_states):
        actions = _item(written, state, n_states)
        rows = [_item(actions, action, n_actions) for action in range(n_actions)]
        read = []
        for action, row in enumerate(rows):
            outcomes, more = _outcomes(() if row is None else row, state, action)
            read.append(outcomes)
            longer |= more
        lacking = [action for action, outcomes in enumerate(read) if not outcomes]
        if len(lacking) == n_actions:
            empty.append(state)
        elif lacking:
            raise ModelError(f"state {state}, action {lacking[0]}: P has no transition")
        table.rows += read
    table.first = np.asarray(first)
    if table.first.shape != (n_states,) or table.first.dtype.kind not in "iuf":
        raise ModelError(f"initial_state_distrib is not {n_states} numbers")
    _complete(table, empty)
    if longer:
        table.repairs.append("what P lists after each end is left out")
    return table


def _item(container: Any, key: int, size: int) -> Any:
    """An element of a mapping or sequence; None where it has none. Makes none in a defaultdict."""
    if container is None:
        return None
    if isinstance(container, Mapping):
        if container and not any(isinstance(k, int | np.integer) for k in container):
            raise ModelError(f"P has keys like {next(iter(container))!r}, not 0 to {size - 1}")
        return container.get(key)
    if isinstance(container, Sequence | np.ndarray) and not isinstance(container, str | bytes):
        return container[key] if key < len(container) else None
    raise ModelError(
        f"P is no table of states and actions, but holds {type(container).__name__} objects"
    )


def _outcomes(row: Iterable[Any], state: int, action: int) -> tuple[list[Entry], bool]:
    """The possible outcomes of a pair, and whether more than four values were listed for one."""
    read: list[Entry] = []
    longer = False
    try:
        for probability, new, reward, ended, *more in row:
            longer |= bool(more)
            if probability == 0:
                continue
            if not isinstance(probability, np.floating):
                probability = number(probability)
            following = whole("next state", new)
            read.append((probability, following, number(reward), flag("terminated", ended)))
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"state {state}, action {action}: P does not list (probability, next state, reward, "
            f"terminated): {error}"
        ) from error
    return read, longer


def _complete(table: AttachedTable, empty: list[int]) -> None:
    """Give rows to states that need none."""
    if not empty:
        return
    alive = table.alive
    for state in empty:
        if alive[state]:
            raise ModelError(f"state {state}, action 0: P has no transition")
        for action in range(table.n_actions):
            table.rows[state * table.n_actions + action] = [(1.0, state, 0.0, True)]
    shown = ", ".join(map(str, empty[:3])) + (", ..." if len(empty) > 3 else "")
    table.repairs.append(
        f"P has no rows of {'states' if len(empty) > 1 else 'state'} {shown}, where episodes end"
    )


def overridden(bare: Any) -> str:
    """Return in words what of an environment's steps is newer than its table; "" if nothing.

    A class that overrides `step` or `reset` below the class that makes `P` or the start
    distribution may do what the table does not say. Local.
    """
    kinds, own = type(bare).__mro__, getattr(bare, "__dict__", {})
    for method, made in (("step", "P"), ("reset", "P"), ("reset", "initial_state_distrib")):
        if method in own:
            return f"{method} was replaced on the object itself"
        owner = next(kind for kind in kinds if method in vars(kind))
        maker = next((kind for kind in kinds if _makes(kind, made)), kinds[0])
        if kinds.index(owner) < kinds.index(maker):
            return f"{method} is {owner.__name__}'s, {made} is {maker.__name__}'s"
    return ""


def _makes(kind: type, name: str) -> bool:
    """Whether a class itself has an attribute, or a method of its own that sets it."""
    if name in vars(kind):
        return True
    functions = (inspect.unwrap(f) for f in vars(kind).values() if inspect.isfunction(f))
    return any(_stores(function.__code__, name) for function in functions)


def _stores(code: Any, name: str) -> bool:
    return any(
        step.opname == "STORE_ATTR" and step.argval == name for step in dis.get_instructions(code)
    )


def is_ours_to_trust(bare: Any) -> bool:
    """Whether an environment is one of Gymnasium's own, as Gymnasium wrote it. Local."""
    kind, home = type(bare), "gymnasium.envs."
    written = (kind.__module__, kind.step.__module__, kind.reset.__module__)
    return all(module.startswith(home) for module in written)


def has_own_step(bare: Any) -> bool:
    """Whether an environment can be stepped at all. Local."""
    return type(bare).step.__module__ != "gymnasium.core" or "step" in vars(bare)
