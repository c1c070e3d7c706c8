"""Drive the loops of learning and fusion, and whole rounds, without MPI."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from distq_mpi.architectures import Allreduce
from distq_mpi.environments.base import Environment
from distq_mpi.fusion import FixedPoint, fusion_kernels
from distq_mpi.kernels import loop
from distq_mpi.lanes import Lanes
from distq_mpi.table import Record, Rows
from tests.stand_in import compiled, plain

NO_LIMIT = 2**32 - 1


class Learner:
    """One agent's arrays and the two kernels over them, plain or compiled."""

    def __init__(
        self,
        environment: Environment,
        learn: Any,
        n_lanes: int,
        first: int = 0,
        epsilon: float = 0.3,
        seed: int = 1,
        use_compiled: bool = False,
    ) -> None:
        record = Record(environment.n_actions, np.dtype(learn.dtype))
        self.rows, self.lanes = Rows(record, environment.n_states), Lanes(first, n_lanes)
        self.params, self.n_lanes = environment.params, n_lanes
        self.control = np.array(
            [0, 1, first, n_lanes, seed, round(epsilon * 2**32),
             environment.max_episode_steps or NO_LIMIT], np.uint64,
        )  # fmt: skip
        self.rates, self.totals = np.array([learn.discount, learn.alpha]), np.zeros(3)
        self.draws = np.zeros(2 * loop.BATCH, np.uint64)
        requests = loop.learning_kernels(learn, environment, record, self.lanes)
        if use_compiled:
            self.kernels: dict[str, Any] = dict(compiled(requests))
        else:
            self.kernels = {name: plain(k.template, k.parts) for name, k in requests.items()}

    def begin(self) -> None:
        self.kernels["begin"](self.rows.q, *self.lanes.arrays(), self.params, self.control)

    def learn(self, n_steps: int = 1) -> None:
        self.control[loop.N_STEPS] = n_steps
        self.kernels["learn"](
            self.rows.q, self.rows.clock_words, *self.lanes.arrays(), self.draws, self.params,
            self.control, self.rates, self.totals,
        )  # fmt: skip
        self.control[loop.FIRST_STEP] += np.uint64(n_steps)

    def state(self) -> bytes:
        """Every bit of table, lanes and totals."""
        return self.rows.raw.tobytes() + self.lanes.pack().tobytes() + self.totals.tobytes()

    def lane(self, name: str) -> np.ndarray:
        return self.lanes.pack()[name]


class Fuser:
    """A base, and the sums of agents' contributions to it, through plain or compiled loops."""

    def __init__(
        self, settings: Any, n_states: int, n_actions: int, use_compiled: bool = False,
        exponent: int = 4, requests: Any = None,
    ) -> None:  # fmt: skip
        self.record = Record(n_actions, np.dtype(settings.learn.dtype))
        self.base, self.next = Rows(self.record, n_states), Rows(self.record, n_states)
        self.n_agents, self.n_states = settings.parallel.agents, n_states
        self.maximum = settings.parallel.fusion == "max"
        requests = requests or fusion_kernels(settings, self.record)
        if use_compiled:
            self.kernels: dict[str, Any] = dict(compiled(requests))
        else:
            self.kernels = {name: plain(k.template, k.parts) for name, k in requests.items()}
        n_pairs = n_states * n_actions
        self.values = np.full(n_pairs, -np.inf) if self.maximum else np.zeros(n_pairs, np.int64)
        self.visits, self.extra = np.zeros(n_pairs, np.int64), np.zeros(n_pairs, np.int64)
        self.lifetime = np.zeros(n_pairs, np.uint64)
        scale = FixedPoint(self.n_agents, exponent, exponent)
        self.rates = np.array(
            [settings.learn.discount, settings.learn.alpha, scale.scale, scale.bound]
        )
        self.control = np.array([0, n_states, self.n_agents, settings.run.seed, 1], np.uint64)

    def contribute(self, replica: Rows) -> np.ndarray:
        found = np.full(5, np.nan)
        self.kernels["contribute"](
            replica.q, replica.clock_words, self.base.q, self.base.clock_words, self.values,
            self.visits, self.extra, self.rates, found,
        )  # fmt: skip
        return found

    def fuse(self) -> Rows:
        self.kernels["fuse"](
            self.next.q, self.next.clock_words, self.base.q, self.base.clock_words, self.values,
            self.visits, self.extra, self.lifetime, self.control, self.rates,
        )  # fmt: skip
        return self.next

    def replica(self, changes: np.ndarray, visits: np.ndarray) -> Rows:
        """The base after an agent changed it."""
        rows = Rows(self.record, self.n_states)
        rows.values[...] = self.base.values + changes
        rows.clock[...] = self.base.clock + visits
        return rows


class Job:
    """A few rounds of `Allreduce` on one of the ranks of `together`, or alone."""

    def __init__(self, settings: Any, environment: Any, kernels: Any) -> None:
        self.settings, self.environment, self.kernels = settings, environment, kernels

    def run(self, transport: Any, n_rounds: int, exponent: int | None = None) -> dict[str, Any]:
        job = Allreduce(self.settings, self.environment, self.kernels, transport)
        if exponent is not None:
            scaled = replace(job.progress, exponent=exponent, peak=exponent)
            job.progress = job.pending = scaled
        repeated = 0
        for _ in range(n_rounds):
            job.learn()
            while job.exchange((False, False, False)) is None:
                repeated += 1
                assert repeated < 10
                job.rollback()
                job.learn()
            job.commit()
        lanes = job.gather_lanes()
        return {
            "table": job.base.raw.tobytes(), "values": job.base.values.copy(),
            "clock": int(job.base.clock[0, 0]), "progress": job.progress,
            "lanes": None if lanes is None else lanes.tobytes(), "repeated": repeated,
        }  # fmt: skip
