"""Stand-ins for the transport: one rank, or several as threads that must agree on every call."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from distq_mpi.partition import Partition

PATIENCE_S = 60.0


class OneRank:
    """A job of one rank."""

    rank, size, leads_node = 0, 1, True

    def broadcast(self, value: Any) -> Any:
        return value

    broadcast_on_node = broadcast

    def broadcast_array(self, array: np.ndarray) -> None:
        pass

    def max_float(self, array: np.ndarray) -> None:
        pass

    def sum_int(self, array: np.ndarray) -> None:
        pass

    def allgather_rows(self, array: np.ndarray, partition: Partition) -> None:
        pass


class _Meeting:
    """Where threads exchange what they bring to a collective; fails where calls differ."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.barrier = threading.Barrier(size)
        self.brought: list[Any] = [None] * size
        self.collectives = 0

    def meet(self, rank: int, name: str, value: Any) -> list[Any]:
        self.brought[rank] = (name, value)
        self.barrier.wait(PATIENCE_S)
        everybody = list(self.brought)
        self.barrier.wait(PATIENCE_S)
        names = {name for name, _ in everybody}
        assert len(names) == 1, f"ranks call different collectives: {names}"
        self.collectives += rank == 0
        return [value for _, value in everybody]


class ThreadRank:
    """One of several ranks, a thread; arrays are exchanged as copies."""

    def __init__(self, rank: int, meeting: _Meeting) -> None:
        self.rank, self.size, self._meeting = rank, meeting.size, meeting
        self.leads_node = rank == 0

    def broadcast(self, value: Any) -> Any:
        return self._meeting.meet(self.rank, "broadcast", value)[0]

    def broadcast_array(self, array: np.ndarray) -> None:
        array[...] = self._meeting.meet(self.rank, "broadcast_array", array.copy())[0]

    def max_float(self, array: np.ndarray) -> None:
        brought = self._meeting.meet(self.rank, "max_float", array.copy())
        array[...] = np.max(brought, axis=0)

    def allgather_rows(self, array: np.ndarray, partition: Partition) -> None:
        first, stop = partition.block(self.rank)
        blocks = self._meeting.meet(self.rank, "allgather_rows", array[first:stop].copy())
        array[...] = np.concatenate(blocks)


def on_ranks(size: int, work: Callable[[Any], Any]) -> tuple[list[Any], int]:
    """Run work(transport) on `size` threads; return their results and how often they met."""
    meeting = _Meeting(size)

    def one(rank: int) -> Any:
        try:
            return work(ThreadRank(rank, meeting))
        except BaseException:
            meeting.barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(one, rank) for rank in range(size)]
    errors = [f.exception() for f in futures]
    for error in errors:
        if error is not None and not isinstance(error, threading.BrokenBarrierError):
            raise error
    return [f.result() for f in futures], meeting.collectives
