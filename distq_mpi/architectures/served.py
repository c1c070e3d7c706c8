"""`server` out of step: workers learn on what they have pulled, and push when they are done.

An agent pulls, learns `steps_per_round` steps of every lane and pushes what it learned. Servers
apply pushes as they come, each scaled by 1 / K, so that any number of agents is stable, and less
the later it comes; the clock advances by as much of the visits. An agent may begin its push c while
the slowest has made c - `parallel.staleness` of them.

A round, as the rest of the program sees it, is a number of steps, or seconds, after which server 0
tells every agent that asks to pause: nothing is on its way then, so what is certified and written
holds every push. Nobody waits longer than for the push that the slowest has begun.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from distq_mpi.architectures.desk import Desk
from distq_mpi.architectures.hosting import Host, lane_bytes
from distq_mpi.architectures.partner import Protection, Rescued
from distq_mpi.architectures.partner import memory_bytes as protection_bytes
from distq_mpi.architectures.progress import HEADER, WISHES, Agreement, Progress
from distq_mpi.architectures.schedules import (
    LENGTH_UNIT,
    MAX_PERIOD,
    ROUND_STEPS,
    TICK_SHARE,
    lone_period,
    next_period,
)
from distq_mpi.architectures.server import placement
from distq_mpi.architectures.worker import CachingWorker, Worker
from distq_mpi.errors import ConfigError, DistqError, QuorumLost
from distq_mpi.fusion import FixedPoint
from distq_mpi.holding import Holding
from distq_mpi.kernels import Kernel, caching, loop, pushing
from distq_mpi.kernels.objects import LoadedKernel
from distq_mpi.kernels.rounds import round_kernels
from distq_mpi.kernels.step_sizes import STEP_SIZES, step_parameter
from distq_mpi.kernels.stepping import stepping_kernels
from distq_mpi.lanes import Lanes
from distq_mpi.table import Rows, initialise, record_of

if TYPE_CHECKING:
    from distq_mpi.transport import Transport

ROUND_PUSHES = 32
"""Pushes of an agent in a round, at least: a pause costs as much as one push of the slowest."""
ENOUGH_PUSHES, SLOWER = 20, 2.0
"""Pushes from which on agents are compared, and how many times the median a straggler takes."""
MAX_STEPS = 2**62
NO_ROWS = np.zeros(0, np.uint64)
LEAST_STEPS = 4
"""Steps of every lane that a cache must have room for."""


def slots_of(config: Any) -> int:
    """Slots of a worker's cache: twice `parallel.cache_rows`, a power of two; 0 = it keeps all."""
    rows = int(config.parallel.cache_rows)
    return 1 << (2 * rows - 1).bit_length() if rows else 0


class Served(Host):
    """The learning state of this rank, and the phases of a round that change it.

    Parameters and attributes as those of `Allreduce`; `desk` on servers, `worker` on workers;
    `protection`, where `parallel.protect` has an effect; `lost`, in words, by the last `recover`.
    """

    exchanges, learned, rolls_back = "pushes and pulls", 0, False

    def __init__(
        self,
        config: Any,
        environment: Any,
        kernels: dict[str, LoadedKernel],
        transport: Transport,
    ) -> None:
        self.config, self.transport, self.kernels = config, transport, kernels
        self.n_states, self.n_actions = environment.n_states, environment.n_actions
        self.params_of, self.stepped = environment.params_of, environment.kind == "stepped"
        self.n_agents, self.n_lanes = config.parallel.agents, config.parallel.lanes
        self.followed, self.exchange_time_s = True, 0.0
        self.record = record_of(config.learn, self.n_actions)
        self.width = self.record.width
        auto = config.parallel.steps_per_round == "auto"
        self.period = 0 if auto else int(config.parallel.steps_per_round)
        self.progress = self.pending = Progress(period=self.period or 1)
        self.rates = np.array([config.learn.discount, step_parameter(config.learn)])
        self.header = np.zeros(HEADER, np.int64)
        self._told_at, self._turned_at = (time.perf_counter(), 0, 0), 0.0
        self.desk: Desk | None = None
        self.worker: Worker | None = None
        self.protection: Protection | None = None
        self._rescued: Rescued | None = None
        self._n_recoveries, self._made, self.lost = 0, 0, ""
        self._reached = np.zeros(self.n_agents, np.int64)
        """Steps of every lane of each agent that this rank knows of; `Desk.reached` may be ahead.
        What is beyond those of all ranks has changed no row."""
        learn = config.learn
        self._given = learn.initial, environment.return_bound, config.run.seed
        self._place(environment)
        if self.worker is not None:
            for agent in self.agents:
                self._begin(agent, 0)

    def _place(self, environment: Any) -> None:
        """Give every rank its agents or its rows; rows that servers have already stay. Local."""
        config, transport = self.config, self.transport
        self.hosting, self.blocks = placement(config, self.n_states, transport.size)
        self._members = [member.number for member in transport.members]
        self.n_servers = int(np.count_nonzero(self.blocks.counts))
        self._servers = {member.number for member in transport.members[: self.n_servers]}
        self.take_agents(environment, self.hosting)
        self.first, stop = self.blocks.block(transport.rank)
        if transport.size == 1:
            raise QuorumLost("one rank is left, which cannot be server and worker; resume on more")
        slots, record = slots_of(config), self.record
        words = 1 + record.row_bytes // 8
        room = min(int(self.blocks.counts.max()), slots // 2 or self.n_states)
        self.post = transport.post(pushing.HEAD + room * words)
        self._began = time.perf_counter()
        self.idle_shares = np.zeros(transport.size)
        self.now = [self.progress.steps_of(agent.number) for agent in self.agents]
        self.periods = [self.progress.period] * len(self.agents)
        self.pushed = [0] * len(self.agents)
        self._turn = 0
        if transport.rank < self.n_servers:
            if self.desk is None:
                rows = Rows(record, stop - self.first)
                initialise(rows, self.first, *self._given)
            else:
                rows = self.desk.rows
            desk = Desk(
                rows, self.first, room, config, self.kernels, self.post, transport.rank == 0
            )
            if self.desk is not None:
                desk.go_on_from(self.desk)
            self.desk = desk
            desk.reached[:] = self._reached
            self._protect_rows()
            return
        if self.worker is None:
            self.base, self.replica = (Rows(record, slots or self.n_states) for _ in range(2))
            if not slots:
                for rows in (self.base, self.replica):
                    initialise(rows, 0, *self._given)
        given = (
            self.base, self.replica, self.blocks, self.n_servers, room, self.params_of,
            self.rates, self.kernels, self.post,
        )  # fmt: skip
        n_lanes = int(self.lanes_of_agents.counts.max())
        most = config.parallel.cache_rows
        self.worker = (
            CachingWorker(*given, n_lanes=n_lanes, most=most) if slots else Worker(*given)
        )
        report = self.kernels["report"]
        self._reports = [
            report.bind(self.worker.found, agent.totals, self.header, self.n_agents, LENGTH_UNIT)
            for agent in self.agents
        ]
        self._protect_rows()

    def _protect_rows(self) -> None:
        """Make room for the copies that partners keep, from the next pause on. Local."""
        self.protection = None
        if self.config.parallel.protect == "partner" and self.transport.survives:
            self.protection = Protection(self._rows, None, self.blocks, self.transport)

    @property
    def _rows(self) -> Rows:
        return self.desk.rows if self.desk is not None else Rows(self.record, 0)

    def _begin(self, agent: Any, step: int) -> None:
        agent.begin(self.kernels["begin"], self.base.q, self.params_of(agent.number), step)

    @staticmethod
    def check(config: Any, stepped: bool) -> None:
        """Raise ConfigError for what this architecture cannot do. Local."""
        parallel, mistakes = config.parallel, []
        if STEP_SIZES[config.learn.step_size].signed:
            mistakes.append(
                f"learn.step_size: {config.learn.step_size} needs the agents' votes in one round; "
                f"with parallel.staleness {parallel.staleness} there is none; it must be 0"
            )
        least = LEAST_STEPS * caching.PER_LANE * -(-parallel.lanes // parallel.agents)
        if parallel.cache_rows and stepped:
            mistakes.append(
                f"parallel.cache_rows: {parallel.cache_rows} must be 0 for environments stepped in "
                "Python"
            )
        elif 0 < parallel.cache_rows < least:
            mistakes.append(
                f"parallel.cache_rows: {parallel.cache_rows} must be >= {least}, which "
                f"{LEAST_STEPS} steps of an agent's lanes can need, or 0 for all rows"
            )
        if mistakes:
            raise ConfigError("\n".join(mistakes))

    @staticmethod
    def memory_bytes(config: Any, n_states: int, n_actions: int, size: int) -> dict[str, int]:
        """Bytes the rank needs that needs most, part by part. Local."""
        record, slots = record_of(config.learn, n_actions), slots_of(config)
        blocks = placement(config, n_states, size)[1]
        block, n_servers = int(blocks.counts.max()), int(np.count_nonzero(blocks.counts))
        messages = 2 * min(block, slots // 2 or n_states) * (record.row_bytes + 8)
        lanes = -(-config.parallel.lanes // max(1, size - n_servers)) * lane_bytes(0)
        served = {"block": block * record.row_bytes, "clocks and versions":
                  block * (4 * record.width + 8), "messages": messages}  # fmt: skip
        if config.parallel.protect == "partner":
            served |= protection_bytes(block, record.row_bytes)
        working = {"base and replica": 2 * (slots or n_states) * record.row_bytes + 8 * slots,
                   "messages": messages, "lanes": lanes}  # fmt: skip
        return max(served, working, key=lambda parts: sum(parts.values()))

    @staticmethod
    def requests(config: Any, environment: Any) -> dict[str, Kernel]:
        """Return the kernels this architecture needs under a resolved `Config`. Local."""
        record, cached = record_of(config.learn, environment.n_actions), bool(slots_of(config))
        learning = caching.caching_kernels if cached else loop.learning_kernels
        if environment.kind == "stepped":
            learning = stepping_kernels
        return {
            **learning(config.learn, environment, record, Lanes(0, 1)),
            **pushing.pushing_kernels(config.learn, record, cached),
            **round_kernels("report"),
        }

    @property
    def busy_since(self) -> float:
        """As `Host.busy_since`; a server waits. Local."""
        waits = self.desk is not None or self.post.waits
        return math.inf if waits else max(super().busy_since, self._turned_at)

    def learn(self) -> None:
        """LEARN and MOVE: work, or serve, until server 0 calls a pause. COLLECTIVE."""
        if self.desk is not None:
            hosts = enumerate(self.hosting.counts)
            self.desk.serve({rank for rank, n in hosts if n}, self._steps_of_round())
        elif self.agents:
            self._work()

    def _work(self) -> None:
        worker = self.worker
        assert worker is not None
        limit = self.config.stop.steps
        left = MAX_STEPS if limit is None else limit - self.progress.steps
        most = max(1, -(-left // self.n_lanes))
        while True:
            k = self._turn % len(self.agents)
            agent = self.agents[k]
            begin = self._turned_at = time.perf_counter()
            if not worker.pull(agent.number, self.pushed[k]):
                break
            self.exchange_time_s += time.perf_counter() - begin
            agent.lanes.copy_from(agent.committed)
            try:
                n_steps = worker.learn(agent, self.now[k], min(self.periods[k], most))
            except DistqError:  # of the user's environment; nobody is to wait for this rank
                worker.pause(everybody=True)
                raise
            agent.commit()
            self.pushed[k] += 1
            self._made += 1
            self.now[k] += n_steps
            self._turn += 1
            begin, turn = time.perf_counter(), self._turn % len(self.agents)
            then = self.agents[turn].number, self.pushed[turn]
            worker.push(agent.number, self.pushed[k], n_steps * agent.lanes.n, then)
            self.exchange_time_s += time.perf_counter() - begin
            self._reports[k]()
            if not self.period:
                self.periods[k] = self._next_period(agent, n_steps, worker.found)
        worker.pause()

    def _next_period(self, agent: Any, n_steps: int, found: np.ndarray) -> int:
        most = MAX_PERIOD
        if not self.stepped:
            most = lone_period(self.n_states * self.width, agent.lanes.n)
        return next_period(
            n_steps, int(found[pushing.VISITS]),
            round(min(found[pushing.LENGTH] * LENGTH_UNIT, 2.0**52)), self.n_agents,
            self.config.parallel.kappa, most,
        )  # fmt: skip

    def _steps_of_round(self) -> int:
        """Steps of all lanes after which server 0 calls a pause."""
        progress, limit = self.progress, self.config.stop.steps
        wanted = max(
            ROUND_PUSHES * self.n_lanes * progress.period,
            min(progress.steps // TICK_SHARE, ROUND_STEPS),
        )
        return wanted if limit is None else max(1, min(wanted, limit - progress.steps))

    def exchange(self, wishes: tuple[bool, bool, bool]) -> Agreement:
        """AGREE. COLLECTIVE. wishes : as those of `Allreduce`."""
        header = self.header.copy()
        header[WISHES] = wishes
        self.transport.sum_int(header)
        agreement = Agreement.read(header)
        most = np.zeros(2, np.int64)
        if self.agents:
            most[:] = max(self.now), max(self.periods)
        self.transport.max_int(most)
        now, shares = time.perf_counter(), np.zeros(self.transport.size, np.int64)
        shares[self.transport.rank] = 1e6 * self.post.idle_s / max(1e-9, now - self._began)
        self.transport.sum_int(shares)
        self.idle_shares, self.post.idle_s, self._began = shares / 1e6, 0.0, now
        steps = np.zeros(self.n_agents, np.int64)
        for agent, n_made in zip(self.agents, self.now, strict=True):
            steps[agent.number] = n_made
        self.transport.sum_int(steps)
        progress = self.progress
        n_steps = max(0, int(most[0]) - progress.lane_steps)
        after = progress.after(
            n_steps, agreement.visits, agreement, max(1, int(most[1])), FixedPoint(1)
        )
        self.pending = after._replace(agent_steps=tuple(steps.tolist()))
        if self.protection is not None and not agreement.non_finite:
            self.protection.stage_rows(self.desk.changed() if self.desk else NO_ROWS)
            self.transport.agree()
        return agreement

    def report(self) -> dict[str, Any]:
        """As server 0 knows it: staleness of the last round's pushes, rates since the last report,
        counts and bytes from the start, pushes of each agent, shares of time spent waiting. Local.
        """
        desk = self.desk
        if desk is None:
            return {}
        behind = sorted(desk.staleness) or [0]
        n = len(behind) - 1
        workers = [rank for rank, hosted in enumerate(self.hosting.counts) if hosted]
        now = time.perf_counter()
        seconds = max(1e-9, now - self._told_at[0])
        pushes, pulls = desk.pushes - self._told_at[1], desk.pulls - self._told_at[2]
        self._told_at = now, desk.pushes, desk.pulls
        return {
            "pushes_per_s": pushes / seconds,
            "pulls_per_s": pulls / seconds,
            "staleness_p50": behind[n // 2],
            "staleness_p99": behind[round(0.99 * n)],
            "staleness_max": behind[-1],
            "pushes": desk.pushes,
            "pulls": desk.pulls,
            "pushes_dropped": desk.dropped,
            "sent_bytes": self.post.sent_bytes,
            "agent_clocks": desk.clocks.tolist(),
            "idle_share_workers": float(self.idle_shares[workers].mean()),
            "idle_share_servers": float(self.idle_shares[: self.n_servers].mean()),
        }

    def notices(self) -> list[tuple[str, str]]:
        """Stragglers, as server 0 knows them. Local."""
        if self.desk is None:
            return []
        clocks, hosts = self.desk.clocks, self.transport.hosts
        if np.median(clocks) < ENOUGH_PUSHES:
            return []
        each = self.desk.busy_s / np.maximum(clocks, 1)
        middle = float(np.median(each))
        return [
            (
                f"straggler {agent}",
                f"agent {agent} on rank {rank} ({hosts[rank]}) takes {took:.3g} s for a push where "
                f"half of the agents take {middle:.3g} s or less",
            )
            for agent, took in enumerate(each.tolist())
            if took > SLOWER * middle and (rank := int(self.hosting.owner(agent))) >= 0
        ]

    def commit(self) -> None:
        """Count the round; what was pushed in it is on the partners, too. Local."""
        self.progress, self.header[:] = self.pending, 0
        self._reached[:] = self.progress.agent_steps
        self._made = 0
        if self.protection is not None:
            self.protection.commit()
            if self.desk is not None:
                self.desk.kept_version = self.desk.version

    def rollback(self) -> int:
        """Forget the counters of the round in progress; its rows stay as they are. Local."""
        self.pending, self.header[:] = self.progress, 0
        return self.progress.round

    def recover(self, environment: Any) -> bool:
        """Place agents, and where a server was lost rows, anew. COLLECTIVE.

        What was pushed stays where servers are left; rows of lost ones come from their partners, as
        they were at the last pause. Agents of workers that are left go on from their last push,
        those of lost ones at new starts, with draws that have changed no row so far. False where
        rows are gone, or no worker is left.
        """
        transport = self.transport
        told = np.array([self._n_recoveries], np.int64)
        transport.max_int(told)
        if self._n_recoveries < told[0]:  # others have come out of the last recovery
            self._settle()
        left = {member.number for member in transport.members}
        rescued = self._rescued
        # A server becomes a worker where no worker is left.
        told[0] = (
            rescued is not None or not self._servers <= left or transport.size <= self.n_servers
        )
        transport.max_int(told)
        newest = np.array([0 if self.protection is None else self.protection.number], np.int64)
        transport.max_int(newest)
        if self.protection is not None and self.protection.number < newest[0]:
            self.protection.commit()  # all have what some have committed
        if told[0] and rescued is None:
            rescued = self._rescued = self._rescue()
        told[0] = bool(told[0]) and (rescued is None or not rescued.complete(transport))
        transport.max_int(told)
        if told[0]:
            return False
        kept = {
            agent.number: (
                agent.committed.raw.copy(),
                agent.worlds.pack() if agent.worlds is not None else None,
                self.now[k],
                self.periods[k],
            )
            for k, agent in enumerate(self.agents)
        }  # fmt: skip
        made = np.array([self._made], np.int64)
        transport.sum_int(made)
        for progress, theirs in transport.gather_everywhere((self.progress, dict(kept))):
            kept |= theirs
            if progress.round > self.progress.round:
                self.progress, self.header[:] = progress, 0
        self.pending = self.progress
        if self.desk is not None:
            np.maximum(self._reached, self.desk.reached, out=self._reached)
        for number, (_, _, now, _) in kept.items():
            self._reached[number] = max(self._reached[number], now)
        transport.max_int(self._reached)
        fresh = [number for number in range(self.n_agents) if number not in kept]
        self._reached[fresh] += 1
        for agent in self.agents:
            agent.close()
        if rescued is not None:
            self.desk, self.worker = None, None
        self._place(environment)
        self.lost = ""
        if rescued is not None:
            rescued.bring(transport, self._rows, self.blocks)
            if self.desk is not None:
                self.desk.know_rows(self._most_pushes())
            if not self._servers_of(rescued) <= left:
                self.lost = f"of lost servers' rows {made[0]} pushes since the last pause are lost"
        for k, agent in enumerate(self.agents):
            if agent.number in kept:
                raw, worlds, self.now[k], self.periods[k] = kept[agent.number]
                agent.resume_raw(raw, worlds, self.now[k])
            else:
                self.now[k] = int(self._reached[agent.number])
                self._begin(agent, self.now[k])
        if self.protection is not None:
            self.protection.stage_rows(self.desk.changed() if self.desk else NO_ROWS)
        transport.agree()
        self._settle()
        return True

    def _most_pushes(self) -> int:
        """No fewer than servers can have counted so far: each was of a step or more. Local."""
        return int(self._reached.sum()) + 2 * self._n_recoveries

    @staticmethod
    def _servers_of(rescued: Rescued) -> set[int]:
        pairs = zip(rescued.members, rescued.blocks.counts, strict=True)
        return {number for number, n_rows in pairs if n_rows}

    def _rescue(self) -> Rescued | None:
        """What rows there are now, and the copy of a partner's. Local."""
        protection = self.protection
        if protection is None or not protection.intact:
            return None
        return Rescued(
            protection.number, self._members, self.blocks, protection.distance, self._rows,
            protection.copy, None,
        )  # fmt: skip

    def _settle(self) -> None:
        """End a recovery: all ranks have all that they need to live through the next. Local."""
        self._rescued = None
        self._n_recoveries += 1
        if self.protection is not None:
            self.protection.commit()
            if self.desk is not None:
                self.desk.kept_version = self.desk.version

    @property
    def holding(self) -> Holding:
        """The committed table, on the servers."""
        return Holding(self._rows, self.first, self.blocks, self.transport)

    def iter_rows(self) -> Iterator[tuple[int, np.ndarray, np.ndarray, None]]:
        """As `Sharded.iter_rows`. COLLECTIVE."""
        for start, q, clock in self.holding.stream():
            yield start, q, clock, None

    def restore(self, progress: Progress, lanes: np.ndarray, worlds: Any = None) -> None:
        """Take counters and lanes of a checkpoint; rows come through `restore_rows`. Local."""
        super().restore(progress, lanes, worlds)
        self._reached[:] = [progress.steps_of(k) for k in range(self.n_agents)]
        if self.desk is not None:
            self.desk.reached[:] = self._reached
            self.desk.know_rows(self._most_pushes())
        self.now = [progress.steps_of(agent.number) for agent in self.agents]
        self.periods = [progress.period] * len(self.agents)

    def restore_rows(self, start: int, stop: int, stored: Any) -> None:
        """As `Sharded.restore_rows`. COLLECTIVE."""
        self.holding.take(start, stop, stored)
        if self.desk is not None:
            self.desk.know_rows(0)

    def reproducible(self) -> bool:
        """It never is. Local."""
        return False

    def keep_table(self) -> None:
        """Nothing to do: no other rank's memory is used. Local."""

    def close(self) -> None:
        """Close what is stepped. Local."""
        for agent in self.agents:
            agent.close()
