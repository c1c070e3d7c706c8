"""Hold the steps of an environment against the table of transitions that it carries.

A table may say something else than `step` does: it may be old, unused, or lack a hidden state.
"""

from __future__ import annotations

import dis
import inspect
import math
from typing import Any

import numpy as np

from distq_mpi.environments.attached_table import AttachedTable, Entry
from distq_mpi.environments.calls import described
from distq_mpi.environments.chi_square import misfit
from distq_mpi.environments.silence import silence

N_EPISODES, N_STEPS, LONGEST = 200, 2000, 1000
"""Episodes of random actions: at least and steps at least; steps of one at most."""
N_PAIRS = 2000
"""Pairs tried once each where the environment can be put into a state."""
N_DRAWN, N_DRAWS = 8, 250
"""Random pairs tried many times each, and how often."""
REWARD_TOLERANCE = 1e-6
"""Rewards of float32 tables are those of float64 steps but for rounding."""


def contradiction(world: Any, table: AttachedTable) -> str:
    """Return in words what an environment does that its table does not say; "" if nothing.

    It is reset and stepped a few thousand times; the draws are the same in every process. Every
    transition must be one of the table, and counts must fit its probabilities by chi-square tests.
    Where the attribute `s` of the environment, from which `step` starts, is its state, pairs that
    are seldom visited are tried too. Local.

    world : an environment without wrappers that belongs to the caller.
    """
    trial = _Trial(world, table)
    try:
        with silence():
            return trial.episodes() or trial.places() or trial.counted()
    except BaseException as error:  # whatever the user's environment raises
        return f"{trial.where} raises {described(error)}"


class _Trial:
    """Steps of one environment, counted."""

    def __init__(self, world: Any, table: AttachedTable) -> None:
        self.world, self.table, self.where = world, table, "reset"
        self._draws = np.random.default_rng(0)
        self._counts: dict[int, dict[int, int]] = {}
        self._starts = dict.fromkeys(np.flatnonzero(table.first).tolist(), 0)
        self._follows = "s" in vars(world) and _reads(type(world).step, "s")

    def episodes(self) -> str:
        """Play episodes of random actions."""
        made = n = 0
        while n < N_EPISODES or made < N_STEPS:
            self.where = "reset"
            seen = self.world.reset(seed=0)[0] if n == 0 else self.world.reset()[0]
            state, n = int(seen), n + 1
            if state not in self._starts:
                return f"reset begins in state {state}, which initial_state_distrib excludes"
            self._starts[state] += 1
            for _ in range(LONGEST if made < N_STEPS else 0):
                self._follows = self._follows and self._state() == state
                action = int(self._draws.integers(self.table.n_actions))
                misfits, state, ended = self._step(state, action)
                made += 1
                if misfits:
                    return misfits
                if ended:
                    break
        return ""

    def places(self) -> str:
        """Put the environment into states by its attribute `s`, and try actions there."""
        if not self._follows:
            return ""
        n_actions = self.table.n_actions
        alive = np.flatnonzero(self.table.alive)
        pairs = (alive[:, None] * n_actions + np.arange(n_actions)).ravel()
        if pairs.size > N_PAIRS:
            pairs = self._draws.choice(pairs, N_PAIRS, replace=False)
        random = [pair for pair in pairs.tolist() if len(self.table.rows[pair]) > 1]
        often = self._draws.permutation(random)[:N_DRAWN].tolist()
        kind, ended = type(self.world.s), True
        for pair in [*pairs.tolist(), *np.repeat(often, N_DRAWS).astype(int).tolist()]:
            state, action = divmod(pair, n_actions)
            if ended:
                self.world.reset()
            self.world.s = kind(state)
            misfits, _, ended = self._step(state, action)
            if misfits:
                return misfits
        return ""

    def counted(self) -> str:
        """Test all counts."""
        first = np.asarray(self.table.first, np.float64)
        misfits = misfit({state: float(first[state]) for state in self._starts}, self._starts)
        if misfits:
            return f"reset: state {misfits}"
        for pair, counts in self._counts.items():
            row = self.table.rows[pair]
            chances = {i: 0.0 for i in {_first_like(row, i) for i in range(len(row))}}
            for i, entry in enumerate(row):
                chances[_first_like(row, i)] += float(entry[0])
            misfits = misfit(
                {row[i][1:]: chance for i, chance in chances.items()},
                {row[i][1:]: counts.get(i, 0) for i in chances},
            )
            if misfits:
                state, action = divmod(pair, self.table.n_actions)
                return f"state {state}, action {action}: {misfits}"
        return ""

    def _state(self) -> int:
        try:
            return int(self.world.s)
        except (TypeError, ValueError):
            return -1

    def _step(self, state: int, action: int) -> tuple[str, int, bool]:
        """Make a step; return how it contradicts the table, where it leads, and whether it ends."""
        self.where = f"state {state}, action {action}: step"
        seen, reward, terminated, truncated, _ = self.world.step(action)
        new, reward, ended = int(seen), float(reward), bool(terminated)
        row = self.table.rows[state * self.table.n_actions + action]
        if truncated:
            return f"{self.where} truncates the episode, which P cannot say", new, True
        number = next(
            (i for i, entry in enumerate(row) if _like(entry, (1.0, new, reward, ended))), None
        )
        if number is None:
            return (
                f"{self.where} gives {(new, reward, ended)} as (next state, reward, terminated), "
                "which P does not list"
            ), new, True
        counts = self._counts.setdefault(state * self.table.n_actions + action, {})
        counts[number] = counts.get(number, 0) + 1
        return "", new, ended


def _reads(function: Any, name: str) -> bool:
    """Whether a method itself reads an attribute of this name."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return code is not None and any(
        step.opname == "LOAD_ATTR" and step.argval == name for step in dis.get_instructions(code)
    )


def _like(entry: Entry, other: Entry) -> bool:
    """Whether two outcomes are the same but for their probability."""
    close = math.isclose(entry[2], other[2], rel_tol=REWARD_TOLERANCE, abs_tol=REWARD_TOLERANCE)
    return entry[1] == other[1] and entry[3] == other[3] and close


def _first_like(row: list[Entry], number: int) -> int:
    return next(i for i, entry in enumerate(row) if _like(entry, row[number]))
