"""A worker out of step: the rows it has pulled, and what its agents push."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from distq_mpi.architectures.desk import NOTHING
from distq_mpi.architectures.hosting import Hosted
from distq_mpi.kernels import caching, loop
from distq_mpi.kernels.objects import LoadedKernel
from distq_mpi.kernels.pushing import (
    DONE,
    HEAD,
    KIND,
    N_ROWS,
    NEXT,
    NEXT_CLOCK,
    NEXT_VERSION,
    PAUSE,
    PULL,
    PUSH,
    VERSION,
    WANT,
)
from distq_mpi.partition import Partition
from distq_mpi.table import Rows

if TYPE_CHECKING:
    from distq_mpi.transport import Post


class Worker:
    """All rows of the table, and how agents learn on them. Owned and changed by this rank alone.

    Parameters
    ----------
    base, replica : rows as they came, and as the agent at work has changed them. blocks : of rows,
    one per rank. room : rows that a message may hold. kernels : those of `learn` and `pushing`.

    Attributes: `known`, of each server, the version of its rows that this rank has.
    """

    cached = False

    def __init__(
        self, base: Rows, replica: Rows, blocks: Partition, n_servers: int, room: int,
        params_of: Any, rates: np.ndarray, kernels: dict[str, LoadedKernel], post: Post,
    ) -> None:  # fmt: skip
        self.base, self.replica, self.blocks, self.post = base, replica, blocks, post
        self.n_servers, self.kernels, self.rates = n_servers, kernels, rates
        self.params_of = params_of
        self.words = 1 + base.record.row_bytes // 8
        self.known = np.zeros(n_servers, np.uint64)
        self.keys = self.places = np.zeros(1, np.uint64)
        self.out = np.zeros(HEAD + room * self.words, np.uint64)
        self.control = np.zeros(5, np.uint64)
        self.found, self._asked = np.zeros(5), False
        self._bound: dict[int, Any] = {}
        self._bind()

    def _bind(self) -> None:
        """Fix the arguments of the loops: checking them costs more than a small message."""
        base, replica, body = self.base, self.replica, self.out[HEAD:]
        self._gather = self.kernels["gather"].bind(
            replica.q, replica.clock_words, base.q, base.clock_words, self.keys,
            body, body.view(base.record.dtype), body.view(np.uint32), self.control, self.rates,
            self.found,
        )  # fmt: skip
        self._install = self.kernels["install"].bind(
            base.raw.view(np.uint64), replica.raw.view(np.uint64), self.places,
            self.post.inbox[HEAD:], self.control,
        )  # fmt: skip

    def pull(self, agent: int, clock: int) -> bool:
        """Take the rows that changed; False where there is a pause. Local to it and the servers."""
        if not self._asked:
            self._send(0, PULL, agent, clock, self._has(0))
        self._asked = False
        if not self._take(0):
            return False
        for server in range(1, self.n_servers):
            self._send(server, PULL, agent, clock, self._has(server))
        for server in range(1, self.n_servers):
            self._take(server)
        return True

    def pause(self, everybody: bool = False) -> None:
        """Tell the servers that know nothing of the pause. Local to it and them.

        everybody : this rank has found a mistake, and server 0 is to call a pause.
        """
        for server in range(0 if everybody else 1, self.n_servers):
            self._send(server, DONE, 0, 0, 0)

    def learn(self, agent: Hosted, now: int, n_steps: int) -> int:
        """Make up to n_steps steps of an agent's lanes after step `now`; return how many. Local."""
        if agent.number not in self._bound:
            work = np.zeros(loop.work_words(agent.lanes.n), np.uint64)
            self._bound[agent.number] = self.kernels["learn"].bind(
                self.replica.q, self.replica.q, self.replica.clock_words,
                *agent.learning_arrays(work, self.params_of(agent.number)), agent.control,
                self.rates, agent.totals,
            )  # fmt: skip
        agent.learn(self._bound[agent.number], now + 1, n_steps)
        return n_steps

    def push(
        self, agent: int, clock: int, n_steps: int, then: tuple[int, int] | None = None
    ) -> np.ndarray:
        """Send every server what was learned in its rows; return what `gather` found, float64 (5,),
        valid until the next push.

        n_steps : of all the agent's lanes. then : agent and clock of the pull that comes next, if
        any, for which server 0 is asked at once. Local to this rank and the servers.
        """
        self.found[:] = 0.0
        for server in reversed(range(self.n_servers)):  # who is let go by server 0 finds all
            first, stop = self.blocks.block(server)
            self.control[:4] = *self._looked_at(first, stop), first, stop
            self._gather()
            n = int(self.control[4])
            self.out[:HEAD] = PUSH, agent, clock, self.known[server], n, n_steps, 0, 0, 0, 0
            if server == 0 and then is not None:
                self._asked = True
                self.out[NEXT], self.out[NEXT_CLOCK] = then[0] + 1, then[1]
                self.out[NEXT_VERSION] = self._has(0)
            self.post.send(self.out[: HEAD + n * self.words], server)
        return self.found

    def _looked_at(self, first: int, stop: int) -> tuple[int, int]:
        return first, stop

    def _has(self, server: int) -> int:
        """Version of a server's rows that a pull need not bring."""
        return int(self.known[server])

    def _send(self, peer: int, kind: int, agent: int, clock: int, version: int) -> None:
        self.out[:HEAD] = kind, agent, clock, version, 0, 0, 0, 0, 0, 0
        self.post.send(self.out[:HEAD], peer)

    def _take(self, server: int) -> bool:
        self.post.wait(server)
        came = self.post.inbox
        if came[KIND] == PAUSE:
            return False
        self.known[server] = came[VERSION]
        self.control[:2] = came[N_ROWS], self.cached
        self._install()
        return True


class CachingWorker(Worker):
    """As `Worker`, of which a bounded number of rows are kept, and given up with every push.

    base, replica : of as many rows as there are slots, a power of two, of which `most`, at most
    half, are used.
    """

    cached = True

    def __init__(self, *arguments: Any, n_lanes: int, most: int) -> None:
        super().__init__(*arguments)
        n_wanted = caching.PER_LANE * n_lanes
        self.keys = np.zeros(self.base.n_rows, np.uint64)
        self.wanted, self.slots, self.places = (np.zeros(n_wanted, np.uint64) for _ in range(3))
        self._bind()
        self.steps = np.zeros(caching.N_CONTROL, np.uint64)
        self.steps[caching.MOST] = most
        self._fresh = np.ones(self.n_servers, bool)

    def pull(self, agent: int, clock: int) -> bool:
        """Ask whether to go on; rows come when they are needed. Local to it and server 0."""
        self.agent = agent
        if not self._asked:
            self._send(0, PULL, agent, clock, NOTHING)
        self._asked = False
        if not self._take(0):
            return False
        self._fresh[:] = True
        self._fresh[0] = False
        return True

    def learn(self, agent: Hosted, now: int, n_steps: int) -> int:
        """As `Worker.learn`, and fewer steps where there is no room. Local to it and servers."""
        steps, totals = self.steps, agent.totals
        totals[:] = 0.0
        steps[: len(agent.control)] = agent.control
        steps[caching.FIRST_STEP], steps[caching.STEPS_DONE] = now + 1, 0
        call = self.kernels["learn"].bind(
            self.replica.q, self.replica.clock_words, self.keys, self.wanted, self.slots,
            *agent.lanes.arrays(), self.params_of(agent.number), steps, self.rates, totals,
        )  # fmt: skip
        for first, n, explore in agent.exploring.pieces(now + 1, n_steps):
            steps[caching.N_STEPS], steps[caching.EXPLORE] = first + n - now - 1, explore
            call()
            while n_wanted := int(steps[caching.N_WANTED]):
                self._fetch(self.wanted[:n_wanted], self.slots[:n_wanted])
                call()
            if steps[caching.STEPS_DONE] < steps[caching.N_STEPS]:
                break
        return int(steps[caching.STEPS_DONE])

    def push(
        self, agent: int, clock: int, n_steps: int, then: tuple[int, int] | None = None
    ) -> np.ndarray:
        """As `Worker.push`; then no rows are kept."""
        found = super().push(agent, clock, n_steps, then)
        self.keys[:] = 0
        self.steps[caching.N_KEPT] = 0
        return found

    def _fetch(self, wanted: np.ndarray, slots: np.ndarray) -> None:
        """Have rows sent, and put them into their slots."""
        owner = self.blocks.owner(wanted.astype(np.int64))
        asked = [server for server in range(self.n_servers) if (owner == server).any()]
        for server in asked:
            mine = wanted[owner == server]
            self.out[:HEAD] = WANT, self.agent, 0, 0, len(mine), 0, 0, 0, 0, 0
            self.out[HEAD : HEAD + len(mine)] = mine
            self.post.send(self.out[: HEAD + len(mine)], server)
        for _ in asked:  # as they come: a server that waits to send to one rank serves no other
            server = self.post.wait()
            if self._fresh[server]:  # what it pushes is as old as the oldest of its rows
                self.known[server], self._fresh[server] = self.post.inbox[VERSION], False
            n = int(self.post.inbox[N_ROWS])
            self.places[:n] = slots[owner == server]
            self.control[:2] = n, self.cached
            self._install()

    def _looked_at(self, first: int, stop: int) -> tuple[int, int]:
        return 0, self.base.n_rows

    def _has(self, server: int) -> int:
        return NOTHING
