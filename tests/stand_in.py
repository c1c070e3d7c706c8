"""What unit tests put in the place of ranks, configurations and compiled kernels."""

from __future__ import annotations

import contextlib
import queue
import threading
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from distq_mpi.environments.base import Environment
from distq_mpi.environments.explicit import explicit_model
from distq_mpi.errors import DistqError
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
        everybody = self._ranks._exchange(array[: self._n_own].copy())
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
        self.across = [[r for r, h in enumerate(hosts) if h == host][place] for host in set(hosts)]

    def seen(self) -> None:
        """Threads see everything."""

    def barrier(self) -> None:
        """Wait for everybody."""
        self._ranks._exchange(None)

    def sum_across(self, array: np.ndarray, partition: Any) -> np.ndarray:
        """The sum of this rank's block over the ranks across."""
        told = self._ranks._exchange(array.copy())
        start, stop = partition.block(self.across.index(self._ranks.rank))
        width = array.size // partition.n
        total: np.ndarray = np.sum([told[rank] for rank in self.across], axis=0)
        return total[start * width : stop * width]

    def allgather_across(self, array: np.ndarray, partition: Any) -> None:
        """Blocks of the ranks across, in place."""
        told = self._ranks._exchange(array.copy())
        for k, rank in enumerate(self.across):
            block = slice(*partition.block(k))
            array[block] = told[rank][block]

    def close(self) -> None:
        """Nothing to free."""


class Post:
    """`transport.Post` of threads: a queue for each."""

    def __init__(self, rank: int, queues: list[queue.Queue[Any]], most: int) -> None:
        self._rank, self._queues, self._held = rank, queues, list[Any]()
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
        while True:
            one = self._queues[self._rank].get(timeout=60)
            if peer in (-1, one[0]):
                return one[0], one[1]
            self._held.append(one)


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

    def gather(self, value: Any) -> list[Any] | None:
        """Everybody's value on rank 0."""
        found = self._exchange(value)
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
        """What the rank so far back gives."""
        received[...] = self._exchange(array.copy())[(self.rank - distance) % self.size]

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
        """What every peer sends this one; a rank sends to itself, too."""
        mine = [rows[s : s + n].copy() for s, n in zip(starts, counts, strict=True)]
        return np.concatenate([theirs[self.rank] for theirs in self._exchange(mine)])

    def move_rows(
        self, rows: np.ndarray, starts: Any, counts: Any, received: np.ndarray, coming: Any
    ) -> None:
        """As `redistribute`, into `received`."""
        came = self.redistribute(rows, starts, counts)
        assert len(came) == len(received) == coming.sum()
        received[...] = came

    def neighbours(self, rows: Any, wanted: np.ndarray) -> Neighbours:
        """Rows of others through the board."""
        return Neighbours(self, rows, wanted)

    def mail(self, region: int, middle: int, above: int, below: int) -> Mail:
        """Messages through the board."""
        return Mail(self, region, middle, above, below)

    def _exchange(self, mine: Any) -> list[Any]:
        return [mine]


class Thread(Alone):
    """One of several ranks that are threads of this process; made by `together`."""

    def __init__(
        self, rank: int, size: int, barrier: threading.Barrier, board: list[Any],
        hosts: list[int] | None, queues: list[queue.Queue[Any]],
    ) -> None:  # fmt: skip
        self.rank, self.size, self._queues = rank, size, queues
        self._barrier, self._board, self._hosts = barrier, board, hosts
        if hosts is not None:
            self.hosts = tuple(f"host {host}" for host in hosts)
            mine = [k for k, host in enumerate(hosts) if host == hosts[rank]]
            self.node_rank, self.node_size = mine.index(rank), len(mine)
            self.leads_node = self.node_rank == 0

    def host_memory(
        self, common_bytes: int, own_bytes: int, replica_bytes: int = 0
    ) -> HostMemory | None:
        """Of the threads of a host, where there are hosts."""
        if self._hosts is None:
            return None
        return HostMemory(self, self._hosts, common_bytes + replica_bytes, own_bytes)

    def post(self, most: int) -> Post:
        """Single messages through queues."""
        return Post(self.rank, self._queues, most)

    def _all(self, mine: np.ndarray) -> list[np.ndarray]:
        return self._exchange(mine.copy())

    def _exchange(self, mine: Any) -> list[Any]:
        self._barrier.wait()
        self._board[self.rank] = mine
        self._barrier.wait()
        return list(self._board)

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value."""
        return self._exchange(value)[0]

    def sum_int(self, array: np.ndarray) -> None:
        """Sum over ranks, in place."""
        array[...] = np.sum(self._all(array), axis=0)

    def max_int(self, array: np.ndarray) -> None:
        """Maximum over ranks, in place."""
        array[...] = np.max(self._all(array), axis=0)

    max_float = max_int

    def broadcast_array(self, array: np.ndarray, root: int = 0) -> None:
        """One rank's array, in place."""
        array[...] = self._all(array)[root]

    def sum_to_owners(self, array: np.ndarray, partition: Any) -> np.ndarray:
        """The sum over ranks of this rank's block."""
        width = array.size // partition.n
        start, stop = partition.block(self.rank)
        total: np.ndarray = np.sum(self._all(array), axis=0)
        return total[start * width : stop * width]

    def allgather_rows(self, array: np.ndarray, partition: Any) -> None:
        """Every rank's block, in place."""
        rows = array.reshape(partition.n, -1)
        for rank, theirs in enumerate(self._all(rows)):
            start, stop = partition.block(rank)
            rows[start:stop] = theirs[start:stop]

    def gather_rows(
        self, block: np.ndarray, partition: Any, root: int = 0
    ) -> np.ndarray | None:
        """All blocks on `root`, None elsewhere."""
        blocks = self._all(block)
        return np.concatenate(blocks) if self.rank == root else None


def together(
    size: int, work: Callable[[Any], Any], hosts: list[int] | None = None
) -> list[Any]:
    """Run `work(transport)` on `size` ranks; return what each returned, raise what one raised.

    hosts : the host of every rank, for memory that those of one host share; None = there is none.
    """
    barrier, board = threading.Barrier(size, timeout=120), [None] * size
    results: list[Any] = [None] * size
    queues: list[queue.Queue[Any]] = [queue.Queue() for _ in range(size)]
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            results[rank] = work(Thread(rank, size, barrier, board, hosts, queues))
        except BaseException as error:
            errors.append(error)
            barrier.abort()

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
    print(f"random model: {n_states} states, {n_actions} actions, seed {seed}")
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
