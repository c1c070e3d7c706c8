"""What everything above knows of an environment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Environment:
    """A finite Markov decision process as plain functions over `params`.

    The functions take arrays and scalars only and are compiled by the kernels (None where the
    environment is stepped in Python); nobody changes `params`. An explicit model's `params` are
    arrays (see `explicit.py`) that may be replaced by equal ones elsewhere in memory, which is how
    a node holds a model once, or by those of a part of the rows, which is how ranks share a model
    that none of them holds (see `cutting.py`).
    """

    id: str
    kind: str
    """`explicit` (a table of transitions), `law` (two functions) or `stepped` (in Python)."""
    n_states: int
    n_actions: int
    params: tuple[Any, ...]
    """Last argument of every function below; never empty."""
    law_step: Any
    """(state u8, action u8, bits u8, params) -> (next_state u8, reward f8, terminated bool);
    reads bits 32 to 63 of the draw."""
    law_start: Any
    """(bits u8, params) -> state u8; reads all 64 bits."""
    outcomes: Any
    """(state i8, action i8, params) -> number of outcomes."""
    outcome: Any
    """(state i8, action i8, i i8, params) -> (probability f8, next_state, reward f8, terminated)"""
    start: Any
    """(i i8, params) -> (probability f8, state), for i < n_starts."""
    n_starts: int
    n_transitions: int
    """Outcomes over all pairs: the work of one Bellman sweep."""
    max_episode_steps: int
    """Time limit, after which an episode is truncated; 0 = none."""
    return_bound: float | None
    """No episode's return, discounted or not, exceeds this; None = unknown."""
    deterministic: bool
    model_id: str
    """SHA-256 (hex) of all that defines the process, the time limit included."""
    unidentified: str = ""
    """Why `model_id` does not cover all of it, so that no run is resumed; "" = it does."""
    least_reward: float | None = None
    """Smallest reward of any transition; None = unknown."""
    rows: tuple[int, int] | None = None
    """[low, high): the states whose rows `params` has, the only ones that `law_step`, `outcomes`
    and `outcome` may be asked of; None = all. State numbers stay those of the whole model."""
    source: Any = None
    """What reads the rows of a model that nobody holds (`model_file.Source`); None elsewhere."""
    variants: tuple[tuple[Any, ...], ...] = ()
    """`params` of the environments of which this one is the mean; () = agents all have this one."""
    explores_starts: bool = False
    """Whether every state is a start state by `exploring_starts`, not by the environment's law."""
    trusted: bool = True
    """Whether all outcomes are looked at before kernels run, or the law is ours; else see `guard`.
    """
    steps_itself: bool = False
    """Whether `law_step` is a function of the law, not derived from `outcome`."""
    grid: tuple[int, int] | None = None
    """(rows, columns) where the states are the cells of a grid, row-major."""
    marks: str = ""
    """One character per state for drawing; "" = none."""
    arrows: str = ""
    """One character per action for drawing; "" = none."""
    worlds: Any = None
    """Of a stepped environment, which has no functions: what makes it (`worlds.Kind`)."""
    summary: str = ""
    """One line for the user about what was built."""

    def params_of(self, agent: int) -> tuple[Any, ...]:
        """Return the `params` that an agent learns with. Local."""
        return self.variants[agent % len(self.variants)] if self.variants else self.params
