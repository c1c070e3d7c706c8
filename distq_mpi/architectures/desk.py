"""A server out of step: its rows, and what it does with what workers send."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from distq_mpi.kernels.objects import LoadedKernel
from distq_mpi.kernels.pushing import (
    AGENT,
    CLOCK,
    DONE,
    HEAD,
    KIND,
    N_ROWS,
    NEXT,
    NEXT_CLOCK,
    NEXT_VERSION,
    PAUSE,
    PULL,
    ROWS,
    STEPS,
    VERSION,
    WANT,
)
from distq_mpi.partition import Partition
from distq_mpi.table import Rows

if TYPE_CHECKING:
    from distq_mpi.transport import Post

LATE = 0.5
"""What a push loses for every further push of each agent that came in before it."""
ROUND_S, PAUSE_SHARE = 2.0, 8.0
"""Seconds after which server 0 calls a pause in any case, for signals wait for it; and how often
the longest push must fit into a round."""
NOTHING = 2**64 - 1
"""The version that a worker knows which asks for no rows."""


class Desk:
    """A server's rows and its word with the workers. Owned and changed by it alone.

    Parameters
    ----------
    rows : its block, the first of which is state `first`. room : rows that a message may hold.
    n_agents : active ones; scales pushes. staleness : `parallel.staleness`. leads : whether this is
    server 0, which alone holds workers back and calls pauses.

    Attributes: `clocks`, int64 (agents,), pushes of each; `busy_s`, float64 (agents,), seconds
    between pulls and pushes of each; `reached`, int64 (agents,), steps that every lane of each has
    made, as far as it was pushed; `staleness`, of each push of the last round; `kept_version`,
    of the rows that a partner has; `pushes`, `pulls`, `dropped`, in all; `steps`, of this round's
    pushes.
    """

    def __init__(
        self, rows: Rows, first: int, room: int, config: Any, kernels: dict[str, LoadedKernel],
        post: Post, leads: bool,
    ) -> None:  # fmt: skip
        self.rows, self.first, self.kernels, self.post = rows, first, kernels, post
        self.n_agents, self.limit = config.parallel.agents, config.parallel.staleness
        self.seed, self.leads = config.run.seed, leads
        self.over = np.zeros(rows.n_rows * rows.record.width, np.float32)
        self.versions = np.zeros(rows.n_rows, np.uint64)
        self.version, self.clocks = 0, np.zeros(self.n_agents, np.int64)
        lanes = Partition.balanced(config.parallel.lanes, self.n_agents)
        self.lanes = np.maximum(lanes.counts, 1)
        self.reached = np.zeros(self.n_agents, np.int64)
        self.kept_version = 0
        self.answered_at, self.busy_s = np.zeros(self.n_agents), np.zeros(self.n_agents)
        self.answered_at[:] = time.perf_counter()
        self.longest_s = 0.0
        self.staleness: list[int] = []
        self.pushes = self.pulls = self.dropped = self.steps = 0
        self.words = 1 + rows.record.row_bytes // 8
        self.out = np.zeros(HEAD + min(room, rows.n_rows) * self.words, np.uint64)
        self.control, self.scale = np.zeros(4, np.uint64), np.zeros(1)
        self._bind()

    def _bind(self) -> None:
        """Fix the arguments of the loops: checking them costs more than a small message."""
        came, out, kernels, rows = self.post.inbox[HEAD:], self.out[HEAD:], self.kernels, self.rows
        table, control = rows.raw.view(np.uint64), self.control
        self._add = kernels["apply"].bind(
            rows.q, rows.clock_words, self.over, self.versions,
            came, came.view(rows.record.dtype), came.view(np.uint32), control, self.scale,
        )  # fmt: skip
        self._collect = kernels["collect"].bind(table, self.versions, out, control)
        self._pick = kernels["pick"].bind(table, came, out, control)

    def know_rows(self, n_pushes: int) -> None:
        """Count from what the rows hold, which were brought in from outside. Local.

        n_pushes : that came before, at most. A push's number decides how its values are rounded.
        """
        self.over[:] = 0
        self.versions[:] = self.version = max(self.version, n_pushes) + 1

    def changed(self) -> np.ndarray:
        """Rows, uint64, that changed since `kept_version`. Local."""
        return np.flatnonzero(self.versions > self.kept_version).astype(np.uint64)

    def go_on_from(self, other: Desk) -> None:
        """Take over what another desk has counted, of the same rows. Local."""
        self.version, self.over[:] = other.version, other.over
        self.versions[:] = self.version = self.version + 1
        self.pushes, self.pulls, self.dropped = other.pushes, other.pulls, other.dropped

    def serve(self, workers: set[int], n_steps: int) -> None:
        """Apply pushes and answer pulls until every worker has paused. Local to it and them.

        n_steps : of all lanes, after which agents that ask are told to pause; or `ROUND_S` seconds,
        and more where a pause would cost too much of it, since it waits for the slowest push.
        """
        begun = time.perf_counter()
        waiting: dict[int, tuple[int, int, int]] = {}
        self.steps = 0
        self.staleness.clear()
        while workers:
            peer, words = self.post.wait(), self.post.inbox
            kind, number = int(words[KIND]), int(words[AGENT])
            if kind == DONE:
                workers.discard(peer)
                n_steps = n_steps if not self.leads else 0  # who leaves server 0 found a mistake
            elif kind == WANT:
                self._answer_wanted(peer, int(words[N_ROWS]))
            elif kind == PULL:
                waiting[number] = peer, int(words[CLOCK]), int(words[VERSION])
            else:
                self._apply(words)
                self.steps += int(words[STEPS])
                if words[NEXT]:
                    asks = int(words[NEXT_CLOCK]), int(words[NEXT_VERSION])
                    waiting[int(words[NEXT]) - 1] = peer, *asks
            lasted_s = time.perf_counter() - begun
            late = self.steps and lasted_s > max(ROUND_S, PAUSE_SHARE * self.longest_s)
            for agent, (rank, clock, known) in list(waiting.items()):
                if self.leads and (self.steps >= n_steps or late):
                    self._send(rank, PAUSE, 0)
                    workers.discard(rank)
                elif self.leads and self._must_wait(clock):
                    continue
                else:
                    self._answer(rank, known)
                    self.answered_at[agent] = time.perf_counter()
                del waiting[agent]

    def _must_wait(self, clock: int) -> bool:
        return self.limit != "inf" and clock > self.clocks.min() + self.limit

    def _apply(self, words: np.ndarray) -> None:
        """Add a push to this server's rows. Local."""
        number, clock, known = (int(words[k]) for k in (AGENT, CLOCK, VERSION))
        behind = self.version - known
        self.clocks[number] = clock
        self.reached[number] += int(words[STEPS]) // int(self.lanes[number])
        took = time.perf_counter() - self.answered_at[number]
        self.busy_s[number] += took
        self.longest_s = max(0.9 * self.longest_s, took)
        self.version += 1
        self.pushes += 1
        self.staleness.append(behind)
        if self.limit != "inf" and self.clocks.max() - clock > self.limit + 1:
            self.dropped += 1
            return
        self.scale[0] = self.scale_of(behind)
        self.control[:] = self.first, words[N_ROWS], self.seed, self.version
        self._add()

    def scale_of(self, behind: int) -> float:
        """What a push is multiplied with that began `behind` pushes ago: 1 / K, which is stable for
        any K and alpha <= 1, and less where others pushed more than once in between. Local."""
        late = max(0, behind - (self.n_agents - 1)) / self.n_agents
        return 1.0 / (self.n_agents * (1.0 + LATE * late))

    def _answer(self, peer: int, known: int) -> None:
        """Send a worker the rows that changed since the version it knows."""
        self.pulls += 1
        n = 0
        if known != NOTHING:
            self.control[:2] = self.first, known
            self._collect()
            n = int(self.control[2])
        self._send(peer, ROWS, n)

    def _answer_wanted(self, peer: int, n: int) -> None:
        """Send a worker the n rows that its message names."""
        self.pulls += 1
        self.control[:2] = self.first, n
        self._pick()
        self._send(peer, ROWS, n)

    def _send(self, peer: int, kind: int, n_rows: int) -> None:
        out = self.out
        out[:HEAD] = 0
        out[KIND], out[VERSION], out[N_ROWS] = kind, self.version, n_rows
        self.post.send(out[: HEAD + n_rows * self.words], peer)
