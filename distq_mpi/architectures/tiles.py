"""Which tiles of a large table a round has touched, so that passes leave out the rest.

A round of few steps changes few rows, wherever they are. Between two rounds replica and base, next
and current table, and sums and zero differ only in tiles that somebody touched; the passes that
bring them together go over those. Where that is not known (`sparse` false) they go over all.
"""

from __future__ import annotations

import numpy as np

from distq_mpi.kernels.fusing import tile_rows


class Tiles:
    """Flags of tiles, uint8 (n,), not 0 where something differs; local, of one rank.

    Attributes
    ----------
    touched : by agents of this rank in this round; written by the kernel `contribute`, or from the
        marks of `learn`, and read by the ranks of the host where it lies in their memory.
    changed : by anybody in this round. due : tiles in which the next table differs from the base,
        or will; read by the kernels `fuse` and `fuse_replicas`.
    renewed : whether owners bring the replica up to date when they fuse.
    """

    renewed = False

    def __init__(self, n_rows: int, width: int, sparse: bool) -> None:
        self.n_rows, self.rows, self.sparse = n_rows, tile_rows(width), sparse
        n = self.number(n_rows, width)
        self.touched, self.changed, self.due = (np.ones(n, np.uint8) for _ in range(3))
        self._replica, self._next, self._sums = (np.ones(n, np.uint8) for _ in range(3))
        self._forgotten = True

    @staticmethod
    def number(n_rows: int, width: int) -> int:
        """Tiles of a table. Local."""
        return -(-n_rows // tile_rows(width))

    def begin(self) -> None:
        """A round begins: nobody here has touched anything."""
        if self.sparse:
            self.touched[:] = 0

    def replica_runs(self) -> list[tuple[int, int]]:
        """Rows [start, stop) in which the replica differs from the base; from now on none count as
        different, for the caller copies these."""
        if self.renewed and not self._forgotten:
            return []
        found = self.runs(self._replica, 0, self.n_rows)
        self._forgotten = False
        if self.sparse:
            self._replica[:] = 0
        return found

    def learned(self) -> None:
        """The replica now differs in what this rank's agents have touched."""
        if self.sparse:
            np.bitwise_or(self._replica, self.touched, out=self._replica)

    def meet(self, touched: list[np.ndarray]) -> None:
        """Take in what all ranks touched, before any of them begins another round."""
        if self.sparse:
            np.bitwise_or.reduce(touched, out=self.changed)
            np.bitwise_or(self.changed, self._next, out=self.due)

    def stale_sums(self, first: int, stop: int) -> list[tuple[int, int]]:
        """Rows of [first, stop) with sums of earlier rounds that this one has none of."""
        found = self.runs(self._sums & ~self.changed & 1, first, stop)
        self._sums[:] = self.changed
        return found

    def commit(self) -> None:
        """The next table becomes the base, and differs from the old one in what changed."""
        if self.sparse:
            self._next[:] = self.changed
            np.bitwise_or(self._replica, self.changed, out=self._replica)

    def forget(self) -> None:
        """Anything may differ anywhere."""
        self._forgotten = True
        for flags in (self._replica, self._next, self._sums):
            flags[:] = 1

    def runs(self, flags: np.ndarray, first: int, stop: int) -> list[tuple[int, int]]:
        """Rows [start, stop) of [first, stop) in runs of flagged tiles, ascending. Local."""
        low, high = first // self.rows, -(-stop // self.rows)
        if not self.sparse or flags[low:high].all():  # as in most rounds of small tables
            return [(first, stop)]
        edges = np.flatnonzero(np.diff(flags[low:high] != 0, prepend=False, append=False)) + low
        return [
            (max(first, start * self.rows), min(stop, end * self.rows))
            for start, end in edges.reshape(-1, 2).tolist()
        ]
