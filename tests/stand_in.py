"""Stand-ins for ranks, configurations and compiled kernels, for unit tests.

Ranks are threads, and their collectives promise no more than MPI's do: a rank waits for those whose
data it needs, and leaves before the rest have entered. `Board` says who needs whom.
"""

from __future__ import annotations

import contextlib
import queue
import sys
import threading
import types
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from distq_mpi.environments.base import Environment
from distq_mpi.environments.explicit import explicit_model
from distq_mpi.errors import DistqError, RanksLost
from distq_mpi.kernels import Kernel
from distq_mpi.kernels.objects import LoadedKernel, load


class Mail:
    """`transport.Mail` through a board.

    release : (number of the exchange) -> whether items below held so far, and those of this
        exchange, are delivered in it; items above never wait. delay : exchanges that they are late.
    """

    def __init__(self, ranks: Any, region: int, middle: int, above: int, below: int) -> None:
        self._ranks, self._region, self._middle = ranks, region, middle
        self._above, self._below = above, below
        self.words = np.zeros(2 * ranks.size * region, np.uint64)
        self.counts = np.zeros(2 * ranks.size, np.uint64)
        self.inbox, self.sent_bytes, self._number = ranks.size * region, 0, 0
        self.delay, self.release = 0, lambda number: True
        self._held: dict[int, list[tuple[int, np.ndarray]]] = {}

    def expect(self) -> None:
        """Nothing to prepare."""

    def close(self) -> None:
        """Nothing to free."""

    def exchange(self) -> None:
        """Hand over what stands in the regions of peers; what came lies at `inbox`."""
        self._number += 1
        rank, region = self._ranks.rank, self._region
        above, below = self.counts.reshape(2, -1).astype(int)
        items = 1 + self._above * above + self._below * below  # a head is sent in any case
        self.sent_bytes += 8 * int(items.sum() - items[rank])
        told = self._ranks._exchange((self.words.copy(), self.counts.tolist()))
        for peer, (words, counts) in enumerate(told):
            if peer != rank:
                theirs = words[rank * region : (rank + 1) * region]
                self._read(peer, theirs, counts[rank], counts[self._ranks.size + rank])

    def _read(self, peer: int, theirs: np.ndarray, n_above: int, n_below: int) -> None:
        middle, held = self._middle, self._held.setdefault(peer, [])
        held.append((self._number, theirs[middle - n_below * self._below : middle].copy()))
        due = [one for one in held if one[0] + self.delay <= self._number]
        if not self.release(self._number):
            due = []
        self._held[peer] = held[len(due) :]
        below = np.concatenate([np.zeros(0, np.uint64), *(one[1] for one in due)])
        above = theirs[middle : middle + n_above * self._above]
        head = n_above | (len(below) // self._below) << 32
        message = np.concatenate([np.array([head], np.uint64), below, above])
        first = self.inbox + peer * self._region
        self.words[first : first + len(message)] = message


class Neighbours:
    """`transport.Neighbours` through a board."""

    def __init__(self, ranks: Any, rows: Any, wanted: np.ndarray) -> None:
        self._ranks, self._starts, self._wanted = ranks, rows.starts, wanted
        first, last = rows.block(ranks.rank)
        self._n_own, self._owner = last - first, rows.owner(wanted)

    def fetch(self, array: np.ndarray) -> None:
        """Fill in the rows of others, behind this rank's own."""
        needed = {self._ranks.rank, *map(int, self._owner)}
        everybody = self._ranks._exchange(array[: self._n_own].copy(), needed)
        assert array.size == self._n_own + self._wanted.size
        places = self._wanted - self._starts[self._owner]
        for k, (owner, row) in enumerate(zip(self._owner, places, strict=True)):
            array[self._n_own + k] = everybody[owner][row]


class HostMemory:
    """`transport.HostMemory` of threads: rank k lives on host `hosts[k]`."""

    def __init__(self, ranks: Any, hosts: list[int], common_bytes: int, own_bytes: int) -> None:
        self._ranks = ranks
        mine = [rank for rank, host in enumerate(hosts) if host == hosts[ranks.rank]]
        place = mine.index(ranks.rank)
        arrays = ranks._exchange((np.zeros(common_bytes, np.uint8), np.zeros(own_bytes, np.uint8)))
        self.common, self.own = arrays[mine[0]][0], [arrays[rank][1] for rank in mine]
        self.ranks = mine
        self.across = [[r for r, h in enumerate(hosts) if h == host][place] for host in set(hosts)]

    def seen(self) -> None:
        """Threads see everything."""

    def barrier(self) -> None:
        """Wait for the ranks of this host."""
        self._ranks._exchange(None, self.ranks)

    def sum_across(self, array: np.ndarray, partition: Any) -> np.ndarray:
        """The sum of this rank's block over the ranks across; one without rows waits for none."""
        start, stop = partition.block(self.across.index(self._ranks.rank))
        told = self._ranks._exchange(array.copy(), self.across if start < stop else ())
        if start == stop:
            return array[:0]
        width = array.size // partition.n
        total: np.ndarray = np.sum([told[rank] for rank in self.across], axis=0)
        return total[start * width : stop * width]

    def allgather_across(self, array: np.ndarray, partition: Any) -> None:
        """Blocks of the ranks across, in place; those without rows are not waited for."""
        needed = [rank for k, rank in enumerate(self.across) if partition.counts[k]]
        told = self._ranks._exchange(array.copy(), needed)
        for k, rank in enumerate(self.across):
            if rank in needed:
                block = slice(*partition.block(k))
                array[block] = told[rank][block]

    def close(self) -> None:
        """Nothing to free."""


class Post:
    """`transport.Post` of threads: a queue for each.

    is_broken : whether a rank is lost; RanksLost is raised once there is nothing left to take.
    """

    def __init__(
        self, rank: int, queues: list[queue.Queue[Any]], most: int,
        is_broken: Callable[[], bool] = lambda: False,
    ) -> None:  # fmt: skip
        self._rank, self._queues, self._held = rank, queues, list[Any]()
        self._is_broken, self.waits = is_broken, False
        self.sent_bytes, self.idle_s = 0, 0.0
        self.inbox = np.zeros(most, np.uint64)

    def send(self, words: np.ndarray, peer: int) -> None:
        """Hand a copy over."""
        self.sent_bytes += words.nbytes
        self._queues[peer].put((self._rank, words.copy()))

    def wait(self, peer: int = -1) -> int:
        """Take the next message, of `peer` or of anyone; return whose it is."""
        source, words = self._next(peer)
        self.inbox[: len(words)] = words
        return source

    def _next(self, peer: int) -> tuple[int, np.ndarray]:
        for k, (source, _) in enumerate(self._held):
            if peer in (-1, source):
                found: tuple[int, np.ndarray] = self._held.pop(k)
                return found
        for _ in range(1200):
            broken = self._is_broken()
            try:
                one = self._queues[self._rank].get(timeout=0.05)
            except queue.Empty:
                if broken:
                    raise RanksLost("a rank was lost") from None
                continue
            if peer in (-1, one[0]):
                return one[0], one[1]
            self._held.append(one)
        raise threading.BrokenBarrierError


class Alone:
    """The transport of a job of one rank: every collective is the identity."""

    rank, size = 0, 1
    node_rank, node_size = 0, 1
    leads_node = True
    survives = crowded = False
    lost: tuple[Any, ...] = ()
    hosts: tuple[str, ...] = ("here",) * 64

    numbers: list[int] | None = None
    """Of the ranks when all were there; None: all are."""

    @property
    def members(self) -> list[Any]:
        """As many as there are ranks."""
        numbers = self.numbers or range(self.size)
        return [types.SimpleNamespace(number=k, host="here") for k in numbers]

    def agree(self) -> None:
        """All agree."""

    def barrier(self) -> None:
        """Wait for all ranks."""
        self._exchange(None)

    def gather(self, value: Any) -> list[Any] | None:
        """Everybody's value on rank 0; no other rank waits."""
        found = self._exchange(value, None if self.rank == 0 else ())
        return found if self.rank == 0 else None

    def gather_everywhere(self, value: Any) -> list[Any]:
        """Everybody's value."""
        return self._exchange(value)

    @contextlib.contextmanager
    def same_outcome(self) -> Iterator[None]:
        """One rank's mistake is everybody's."""
        error: DistqError | None = None
        try:
            yield
        except DistqError as mistake:
            error = mistake
        for one in self._exchange(error):
            if one is not None:
                raise one

    def shift(self, array: np.ndarray, received: np.ndarray, distance: int = 1) -> None:
        """What the rank so far back gives, which alone is waited for."""
        source = (self.rank - distance) % self.size
        received[...] = self._exchange(array.copy(), [source])[source]

    def host_memory(
        self, common_bytes: int, own_bytes: int, replica_bytes: int = 0
    ) -> HostMemory | None:
        """None, as on hosts of one rank."""
        return None

    def broadcast_on_node(self, value: Any) -> Any:
        """The value itself."""
        return value

    def broadcast(self, value: Any) -> Any:
        """The value itself."""
        return value

    def sum_int(self, array: np.ndarray) -> None:
        """Nothing to add."""

    max_int = max_float = sum_int

    def broadcast_array(self, array: np.ndarray, root: int = 0) -> None:
        """Nothing to copy."""

    def sum_to_owners(self, array: np.ndarray, partition: Any) -> np.ndarray:
        """The whole array is this rank's block."""
        return array

    def allgather_rows(self, array: np.ndarray, partition: Any) -> None:
        """Nothing to gather."""

    def gather_rows(self, block: np.ndarray, partition: Any, root: int = 0) -> np.ndarray | None:
        """The block is everything."""
        return block

    def redistribute(self, rows: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """What every peer sends this one; a rank sends to itself, too. All learn who sends."""
        mine = [rows[s : s + n].copy() for s, n in zip(starts, counts, strict=True)]
        return np.concatenate([theirs[self.rank] for theirs in self._exchange(mine)])

    def move_rows(
        self, rows: np.ndarray, starts: Any, counts: Any, received: np.ndarray, coming: Any
    ) -> None:
        """As `redistribute`, into `received`; peers that send nothing are not waited for."""
        mine = [rows[s : s + n].copy() for s, n in zip(starts, counts, strict=True)]
        sources = np.flatnonzero(coming).tolist()
        told = self._exchange(mine, sources)
        assert [len(told[k][self.rank]) for k in sources] == [int(coming[k]) for k in sources]
        received[...] = np.concatenate([received[:0], *(told[k][self.rank] for k in sources)])

    def neighbours(self, rows: Any, wanted: np.ndarray) -> Neighbours:
        """Rows of others through the board."""
        return Neighbours(self, rows, wanted)

    def mail(self, region: int, middle: int, above: int, below: int) -> Mail:
        """Messages through the board."""
        return Mail(self, region, middle, above, below)

    def _exchange(self, mine: Any, needed: Iterable[int] | None = None) -> list[Any]:
        return [mine]


GATHERING = -1
"""Number of the collective in which the ranks of a generation come together."""


class Killed(BaseException):
    """Raised in a rank's work: the rank dies there (`together`)."""


class Board:
    """What the threads of `together` have given to each collective, and which of them are dead.

    Collectives are numbered by each rank as it enters them, and all ranks enter the same ones. A
    rank leaves a collective as soon as it has what it needs. It raises RanksLost instead where what
    it needs will not come, from a rank that is dead or has gone to recover: as late as MPI may say
    so, and so that who comes how far does not depend on which thread is faster.
    """

    def __init__(self) -> None:
        self.given: dict[tuple[int, int], dict[int, Any]] = {}
        self.entered: Counter[tuple[int, int]] = Counter()
        self.left: Counter[tuple[int, int]] = Counter()
        """Collectives that ranks, (generation, number), have entered; ranks that have left one."""
        self.changed = threading.Condition()
        self.dead: set[int] = set()
        self.queues: dict[int, list[queue.Queue[Any]]] = {}
        """Of each generation, one for each of its ranks."""
        self.broken = False
        """Whether a rank made a mistake, which ends all."""

    def give(self, collective: tuple[int, int], number: int, value: Any) -> None:
        """Enter a collective, (generation, its number in it), as rank `number` of all."""
        with self.changed:
            self.given.setdefault(collective, {})[number] = value
            self.changed.notify_all()

    def leave(self, collective: tuple[int, int], n_ranks: int) -> None:
        """Forget what was given to a collective that all its ranks have left."""
        with self.changed:
            self.left[collective] += 1
            if self.left[collective] == n_ranks:
                del self.left[collective], self.given[collective]

    def take(self, collective: tuple[int, int], needed: Iterable[int]) -> dict[int, Any]:
        """Wait for what these ranks give; return what there is."""
        wanted = set(needed)
        with self.changed:
            self.given.setdefault(collective, {})
            while not wanted <= self.given[collective].keys():
                if self.broken:
                    raise threading.BrokenBarrierError
                recovering = self.given.get((collective[0] + 1, GATHERING), {}).keys()
                if (wanted - self.given[collective].keys()) & (self.dead | recovering):
                    raise RanksLost("a rank was lost")
                if not self.changed.wait(120):
                    raise threading.BrokenBarrierError
            return dict(self.given[collective])

    def gather(self, collective: tuple[int, int], number: int, before: list[int]) -> list[int]:
        """Wait for all ranks of `before` that are not dead; return these."""
        self.give(collective, number, None)
        with self.changed:
            ready = self.changed.wait_for(
                lambda: self.broken or self.given[collective].keys() | self.dead >= {*before},
                timeout=120,
            )
            if not ready or self.broken:
                raise threading.BrokenBarrierError
            return [k for k in before if k in self.given[collective]]

    def is_lost(self, generation: int, numbers: list[int]) -> bool:
        """Whether one of the ranks of a generation is dead or has gone to recover."""
        with self.changed:
            recovering = self.given.get((generation + 1, GATHERING), {})
            return self.broken or bool(recovering or self.dead.intersection(numbers))

    def queues_of(self, generation: int, n_ranks: int) -> list[queue.Queue[Any]]:
        """Of the messages of a generation, which none of another reads."""
        with self.changed:
            fresh = [queue.Queue[Any]() for _ in range(n_ranks)]
            return self.queues.setdefault(generation, fresh)

    def say(self, dead: int | None = None, broken: bool = False) -> None:
        """Have all know that a rank is dead, or made a mistake."""
        with self.changed:
            self.dead |= set() if dead is None else {dead}
            self.broken = self.broken or broken
            self.changed.notify_all()


class Thread(Alone):
    """One of several ranks that are threads of this process; made by `together`."""

    def __init__(self, rank: int, size: int, board: Board, hosts: list[int] | None) -> None:
        self._board, self._all_hosts = board, hosts
        self._generation = 0
        self._place(rank, list(range(size)))

    def _place(self, rank: int, numbers: list[int]) -> None:
        """Be `rank` of the ranks that had these numbers when all were there."""
        self.rank, self.size, self._left = rank, len(numbers), numbers
        self._queues = self._board.queues_of(self._generation, self.size)
        self.node_rank, self.node_size, self.leads_node = 0, 1, True
        hosts = self._hosts = self._all_hosts and [self._all_hosts[k] for k in numbers]
        if hosts is not None:
            self.hosts = tuple(f"host {host}" for host in hosts)
            mine = [k for k, host in enumerate(hosts) if host == hosts[rank]]
            self.node_rank, self.node_size = mine.index(rank), len(mine)
            self.leads_node = self.node_rank == 0

    def host_memory(
        self, common_bytes: int, own_bytes: int, replica_bytes: int = 0
    ) -> HostMemory | None:
        """Of the threads of a host, where there are hosts, of several ranks and all of as many."""
        if self._hosts is None or {*Counter(self._hosts).values()} != {self.node_size}:
            return None
        if self.node_size == 1:
            return None
        return HostMemory(self, self._hosts, common_bytes + replica_bytes, own_bytes)

    def post(self, most: int) -> Post:
        """Single messages through queues."""
        board, generation, left = self._board, self._generation, self._left
        return Post(self.rank, self._queues, most, lambda: board.is_lost(generation, left))

    @property
    def me(self) -> Any:
        """This rank, as `members` has it."""
        return self.members[self.rank]

    @property
    def members(self) -> list[Any]:
        """The ranks that are left, by their numbers when all were there."""
        numbers = self.numbers or self._left
        return [types.SimpleNamespace(number=k, host="here") for k in numbers]

    def _all(self, mine: np.ndarray) -> list[np.ndarray]:
        return self._exchange(mine.copy())

    def _exchange(self, mine: Any, needed: Iterable[int] | None = None) -> list[Any]:
        """Enter the next collective; return what each rank gave, None for ranks that have not yet.

        needed : ranks to wait for; None: all.
        """
        board, who = self._board, (self._generation, self._left[self.rank])
        collective = self._generation, board.entered[who]
        board.entered[who] += 1
        board.give(collective, who[1], mine)
        ranks = range(self.size) if needed is None else needed
        found = board.take(collective, [self._left[k] for k in ranks])
        board.leave(collective, self.size)
        return [found.get(number) for number in self._left]

    def await_rank(self, rank: int) -> None:
        """Wait until a rank has entered the collective that this one enters next."""
        next_one = self._board.entered[self._generation, self._left[self.rank]]
        self._board.take((self._generation, next_one), [self._left[rank]])

    def recover(self) -> None:
        """Go on with the ranks that are left; each of them comes here."""
        number, self._generation = self._left[self.rank], self._generation + 1
        left = self._board.gather((self._generation, GATHERING), number, self._left)
        self._place(left.index(number), left)

    def agree(self) -> None:
        """Pass all together, or not at all."""
        self._exchange(None)

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value, which is passed on from rank to rank; the first waits for none."""
        return self._exchange(value, self._chain(0))[0]

    def _chain(self, root: int) -> list[int]:
        """The ranks by way of which what a root gives comes to this one."""
        return [(root + k) % self.size for k in range((self.rank - root) % self.size + 1)]

    def sum_int(self, array: np.ndarray) -> None:
        """Sum over ranks, in place."""
        array[...] = np.sum(self._all(array), axis=0)

    def max_int(self, array: np.ndarray) -> None:
        """Maximum over ranks, in place."""
        array[...] = np.max(self._all(array), axis=0)

    max_float = max_int

    def broadcast_array(self, array: np.ndarray, root: int = 0) -> None:
        """One rank's array, in place, which is passed on from rank to rank."""
        array[...] = self._exchange(array.copy(), self._chain(root))[root]

    def sum_to_owners(self, array: np.ndarray, partition: Any) -> np.ndarray:
        """The sum over ranks of this rank's block; a rank without rows waits for none."""
        width = array.size // max(1, partition.n)
        start, stop = partition.block(self.rank)
        told = self._exchange(array.copy(), None if start < stop else ())
        if start == stop:
            return array[:0]
        total: np.ndarray = np.sum(told, axis=0)
        return total[start * width : stop * width]

    def allgather_rows(self, array: np.ndarray, partition: Any) -> None:
        """Every rank's block, in place; ranks without rows are not waited for."""
        if partition.n == 0:
            return
        rows = array.reshape(partition.n, -1)
        giving = np.flatnonzero(partition.counts).tolist()
        told = self._exchange(rows.copy(), giving)
        for rank in giving:
            start, stop = partition.block(rank)
            rows[start:stop] = told[rank][start:stop]

    def gather_rows(
        self, block: np.ndarray, partition: Any, root: int = 0
    ) -> np.ndarray | None:
        """All blocks on `root`, None elsewhere, where no rank waits."""
        blocks = self._exchange(block.copy(), None if self.rank == root else ())
        return np.concatenate(blocks) if self.rank == root else None


def together(
    size: int, work: Callable[[Any], Any], hosts: list[int] | None = None
) -> list[Any]:
    """Run `work(transport)` on `size` ranks; return what each returned, raise what one raised.

    hosts : the host of every rank, for memory that those of one host share; None = there is none.
    Ranks that raise `Killed` are dead: they return None, and the rest go on (`Thread.recover`).
    """
    board = Board()
    results: list[Any] = [None] * size
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            results[rank] = work(Thread(rank, size, board, hosts))
        except Killed:
            board.say(dead=rank)
        except BaseException as error:
            errors.append(error)
            board.say(broken=True)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    causes = [e for e in errors if not isinstance(e, threading.BrokenBarrierError)]
    if errors:
        raise (causes or errors)[0]
    return results


def config(**changes: Any) -> types.SimpleNamespace:
    """A resolved configuration as the kernels and architectures read it; `changes` by key."""
    sections: dict[str, dict[str, Any]] = {
        "learn": dict(
            rule="q_learning", step_size="rescaled_linear", alpha=0.1, exponent=0.8, discount=0.9,
            exploration="epsilon_greedy", exploring_starts=False, temperature=1.0,
            temperature_schedule="constant", temperature_steps=0, temperature_final=1.0,
            dtype="float64", initial="zeros", epsilon=0.3, epsilon_schedule="constant",
            epsilon_steps=0, epsilon_final=0.3, n_steps=1, trace_decay=0.9,
            sampling="trajectories", epoch_samples=4, epoch_steps=3,
            planning_steps=5, priority=1e-4, target="live", frozen_rounds=0, horizon=0.0, bonus=0.1,
            value_low=0.0, value_high=1.0,
        ),
        "parallel": dict(
            agents=1, lanes=1, fusion="pooled", steps_per_round=1, kappa=1.0, force=False, trim=0,
            least_visits=1,
            reproducible=True, rebalance=True, servers=1, staleness=1, cache_rows=0,
            protect="off", hang_s=300.0,
        ),
        "stop": dict(steps=None),
        "run": dict(seed=1),
    }  # fmt: skip
    for key, value in changes.items():
        section = next(section for section in sections.values() if key in section)
        section[key] = value
    return types.SimpleNamespace(
        **{name: types.SimpleNamespace(**section) for name, section in sections.items()}
    )


def one_state(max_episode_steps: int = 0) -> Environment:
    """One state, one action, reward 1 for ever: the value is 1 / (1 - discount)."""
    return explicit_model(
        "one-state", 1, 1, [0, 1], [0], [1.0], [1.0], max_episode_steps=max_episode_steps
    )


def random_model(n_states: int, n_actions: int, seed: int = 0, limit: int = 7) -> Environment:
    """A random model with three outcomes a pair, some of them ends, and random starts."""
    # Tests that run as programs print what they find as JSON on stdout.
    print(f"random model: {n_states} states, {n_actions} actions, seed {seed}", file=sys.stderr)
    rng = np.random.default_rng(seed)
    n = n_states * n_actions * 3
    chances = rng.dirichlet(np.ones(3), n_states * n_actions).reshape(-1)
    return explicit_model(
        "random", n_states, n_actions, np.arange(0, n + 1, 3), rng.integers(0, n_states, n),
        chances, rng.normal(size=n), rng.random(n) < 0.1, rng.dirichlet(np.ones(n_states)),
        max_episode_steps=limit,
    )  # fmt: skip


def plain(function: Callable[..., Any], parts: Mapping[str, Any]) -> Callable[..., Any]:
    """A template as the ordinary Python function it is, its free names bound to `parts`."""
    bound = types.FunctionType(
        function.__code__, {**function.__globals__, **parts}, function.__name__,
        function.__defaults__, function.__closure__,
    )  # fmt: skip

    def call(*arguments: Any) -> Any:
        with np.errstate(all="ignore"):
            return bound(*arguments)

    return call


def compiled(requests: dict[str, Kernel]) -> dict[str, LoadedKernel]:
    """The requests, compiled or from the cache."""
    return load(requests, Alone())
