"""Drive the loops of learning and fusion, and whole rounds, without MPI."""

from __future__ import annotations

from typing import Any

import numpy as np

from distq_mpi.architectures import Allreduce
from distq_mpi.architectures.tiles import Tiles
from distq_mpi.environments.base import Environment
from distq_mpi.fusion import FUSIONS, FixedPoint, fusion_kernels
from distq_mpi.kernels import chunks, loop
from distq_mpi.kernels.exploration import EXPLORATIONS
from distq_mpi.kernels.step_sizes import step_parameter
from distq_mpi.kernels.traces import depth_of
from distq_mpi.lanes import Lanes
from distq_mpi.table import Rows, record_of
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
        kernels: dict[str, Any] | None = None,
    ) -> None:
        record = record_of(learn, environment.n_actions)
        self.rows = Rows(record, environment.n_states)
        n_pairs = environment.n_states * environment.n_actions
        self.lanes = Lanes(first, n_lanes, depth_of(learn, n_pairs, n_lanes))
        self.params, self.n_lanes = environment.params, n_lanes
        self.control = np.array(
            [0, 1, first, n_lanes, seed, EXPLORATIONS[learn.exploration].encode(epsilon),
             environment.max_episode_steps or NO_LIMIT], np.uint64,
        )  # fmt: skip
        self.rates, self.totals = np.array([learn.discount, step_parameter(learn)]), np.zeros(3)
        self.work = np.zeros(loop.work_words(n_lanes), np.uint64)
        requests = loop.learning_kernels(learn, environment, record, self.lanes)
        if kernels is not None:
            self.kernels: dict[str, Any] = kernels
        elif use_compiled:
            self.kernels = dict(compiled(requests))
        else:
            self.kernels = {name: plain(k.template, k.parts) for name, k in requests.items()}

    def begin(self) -> None:
        self.control[loop.FIRST_STEP] = 0
        self.kernels["begin"](self.rows.q, *self.lanes.arrays(), self.params, self.control)
        self.control[loop.FIRST_STEP] = 1

    def learn(self, n_steps: int = 1) -> None:
        self.control[loop.N_STEPS] = n_steps
        self.kernels["learn"](
            self.rows.q, self.rows.q, self.rows.clock_words, *self.lanes.arrays(),
            self.lanes.trace(), self.work, self.params, self.control, self.rates, self.totals,
        )  # fmt: skip
        self.control[loop.FIRST_STEP] += np.uint64(n_steps)

    @property
    def visits(self) -> np.ndarray:
        """Visits (S, width) so far, a view."""
        record = self.rows.record
        offset = record.clock_offset + record.visits_ahead
        words = self.rows.clock_words.reshape(self.rows.n_rows, -1)
        return words[:, offset : offset + record.width]

    def state(self) -> bytes:
        """Every bit of table, lanes and totals."""
        return self.rows.raw.tobytes() + self.lanes.pack().tobytes() + self.totals.tobytes()

    def lane(self, name: str) -> np.ndarray:
        return self.lanes.pack()[name]


SUMS = ("values", "visits", "ticks", "votes", "gains")


class Fuser:
    """A base, and what agents contribute to it, through plain or compiled loops."""

    def __init__(
        self, settings: Any, n_states: int, n_actions: int, use_compiled: bool = False,
        exponent: int = 4, requests: Any = None,
    ) -> None:  # fmt: skip
        self.record = record_of(settings.learn, n_actions)
        self.base, self.next = Rows(self.record, n_states), Rows(self.record, n_states)
        self.n_agents, self.n_states = settings.parallel.agents, n_states
        self.fusion = FUSIONS[settings.parallel.fusion]
        requests = requests or fusion_kernels(settings, self.record)
        requests = {k: v for k, v in requests.items() if k in ("adopt", "contribute", "fuse")}
        if use_compiled:
            self.kernels: dict[str, Any] = dict(compiled(requests))
        else:
            self.kernels = {name: plain(k.template, k.parts) for name, k in requests.items()}
        n_pairs = n_states * self.record.width
        self.sums = {name: np.zeros(n_pairs, np.int64) for name in SUMS}
        if self.fusion.maximum:
            self.sums["values"], self.sums["winner"] = (
                np.full(n_pairs, -np.inf), np.zeros(n_pairs, np.int64),
            )  # fmt: skip
        self.each: list[list[np.ndarray]] = []
        self.lifetime = np.zeros(n_pairs, np.uint64)
        self.touched = np.zeros(Tiles.number(n_states, self.record.width), np.uint8)
        scale = FixedPoint(self.n_agents, exponent, exponent)
        self.rates = np.array(
            [settings.learn.discount, step_parameter(settings.learn), scale.scale, scale.bound]
        )
        self.control = np.array([0, n_states, self.n_agents, settings.run.seed, 1], np.uint64)
        self.unstable, self.scratch = np.zeros(1, np.int64), chunks.scratch(self.record.width)

    @property
    def values(self) -> np.ndarray:
        return self.sums["values"]

    @property
    def visits(self) -> np.ndarray:
        return self.sums["visits"]

    def contribute(self, replica: Rows) -> np.ndarray:
        found, base = np.full(5, np.nan), self.base
        learned = (replica.q, replica.clock_words, base.q, base.clock_words)
        if self.fusion.merge is not None:
            n_pairs = self.values.size
            mine = [np.zeros(n_pairs, kind) for kind in (np.float64, np.uint32, np.uint32)]
            self.kernels["contribute"](*learned[:2], learned[3], *mine, self.rates, found)
            self.each.append(mine)
            return found
        sums = [self.sums[name] for name in SUMS]
        if self.fusion.maximum:
            sums = [self.sums[name] for name in ("values", "visits", "winner")]
        marks = np.ones(self.touched.size, np.uint64)
        tiles = () if self.fusion.maximum else (marks, self.touched, *self.scratch)
        self.kernels["contribute"](*learned, *sums, self.rates, found, *tiles)
        return found

    def fuse(self) -> Rows:
        fresh, base = self.next, self.base
        tables = (fresh.q, fresh.clock_words, base.q, base.clock_words)
        if self.fusion.merge is not None:
            each = [np.array(arrays) for arrays in zip(*self.each, strict=True)]
            scratch = np.zeros(self.n_agents)
            self.kernels["fuse"](
                *tables, *each, self.visits, scratch, self.control, self.rates
            )
        elif self.fusion.maximum:
            self.kernels["fuse"](*tables[:2], self.values, self.sums["winner"], self.control)
        else:
            self.kernels["fuse"](
                *tables, *(self.sums[name] for name in SUMS), self.lifetime, self.control,
                self.rates, self.unstable, np.ones_like(self.touched), *self.scratch,
            )  # fmt: skip
        return self.next

    def replica(self, changes: np.ndarray, visits: np.ndarray) -> Rows:
        """The base after an agent changed it."""
        rows = Rows(self.record, self.n_states)
        rows.values[...] = self.base.values + changes
        rows.clock[...] = self.base.clock + visits
        if self.record.counts_visits:
            offset = self.record.clock_offset + self.record.visits_ahead
            words = rows.clock_words.reshape(self.n_states, -1)
            words[:, offset : offset + self.record.width] = visits
        return rows


class Job:
    """A few rounds of `Allreduce` on one of the ranks of `together`, or alone."""

    def __init__(self, settings: Any, environment: Any, kernels: Any) -> None:
        self.settings, self.environment, self.kernels = settings, environment, kernels

    def run(self, transport: Any, n_rounds: int, exponent: int | None = None) -> dict[str, Any]:
        job = Allreduce(self.settings, self.environment, self.kernels, transport)
        if exponent is not None:
            scaled = job.progress._replace(exponent=exponent, peak=exponent)
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
        visits = np.concatenate([rows[3] for rows in job.iter_rows()])
        return {
            "visits": visits.tobytes(),
            "table": job.base.raw.tobytes(), "values": job.base.values.copy(),
            "clock": int(job.base.clock[0, 0]), "progress": job.progress,
            "lanes": None if lanes is None else lanes.tobytes(), "repeated": repeated,
        }  # fmt: skip
