"""`allreduce`: every agent learns a round on a full replica, then all contributions are fused.

Small tables are reduced whole and fused by every rank alike, in one meeting a round. Larger ones
are reduced to the owners of the blocks, which fuse and share them: through memory that the ranks of
a host have in common, where there is enough of it, else through messages. Where no rank hosts two
agents, owners look at the replicas themselves (`replicas`). All give the same bits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from distq_mpi.architectures.copies import Copies, Rescued
from distq_mpi.architectures.hosting import lane_bytes
from distq_mpi.architectures.progress import (
    HEADER,
    UNSTABLE,
    WISHES,
    Agreement,
    Progress,
)
from distq_mpi.architectures.replicas import FEW_BYTES, ReadReplicas, owners_read
from distq_mpi.architectures.room import Room
from distq_mpi.architectures.schedules import (
    LENGTH_UNIT,
    LONE_STEPS,
    MAX_PERIOD,
    lone_period,
    next_period,
    settles,
    sweep_period,
)
from distq_mpi.architectures.tiles import Tiles
from distq_mpi.config import MODEL_RULES
from distq_mpi.files import SLICE_ROWS
from distq_mpi.fusion import FixedPoint, adopts, fusion_kernels, fusion_of
from distq_mpi.holding import Holding
from distq_mpi.kernels import Kernel, chunks, fusing, loop
from distq_mpi.kernels.generative import generative_kernels, scratch_of, sweeps_left
from distq_mpi.kernels.objects import LoadedKernel, load
from distq_mpi.kernels.rounds import round_kernels
from distq_mpi.kernels.step_sizes import STEP_SIZES, step_parameter
from distq_mpi.kernels.stepping import stepping_kernels
from distq_mpi.kernels.traces import depth_in, forgets
from distq_mpi.lanes import Lanes
from distq_mpi.partition import Partition
from distq_mpi.table import Rows, first_bound, initialise, record_of

if TYPE_CHECKING:
    from distq_mpi.transport import HostMemory, Transport

WHOLE_BYTES = MARKED_BYTES = 1 << 19
"""Contributions that are reduced whole; and beyond which `learn` marks the tiles it writes to."""
TILE = 1 << 13
"""Pairs that are added up at a time, in cache."""
SPARSE_RULES = ("q_learning", "sarsa", "expected_sarsa", "double_q")
"""Rules that count a visit wherever they write."""


class Allreduce(ReadReplicas):
    """The learning state of this rank, and the phases of a round that change it.

    Parameters
    ----------
    config : resolved `Config`. environment : `Environment`. kernels : loaded from `requests`.
    transport : over all ranks of the run.

    Attributes: `followed`, whether what was taken up from a checkpoint followed from the
    configuration alone; `exchanges`, what its messages are for; `exchange_time_s`, spent in
    messages within `learn`; `learned`, steps of this rank's own, none here: agents share them;
    `rolls_back`, whether the table is as committed after `rollback`.

    Nothing learned in a round is visible before `commit`; `rollback` returns to the last commit.
    """

    exchanges, exchange_time_s, learned, rolls_back = "fusion", 0.0, 0, True
    survivable, at_once = True, False
    """Whether a lost rank leaves nothing behind that those left could not do without; and whether
    a round is a call for each agent and one more."""

    def __init__(
        self,
        config: Any,
        environment: Any,
        kernels: dict[str, LoadedKernel],
        transport: Transport,
    ) -> None:
        self.config, self.transport, self.kernels = config, transport, kernels
        self.n_states, self.n_actions = environment.n_states, environment.n_actions
        self.followed = True
        self.params_of, self.stepped = environment.params_of, environment.kind == "stepped"
        self.n_agents, self.n_lanes = config.parallel.agents, config.parallel.lanes
        self.generative = config.learn.sampling == "generative"
        self.per_step = self.n_lanes
        if self.generative:
            self.per_step *= self.n_states * self.n_actions
        self.fusion, self.frozen = fusion_of(config), config.learn.target == "frozen"
        self._lone = adopts(config)
        self._forgets = forgets(config.learn) and not self._lone
        record = record_of(config.learn, self.n_actions)
        self.width, self.signed = record.width, STEP_SIZES[config.learn.step_size].signed
        self.record = record
        self._limits_always = self.signed or not counts_what_it_writes(config)
        self.current = 0
        self._again = self._dirty = False
        self.memory: HostMemory | None = None
        self.room: Room | None = None
        self.protects = self.survivable and transport.survives and transport.size > 1
        self.copies: Copies | None = None
        self._coming: Copies | None = None
        self._rescued: Rescued | None = None
        self._n_recoveries = 0
        self._left_behind: list[HostMemory | None] = []
        self.depth = depth_in(config, self.n_states, self.n_actions)
        self.place(environment)
        self._initialise(environment)
        auto = config.parallel.steps_per_round == "auto"
        self.period = 0 if auto else int(config.parallel.steps_per_round)
        scale = FixedPoint(self.n_agents)
        first = 1
        if self._lone:
            first = self._lone_period(0)
        self.progress = Progress(
            period=self.period or first, exponent=scale.exponent, peak=scale.peak
        )
        self.pending = self.progress
        for agent in self.agents:
            agent.begin(kernels.get("begin"), self.base.q, self.params_of(agent.number))
        if self.protects:
            self.kept[:] = 0
            for agent in self.agents:
                self._kept_of(agent)[:] = agent.committed.raw
            transport.sum_int(self.agreed)
            self.copies = Copies(self.kept.copy(), self._worlds_of_all())

    @staticmethod
    def memory_bytes(config: Any, n_states: int, n_actions: int, size: int) -> dict[str, int]:
        """Bytes one rank needs, part by part, under a resolved `Config` on `size` ranks. Local."""
        record, n_agents = record_of(config.learn, n_actions), config.parallel.agents
        n_pairs, table = n_states * record.width, n_states * record.row_bytes
        fusion = fusion_of(config)
        sent = fusion.sent_bytes(config, n_pairs, size) if n_agents > 1 else n_pairs * 8
        if fusion.merge is not None and n_agents > 1:
            # An owner holds its pairs of every agent.
            sent += n_agents * sent // -(-n_agents // size) // size + n_pairs * 8 // size
        elif size > 1 and 1 < n_agents <= size:
            sent = max(sent, 3 * table // 2)  # rows that an owner gets by message, and copies sent
        each = lane_bytes(depth_in(config, n_states, n_actions))
        lanes = -(-config.parallel.lanes // min(n_agents, size)) * each
        return {"replica": table, "base": 2 * table, "contributions": sent,
                "visits": n_pairs * 8, "lanes": lanes}  # fmt: skip

    @staticmethod
    def requests(config: Any, environment: Any) -> dict[str, Kernel]:
        """Return the kernels this architecture needs under a resolved `Config`. Local."""
        record = record_of(config.learn, environment.n_actions)
        others = {**fusion_kernels(config, record), **round_kernels(*_parts_of_rounds(config))}
        if config.learn.sampling == "generative":
            return {**generative_kernels(config, environment, record), **others}
        if environment.kind == "stepped":
            learning = stepping_kernels(config.learn, environment, record, Lanes(0, 1))
            return {**learning, **others}
        rows = fusing.tile_rows(record.width) if _marks(config, environment, record.width) else 0
        learning = loop.learning_kernels(config.learn, environment, record, Lanes(0, 1), rows)
        return {**learning, **others}

    @classmethod
    def unneeded(
        cls, config: Any, n_states: int, n_actions: int, hosts: Sequence[str]
    ) -> tuple[str, ...]:
        """Kernels of `requests` that a run on these hosts, one a rank, does without, most likely:
        the loops of sums, or the one that reads replicas. Local. What is needed after all is loaded
        then."""
        record, ranks = record_of(config.learn, n_actions), Counter(hosts).values()
        hosting, _ = cls.placement(config, n_states, len(hosts))
        sums = fusion_of(config).sums(config.learn.step_size)
        added = 8 * len(sums) * n_states * record.width <= FEW_BYTES
        added = added or config.learn.target == "frozen"
        if added or not owners_read(hosting, n_states * record.row_bytes, min(ranks), max(ranks)):
            return ("fuse_replicas",)
        return ("contribute", "fuse") if fusion_of(config).adds else ()

    def _load_lacking(self) -> None:
        """Load the kernels of this way to fuse that were not expected to be needed. COLLECTIVE."""
        lacking = {"fuse_replicas"} if self.reads else {"contribute", "fuse"}
        if self._lone or not lacking - self.kernels.keys():
            return
        found = fusion_kernels(self.config, self.record)
        requests = {name: found[name] for name in lacking} if self.transport.leads_node else None
        with self.transport.same_outcome():
            loaded = load(requests, self.transport)
        self.kernels = {**self.kernels, **loaded}

    @property
    def _next(self) -> Rows:
        return self.tables[1 - self.current]

    def _initialise(self, environment: Any) -> None:
        """Write the first table: the ranks that have one in common each a part of it."""
        learn, base, first = self.config.learn, self.base, 0
        if self.memory is not None:
            parts = Partition.balanced(self.n_states, self.transport.node_size)
            first, stop = parts.block(self.transport.node_rank)
            base = base.between(first, stop)
        bound = first_bound(learn, environment)
        initialise(base, first, learn.initial, bound, self.config.run.seed)
        if self.memory is not None:
            self.memory.barrier()

    @staticmethod
    def placement(config: Any, n_states: int, size: int) -> tuple[Partition, Partition]:
        """Who hosts which agents, and who owns which rows, on `size` ranks. Local."""
        return Partition.balanced(config.parallel.agents, size), Partition.balanced(n_states, size)

    def place(self, environment: Any) -> None:
        """Give every rank its agents, their lanes and its block of rows. COLLECTIVE."""
        size = self.transport.size
        self.hosting, blocks = self.placement(self.config, self.n_states, size)
        self.take_agents(environment, self.hosting)
        self.blocks = blocks
        self._allocate_sums(blocks.block(self.transport.rank))
        self._allocate_lifetimes()
        self._load_lacking()
        self._moved = 0
        learn = self.config.learn
        self.rates = np.zeros(4)
        self._known_scale: FixedPoint | None = None
        self.rates[:2] = learn.discount, step_parameter(learn)
        self.control = np.zeros(7, np.uint64)
        if not self._lone:
            first, stop = self.owned
            self.control[: chunks.ROUND] = first, stop - first, self.n_agents, self.config.run.seed
        n_words = loop.work_words(max((agent.lanes.n for agent in self.agents), default=0))
        self.learning_work = np.zeros(n_words, np.uint64)
        self.marks = np.ones(Tiles.number(self.n_states, self.width), np.uint64)
        self.marking = not self.generative and _marks(self.config, environment, self.width)
        if self.marking:
            self.learning_work = np.zeros(n_words + self.marks.size, np.uint64)
            self.marks = self.learning_work[n_words:]
        if self.generative:
            self.learning_work = scratch_of(learn, self.n_states)
        self.unstable, self.work = np.zeros(1, np.int64), chunks.scratch(self.width)
        self.unticked = np.zeros(self.base.clock_words.size if self.frozen else 1, np.uint32)
        self._bound: dict[tuple[str, int, int], Any] = {}
        self._added: dict[int, np.ndarray] = {}

    def _allocate_sums(self, block: tuple[int, int]) -> None:
        """Arrays for contributions; those that are summed lie in one buffer behind the header."""
        n_pairs, fusion = self.n_states * self.width, self.fusion
        merges = fusion.merge is not None and not self._lone
        names = ("visits",) if self._lone else fusion.sums(self.config.learn.step_size)
        small = len(names) * n_pairs * 8 <= WHOLE_BYTES
        summed = fusion.adds and not (self._lone or self.frozen)
        sparse = counts_what_it_writes(self.config)
        sums_bytes = 8 * len(names) * n_pairs
        few, self.memory = sums_bytes <= FEW_BYTES, None
        self._sums_words = self._visits_words = self._wanted_bytes = 0
        self.reads = summed and not few and self._allocate_replicas(sparse, sums_bytes)
        self.whole = not self.reads and (self._lone or fusion.maximum or (small and not merges))
        apart = self.stepped or self.generative or self.frozen or fusion.maximum
        self.at_once = self.whole and not apart
        self.counts = self.reads or (self.at_once and not self._lone)
        self.owned = (0, self.n_states) if self.whole else block
        if self.reads:
            names = ()
        else:
            self.replica = Rows(self.record, self.n_states)
            self._allocate_tables(0 if self.whole or merges else sums_bytes)
        n_agreed = HEADER + (self._kept_words() if self.protects else 0)
        if self.memory is not None:
            self.agreed = np.zeros(n_agreed, np.int64)
            self.sums = self._sums_of(self.transport.node_rank)  # none, where replicas are read
        else:
            # One message, where everything is reduced at once.
            message = np.zeros(n_agreed + len(names) * n_pairs, np.int64)
            self.agreed, self.sums = message[:n_agreed], message[n_agreed:]
            self.message = message
            if self.at_once and not (self._lone or self.protects):
                self.room = Room.of(self.transport, message, self.kernels["sum_in_room"])
        self.header, self.kept = self.agreed[:HEADER], self.agreed[HEADER:]
        none: np.ndarray = np.zeros(1, np.int64)
        self.parts = dict.fromkeys(("values", "visits", "ticks", "votes", "gains"), none)
        for i, name in enumerate(names):
            self.parts[name] = self.sums[i * n_pairs : (i + 1) * n_pairs]
        self.sent = names
        if fusion.maximum and not self._lone:
            self.parts["values"] = np.zeros(n_pairs)
        if merges:
            n_hosted, n_owned = len(self.agents), (block[1] - block[0]) * self.width
            self.each = (
                np.zeros((n_hosted, n_pairs)),
                np.zeros((n_hosted, n_pairs), np.uint32),
                np.zeros((n_hosted, n_pairs) if self.signed else (max(1, n_hosted), 1), np.uint32),
            )
            self.parts["visits"] = np.zeros(n_owned, np.int64)
            self.scratch = np.zeros(self.n_agents)

    def _allocate_tables(self, sums_bytes: int) -> None:
        """Bases, and contributions where they go to owners: in memory of the host if possible."""
        n_bytes, padded = self.n_states * self.record.row_bytes, self._padded_bytes
        if sums_bytes and self.memory is None:
            self._share_memory(0, sums_bytes)
        one_host = self.memory is not None and not self.memory.across[1:]
        sparse = one_host and counts_what_it_writes(self.config)
        self.tiles = Tiles(self.n_states, self.width, sparse)
        if self.tiles.sparse:
            self.tiles.touched = self._touched_of(self.transport.node_rank)
        if self.memory is None:
            self.tables = [Rows(self.record, self.n_states), Rows(self.record, self.n_states)]
            return
        common = self.memory.common
        self.tables = [
            Rows(self.record, self.n_states, common[start : start + n_bytes])
            for start in (0, padded)
        ]

    def _sums_of(self, node_rank: int) -> np.ndarray:
        """Contributions of a rank of this host, one part after the other."""
        assert self.memory is not None
        return self.memory.own[node_rank].view(np.int64)[: self._sums_words]

    @property
    def visits(self) -> np.ndarray:
        """Visits of all agents in the round, int64, of the rows this rank fuses. Local."""
        return self.parts["visits"] if self.whole or self._merges else self._owned_visits

    @property
    def _merges(self) -> bool:
        return self.fusion.merge is not None and not self._lone

    def steps_of_round(self) -> int:
        """Steps every lane makes in the next round; the last one before `stop.steps` is shorter."""
        limit, wanted = self.config.stop.steps, self.progress.period
        if limit is not None:
            wanted = min(wanted, -(-(limit - self.progress.steps) // self.per_step))
        if self.generative and not self._lone:
            # What begins a phase is the same for all agents only where they were fused before it.
            wanted = min(wanted, sweeps_left(self.config, self.progress.lane_steps) or wanted)
        return max(1, wanted)

    def learn(self) -> None:
        """LEARN and CONTRIBUTE: run every hosted agent from the base; add up what they found.

        Writes replicas and sums, never the next table: a rank that has not committed the last
        round may still need what is in it (`_adopt`).
        """
        self._scale()
        self._n_steps = n_steps = self.steps_of_round()
        if self._lone:
            steps = self.progress.steps
            due = settles(steps, steps + n_steps * self.per_step)
            self.control[0] = due or self._limits_always
        if self.at_once:
            self._learn_at_once(n_steps)
            return
        self.header[:] = 0
        if self.memory is None or self._dirty:  # owners clear what they have added up
            self.sums[:] = 0
        self._dirty = True
        self.tiles.begin()
        if self.fusion.maximum and not self._lone:
            self.parts["values"][:] = -np.inf
        for k, agent in enumerate(self.agents):
            row_bytes = self.record.row_bytes
            for start, stop in self.tiles.replica_runs():
                rows = slice(start * row_bytes, stop * row_bytes)
                self.replica.raw[rows] = self.base.raw[rows]
            if self.frozen:
                self.replica.clock[...] = 0
            agent.lanes.copy_from(agent.committed)
            if self.marking:
                self.marks[:] = 0
            agent.learn(self._bind("learn", k), self.progress.lane_steps + 1, n_steps)
            if self._forgets:
                agent.lanes.forget()
            if self.reads:
                self._contributed()
            elif not self._lone:
                self._call("contribute", k)
            self.tiles.learned()
            if not self._lone:
                self._call("report", k)

    def _learn_at_once(self, n_steps: int) -> None:
        """As `learn`, of small tables: one call for each agent, for calls take longer than loops.
        """
        if not self.agents:
            self.message[:] = 0
        first_step = self.progress.lane_steps + 1
        for k, agent in enumerate(self.agents):
            rest = () if self._lone else ("contribute", "report")
            pieces = agent.exploring.pieces(first_step, n_steps)
            key = ("at once", k, self.current)
            if len(pieces) > 1:  # a schedule moves on within the round
                self._call("take_up", k)
                agent.learn(self._bind("learn", k), first_step, n_steps)
                for name in rest:
                    self._call(name, k)
            else:
                if key not in self._bound:
                    self._bind_in_turn(key, ("take_up", "learn", *rest))
                agent.set_out(*pieces[0])
                self._bound[key]()
            if self._forgets:
                agent.lanes.forget()

    def exchange(self, wishes: tuple[bool, bool, bool]) -> Agreement | None:
        """MOVE, FUSE, SHARE, AGREE. COLLECTIVE. None: a contribution did not fit its bound; roll
        back and learn again.

        wishes : this rank wants to (stop, checkpoint, stop for the wall time).
        """
        if any(wishes):
            self.header[WISHES] = wishes
        # Every rank of `whole` has counted the same pairs.
        if self._moved and (not self.whole or self.transport.rank == 0):
            self.header[UNSTABLE] = self._moved
        if self.protects:
            self.kept[:] = 0  # of one rank's bits and zeros, the sum is a copy for everybody
            for agent in self.agents:
                self._kept_of(agent)[:] = agent.lanes.raw
        if self._lone:
            self._adopt()
            self.transport.sum_int(self.agreed)
            self._share_lone()
            return self._agree(Agreement.read(self.header))
        self.control[chunks.ROUND] = self.progress.round + 1
        if self.counts:  # fused before all can agree
            agreement = self._fuse_replicas() if self.reads else self._fuse_at_once()
            if not agreement.overflows:
                return self._agree(agreement)
            self._raise_scale()
            return None
        together = self.whole and not self.fusion.maximum
        self.transport.sum_int(self.message if together else self.agreed)
        agreement = Agreement.read(self.header)
        if self.memory is not None:
            self.memory.seen()
        if agreement.overflows:
            self._raise_scale()
            return None
        if self.fusion.maximum:
            self._reduce_maximum()
            self._call("fuse", 0)
        elif self._merges:
            values, visits, clocks = self.each
            self._merge_owned(
                self._gather_agents(values), self._gather_agents(visits),
                self._gather_agents(clocks) if self.signed else clocks,
            )  # fmt: skip
        elif self.whole:
            self._call("fuse", 0)
        else:
            self._fuse_owned()
        return self._agree(agreement)

    def _raise_scale(self) -> None:
        """Make room for what did not fit: the round will be run again. Local."""
        raised = self._scale().raised()
        self.progress = self.progress._replace(exponent=raised.exponent, peak=raised.peak)
        self._again = True

    def commit(self) -> None:
        """Make the round visible. Local."""
        self._moved = int(self.unstable[0])
        if not (self.protects or self.counts):  # else they were added beside the old ones
            self._add_visits(self.lifetime, self.lifetime, self.tiles.changed)
        self.tiles.commit()
        self.current = 1 - self.current
        for agent in self.agents:
            agent.commit()
        self._before = self.progress, self.copies
        self.progress = self.pending
        if self.protects:
            self.copies = self._coming

    def rollback(self) -> int:
        """Forget the round in progress; return the number of the last committed round. Local.

        The base, the committed lanes and the counters were never touched by it; environments that
        are stepped are brought back.
        """
        self.pending = self.progress
        self.tiles.forget()
        for agent in self.agents:
            agent.rewind(self.progress.lane_steps, self._again)
        self._again = False
        return self.progress.round

    def iter_rows(self) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
        """Yield (start, q, clock, visits), each (n, width), of the committed table in slices; rank
        0 alone gets visits of other owners (empty elsewhere). COLLECTIVE: exhaust it everywhere."""
        for start in range(0, self.n_states, SLICE_ROWS):
            stop = min(start + SLICE_ROWS, self.n_states)
            visits = self._slice_visits(start, stop)
            yield (
                start, self.base.values[start:stop], self.base.clock[start:stop],
                visits.reshape(-1, self.width),
            )  # fmt: skip

    @property
    def holding(self) -> Holding:
        """The committed table."""
        return Holding(self.base, 0, None, self.transport)

    def report(self) -> dict[str, Any]:
        """What else a row of the metrics holds: nothing. Local."""
        return {}

    def notices(self) -> list[tuple[str, str]]:
        """What the user should be told once, as (kind, message). Local."""
        shares = self.memory is not None or not self._wanted_bytes
        if shares or self.whole or self.transport.node_size == 1:
            return []
        return [(
            "no_host_memory",
            f"the ranks of a host have no memory in common: /dev/shm has no room for "
            f"{self._wanted_bytes / 1e6:.3g} MB, or hosts have different numbers of ranks; fusion "
            "goes through messages, which takes longer",
        )]  # fmt: skip

    def keep_table(self) -> None:
        """Take the committed table out of the memory that `close` frees. Local."""
        if self.memory is not None:
            kept = Rows(self.record, self.n_states)
            kept.raw[:] = self.base.raw
            self.tables, self.current = [kept], 0

    def close(self) -> None:
        """Close what is stepped, free what ranks have in common. COLLECTIVE."""
        for agent in self.agents:
            agent.close()
        for one in (self.memory, self.room):
            if one is not None:
                one.close()
        self.memory = self.room = None

    def restore_rows(self, start: int, stop: int, stored: Any) -> None:
        """Take rows [start, stop) of a checkpoint: what `checkpoint.read_rows` gave rank 0, None
        elsewhere. COLLECTIVE."""
        n, width, base = stop - start, self.width, self.base
        self.tiles.forget()
        kinds = (base.record.dtype, np.dtype(np.uint32), np.dtype(np.uint64))
        q, clock, visits = (np.empty((n, width), kind) for kind in kinds)
        if stored is not None:
            q[...], clock[...], visits[...] = stored
        for array in (q, clock, visits):
            self.transport.broadcast_array(array)
        if self.memory is None or self.transport.leads_node:
            base.values[start:stop], base.clock[start:stop] = q, clock
        if self.memory is not None:
            self.memory.barrier()
        low, high = max(start, self.owned[0]), min(stop, self.owned[1])
        if low < high:
            self._take_visits(low, high, visits[low - start : high - start])

    def _scale(self) -> FixedPoint:
        """The scale of this round, which is in `rates`, too; kept, for it seldom changes."""
        progress, known = self.progress, self._known_scale
        if known is None or known.exponent != progress.exponent or known.peak != progress.peak:
            known = FixedPoint(self.n_agents, progress.exponent, progress.peak)
            self.rates[fusing.SCALE], self.rates[fusing.BOUND] = known.scale, known.bound
            self._known_scale = known
        return known

    def _agree(self, agreement: Agreement) -> Agreement:
        progress = self.progress
        scale = self._scale().after(agreement.large)
        period = self.period or progress.period
        if not self.period and self._lone:
            period = self._lone_period(progress.lane_steps + self._n_steps)
        elif not self.period:
            period = next_period(
                self._n_steps, agreement.visits, 0 if self.frozen else agreement.length,
                self.n_agents, self.config.parallel.kappa, self._most_steps(),
            )  # fmt: skip
        learned = self._n_steps * self.per_step
        if self.protects:
            if self.memory is None and not self.counts:
                self._count_visits()
            if self.guards:
                after = 1 - self.current
                self.transport.shift(self.lifetimes[after], self.guarded[after])
            self._coming = Copies(self.kept.copy(), self._worlds_of_all())
        self.pending = progress.after(self._n_steps, learned, agreement, period, scale)
        return agreement

    def _most_steps(self) -> int:
        """The longest round: what ends one is little beside it."""
        n_pairs, n_lanes = self.n_states * self.width, -(-self.n_lanes // self.n_agents)
        learn = self.config.learn
        if self.stepped or self.generative:
            return MAX_PERIOD
        # A round of frozen targets is one contraction, however long it is.
        n_made = 0 if self.frozen else self.progress.lane_steps + self._n_steps
        ticks = 1 + learn.planning_steps * (learn.rule in MODEL_RULES)
        most = fusing.round_limit(self.n_agents) // (n_lanes * ticks)
        wanted = self.fusion.wanted_visits(self.config) * n_pairs
        wanted = min(-(-wanted // self.per_step), LONE_STEPS // n_lanes)
        return max(1, min(max(lone_period(n_pairs, n_lanes, n_made), wanted), most))

    def _lone_period(self, n_made: int) -> int:
        """The next round of a lone agent, or of several on one table."""
        if self.generative:
            return sweep_period(self.per_step)
        return lone_period(self.n_states * self.width, self.n_lanes, n_made, self.stepped)

    def _adopt(self) -> None:
        """FUSE of a single agent: its replica becomes the next table. COLLECTIVE.

        The memory of the next table holds the base of the round before, to which the survivors of a
        loss return if one of them has not committed the last round. The root of `_share_lone` is
        not held up by such a rank, so it waits here until all ranks have committed.
        """
        if self.protects:
            self.transport.barrier()
        for k in range(len(self.agents)):
            key = ("adopt at once", k, self.current)
            if key not in self._bound:
                self._bind_in_turn(key, ("adopt", "report"))
            self._bound[key]()

    def _share_lone(self) -> None:
        """The one agent's table, visits and clocks reach the ranks that only look on."""
        if self.transport.size > 1:
            host = int(self.hosting.owner(0))
            self.transport.broadcast_array(self._next.raw, host)
            self.transport.broadcast_array(self.visits, host)

    def _fuse_at_once(self) -> Agreement:
        """MOVE, FUSE and AGREE, of small tables: in one call, where the ranks have a room."""
        if self.room is None:
            self.transport.sum_int(self.message)
        self._call_at_once()
        return Agreement.read(self.header)

    def _call_at_once(self) -> None:
        """Meet the other ranks, where there is a room, fuse, and count visits. COLLECTIVE."""
        key = ("fuse at once", 0, self.current)
        if key not in self._bound:
            self._bind_in_turn(key, ("fuse", "count_visits"))
        self._bound[key]()

    def _reduce_maximum(self) -> None:
        values, winner = self.parts["values"], self.parts["winner"]
        mine = values.copy()
        self.transport.max_float(values)
        winner[mine != values] = 0
        self.transport.max_int(winner)
        self.transport.sum_int(self.parts["visits"])

    def _fuse_owned(self) -> None:
        sums, stale = dict(self.parts), []
        if self.tiles.sparse:
            ranks = range(self.transport.node_size)
            self.tiles.meet([self._touched_of(rank) for rank in ranks])
            stale = self.tiles.stale_sums(*self.owned)
        for i, name in enumerate(self.sent):
            if self.memory is None:
                sums[name] = self.transport.sum_to_owners(self.parts[name], self.blocks)
            else:
                sums[name] = self._sum_on_host(self.memory, i, stale)
        self._owned_visits = sums["visits"]
        key, one_host = ("fuse", 0, self.current), self.memory and not self.memory.across[1:]
        if not one_host or key not in self._bound:  # there sums lie where they lay before
            self._bound[key] = self.kernels["fuse"].bind(
                *self._tables(), *sums.values(), self.lifetime, self.control, self.rates,
                self.unstable, self.tiles.due, *self.work,
            )  # fmt: skip
        self._bound[key]()
        if self.memory is None:
            self.transport.allgather_rows(self._next.raw, self.blocks)
        else:
            self._dirty = False
            if self.protects:
                self._count_visits()
            self._share_on_host(self.memory)

    def _sum_on_host(
        self, memory: HostMemory, number: int, stale: list[tuple[int, int]]
    ) -> np.ndarray:
        """Add up one part of what the ranks of this host contributed to the blocks of the ranks in
        this one's place on all hosts; return the sum over hosts of the own block's. stale : rows
        whose sums, of an earlier round, are none of this one."""
        n_pairs, width = self.n_states * self.width, self.width
        regions = [self._sums_of(rank)[number * n_pairs : (number + 1) * n_pairs]
                   for rank in range(self.transport.node_size)]  # fmt: skip
        counts = [int(self.blocks.counts[rank]) * width for rank in memory.across]
        if number not in self._added:  # kept, for fresh memory would be given page by page
            self._added[number] = np.empty(sum(counts), np.int64)
        found, at = self._added[number], 0
        for start, stop in stale:
            found[(start - self.owned[0]) * width : (stop - self.owned[0]) * width] = 0
        for rank in memory.across:
            block = self.blocks.block(rank)
            for first, last in self.tiles.runs(self.tiles.changed, *block):
                for start in range(first * width, last * width, TILE):
                    end = min(start + TILE, last * width)
                    to = at + start - block[0] * width
                    tile = found[to : to + end - start]
                    tile[:] = regions[0][start:end]
                    for region in regions[1:]:
                        tile += region[start:end]
                    for region in regions:
                        region[start:end] = 0
            at += (block[1] - block[0]) * width
        if len(memory.across) == 1:
            return found
        return memory.sum_across(found, Partition(np.cumsum([0, *counts])))

    def _share_on_host(self, memory: HostMemory) -> None:
        """Bring the rows that ranks of other hosts have fused into this host's next table."""
        if len(memory.across) > 1:
            rows = self._next.raw.reshape(self.n_states, -1)
            blocks = [self.blocks.block(rank) for rank in memory.across]
            mine = self.blocks.block(self.transport.rank)
            borders = Partition(np.cumsum([0, *(stop - first for first, stop in blocks)]))
            copied = np.empty((borders.n, rows.shape[1]), np.uint8)
            at = borders.block(memory.across.index(self.transport.rank))
            copied[slice(*at)] = rows[slice(*mine)]
            memory.allgather_across(copied, borders)
            for k, (first, stop) in enumerate(blocks):
                if (first, stop) != mine:
                    rows[first:stop] = copied[slice(*borders.block(k))]
        memory.barrier()

    def _gather_agents(self, array: np.ndarray) -> np.ndarray:
        """What all agents have to say of this rank's pairs, (K, pairs), in their order."""
        mine, rank = array, self.transport.rank
        for owner in range(self.transport.size):
            start, stop = (row * self.width for row in self.blocks.block(owner))
            gathered = self.transport.gather_rows(array[:, start:stop], self.hosting, owner)
            if owner == rank and gathered is not None:
                mine = gathered
        return mine

    def _merge_owned(self, values: np.ndarray, visits: np.ndarray, clocks: np.ndarray) -> None:
        self.kernels["fuse"](
            *self._tables(), values, visits, clocks, self.parts["visits"], self.scratch,
            self.control, self.rates,
        )  # fmt: skip
        self.transport.allgather_rows(self._next.raw, self.blocks)

    def _slice_visits(self, start: int, stop: int) -> np.ndarray:
        if self.whole:
            return self._visits_of(start, stop)
        cut = np.clip(self.blocks.starts, start, stop)
        mine = self._visits_of(*cut[self.transport.rank :][:2].tolist())
        gathered = self.transport.gather_rows(mine, Partition(cut - start))
        return np.zeros((0, self.width), np.uint64) if gathered is None else gathered

    def _visits_of(self, first: int, stop: int) -> np.ndarray:
        """Visits in committed rounds, uint64 (n, width), of rows that this rank fuses. Local."""
        rows = self.lifetime.reshape(-1, self.width)
        return rows[first - self.owned[0] : stop - self.owned[0]]

    def _take_visits(self, first: int, stop: int, visits: np.ndarray) -> None:
        """Take visits of such rows. Local."""
        self._visits_of(first, stop)[...] = visits

    def _tables(self) -> tuple[np.ndarray, ...]:
        fresh, base = self._next, self.base
        return fresh.q, fresh.clock_words, base.q, base.clock_words

    def _bind_in_turn(self, key: tuple[str, int, int], names: tuple[str, ...]) -> None:
        """Bind kernels over this rank's arrays as one call; what fuses meets other ranks first."""
        calls = [self._bind(name, key[1]) for name in names]
        if self.room is not None and names[0] == "fuse":
            calls.insert(0, self.room.sum)
        self._bound[key] = self.kernels["in_turn"].bind_calls(calls)

    def _call(self, name: str, k: int) -> None:
        """Call a kernel over this rank's arrays."""
        self._bind(name, k)()

    def _bind(self, name: str, k: int) -> Any:
        """A kernel with its arguments, which are bound once per table parity."""
        key = (name, k, self.current)
        if key not in self._bound:
            self._bound[key] = self.kernels[name].bind(*self._arguments(name, k))
        return self._bound[key]

    def _arguments(self, name: str, k: int) -> tuple[Any, ...]:
        replica, base, fresh, parts = self.replica, self.base, self._next, self.parts
        if name == "fuse" and self.fusion.maximum:
            return (fresh.q, fresh.clock_words, parts["values"], parts["winner"], self.control)
        if name == "count_visits":
            return (self.lifetime, parts["visits"], self.lifetimes[1 - self.current])
        if name == "fuse":
            return (*self._tables(), *parts.values(), self.lifetime, self.control, self.rates,
                    self.unstable, self.tiles.due, *self.work)  # fmt: skip
        agent = self.agents[k]
        if name == "take_up":
            message = self.message if k == 0 else self.message[:0]
            return (base.raw, replica.raw, agent.committed.raw, agent.lanes.raw, message,
                    agent.totals)  # fmt: skip
        if name == "report":
            return (agent.found, agent.totals, self.header, self.n_agents, LENGTH_UNIT)
        if name == "learn":
            seen = base.q if self.frozen else replica.q
            return (seen, replica.q, replica.clock_words,
                    *agent.learning_arrays(self.learning_work, self.params_of(agent.number)),
                    agent.control, self.rates[:2].copy(), agent.totals)  # fmt: skip
        if name == "adopt":
            return (fresh.q, fresh.clock_words, base.clock_words, replica.q, replica.clock_words,
                    parts["visits"], self.control, agent.found)  # fmt: skip
        if self._merges:
            return (replica.q, replica.clock_words, base.clock_words,
                    *(array[k] for array in self.each), self.rates, agent.found)  # fmt: skip
        # In a frozen round clocks begin at 0: they count the targets of a mean.
        begun = self.unticked if self.frozen else base.clock_words
        learned = (replica.q, replica.clock_words, base.q, begun)
        if self.fusion.maximum:
            return (*learned, parts["values"], parts["visits"], parts["winner"], self.rates,
                    agent.found)  # fmt: skip
        return (*learned, *parts.values(), self.rates, agent.found, self.marks,
                self.tiles.touched, *self.work)  # fmt: skip


def counts_what_it_writes(config: Any) -> bool:
    """Whether rows that a round changes are those whose visits it counts. Local."""
    learn = config.learn
    return learn.rule in SPARSE_RULES and learn.n_steps == 1 and learn.target == "live"


def _parts_of_rounds(config: Any) -> tuple[str, ...]:
    """Kernels of `rounds` that a run needs; all of them where the tuple is empty. Local."""
    return ("in_turn", "take_up", "report") if adopts(config) else ()


def _marks(config: Any, environment: Any, width: int) -> bool:
    """Whether `learn` marks the tiles it writes to: of tables that are not reduced whole. Local."""
    fusion, n_pairs = fusion_of(config), environment.n_states * width
    large = 8 * len(fusion.sums(config.learn.step_size)) * n_pairs > MARKED_BYTES
    summed = not (adopts(config) or fusion.maximum or fusion.merge is not None)
    stepped = environment.kind == "stepped"
    return large and summed and not stepped and counts_what_it_writes(config)
