"""`sharded`: every rank stores its own rows only; a lane runs on the owner of its state.

Lockstep (`parallel.reproducible`): in a tick every lane takes one step; actions are chosen and
targets taken from the table as it stood before the tick (Jacobi), then all targets are applied,
those of one pair in the order of their lanes, each with its own tick of the clock. The table does
not depend on the ranks. Free running: lanes take up to `LOCAL_TICKS` steps between exchanges and
targets are applied as they come; every trajectory is sequential Q-learning still, but which of two
lanes is first depends on the borders. With one lane both are the same, for an action is chosen from
the row that its target was taken from, before that target is applied; the textbook's loop differs
where next_state is state.
"""

from __future__ import annotations

import ctypes
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from distq_mpi.architectures.balance import (
    MOST_MOVED,
    N_BUCKETS,
    balanced,
    bucket_of,
    most_rows,
)
from distq_mpi.architectures.hosting import NO_LIMIT
from distq_mpi.architectures.partner import (
    COMMIT_STEPS,
    Kept,
    Protection,
    Rescued,
    room_for,
    slots_with_log,
)
from distq_mpi.architectures.partner import memory_bytes as protection_bytes
from distq_mpi.architectures.progress import (
    HEADER,
    RETURNS,
    WISHES,
    Agreement,
    Progress,
)
from distq_mpi.architectures.schedules import Exploring, is_balance_round, tick_period
from distq_mpi.errors import ConfigError
from distq_mpi.fusion import FixedPoint
from distq_mpi.holding import Holding
from distq_mpi.kernels import Kernel, crossing
from distq_mpi.kernels.objects import LoadedKernel
from distq_mpi.kernels.step_sizes import step_parameter
from distq_mpi.partition import Partition
from distq_mpi.table import Record, Rows, first_bound, initialise, record_of

if TYPE_CHECKING:
    from distq_mpi.transport import Mail, Transport

LOCAL_TICKS = 64
"""Steps of a lane between two exchanges when running free, as far as it stays in its block."""
MOST_UNITS = 1 << 62
LANE_DTYPE = np.dtype(
    [("next_state", "<u8"), ("pending", "<u8"), ("age", "<u4"), ("gain", "<f4"), ("lane", "<u4"),
     ("reward", "<f4")]
)  # fmt: skip
"""A lane's record (`kernels.crossing`), as checkpoints hold it."""


def record_in(learn: Any, n_actions: int) -> Record:
    """Return the layout of a row: visits are not counted apart from the clock. Local."""
    return replace(record_of(learn, n_actions), counts_visits=False)


def _moves(config: Any, size: int) -> bool:
    """Whether borders move; copies of rows stay where they are, and so do borders."""
    parallel = config.parallel
    return bool(parallel.rebalance and size > 1 and parallel.protect != "partner")


def _unit_scale(td_rms: float | None) -> float:
    """Units in 1, a power of two, such that a typical square is 2^16 units."""
    if not td_rms or not math.isfinite(td_rms):
        return 2.0**20
    return math.ldexp(1.0, 16 - max(-900, min(2 * math.frexp(td_rms)[1], 900)))


PEER_BYTES = 3 * 4096
"""Of a region's memory that is touched however little goes to that peer: pages at its middle."""


class Sharded:
    """The learning state of this rank, and the phases of a round that change it.

    Parameters
    ----------
    config : resolved `Config`. environment : `Environment`. kernels : loaded from `requests`.
    transport : over all ranks of the run.

    Attributes: `followed`, whether what was taken up from a checkpoint followed from the
    configuration alone; `sent_bytes`, to other ranks so far; `exchange_time_s`, spent in messages
    within `learn`; `busy_since`, as `Host.busy_since`; `protection`, where `parallel.protect` has
    an effect; `agreement`, of the round that `recover` went back to.

    Rows are changed in place: `rollback` cannot bring them back, so a round that went wrong ends
    the run.
    """

    exchanges, rolls_back, goes_back, lost = "crossing between blocks", False, True, ""

    def __init__(
        self,
        config: Any,
        environment: Any,
        kernels: dict[str, LoadedKernel],
        transport: Transport,
    ) -> None:
        self.config, self.transport, self.kernels = config, transport, kernels
        self.n_states, self.n_actions = environment.n_states, environment.n_actions
        self.followed, self.lockstep = True, config.parallel.reproducible
        self.params, self.n_lanes = environment.params, config.parallel.lanes
        self.exploring = Exploring(config.learn, self.n_lanes)
        self.record = record_in(config.learn, self.n_actions)
        self.width = self.record.width
        self.exchange_time_s = self.busy_since = 0.0
        self.progress = self.pending = Progress(period=self._period(0))
        self.rates = np.ones(6)
        self.rates[:2] = config.learn.discount, step_parameter(config.learn)
        self.totals = np.zeros(6, np.int64)
        self.header, self.learned, self._learned_now = np.zeros(HEADER, np.int64), 0, 0
        self.agreement: Agreement | None = None
        self._sent_before = 0
        self._rescued: Rescued | None = None
        self._n_recoveries = 0
        self._lay_out(environment)
        learn = config.learn
        bound = first_bound(learn, environment)
        initialise(self.rows, self.first, learn.initial, bound, config.run.seed)
        self._begin()

    def _lay_out(self, environment: Any) -> None:
        """Cut the table, and make room for what this rank has of it. COLLECTIVE."""
        config, transport = self.config, self.transport
        size = transport.size
        self.control = np.zeros(crossing.BORDERS + size + 1, np.uint64)
        self.control[crossing.SEED] = config.run.seed
        self.control[crossing.LIMIT] = environment.max_episode_steps or NO_LIMIT
        self.control[crossing.RANK], self.control[crossing.SIZE] = transport.rank, size
        self.control[crossing.N_LANES] = self.n_lanes
        self._members = [member.number for member in transport.members]
        self.blocks = self._wanted = Partition.balanced(self.n_states, size)
        self.loads = np.zeros(N_BUCKETS, np.int64)
        self._within: np.ndarray | None = None
        if environment.rows is not None:
            self._within = np.zeros((2, size), np.int64)
            self._within[:, transport.rank] = environment.rows
            transport.sum_int(self._within)
        self._room = most_rows(self.n_states, size) if self._moves else int(self.blocks.counts[0])
        # Only what is written to takes memory.
        self._raw = Rows(self.record, self._room).raw
        self._take_borders()
        self.protection: Protection | None = None
        self._kept: Kept | None = None
        self._coming: Kept | None = None
        n_slots = crossing.SLOT * self.n_lanes + -(-self.n_lanes // 64)
        if config.parallel.protect != "partner":
            self.slots = np.zeros(n_slots, np.uint64)
            return
        protects = transport.survives and size > 1
        room = room_for(self.rows.n_rows, self.record.row_bytes) if protects else 0
        self.slots = slots_with_log(n_slots, self.rows, room)
        if protects:
            self.protection = Protection(
                self.rows, self.slots[n_slots:], self.blocks, transport
            )

    @staticmethod
    def memory_bytes(config: Any, n_states: int, n_actions: int, size: int) -> dict[str, int]:
        """Bytes one rank needs, part by part, under a resolved `Config` on `size` ranks. Local."""
        lanes = config.parallel.lanes
        here = min(lanes, 4 * -(-lanes // size))
        words = crossing.RECORD + crossing.TARGET
        moves = _moves(config, size)
        rows = most_rows(n_states, size) if moves else -(-n_states // size)
        # What comes over both borders is held twice while they move.
        moved = int(2 * MOST_MOVED * n_states / size) if moves else 0
        row_bytes = record_in(config.learn, n_actions).row_bytes
        protects = config.parallel.protect == "partner" and size > 1
        return {
            "block": rows * row_bytes,
            **(protection_bytes(rows, row_bytes) if protects else {}),
            "rows that move": moved * row_bytes,
            "lanes": lanes * 8 * (words + crossing.SLOT),
            "messages": 8 * 3 * words * here + 3 * size * PEER_BYTES if size > 1 else 0,
        }

    @staticmethod
    def check(
        config: Any, n_states: int, n_actions: int, size: int, stepped: bool = False
    ) -> None:
        """Raise ConfigError where numbers do not fit their bits in a lane's record, or lanes of
        environments stepped in Python shall run free. Local."""
        if stepped and not config.parallel.reproducible:
            raise ConfigError(
                "parallel.reproducible: false must be true where environments are stepped in "
                "Python, which are always in lockstep under sharded"
            )
        record = record_in(config.learn, n_actions)
        rows = most_rows(n_states, size)
        for what, number, bits in (
            ("states", n_states, 64 - crossing.ACTION_BITS - 2),
            ("actions", n_actions, crossing.ACTION_BITS),
            ("parallel.lanes", config.parallel.lanes, crossing.TAG_BITS),
            ("values of q on a rank", rows * record.stride, crossing.ENTRY_BITS),
        ):
            if number > 1 << bits:
                raise ConfigError(
                    f"parallel.architecture: sharded takes up to 2^{bits} {what}, not {number}"
                )

    @staticmethod
    def requests(config: Any, environment: Any) -> dict[str, Kernel]:
        """Return the kernels this architecture needs under a resolved `Config`. Local."""
        record = record_in(config.learn, environment.n_actions)
        return crossing.crossing_kernels(
            config.learn, environment, record, config.parallel.reproducible,
            config.parallel.protect == "partner",
        )  # fmt: skip

    @property
    def sent_bytes(self) -> int:
        """Bytes this rank has sent to others while learning. Local."""
        guarded = 0 if self.protection is None else self.protection.sent_bytes
        return self._sent_before + self.mail.sent_bytes + guarded

    @property
    def exploration(self) -> tuple[str, float]:
        """`epsilon` or `temperature`, and its value in the next tick. Local."""
        return self.exploring.key, self.exploring.value(self.progress.lane_steps)

    def ticks_of_round(self) -> int:
        """Ticks of the next round; the last ones before `stop.steps` are fewer."""
        limit = self.config.stop.steps
        if limit is None:
            return self.progress.period
        left = -(-(limit - self.progress.steps) // self.n_lanes)
        return max(1, min(self.progress.period, left))

    def learn(self) -> None:
        """LEARN and MOVE: step all lanes, each on the owner of its state. COLLECTIVE."""
        n_ticks, now = self._prepare_round(), self.progress.lane_steps + 1
        at_once = 1 if self.lockstep else min(LOCAL_TICKS, n_ticks)
        if self.transport.size == 1:
            at_once = n_ticks
        for first, n, explore in self.exploring.pieces(now, n_ticks):
            self.control[crossing.EXPLORE] = explore
            for start in range(first, first + n, at_once):
                self.mail.expect()
                self._travel(start, min(at_once, first + n - start))
                self._exchange(self.mail)
                self.control[crossing.SENT_TICK] = start
        self._travel(now + n_ticks, 0)

    def _exchange(self, mail: Mail) -> None:
        begin, self.busy_since = time.perf_counter(), math.inf
        mail.exchange()
        self.busy_since = time.perf_counter()
        self.exchange_time_s += self.busy_since - begin

    def _prepare_round(self) -> int:
        """Set what is the same for a round; return its ticks. Local."""
        n_ticks = self.ticks_of_round()
        self.totals[:], self._n_ticks = 0, n_ticks
        # Squared TD errors are added as integers, in units that the last round's suggest.
        self.rates[crossing.SCALE] = _unit_scale(self.progress.td_rms)
        # So many units of one, that the sum of all lanes' fits 63 bits.
        most = MOST_UNITS // (n_ticks * self.n_lanes)
        self.rates[crossing.CAP] = self.rates[crossing.RETURN_CAP] = most
        self.rates[crossing.RETURN_SCALE] = 1 << min(most.bit_length() - 1, 40)
        return n_ticks

    def exchange(self, wishes: tuple[bool, bool, bool]) -> Agreement:
        """AGREE. COLLECTIVE.

        wishes : this rank wants to (stop, checkpoint, stop for the wall time).
        """
        learned, episodes, whole, fraction, squares, non_finite = self.totals.tolist()
        self.header[:] = 0
        numbers = (0, 0, non_finite, 0, learned, episodes, whole, fraction, squares)
        self.header[: len(numbers)] = numbers
        self.header[WISHES] = wishes
        self.transport.sum_int(self.header)
        agreement = Agreement.read(self.header)
        square_sum = agreement.square_sum / float(self.rates[crossing.SCALE])
        whole, fraction = self.header[RETURNS].tolist()
        return_sum = whole + fraction / float(self.rates[crossing.RETURN_SCALE])
        agreement = agreement._replace(square_sum=square_sum, return_sum=return_sum)
        progress = self.progress
        period = self._period(progress.lane_steps + self._n_ticks)
        self.pending = progress.after(
            self._n_ticks, agreement.visits, agreement, period, FixedPoint(1)
        )
        self._learned_now = learned
        if self._moves:
            self._look_at_borders()
        if self.protection is not None and not agreement.non_finite:
            self._protect(self.protection, agreement)
        return agreement

    def _protect(self, protection: Protection, agreement: Agreement) -> None:
        """Bring what changed to the partners, where it is due; it counts from `commit` on.
        COLLECTIVE."""
        kept = self._kept
        made = self.pending.lane_steps - (kept.progress.lane_steps if kept else 0)
        if protection.is_due(made * self.n_lanes >= COMMIT_STEPS * self.n_states):
            protection.stage()
            self._coming = Kept(self.pending, *self._lanes_of_all(), agreement)
            self.transport.agree()

    def _lanes_of_all(self) -> tuple[np.ndarray, Any]:
        """Lanes and environments after this round, as `restore` takes them. COLLECTIVE."""
        counts = np.zeros(self.transport.size + 1, np.int64)
        counts[self.transport.rank + 1] = len(self.lanes)
        self.transport.sum_int(counts)
        borders = Partition(np.cumsum(counts))
        records = np.zeros((self.n_lanes, crossing.RECORD), np.uint64)
        records[slice(*borders.block(self.transport.rank))] = self.lanes
        self.transport.allgather_rows(records, borders)
        lanes = records.reshape(-1).view(LANE_DTYPE)
        return lanes[np.argsort(lanes["lane"])], None

    def commit(self) -> None:
        """Count the round; move the borders where that pays. COLLECTIVE."""
        self.progress = self.pending
        if self.protection is not None and self._coming is not None:
            self.protection.commit()
            self._kept, self._coming = self._coming, None
        self.learned += self._learned_now
        if self._wanted is not self.blocks:
            self.place(self._wanted)

    def place(self, blocks: Partition) -> None:
        """Give every rank other rows, and the lanes that are looked at there. COLLECTIVE.

        Rows are moved in place; what comes from others is held twice meanwhile.
        """
        rank, row_bytes = self.transport.rank, self.record.row_bytes
        old, new = self.blocks.block(rank), blocks.block(rank)
        lows, highs = (
            np.clip(border, *old) for border in (blocks.starts[:-1], blocks.starts[1:])
        )
        counts = highs - lows
        counts[rank] = 0
        raw = self._raw.reshape(-1, row_bytes)
        came = self.transport.redistribute(raw[: self.rows.n_rows], lows - old[0], counts)
        first, n_kept = max(old[0], new[0]), max(0, min(old[1], new[1]) - max(old[0], new[0]))
        # What lower ranks sent comes before what is kept.
        front = first - new[0] if n_kept else len(came)
        base = self._raw.ctypes.data
        ctypes.memmove(
            base + front * row_bytes, base + (first - old[0]) * row_bytes, n_kept * row_bytes
        )
        raw[:front] = came[:front]
        raw[front + n_kept : new[1] - new[0]] = came[front:]
        self.blocks = self._wanted = blocks
        self._take_borders()
        self._send_lanes_on()
        self._bind()

    def _period(self, n_ticks: int) -> int:
        given = self.config.parallel.steps_per_round
        return tick_period(self.n_lanes, n_ticks) if given == "auto" else int(given)

    def _take_borders(self) -> None:
        self.first, stop = self.blocks.block(self.transport.rank)
        self.control[crossing.BORDERS :] = self.blocks.starts
        n_rows = stop - self.first
        self.rows = Rows(self.record, n_rows, self._raw[: n_rows * self.record.row_bytes])

    @property
    def _moves(self) -> bool:
        return _moves(self.config, self.transport.size)

    def _look_at_borders(self) -> None:
        """Note where the lanes are; now and then decide on other borders. COLLECTIVE."""
        buckets = bucket_of(self._positions(), self.n_states)
        self.loads += np.bincount(buckets, minlength=N_BUCKETS)
        if not is_balance_round(self.pending.round):
            return
        self.transport.sum_int(self.loads)
        # Rank 0 decides: no two processors may round differently.
        found = balanced(self.loads, self.blocks, self._within)
        self._wanted = self.transport.broadcast(found) or self.blocks
        self.loads[:] = 0

    @property
    def lanes(self) -> np.ndarray:
        """The records of the lanes that are here, uint64 (n, RECORD), a view."""
        n_here = int(self.mail.counts[self.transport.rank])
        words = self.mail.words[self._home : self._home + crossing.RECORD * n_here]
        return words.reshape(-1, crossing.RECORD)

    def _positions(self) -> np.ndarray:
        """States, uint64, at which this rank's lanes are looked at."""
        return self.lanes[:, 0]

    def _take_lanes(self, records: np.ndarray) -> None:
        """Have these lanes here, and no others; uint64 (n, RECORD)."""
        self.mail.counts[self.transport.rank] = len(records)
        self.lanes[...] = records

    def _send_lanes_on(self) -> None:
        """Move all lanes to the owners of the states at which they are looked at. COLLECTIVE."""
        records = self.lanes
        owners = self.blocks.owner(records[:, 0].astype(np.int64))
        counts = np.bincount(owners, minlength=self.transport.size)
        mine = np.ascontiguousarray(records[np.argsort(owners, kind="stable")]).view(np.uint8)
        starts = np.cumsum(counts) - counts
        came = self.transport.redistribute(mine.reshape(-1, 8 * crossing.RECORD), starts, counts)
        self._take_lanes(came.view(np.uint64))

    def rollback(self) -> int:
        """Forget the counters of the round in progress; its rows stay as they are. Local."""
        self.pending = self.progress
        return self.progress.round

    @property
    def holding(self) -> Holding:
        """The committed table."""
        return Holding(self.rows, self.first, self.blocks, self.transport)

    def iter_rows(self) -> Iterator[tuple[int, np.ndarray, np.ndarray, None]]:
        """Yield (start, q, clock, None) of the committed table in slices, each (n, width), on rank
        0 (empty elsewhere). COLLECTIVE: exhaust it everywhere."""
        for start, q, clock in self.holding.stream():
            yield start, q, clock, None

    def gather_lanes(self) -> np.ndarray | None:
        """Return all committed lanes in order, (L,) of `LANE_DTYPE`, on rank 0; None elsewhere.
        COLLECTIVE."""
        mine = self.lanes.reshape(-1).view(LANE_DTYPE)
        counts = np.zeros(self.transport.size + 1, np.int64)
        counts[self.transport.rank + 1] = len(mine)
        self.transport.sum_int(counts)
        gathered = self.transport.gather_rows(mine, Partition(np.cumsum(counts)))
        return None if gathered is None else gathered[np.argsort(gathered["lane"])]

    def gather_worlds(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Nothing is stepped in Python here. Local."""
        return None

    def restore(self, progress: Progress, lanes: np.ndarray, worlds: Any = None) -> None:
        """Take counters and all lanes of a checkpoint; rows come through `restore_rows`. Local."""
        self.progress = self.pending = progress
        stop = self.first + self.rows.n_rows
        mine = lanes[(lanes["next_state"] >= self.first) & (lanes["next_state"] < stop)]
        self._take_lanes(np.ascontiguousarray(mine).view(np.uint64).reshape(-1, crossing.RECORD))

    def restore_rows(self, start: int, stop: int, stored: Any) -> None:
        """Take rows [start, stop) of a checkpoint: what `checkpoint.read_rows` gave rank 0, None
        elsewhere. COLLECTIVE."""
        self.holding.take(start, stop, stored)

    def reproducible(self) -> bool:
        """Whether the bits so far follow from the configuration alone. Local."""
        return self.lockstep and self.followed

    def abandon(self) -> None:
        """Nothing to close that others have no part in. Local."""

    def recover(self, environment: Any) -> bool:
        """Take rows and lanes back to what the partners have last, on the ranks left. COLLECTIVE.

        False where nothing is protected, a block and its copy are both gone, or a log was too
        small; rows are in no order then, and must be taken from a checkpoint.
        """
        transport = self.transport
        newest = np.array([self._n_recoveries], np.int64)
        transport.max_int(newest)
        if self._n_recoveries < newest[0]:  # others have come out of the last recovery
            self._settle()
        newest[0] = 0 if self.protection is None else self.protection.number
        if self._rescued is not None:
            newest[0] = self._rescued.number
        transport.max_int(newest)
        rescued = self._rescued = self._rescued or self._rescue(int(newest[0]))
        gone = rescued is None or not rescued.complete(transport) or environment.rows is not None
        newest[0] = gone
        transport.max_int(newest)
        if newest[0] or rescued is None:
            return False
        self._sent_before = self.sent_bytes
        self.abandon()
        self._lay_out(environment)
        rescued.bring(transport, self.rows, self.blocks)
        self._begin()
        kept = rescued.kept
        assert kept is not None
        self.restore(kept.progress, kept.lanes, kept.worlds)
        if self.protection is not None:
            self.protection.is_due(True)
            self.protection.stage()
        transport.agree()
        self._settle()
        return True

    def _rescue(self, newest: int) -> Rescued | None:
        """Take this rank's rows back to the newest commit that any rank has come to. Local."""
        protection = self.protection
        if protection is None:
            return None
        if protection.number < newest and protection.staged and self._coming is not None:
            protection.commit()
            self._kept = self._coming
        if protection.number < newest or not protection.can_undo or self._kept is None:
            return None
        protection.undo()
        return Rescued(
            newest, self._members, self.blocks, protection.distance, self.rows, protection.copy,
            self._kept,
        )  # fmt: skip

    def _settle(self) -> None:
        """End a recovery: all ranks have all that they need to live through the next. Local."""
        assert self._rescued is not None and self._rescued.kept is not None
        self._kept, self._rescued = self._rescued.kept, None
        self.agreement = self._kept.agreement
        if self.protection is not None:
            self.protection.commit()
        self._n_recoveries += 1

    def report(self) -> dict[str, Any]:
        """What else a row of the metrics holds: nothing. Local."""
        return {}

    def notices(self) -> list[tuple[str, str]]:
        """What the user should be told once, as (kind, message). Local."""
        if self.config.parallel.protect != "partner":
            return []
        if self.protection is None:
            alone = "one rank has no partner" if self.transport.size == 1 else (
                "this job ends with any of its ranks; start it with Open MPI's `mpirun --with-ft "
                "ulfm`, or under `python -m distq_mpi supervise`"
            )  # fmt: skip
            return [("unprotected", f"parallel.protect: partner protects nothing: {alone}")]
        return [("log_full", told) for told in self.protection.warnings]

    def keep_table(self) -> None:
        """Nothing to do: no other rank's memory is used. Local."""

    def close(self) -> None:
        """Free the messages. Local."""
        self.mail.close()

    def _begin(self) -> None:
        """Put the lanes at their starts. COLLECTIVE."""
        region, middle = crossing.words_of(self.n_lanes)
        transport = self.transport
        self.mail = transport.mail(region, middle, crossing.RECORD, crossing.TARGET)
        self._home = transport.rank * region + middle
        self.control[crossing.REGION], self.control[crossing.MIDDLE] = region, middle
        self.kernels["begin"](self.mail.words, self.mail.counts, self.params, self.control)
        self._bind()

    def _bind(self) -> None:
        self._call = self.kernels["travel"].bind(
            self.rows.q, self.rows.clock_words, self.mail.words, self.mail.counts, self.slots,
            np.zeros(crossing.SCRATCH, np.uint64), self.params, self.control, self.rates,
            self.totals,
        )  # fmt: skip

    def _travel(self, now: int, n_ticks: int) -> None:
        self.control[crossing.FIRST_TICK], self.control[crossing.N_TICKS] = now, n_ticks
        self.control[crossing.INBOX] = self.mail.inbox
        self._call()
