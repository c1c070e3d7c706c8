"""What `allreduce` keeps twice, so that a lost rank takes nothing along, and how it goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from distq_mpi.architectures.copies import Copies, Rescued
from distq_mpi.architectures.hosting import Host, Hosted
from distq_mpi.architectures.progress import Progress
from distq_mpi.architectures.tiles import Tiles
from distq_mpi.lanes import Lanes, lane_dtype
from distq_mpi.partition import Partition
from distq_mpi.table import Rows

if TYPE_CHECKING:
    from distq_mpi.transport import HostMemory


class Survivable(Host):
    """Visits of committed rounds, twice; lanes, which travel with what is agreed on; recovery.

    `Allreduce` sets the attributes declared here, and says who owns which rows.
    """

    n_agents: int
    width: int
    current: int
    whole: bool
    counts: bool
    """Whether fusing counts visits, too, into the lifetimes of the round after."""
    protects: bool
    owned: tuple[int, int]
    blocks: Partition
    tiles: Tiles
    tables: list[Rows]
    memory: HostMemory | None
    kept: np.ndarray
    copies: Copies | None
    _before: tuple[Progress, Copies | None]
    _rescued: Rescued | None
    _n_recoveries: int
    _left_behind: list[HostMemory | None]
    _sums_words: int
    _visits_words: int
    _dirty: bool
    _again: bool

    @property
    def base(self) -> Rows:
        """The last committed table; every rank holds all of it."""
        return self.tables[self.current]

    @property
    def visits(self) -> np.ndarray:
        """Visits of all agents in the round, int64, of the rows this rank fuses. Local."""
        raise NotImplementedError

    def place(self, environment: Any) -> None:
        """Give every rank its agents, their lanes and its block of rows. COLLECTIVE."""
        raise NotImplementedError

    def _allocate_lifetimes(self) -> None:
        """Visits so far of the rows this rank fuses, of even and odd rounds.

        Where rows have one owner, a copy is on the next rank, or they lie in memory of the host.
        """
        n_pairs = (self.owned[1] - self.owned[0]) * self.width
        self.lifetimes = [np.zeros(n_pairs, np.uint64)] * 2
        if self.counts:
            self.lifetimes[1] = np.zeros(n_pairs, np.uint64)
        self.guards = False
        if not self.protects:
            return
        transport = self.transport
        self.members = [member.number for member in transport.members]
        if self.memory is not None:
            self.lifetimes = self._lifetimes_of(transport.node_rank, n_pairs)
            return
        self.lifetimes[1] = np.zeros(n_pairs, np.uint64)
        self.guards = not self.whole and transport.size > 1
        if self.guards:
            first, stop = self.blocks.block((transport.rank - 1) % transport.size)
            self.guarded = [np.zeros((stop - first) * self.width, np.uint64) for _ in range(2)]

    def _lifetimes_of(self, node_rank: int, n_pairs: int) -> list[np.ndarray]:
        """Visits, of even and odd rounds, that a rank of this host counts in common memory."""
        assert self.memory is not None
        words = self.memory.own[node_rank].view(np.uint64)[self._sums_words :]
        half = self._visits_words // 2
        return [words[:n_pairs], words[half : half + n_pairs]]

    def held_visits(self) -> dict[int, np.ndarray]:
        """Blocks whose visits this rank could hand out, by owner: its own, and copies. Local."""
        rank, size = self.members.index(self.transport.me.number), len(self.members)
        if self.memory is not None:
            counts = self.blocks.counts * self.width
            return {
                owner: self._lifetimes_of(k, int(counts[owner]))[self.current]
                for k, owner in enumerate(self.memory.ranks)
            }
        if self.guards:
            return {rank: self.lifetime, (rank - 1) % size: self.guarded[self.current]}
        return {rank: self.lifetime}

    @property
    def lifetime(self) -> np.ndarray:
        """Visits of all agents in committed rounds, uint64, of the rows this rank fuses."""
        return self.lifetimes[self.current]

    def recover(self, environment: Any) -> bool:
        """Take the last round that all have committed, and who is left, for the truth. COLLECTIVE.

        Every rank has the bases of even and odd rounds and copies of all lanes; visits of rows that
        have one owner have a copy on the next rank. False, with nothing changed but the round,
        where something is gone on all.
        """
        transport = self.transport
        told = [-self.progress.round, self.copies is None, self._n_recoveries]
        rounds = np.array(told, np.int64)
        transport.max_int(rounds)
        if self._n_recoveries < rounds[2]:  # others have come out of the last recovery
            self._rescued, self._n_recoveries = None, int(rounds[2])
        if rounds[1]:
            return False
        if self.progress.round > -rounds[0]:
            self.current = 1 - self.current
            self.progress, self.copies = self._before
        self.progress = self.pending = transport.broadcast(self.progress)
        assert self.copies is not None
        if self._rescued is None:
            self._rescued = Rescued.of(self)
        rescued = self._rescued
        if not rescued.complete(transport):
            return False
        for agent in self.agents:
            agent.close()
        # What others may still read there is not freed: the dead cannot take part in that.
        self._left_behind.append(self.memory)
        self.memory, self._dirty, self._again = None, False, False
        self.place(environment)
        if self.memory is None or transport.leads_node:
            self.base.raw[:] = rescued.base.raw
        if self.memory is not None:
            self.memory.barrier()
        rescued.bring_visits(transport, self.lifetime, self.owned, self.width)
        if self.guards:
            transport.shift(self.lifetime, self.guarded[self.current])
        for agent in self.agents:
            words = self.copies.lanes[slice(*self._kept_place(agent))]
            agent.resume_raw(
                words.view(np.uint8), self.copies.worlds.get(agent.number), self.progress.lane_steps
            )
        transport.agree()
        self._rescued = None
        self._n_recoveries += 1
        return True

    def _kept_words(self) -> int:
        return sum(self._words(int(n)) for n in self.lanes_of_agents.counts)

    def _words(self, n_lanes: int) -> int:
        return -(-n_lanes * lane_dtype(self.depth).itemsize // 8)

    def _kept_place(self, agent: Hosted) -> tuple[int, int]:
        first = sum(self._words(int(n)) for n in self.lanes_of_agents.counts[: agent.number])
        return first, first + self._words(agent.lanes.n)

    def _kept_of(self, agent: Hosted) -> np.ndarray:
        """Where an agent's lanes travel with what is agreed on, bytes."""
        words = self.kept[slice(*self._kept_place(agent))]
        return words.view(np.uint8)[: agent.lanes.raw.size]

    def _worlds_of_all(self) -> dict[int, Any]:
        """What would bring back every agent's environments as they are, by agent. COLLECTIVE."""
        if not self.stepped:
            return {}
        mine = {
            agent.number: agent.worlds.pack(committed=False)
            for agent in self.agents
            if agent.worlds is not None
        }
        found: dict[int, Any] = {}
        for theirs in self.transport.gather_everywhere(mine):
            found |= theirs
        return found

    def restore(self, progress: Progress, lanes: np.ndarray, worlds: Any = None) -> None:
        """As `Host.restore`; copies of it are kept. Local."""
        super().restore(progress, lanes, worlds)
        if self.protects:
            self.copies = self._copies_of(lanes, worlds)

    def _copies_of(self, lanes: np.ndarray, worlds: Any) -> Copies:
        """Copies of what `restore` takes: of every agent's lanes, and of its environments."""
        kept, by_agent = np.zeros(self._kept_words(), np.int64), {}
        stops = None if worlds is None else np.cumsum([0, *worlds[0]["n_actions"]])
        at = 0
        for k in range(self.n_agents):
            first, stop = self.lanes_of_agents.block(k)
            one = Lanes(first, stop - first, self.depth)
            one.unpack(lanes[first:stop])
            kept[at : at + self._words(one.n)].view(np.uint8)[: one.raw.size] = one.raw
            at += self._words(one.n)
            if stops is not None:
                by_agent[k] = worlds[0][first:stop], worlds[1][stops[first] : stops[stop]]
        return Copies(kept, by_agent)

    def _count_visits(self) -> None:
        """Add the round's visits, for the commit; before all ranks can have come to it. Local."""
        self._add_visits(self.lifetime, self.lifetimes[1 - self.current], self.tiles.due)

    def _add_visits(self, before: np.ndarray, after: np.ndarray, flags: np.ndarray) -> None:
        visits, first = self.visits.view(np.uint64), self.owned[0]
        if not self.tiles.sparse:
            np.add(before, visits, out=after)
            return
        for start, stop in self.tiles.runs(flags, *self.owned):
            pairs = slice((start - first) * self.width, (stop - first) * self.width)
            np.add(before[pairs], visits[pairs], out=after[pairs])
