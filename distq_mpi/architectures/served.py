"""`server` out of step: workers learn on what they have pulled, and push when they are done.

An agent pulls the rows that changed since it last did, learns `steps_per_round` steps of every lane
and pushes what it learned. Servers apply pushes as they come, each scaled by 1 / K, so that any
number of agents is stable, and less the later it comes; the clock advances by as much of the
visits. An agent may begin its push c while the slowest has made c - `parallel.staleness` of them.

A round, as the rest of the program sees it, is a number of steps after which server 0 tells every
agent that asks to pause: nothing is on its way then, so what is certified and written holds every
push. Nobody waits longer than for the push that the slowest has begun.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from distq_mpi.architectures.hosting import Host, Hosted
from distq_mpi.architectures.progress import HEADER, WISHES, Agreement, Progress, add_agent
from distq_mpi.architectures.schedules import (
    LENGTH_UNIT,
    MAX_PERIOD,
    ROUND_STEPS,
    TICK_SHARE,
    lone_period,
    next_period,
)
from distq_mpi.architectures.server import placement
from distq_mpi.fusion import FixedPoint
from distq_mpi.holding import Holding
from distq_mpi.kernels import Kernel, loop, pushing
from distq_mpi.kernels.objects import LoadedKernel
from distq_mpi.kernels.step_sizes import step_parameter
from distq_mpi.kernels.stepping import stepping_kernels
from distq_mpi.lanes import LANE_DTYPE, Lanes
from distq_mpi.table import Rows, initialise, record_of

if TYPE_CHECKING:
    from distq_mpi.transport import Transport

PUSH, PULL, DONE, ROWS, PAUSE = range(5)
KIND, AGENT, CLOCK, VERSION, N_ROWS, STEPS, N_WORDS = range(7)
HEAD = 8
"""Words before the rows of a message."""
LATE = 0.5
"""What a push loses for every further push of each agent that came in before it."""
IDLE_S = 5e-5
FIRST_PUSHES = 8
"""Pushes of an agent in the first round."""
ENOUGH_PUSHES, BEHIND = 20, 0.5
"""Pushes from which on agents are compared, and the share of their median that a straggler has."""


class Served(Host):
    """The learning state of this rank, and the phases of a round that change it.

    Parameters and attributes as those of `Sharded`; `serves`, whether this rank is a server.
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
        self.params, self.stepped = environment.params, environment.kind == "stepped"
        self.n_agents, self.n_servers = config.parallel.agents, config.parallel.servers
        self.n_lanes, self.followed = config.parallel.lanes, True
        self.record = record_of(config.learn, self.n_actions)
        self.width, self.exchange_time_s = self.record.width, 0.0
        self.serves = transport.rank < self.n_servers
        self.hosting, self.blocks = placement(config, self.n_states, transport.size)
        self.take_agents(environment, self.hosting)
        self.first, stop = self.blocks.block(transport.rank)
        self.rows = Rows(self.record, stop - self.first)
        learn = config.learn
        given = learn.initial, environment.return_bound, config.run.seed
        initialise(self.rows, self.first, *given)
        auto = config.parallel.steps_per_round == "auto"
        self.period = 0 if auto else int(config.parallel.steps_per_round)
        self.progress = self.pending = Progress(period=self.period or 1)
        self.rates = np.array([learn.discount, step_parameter(learn), 1.0])
        self.header = np.zeros(HEADER, np.int64)
        words = self.record.row_bytes // 8
        largest = int(self.blocks.counts.max())
        self.post = transport.post(HEAD + largest * (1 + words))
        self.out = np.zeros(HEAD + largest * (1 + words), np.uint64)
        self.clocks = np.zeros(self.n_agents, np.int64)
        self.staleness: list[int] = []
        self.pushes = self.pulls = self.dropped = 0
        self.idle_s, self._began = 0.0, time.perf_counter()
        self.idle_shares = np.zeros(transport.size)
        if self.serves:
            self.ticked = np.zeros(self.rows.n_rows * self.width)
            self.versions = np.zeros(self.rows.n_rows, np.uint64)
            self.version = 0
        else:
            self.base, self.replica = (Rows(self.record, self.n_states) for _ in range(2))
            for rows in (self.base, self.replica):
                initialise(rows, 0, *given)
            self._begin_work()
        for agent in self.agents:
            agent.control[loop.EXPLORE] = self._explore()
            agent.begin(kernels["begin"], self.base.q, self.params)

    @staticmethod
    def memory_bytes(config: Any, n_states: int, n_actions: int, size: int) -> dict[str, int]:
        """Bytes the rank needs that needs most, part by part. Local."""
        record, n_servers = record_of(config.learn, n_actions), config.parallel.servers
        table = n_states * record.row_bytes
        block = -(-n_states // n_servers)
        lanes = -(-config.parallel.lanes // max(1, size - n_servers)) * LANE_DTYPE.itemsize * 2
        return {"base and replica": 2 * table, "messages": 2 * block * (record.row_bytes + 8),
                "lanes": lanes}  # fmt: skip

    @staticmethod
    def requests(config: Any, environment: Any) -> dict[str, Kernel]:
        """Return the kernels this architecture needs under a resolved `Config`. Local."""
        record = record_of(config.learn, environment.n_actions)
        learning = stepping_kernels if environment.kind == "stepped" else loop.learning_kernels
        return {
            **learning(config.learn, environment, record, Lanes(0, 1)),
            **pushing.pushing_kernels(config.learn, record),
        }

    def _begin_work(self) -> None:
        """What a worker needs: what it knows of each server, its agents' steps and periods."""
        self.known = np.zeros(self.n_servers, np.uint64)
        self.now = [self.progress.lane_steps] * len(self.agents)
        self.periods = [self.progress.period] * len(self.agents)
        self._turn = 0
        self._draws = np.zeros(2 * loop.BATCH, np.uint64)
        self._base_words = self.base.raw.view(np.uint64).reshape(self.n_states, -1)
        self._words = self.replica.raw.view(np.uint64).reshape(self.n_states, -1)

    def learn(self) -> None:
        """LEARN and MOVE: work, or serve, until server 0 calls a pause. COLLECTIVE."""
        self.header[:] = 0
        if self.serves:
            self._serve()
        elif self.agents:
            self._work()

    def _work(self) -> None:
        explore = self._explore()
        while True:
            k = self._turn % len(self.agents)
            begin = time.perf_counter()
            if not self._pull(self.agents[k]):
                break
            self.idle_s += time.perf_counter() - begin
            self.exchange_time_s += time.perf_counter() - begin
            agent, n_steps = self.agents[k], self.periods[k]
            agent.lanes.copy_from(agent.committed)
            agent.control[loop.EXPLORE] = explore
            self._learn(k, n_steps)
            agent.commit()
            self.now[k] += n_steps
            begin = time.perf_counter()
            self._push(k, n_steps)
            self.exchange_time_s += time.perf_counter() - begin
            self._turn += 1
        for server in range(1, self.n_servers):
            self._send(server, DONE, 0, 0, 0)

    def _learn(self, k: int, n_steps: int) -> None:
        agent = self.agents[k]
        call = self.kernels["learn"].bind(
            self.replica.q, self.replica.clock_words,
            *agent.learning_arrays(self._draws, self.params), agent.control,
            self.rates[:2].copy(), agent.totals,
        )  # fmt: skip
        agent.learn(call, self.now[k] + 1, n_steps)

    def _number(self, agent: Hosted) -> int:
        return int(self.hosting.block(self.transport.rank)[0]) + self.agents.index(agent)

    def _send(self, peer: int, kind: int, agent: int, clock: int, version: int) -> None:
        self.out[:HEAD] = 0
        self.out[:N_ROWS] = kind, agent, clock, version
        self.post.send(self.out[:HEAD], peer)

    def _pull(self, agent: Hosted) -> bool:
        """Take the rows that changed; False where there is a pause. Local to it and the servers."""
        number = self._number(agent)
        for server in range(self.n_servers):
            self._send(server, PULL, number, int(self.clocks[number]), int(self.known[server]))
            if server == 0 and not self._take(0):
                return False
        return all(self._take(server) for server in range(1, self.n_servers))

    def _take(self, server: int) -> bool:
        came = self.post.receive(server)
        if came[KIND] == PAUSE:
            return False
        self.known[server] = came[VERSION]
        index, rows = self._parts(came)
        self._base_words[index] = rows
        self._words[index] = rows
        return True

    def _parts(self, words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Indices, int64 (n,), and row records, uint64 (n, words), of a message; views."""
        n = int(words[N_ROWS])
        index = words[HEAD : HEAD + n].view(np.int64)
        return index, words[HEAD + n : HEAD + n + n * self._row_words].reshape(n, self._row_words)

    @property
    def _row_words(self) -> int:
        return self.record.row_bytes // 8

    def _push(self, k: int, n_steps: int) -> None:
        """Send every server what the agent learned in its rows. Local to it and the servers."""
        agent = self.agents[k]
        number, found = self._number(agent), np.zeros(5)
        self.clocks[number] += 1
        for server in range(self.n_servers):
            first, stop = self.blocks.block(server)
            control = np.array([first, stop, 0, 0], np.uint64)
            # Records begin where as many indices as there can be end; then they move up.
            room = HEAD + stop - first
            records = self.out[room : room + (stop - first) * self._row_words]
            self.kernels["gather"](
                self.replica.q, self.replica.clock_words, self.base.q, self.base.clock_words,
                self.out[HEAD:room].view(np.int64), records.view(self.record.dtype),
                records.view(np.uint32), control, self.rates, found,
            )  # fmt: skip
            n = int(control[pushing.STOP])
            index = self.out[HEAD : HEAD + n].view(np.int64)
            self._words[index] = self._base_words[index]
            end = HEAD + n + n * self._row_words
            self.out[HEAD + n : end] = records[: n * self._row_words]
            self.out[:HEAD] = (
                PUSH, number, self.clocks[number], self.known[server], n,
                n_steps * agent.lanes.n, 0, 0,
            )  # fmt: skip
            self.post.send(self.out[:end], server)
        add_agent(self.header, found, agent.totals, LENGTH_UNIT, self.n_agents)
        if not self.period:
            most = MAX_PERIOD
            if not self.stepped:
                most = lone_period(self.n_states * self.width, agent.lanes.n)
            self.periods[k] = next_period(
                n_steps, int(found[pushing.VISITS]),
                round(min(found[pushing.LENGTH] * LENGTH_UNIT, 2.0**52)), self.n_agents,
                self.config.parallel.kappa, most,
            )  # fmt: skip

    def _steps_of_round(self) -> int:
        """Steps of all lanes after which server 0 calls a pause."""
        progress, limit = self.progress, self.config.stop.steps
        wanted = max(
            FIRST_PUSHES * self.n_lanes * progress.period,
            min(progress.steps // TICK_SHARE, ROUND_STEPS),
        )
        return wanted if limit is None else max(1, min(wanted, limit - progress.steps))

    def _serve(self) -> None:
        """Apply pushes and answer pulls until every worker has paused."""
        size = self.transport.size
        working = {rank for rank in range(size) if self.hosting.counts[rank]}
        waiting: dict[int, tuple[int, int, int]] = {}
        left, leads = self._steps_of_round(), self.transport.rank == 0
        limit = self.config.parallel.staleness
        self.staleness.clear()
        while working:
            came = self.post.poll()
            if came is None:
                begin = time.perf_counter()
                time.sleep(IDLE_S)
                self.idle_s += time.perf_counter() - begin
                continue
            peer, words = came
            kind, number = int(words[KIND]), int(words[AGENT])
            if kind == DONE:
                working.discard(peer)
            elif kind == PULL:
                waiting[number] = peer, int(words[CLOCK]), int(words[VERSION])
            else:
                self._apply(words)
                left -= int(words[STEPS])
            for agent, (rank, clock, known) in list(waiting.items()):
                if leads and left <= 0:
                    self._send(rank, PAUSE, agent, 0, 0)
                    working.discard(rank)
                elif leads and limit != "inf" and clock > self.clocks.min() + limit:
                    continue
                else:
                    self._answer(rank, known)
                del waiting[agent]

    def _apply(self, words: np.ndarray) -> None:
        """Add a push to this server's rows. Local."""
        number, clock, known = (int(words[k]) for k in (AGENT, CLOCK, VERSION))
        behind = self.version - known
        self.clocks[number] = clock
        self.version += 1
        self.pushes += 1
        self.staleness.append(behind)
        limit = self.config.parallel.staleness
        if limit != "inf" and self.clocks.max() - clock > limit + 1:
            self.dropped += 1
            return
        late = max(0, behind - (self.n_agents - 1)) / self.n_agents
        index, rows = self._parts(words)
        self.kernels["apply"](
            self.rows.q, self.rows.clock_words, self.ticked, self.versions, index,
            rows.reshape(-1).view(self.record.dtype), rows.reshape(-1).view(np.uint32),
            np.array([self.first, len(index), self.config.run.seed, self.version], np.uint64),
            np.array([1.0 / (self.n_agents * (1.0 + LATE * late))]),
        )  # fmt: skip

    def _answer(self, peer: int, known: int) -> None:
        """Send a worker the rows that changed since the version it knows. Local to both."""
        self.pulls += 1
        changed = np.flatnonzero(self.versions > np.uint64(known))
        n = len(changed)
        self.out[:HEAD] = 0
        self.out[: N_ROWS + 1] = ROWS, 0, 0, self.version, n
        self.out[HEAD : HEAD + n] = changed + self.first
        records = self.rows.raw.view(np.uint64).reshape(self.rows.n_rows, -1)
        end = HEAD + n + n * self._row_words
        self.out[HEAD + n : end] = records[changed].reshape(-1)
        self.post.send(self.out[:end], peer)

    def exchange(self, wishes: tuple[bool, bool, bool]) -> Agreement:
        """AGREE. COLLECTIVE. wishes : as those of `Allreduce`."""
        self.header[WISHES] = wishes
        self.transport.sum_int(self.header)
        agreement = Agreement.read(self.header)
        most = np.zeros(2, np.int64)
        if not self.serves and self.agents:
            most[:] = max(self.now), max(self.periods)
        self.transport.max_int(most)
        now, shares = time.perf_counter(), np.zeros(self.transport.size, np.int64)
        shares[self.transport.rank] = 1e6 * self.idle_s / max(1e-9, now - self._began)
        self.transport.sum_int(shares)
        self.idle_shares, self.idle_s, self._began = shares / 1e6, 0.0, now
        progress = self.progress
        n_steps = max(0, int(most[0]) - progress.lane_steps)
        self.pending = progress.after(
            n_steps, agreement.visits, agreement, max(1, int(most[1])), FixedPoint(1)
        )
        return agreement

    def report(self) -> dict[str, Any]:
        """Of the last round: what is known of it on server 0. Local."""
        behind = sorted(self.staleness) or [0]
        n = len(behind) - 1
        workers = [rank for rank, hosted in enumerate(self.hosting.counts) if hosted]
        return {
            "staleness_p50": behind[n // 2],
            "staleness_p99": behind[round(0.99 * n)],
            "staleness_max": behind[-1],
            "pushes": self.pushes,
            "pulls": self.pulls,
            "pushes_dropped": self.dropped,
            "sent_bytes": self.post.sent_bytes,
            "agent_clocks": self.clocks.tolist(),
            "idle_share_workers": float(self.idle_shares[workers].mean()),
            "idle_share_servers": float(self.idle_shares[: self.n_servers].mean()),
        }

    def notices(self) -> list[tuple[str, str]]:
        """Stragglers, as server 0 knows them. Local."""
        middle, hosts = float(np.median(self.clocks)), self.transport.hosts
        if middle < ENOUGH_PUSHES:
            return []
        return [
            (
                f"straggler {agent}",
                f"agent {agent} on rank {rank} ({hosts[rank]}) has pushed {clock} times where half "
                f"of the agents have pushed {middle:g} times or more",
            )
            for agent, clock in enumerate(self.clocks.tolist())
            if clock < BEHIND * middle and (rank := int(self.hosting.owner(agent))) >= 0
        ]

    def commit(self) -> None:
        """Count the round. Local."""
        self.progress = self.pending

    def rollback(self) -> int:
        """Forget the counters of the round in progress; its rows stay as they are. Local."""
        self.pending = self.progress
        return self.progress.round

    @property
    def holding(self) -> Holding:
        """The committed table, on the servers."""
        return Holding(self.rows, self.first, self.blocks, self.transport)

    def iter_rows(self) -> Iterator[tuple[int, np.ndarray, np.ndarray, None]]:
        """As `Sharded.iter_rows`. COLLECTIVE."""
        for start, q, clock in self.holding.stream():
            yield start, q, clock, None

    def restore(self, progress: Progress, lanes: np.ndarray, worlds: Any = None) -> None:
        """Take counters and lanes of a checkpoint; rows come through `restore_rows`. Local."""
        super().restore(progress, lanes, worlds)
        if not self.serves:
            self._begin_work()

    def restore_rows(self, start: int, stop: int, stored: Any) -> None:
        """As `Sharded.restore_rows`. COLLECTIVE."""
        self.holding.take(start, stop, stored)
        if self.serves:
            self.ticked[:] = self.rows.clock.reshape(-1)
            self.versions[:] = self.version = 1

    def reproducible(self) -> bool:
        """It never is. Local."""
        return False

    def keep_table(self) -> None:
        """Nothing to do: no other rank's memory is used. Local."""

    def close(self) -> None:
        """Close what is stepped. Local."""
        for agent in self.agents:
            agent.close()
