"""`sharded` where environments are stepped in Python: lanes stay at home and ask the owners.

In a tick every lane asks the owner of its next state for the next action, who sends what is to be
learned to the owner of (state, action); a lane whose episode is over also asks the owner of the
next start. All rows are looked at before any is changed, so the bits do not depend on the ranks.
With one lane they are those of `allreduce` with one agent, but for rewards, which are float32 here,
and for actions taken in the very state that was just learned in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from distq_mpi.architectures.hosting import Hosted
from distq_mpi.architectures.progress import Progress
from distq_mpi.architectures.sharded import Sharded, record_in
from distq_mpi.environments.silence import silence
from distq_mpi.environments.worlds import WORLD_DTYPE
from distq_mpi.errors import ModelError
from distq_mpi.kernels import Kernel, answering, crossing
from distq_mpi.lanes import LANE_DTYPE
from distq_mpi.partition import Partition

if TYPE_CHECKING:
    from distq_mpi.kernels.objects import LoadedKernel
    from distq_mpi.transport import Mail, Transport

LOW31 = np.uint64((1 << 31) - 1)


class ShardedStepped(Sharded):
    """As `Sharded`, for environments that are stepped in Python; always in lockstep.

    Attributes: `hosted`, the lanes at home here and their environments; None where there are none.
    """

    def __init__(
        self,
        config: Any,
        environment: Any,
        kernels: dict[str, LoadedKernel],
        transport: Transport,
    ) -> None:
        self._mistake: ModelError | None = None
        self.hosted: Hosted | None = None
        super().__init__(config, environment, kernels, transport)

    def _lay_out(self, environment: Any) -> None:
        """As `Sharded`; each rank is the home of as many lanes. COLLECTIVE."""
        rank, self._mistake = self.transport.rank, None
        self.homes = Partition.balanced(self.n_lanes, self.transport.size)
        first, stop = self.homes.block(rank)
        self.hosted = None
        if first < stop:
            self.hosted = Hosted(rank, self.homes, self.config, environment, self.exploring)
        super()._lay_out(environment)

    def abandon(self) -> None:
        """Close the environments. Local."""
        if self.hosted is not None:
            self.hosted.close()

    @staticmethod
    def requests(config: Any, environment: Any) -> dict[str, Kernel]:
        """Return the kernels this architecture needs under a resolved `Config`. Local."""
        record = record_in(config.learn, environment.n_actions)
        protects = config.parallel.protect == "partner"
        return answering.answering_kernels(config.learn, environment.n_actions, record, protects)

    @property
    def sent_bytes(self) -> int:
        """Bytes this rank has sent to others while learning. Local."""
        return super().sent_bytes + self.answers.sent_bytes

    def learn(self) -> None:
        """LEARN and MOVE: step all lanes at home. COLLECTIVE.

        Raises ModelError, when all ticks are done, on the rank whose environment raised.
        """
        n_ticks, now = self._prepare_round(), self.progress.lane_steps + 1
        if self.hosted is not None:
            self.hosted.lanes.copy_from(self.hosted.committed)
        for first, n, explore in self.exploring.pieces(now, n_ticks):
            self.control[crossing.EXPLORE] = explore
            for tick in range(first, first + n):
                self._tick(tick, beginning=False)
        if self._mistake is not None:
            raise self._mistake

    def commit(self) -> None:
        """Count the round; move the borders where that pays. COLLECTIVE."""
        if self.hosted is not None:
            self.hosted.commit()
        super().commit()

    def gather_lanes(self) -> np.ndarray | None:
        """Return all committed lanes in order, (L,) of `lanes.LANE_DTYPE`, on rank 0; None
        elsewhere. COLLECTIVE."""
        mine = np.zeros(0, LANE_DTYPE) if self.hosted is None else self.hosted.committed.pack()
        return self.transport.gather_rows(mine, self.homes)

    def gather_worlds(self) -> tuple[np.ndarray, np.ndarray] | None:
        """As `Allreduce.gather_worlds`. COLLECTIVE."""
        rows, actions = np.zeros(0, WORLD_DTYPE), np.zeros(0, np.uint32)
        if self.hosted is not None and self.hosted.worlds is not None:
            rows, actions = self.hosted.worlds.pack()
        lengths = np.zeros(self.transport.size + 1, np.int64)
        lengths[self.transport.rank + 1] = len(actions)
        self.transport.sum_int(lengths)
        all_rows = self.transport.gather_rows(rows, self.homes)
        all_actions = self.transport.gather_rows(actions, Partition(np.cumsum(lengths)))
        return None if all_rows is None or all_actions is None else (all_rows, all_actions)

    def _lanes_of_all(self) -> tuple[np.ndarray, Any]:
        hosted, found = self.hosted, None
        if hosted is not None and hosted.worlds is not None:
            found = hosted.lanes.pack(), *hosted.worlds.pack(committed=False)
        parts = [part for part in self.transport.gather_everywhere(found) if part is not None]
        lanes, rows, actions = (np.concatenate(piece) for piece in zip(*parts, strict=True))
        return lanes, (rows, actions)

    def restore(self, progress: Progress, lanes: np.ndarray, worlds: Any = None) -> None:
        """Take counters, lanes and environments of a checkpoint. Local."""
        self.progress = self.pending = progress
        if self.hosted is None:
            return
        first, stop = self.homes.block(self.transport.rank)
        stops = np.cumsum([0, *worlds[0]["n_actions"]])
        mine = worlds[0][first:stop], worlds[1][stops[first] : stops[stop]]
        self.hosted.resume(lanes[first:stop], mine, progress.lane_steps)

    def reproducible(self) -> bool:
        """Whether the bits so far follow from the configuration alone. COLLECTIVE."""
        worlds = self.hosted.worlds if self.hosted is not None else None
        astray = np.array([worlds is not None and not worlds.matched], np.int64)
        self.transport.max_int(astray)
        return super().reproducible() and not astray[0]

    def close(self) -> None:
        """Free the messages, close the environments. Local."""
        super().close()
        self.answers.close()
        if self.hosted is not None:
            self.hosted.close()

    def _begin(self) -> None:
        """Put all lanes at their starts, with their first transition made. COLLECTIVE."""
        words = 2 * self.n_lanes  # a lane may ask twice in a tick
        region, middle = crossing.words_of(words)
        transport, rank = self.transport, self.transport.rank
        self.mail: Mail = transport.mail(region, middle, crossing.RECORD, crossing.TARGET)
        self.answers = transport.mail(region, middle, answering.ANSWER, crossing.TARGET)
        self.control[crossing.REGION], self.control[crossing.MIDDLE] = region, middle
        self._home = rank * region + middle
        self._bind()
        self._prepare_round()
        self.control[crossing.EXPLORE] = self.exploring.code(0)
        if self.hosted is not None and self.hosted.worlds is not None:
            self._guarded(self.hosted.worlds.begin)
        self._tick(0, beginning=True)
        if self.hosted is not None and self.hosted.worlds is not None:
            self.hosted.committed.copy_from(self.hosted.lanes)
            self.hosted.worlds.commit()
        if self._mistake is not None:
            raise self._mistake

    def _bind(self) -> None:
        rows, answers = self.rows, self.answers
        common = (
            self.slots, np.zeros(crossing.SCRATCH, np.uint64), self.control, self.rates,
            self.totals,
        )  # fmt: skip
        self._answer = self.kernels["answer"].bind(
            rows.q, rows.clock_words, self.mail.words, self.mail.counts, answers.words,
            answers.counts, *common,
        )  # fmt: skip
        self._learn = self.kernels["learn"].bind(
            rows.q, rows.clock_words, answers.words, *common
        )

    def _tick(self, now: int, beginning: bool) -> None:
        """One step of every lane. COLLECTIVE."""
        self.control[crossing.SENT_TICK] = now
        over = self._ask(beginning)
        self._swap(self.mail)
        self.control[crossing.INBOX] = self.mail.inbox
        self._answer()
        self._swap(self.answers)
        self.control[crossing.INBOX] = self.answers.inbox
        self._learn()
        if self.hosted is not None and self.hosted.worlds is not None and self._mistake is None:
            self._take_answers(over)
            worlds, lanes = self.hosted.worlds, self.hosted.lanes
            self._guarded(lambda: worlds.step(lanes, now))

    def _ask(self, beginning: bool) -> np.ndarray:
        """Write the requests of all lanes; return which begin an episode. Local."""
        self.mail.counts[:] = 0
        if self.hosted is None or self.hosted.worlds is None or self._mistake is not None:
            self._post(np.zeros((0, crossing.RECORD), np.uint64))
            return np.zeros(0, np.bool_)
        worlds, lanes = self.hosted.worlds, self.hosted.lanes
        state, action, next_state, reward, terminated, age, gain = lanes.arrays()
        numbers = np.arange(lanes.first, lanes.first + lanes.n, dtype=np.uint64)
        idle = worlds.idle | beginning
        over = idle | terminated | worlds.truncated
        asked = np.zeros((lanes.n, crossing.RECORD), np.uint64)
        asked[:, 0] = next_state
        asked[:, 1] = (state << crossing.STATE_SHIFT) | (action << np.uint64(1)) | terminated
        bits = reward.astype(np.float32).view(np.uint32).astype(np.uint64)
        asked[:, 3] = (bits << np.uint64(32)) | numbers
        first = np.zeros((int(over.sum()), crossing.RECORD), np.uint64)
        first[:, 0], first[:, 1], first[:, 3] = worlds.start[over], crossing.NONE, numbers[over]
        self._post(np.concatenate([asked[~idle], first]))
        self._count(gain + reward, over & ~idle)
        gain[...] = np.where(over, 0.0, gain + reward)
        age[...] = np.where(over, 0, age + 1)
        state[...] = np.where(over, worlds.start, next_state)
        return over

    def _post(self, asked: np.ndarray) -> None:
        """Sort requests by the owners of the states they are about. Local."""
        owners = self.blocks.owner(asked[:, 0].astype(np.int64))
        size, rank = self.transport.size, self.transport.rank
        region, middle = int(self.control[crossing.REGION]), int(self.control[crossing.MIDDLE])
        for peer in range(size):
            mine = asked[owners == peer]
            start = peer * region + middle
            self.mail.words[start : start + mine.size] = mine.reshape(-1)
            self.mail.counts[peer] = len(mine)
            if peer != rank:
                self.mail.words[start - 1] = len(mine)

    def _count(self, returns: np.ndarray, ended: np.ndarray) -> None:
        """Add finished episodes to the totals, as integers. Local."""
        for total in returns[ended].tolist():
            whole, fraction, bad = crossing.parts_of(total, self.rates)
            self.totals[crossing.EPISODES] += 1
            self.totals[crossing.RETURN_WHOLE] += whole
            self.totals[crossing.RETURN_FRACTION] += fraction
            self.totals[crossing.NON_FINITE] += bad

    def _take_answers(self, over: np.ndarray) -> None:
        """Read the actions that owners chose for the lanes at home. Local."""
        assert self.hosted is not None
        size, rank, lanes = self.transport.size, self.transport.rank, self.hosted.lanes
        region, words = int(self.control[crossing.REGION]), self.answers.words
        action = lanes.arrays()[1]
        for peer in range(size):
            start = rank * region + int(self.control[crossing.MIDDLE])
            n = int(self.answers.counts[rank])
            if peer != rank:
                start = self.answers.inbox + peer * region
                head = int(words[start])
                start += crossing.HEAD + crossing.TARGET * (head >> 32)
                n = head & 0xFFFFFFFF
            found = words[start : start + n]
            lane = (found >> np.uint64(32)).astype(np.int64) - lanes.first
            first = (found & answering.FIRST) != 0
            wanted = first == over[lane]
            action[lane[wanted]] = (found & LOW31)[wanted]

    def _swap(self, mail: Mail) -> None:
        mail.expect()
        self._exchange(mail)

    def _guarded(self, work: Any) -> None:
        """Keep an environment's mistake for the end of the round: peers wait for messages."""
        try:
            with silence():
                work()
        except ModelError as error:
            self._mistake = error

    def _send_lanes_on(self) -> None:
        """Lanes stay at home."""

    def _positions(self) -> np.ndarray:
        if self.hosted is None:
            return np.zeros(0, np.uint64)
        return self.hosted.lanes.arrays()[2]
