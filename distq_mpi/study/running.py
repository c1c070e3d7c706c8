"""Run agents on a small model for so many rounds, again and again with other seeds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from distq_mpi.architectures import Allreduce
from distq_mpi.config import Config, LearnConfig, ParallelConfig, StopConfig, check, resolve
from distq_mpi.environments.base import Environment
from distq_mpi.errors import ConfigError
from distq_mpi.kernels.objects import load

if TYPE_CHECKING:
    from distq_mpi.transport import Transport


def settings(environment: Environment, learn: dict[str, Any], **parallel: Any) -> Config:
    """Return the resolved configuration of a study. Local. Raises ConfigError for what is none."""
    config = Config(
        learn=LearnConfig(**{"dtype": "float64", "initial": "zeros", **learn}),
        parallel=ParallelConfig(**parallel),
        stop=StopConfig(rounds=1),
    )
    shape = environment.n_states, environment.n_actions
    config = resolve(config, *shape, parallel["agents"], solvable=False)
    if mistakes := check(config):
        raise ConfigError("\n".join(mistakes))
    return config


class Runs:
    """One configuration, run with one seed after another. Its methods are COLLECTIVE.

    architecture : `Allreduce`, or what derives from it.
    """

    def __init__(
        self, transport: Transport, environment: Environment, config: Config,
        architecture: type[Allreduce] = Allreduce,
    ) -> None:  # fmt: skip
        self.transport, self.environment, self.config = transport, environment, config
        self.architecture = architecture
        wanted = architecture.requests(config, environment) if transport.leads_node else None
        self.kernels = load(wanted, transport)

    def table(
        self, seed: int, enough: Callable[[Any], bool], first: np.ndarray | None = None
    ) -> Any:
        """Return the architecture after the first round that is `enough`; close it.

        first : values (S, A) to begin with; None: as configured.
        """
        config = replace(self.config, run=replace(self.config.run, seed=seed))
        state = self.architecture(config, self.environment, self.kernels, self.transport)
        if first is not None:
            state.base.values[...] = first
        while not enough(state):
            state.learn()
            if state.exchange((False, False, False)) is None:
                state.rollback()
            else:
                state.commit()
        state.keep_table()
        state.close()
        return state

    def error(
        self, seed: int, n_rounds: int, optimal: np.ndarray, first: np.ndarray | None = None
    ) -> float:
        """Largest |Q - optimal| after so many rounds."""
        state = self.table(seed, lambda state: state.progress.round >= n_rounds, first)
        return float(np.abs(state.base.values - optimal).max())


def fused_in_turn(
    transport: Transport, environment: Environment, agents: int, period: int, n_rounds: int,
    discount: float, *, first: float = 0.0, **learn: Any,
) -> list[np.ndarray]:  # fmt: skip
    """Return the table (S, A) after each of so many rounds of `period` sweeps, fused by the mean.

    COLLECTIVE. first : value of every pair at the start. learn : of constant steps.
    """
    learn = {"discount": discount, "sampling": "generative", "step_size": "constant", **learn}
    config = settings(
        environment, learn, agents=agents, lanes=agents, steps_per_round=period, fusion="mean"
    )
    found: list[np.ndarray] = []

    def enough(state: Any) -> bool:
        if state.progress.round > len(found):
            found.append(state.base.values.copy())
        return len(found) == n_rounds

    shape = environment.n_states, environment.n_actions
    Runs(transport, environment, config).table(0, enough, np.full(shape, first))
    return found
