"""`allreduce`: every agent learns a round on a full replica, then all contributions are fused.

Small tables are reduced whole and fused by every rank alike: one message a round. Larger ones are
reduced to the owners of the blocks, which fuse and share them. Both give the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from distq_mpi.architectures.hosting import Hosted
from distq_mpi.architectures.progress import (
    HEADER,
    UNSTABLE,
    WISHES,
    Agreement,
    Progress,
    add_agent,
)
from distq_mpi.architectures.schedules import (
    LENGTH_UNIT,
    exploration_at,
    lone_period,
    next_period,
    sweep_period,
)
from distq_mpi.environments.worlds import WORLD_DTYPE
from distq_mpi.files import SLICE_ROWS
from distq_mpi.fusion import FUSIONS, FixedPoint, adopts, fusion_kernels, fusion_of
from distq_mpi.holding import Holding
from distq_mpi.kernels import Kernel, fusing, loop
from distq_mpi.kernels.exploration import EXPLORATIONS
from distq_mpi.kernels.generative import generative_kernels, scratch_of, sweeps_left
from distq_mpi.kernels.objects import LoadedKernel
from distq_mpi.kernels.step_sizes import STEP_SIZES, step_parameter
from distq_mpi.kernels.stepping import stepping_kernels
from distq_mpi.kernels.traces import depth_in, forgets
from distq_mpi.lanes import Lanes, lane_dtype
from distq_mpi.partition import Partition
from distq_mpi.table import Rows, first_bound, initialise, record_of

if TYPE_CHECKING:
    from distq_mpi.transport import Transport

WHOLE_BYTES = 1 << 19


class Allreduce:
    """The learning state of this rank, and the phases of a round that change it.

    Parameters
    ----------
    config : resolved `Config`. environment : `Environment`. kernels : loaded from `requests`.
    transport : over all ranks of the run.

    Attributes: `followed`, whether what was taken up from a checkpoint followed from the
    configuration alone; `exchanges`, what its messages are for; `exchange_time_s`, spent in
    messages within `learn`; `learned`, steps of this rank's own, none here: agents share them.

    Nothing learned in a round is visible before `commit`; `rollback` returns to the last commit.
    """

    exchanges, exchange_time_s, learned = "fusion", 0.0, 0

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
        self.params, self.stepped = environment.params, environment.kind == "stepped"
        self.n_agents, self.n_lanes = config.parallel.agents, config.parallel.lanes
        self.generative = config.learn.sampling == "generative"
        self.per_step = self.n_lanes
        if self.generative:
            self.per_step *= self.n_states * self.n_actions
        self.fusion, self.frozen = fusion_of(config), config.learn.target == "frozen"
        self._forgets = forgets(config.learn) and not self._lone
        record = record_of(config.learn, self.n_actions)
        self.width, self.signed = record.width, STEP_SIZES[config.learn.step_size].signed
        self.tables = [Rows(record, self.n_states), Rows(record, self.n_states)]
        self.replica = Rows(record, self.n_states)
        self.current = 0
        self._again = False
        self.place(environment)
        bound = first_bound(config.learn, environment)
        initialise(self.base, 0, config.learn.initial, bound, config.run.seed)
        auto = config.parallel.steps_per_round == "auto"
        self.period = 0 if auto else int(config.parallel.steps_per_round)
        scale = FixedPoint(self.n_agents)
        first = 1
        if self._lone:
            first = lone_period(self.n_states * self.width, self.n_lanes, self.stepped)
            if self.generative:
                first = sweep_period(self.per_step)
        self.progress = Progress(
            period=self.period or first, exponent=scale.exponent, peak=scale.peak
        )
        self.pending = self.progress
        for agent in self.agents:
            agent.control[loop.EXPLORE] = self._explore()
            agent.begin(kernels.get("begin"), self.base.q, self.params)

    @staticmethod
    def memory_bytes(config: Any, n_states: int, n_actions: int, size: int) -> dict[str, int]:
        """Bytes one rank needs, part by part, under a resolved `Config` on `size` ranks. Local."""
        record, n_agents = record_of(config.learn, n_actions), config.parallel.agents
        n_pairs, table = n_states * record.width, n_states * record.row_bytes
        fusion = FUSIONS[config.parallel.fusion]
        sent = fusion.sent_bytes(config, n_pairs, size) if n_agents > 1 else n_pairs * 8
        if fusion.merge is not None and n_agents > 1:
            # An owner holds its pairs of every agent.
            sent += n_agents * sent // -(-n_agents // size) // size + n_pairs * 8 // size
        lane_bytes = lane_dtype(depth_in(config, n_states, n_actions)).itemsize
        lanes = -(-config.parallel.lanes // min(n_agents, size)) * lane_bytes * 2
        return {"replica": table, "base": 2 * table, "contributions": sent,
                "visits": n_pairs * 8, "lanes": lanes}  # fmt: skip

    @staticmethod
    def requests(config: Any, environment: Any) -> dict[str, Kernel]:
        """Return the kernels this architecture needs under a resolved `Config`. Local."""
        record = record_of(config.learn, environment.n_actions)
        fusing_kernels = fusion_kernels(config, record)
        if config.learn.sampling == "generative":
            return {**generative_kernels(config, environment, record), **fusing_kernels}
        stepped = environment.kind == "stepped"
        learning = stepping_kernels if stepped else loop.learning_kernels
        return {
            **learning(config.learn, environment, record, Lanes(0, 1)),
            **fusing_kernels,
        }

    @property
    def base(self) -> Rows:
        """The last committed table; every rank holds all of it."""
        return self.tables[self.current]

    @property
    def _next(self) -> Rows:
        return self.tables[1 - self.current]

    @property
    def _lone(self) -> bool:
        return adopts(self.config)

    def place(self, environment: Any) -> None:
        """Give every rank its agents, their lanes and its block of rows. Local, same on all."""
        size = self.transport.size
        lanes = Partition.balanced(self.n_lanes, self.n_agents)
        first, stop = Partition.balanced(self.n_agents, size).block(self.transport.rank)
        self.agents = [Hosted(k, lanes, self.config, environment) for k in range(first, stop)]
        starts = [int(lanes.starts[k]) for k in Partition.balanced(self.n_agents, size).starts]
        self.lane_blocks = Partition(np.array(starts))
        self.hosting = Partition.balanced(self.n_agents, size)
        blocks = Partition.balanced(self.n_states, size)
        self.blocks = blocks
        self._allocate_sums(blocks.block(self.transport.rank))
        owned_pairs = (self.owned[1] - self.owned[0]) * self.width
        self.lifetime = np.zeros(owned_pairs, np.uint64)
        learn = self.config.learn
        self.rates = np.zeros(4)
        self.rates[:2] = learn.discount, step_parameter(learn)
        self.control = np.zeros(5, np.uint64)
        self.draws = np.zeros(2 * loop.BATCH, np.uint64)
        if self.generative:
            self.draws = scratch_of(learn, self.n_states)
        self.unstable = np.zeros(1, np.int64)
        self.unticked = np.zeros(self.base.clock_words.size if self.frozen else 1, np.uint32)
        self._bound: dict[tuple[str, int, int], Any] = {}

    def _allocate_sums(self, block: tuple[int, int]) -> None:
        """Arrays for contributions; those that are summed lie in one buffer behind the header."""
        n_pairs, fusion = self.n_states * self.width, self.fusion
        merges = fusion.merge is not None and not self._lone
        names = ("visits",) if self._lone else fusion.sums(self.config.learn.step_size)
        small = len(names) * n_pairs * 8 <= WHOLE_BYTES
        self.whole = self._lone or fusion.maximum or (small and not merges)
        self.owned = (0, self.n_states) if self.whole else block
        self.sums = np.zeros(HEADER + len(names) * n_pairs, np.int64)
        self.header = self.sums[:HEADER]
        none = np.zeros(1, np.int64)
        self.parts = dict.fromkeys(("values", "visits", "ticks", "votes", "gains"), none)
        for i, name in enumerate(names):
            start = HEADER + i * n_pairs
            self.parts[name] = self.sums[start : start + n_pairs]
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

    @property
    def visits(self) -> np.ndarray:
        """Visits of all agents in the round, int64, of the rows this rank fuses. Local."""
        return self.parts["visits"] if self.whole or self._merges else self._owned_visits

    @property
    def _merges(self) -> bool:
        return self.fusion.merge is not None and not self._lone

    @property
    def exploration(self) -> tuple[str, float]:
        """`epsilon` or `temperature`, and its value in the next round. Local."""
        learn = self.config.learn
        return EXPLORATIONS[learn.exploration].key, exploration_at(learn, self.progress.steps)

    def _explore(self) -> int:
        return EXPLORATIONS[self.config.learn.exploration].encode(self.exploration[1])

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
        """LEARN and CONTRIBUTE: run every hosted agent from the base; add up what they found."""
        scale = self._scale()
        self.rates[fusing.SCALE], self.rates[fusing.BOUND] = scale.scale, scale.bound
        self.sums[:] = 0
        if self.fusion.maximum and not self._lone:
            self.parts["values"][:] = -np.inf
        n_steps, explore = self.steps_of_round(), self._explore()
        for k, agent in enumerate(self.agents):
            self.replica.raw[:] = self.base.raw
            if self.frozen:
                self.replica.clock[...] = 0
            agent.lanes.copy_from(agent.committed)
            agent.control[loop.EXPLORE] = explore
            agent.learn(self._bind("learn", k), self.progress.lane_steps + 1, n_steps)
            if self._forgets:
                agent.lanes.forget()
            self._call("adopt" if self._lone else "contribute", k)
            add_agent(self.header, agent.found, agent.totals, LENGTH_UNIT, self.n_agents)
        self._n_steps = n_steps

    def exchange(self, wishes: tuple[bool, bool, bool]) -> Agreement | None:
        """MOVE, FUSE, SHARE, AGREE. COLLECTIVE. None: a contribution did not fit its bound; roll
        back and learn again.

        wishes : this rank wants to (stop, checkpoint, stop for the wall time).
        """
        self.header[WISHES] = wishes
        # Every rank of `whole` has counted the same pairs.
        counts = not self.whole or self.transport.rank == 0
        self.header[UNSTABLE] = self.unstable[0] if counts else 0
        if self._lone:
            self.transport.sum_int(self.header)
            self._share_lone()
            return self._agree(Agreement.read(self.header))
        if self.whole and not self.fusion.maximum:
            self.transport.sum_int(self.sums)
        else:
            self.transport.sum_int(self.header)
        agreement = Agreement.read(self.header)
        if agreement.overflows:
            raised = self._scale().raised()
            self.progress = replace(self.progress, exponent=raised.exponent, peak=raised.peak)
            self._again = True
            return None
        if self.fusion.maximum:
            self._reduce_maximum()
        elif self._merges:
            values, visits, clocks = self.each
            each = (
                self._gather_agents(values), self._gather_agents(visits),
                self._gather_agents(clocks) if self.signed else clocks,
            )  # fmt: skip
        self.control[:] = (
            self.owned[0], self.owned[1] - self.owned[0], self.n_agents, self.config.run.seed,
            self.progress.round + 1,
        )  # fmt: skip
        if self._merges:
            self._merge_owned(*each)
        elif self.whole:
            self._call("fuse", 0)
        else:
            self._fuse_owned()
        return self._agree(agreement)

    def commit(self) -> None:
        """Make the round visible. Local."""
        self.current = 1 - self.current
        np.add(self.lifetime, self.visits.view(np.uint64), out=self.lifetime)
        for agent in self.agents:
            agent.commit()
        self.progress = self.pending

    def rollback(self) -> int:
        """Forget the round in progress; return the number of the last committed round. Local.

        The base, the committed lanes and the counters were never touched by it; environments that
        are stepped are brought back.
        """
        self.pending = self.progress
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

    def gather_lanes(self) -> np.ndarray | None:
        """Return all committed lanes, packed in order, on rank 0; None elsewhere. COLLECTIVE."""
        mine = [agent.committed.pack() for agent in self.agents]
        depth = depth_in(self.config, self.n_states, self.n_actions)
        none = np.zeros(0, lane_dtype(depth))
        block = np.concatenate([none, *mine])
        return self.transport.gather_rows(block, self.lane_blocks)

    def gather_worlds(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Return what checkpoints hold of environments that are stepped, and the actions of all
        open episodes, in the order of the lanes; on rank 0, where there are any. COLLECTIVE."""
        if not self.stepped:
            return None
        mine = [agent.worlds.pack() for agent in self.agents if agent.worlds is not None]
        rows = np.concatenate([np.zeros(0, WORLD_DTYPE), *(rows for rows, _ in mine)])
        actions = np.concatenate([np.zeros(0, np.uint32), *(actions for _, actions in mine)])
        lengths = self.transport.gather(len(actions)) or [0]
        blocks = Partition(np.cumsum([0, *lengths]))
        all_rows = self.transport.gather_rows(rows, self.lane_blocks)
        all_actions = self.transport.gather_rows(actions, blocks)
        return None if all_rows is None or all_actions is None else (all_rows, all_actions)

    def restore(self, progress: Progress, lanes: np.ndarray, worlds: Any = None) -> None:
        """Take counters and all lanes of a checkpoint; rows come through `restore_rows`. Local.

        worlds : as `gather_worlds` gave it, for environments that are stepped.
        """
        self.progress = self.pending = progress
        stops = None if worlds is None else np.cumsum([0, *worlds[0]["n_actions"]])
        for agent in self.agents:
            first, stop = agent.committed.first, agent.committed.first + agent.committed.n
            mine = None
            if stops is not None:
                mine = worlds[0][first:stop], worlds[1][stops[first] : stops[stop]]
            agent.resume(lanes[first:stop], mine, progress.lane_steps)

    def reproducible(self) -> bool:
        """Whether the bits so far follow from the configuration alone. COLLECTIVE."""
        worlds = [agent.worlds for agent in self.agents if agent.worlds is not None]
        astray = np.array([sum(not world.matched for world in worlds)], np.int64)
        self.transport.max_int(astray)
        return self.followed and not astray[0]

    def close(self) -> None:
        """Close what is stepped. Local."""
        for agent in self.agents:
            agent.close()

    def restore_rows(self, start: int, stop: int, stored: Any) -> None:
        """Take rows [start, stop) of a checkpoint: what `checkpoint.read_rows` gave rank 0, None
        elsewhere. COLLECTIVE."""
        n, width, base = stop - start, self.width, self.base
        kinds = (base.record.dtype, np.dtype(np.uint32), np.dtype(np.uint64))
        q, clock, visits = (np.empty((n, width), kind) for kind in kinds)
        if stored is not None:
            q[...], clock[...], visits[...] = stored
        for array in (q, clock, visits):
            self.transport.broadcast_array(array)
        base.values[start:stop], base.clock[start:stop] = q, clock
        low, high = max(start, self.owned[0]), min(stop, self.owned[1])
        if low < high:
            mine = self.lifetime.reshape(-1, width)
            mine[low - self.owned[0] : high - self.owned[0]] = visits[low - start : high - start]

    def _scale(self) -> FixedPoint:
        return FixedPoint(self.n_agents, self.progress.exponent, self.progress.peak)

    def _agree(self, agreement: Agreement) -> Agreement:
        progress = self.progress
        scale = self._scale().after(agreement.large)
        period = self.period or progress.period
        if not self.period and not self._lone:
            period = next_period(
                self._n_steps, agreement.visits, 0 if self.frozen else agreement.length,
                self.n_agents, self.config.parallel.kappa,
            )  # fmt: skip
        learned = self._n_steps * self.per_step
        self.pending = progress.after(self._n_steps, learned, agreement, period, scale)
        return agreement

    def _share_lone(self) -> None:
        """The one agent's table, visits and clocks reach the ranks that only look on."""
        if self.transport.size > 1:
            self.transport.broadcast_array(self._next.raw)
            self.transport.broadcast_array(self.visits)

    def _reduce_maximum(self) -> None:
        values, winner = self.parts["values"], self.parts["winner"]
        mine = values.copy()
        self.transport.max_float(values)
        winner[mine != values] = 0
        self.transport.max_int(winner)
        self.transport.sum_int(self.parts["visits"])

    def _fuse_owned(self) -> None:
        sums = dict(self.parts)
        for name in self.sent:
            sums[name] = self.transport.sum_to_owners(self.parts[name], self.blocks)
        self._owned_visits = sums["visits"]
        self.kernels["fuse"](
            *self._tables(), *sums.values(), self.lifetime, self.control, self.rates, self.unstable
        )
        self.transport.allgather_rows(self._next.raw, self.blocks)

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
            return self.lifetime[start * self.width : stop * self.width]
        cut = np.clip(self.blocks.starts, start, stop)
        low, high = (int(x) - self.owned[0] for x in cut[self.transport.rank :][:2])
        mine = self.lifetime.reshape(-1, self.width)[low:high]
        gathered = self.transport.gather_rows(mine, Partition(cut - start))
        return np.zeros((0, self.width), np.uint64) if gathered is None else gathered

    def _tables(self) -> tuple[np.ndarray, ...]:
        fresh, base = self._next, self.base
        return fresh.q, fresh.clock_words, base.q, base.clock_words

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
        if name == "fuse":
            return (*self._tables(), *parts.values(), self.lifetime, self.control, self.rates,
                    self.unstable)  # fmt: skip
        agent = self.agents[k]
        if name == "learn":
            seen = base.q if self.frozen else replica.q
            return (seen, replica.q, replica.clock_words,
                    *agent.learning_arrays(self.draws, self.params), agent.control,
                    self.rates[:2].copy(), agent.totals)  # fmt: skip
        if name == "adopt":
            return (fresh.q, fresh.clock_words, base.clock_words, replica.q, replica.clock_words,
                    parts["visits"], agent.found)  # fmt: skip
        if self._merges:
            return (replica.q, replica.clock_words, base.clock_words,
                    *(array[k] for array in self.each), self.rates, agent.found)  # fmt: skip
        # In a frozen round clocks begin at 0: they count the targets of a mean.
        begun = self.unticked if self.frozen else base.clock_words
        learned = (replica.q, replica.clock_words, base.q, begun)
        if self.fusion.maximum:
            return (*learned, parts["values"], parts["visits"], parts["winner"], self.rates,
                    agent.found)  # fmt: skip
        return (*learned, *parts.values(), self.rates, agent.found)
