"""The row record and the buffers that hold the Q-table.

One record per state: q[A] then clock[A] (uint32), padded to a power of two up to 64 bytes, else
to a multiple of 64, so that a step touches one cache line. Two views of one buffer, float and
uint32; two separate arrays cost half the speed beyond the cache.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from distq_mpi.files import SLICE_ROWS
from distq_mpi.kernels.draws import INITIAL, threefry
from distq_mpi.kernels.optimism import OPTIMISTIC
from distq_mpi.kernels.rules import RULES
from distq_mpi.kernels.step_sizes import STEP_SIZES

HUGE_PAGE = 2 << 20


@dataclass(frozen=True)
class Record:
    """Layout of one state's record.

    Parameters
    ----------
    n_actions : A.
    dtype : float64 or float32, of q.
    n_parts : values per action, which stand side by side as q[n_parts A]: two under Double Q.
    counts_visits : whether visits since the last commit are counted apart from the clock.
    averages : whether the policy sees the mean of two parts, as under Double Q, or the first.
    """

    n_actions: int
    dtype: np.dtype[Any]
    n_parts: int = 1
    counts_visits: bool = False
    averages: bool = True

    @property
    def n_seen(self) -> int:
        """Parts that the policy sees."""
        return self.n_parts if self.averages else 1

    @property
    def width(self) -> int:
        """q values, and clocks, of one state."""
        return self.n_actions * self.n_parts

    @property
    def row_bytes(self) -> int:
        """Bytes of a record, padding included."""
        used = self.width * (self.dtype.itemsize + 4 + 4 * self.counts_visits)
        if used > 64:
            return -(-used // 64) * 64
        return max(8, 1 << (used - 1).bit_length())

    @property
    def stride(self) -> int:
        """q values from one row to the next."""
        return self.row_bytes // self.dtype.itemsize

    @property
    def clock_stride(self) -> int:
        """uint32 words from one row to the next."""
        return self.row_bytes // 4

    @property
    def clock_offset(self) -> int:
        """uint32 words from a row's start to its clock."""
        return self.width * self.dtype.itemsize // 4

    @property
    def visits_ahead(self) -> int:
        """uint32 words from a clock to the visits of its entry; 0 where the clock counts them."""
        return self.width * self.counts_visits


def record_of(learn: Any, n_actions: int) -> Record:
    """Return the layout under a resolved `[learn]` configuration. Local."""
    return Record(
        n_actions,
        np.dtype(learn.dtype),
        RULES[learn.rule].n_parts,
        STEP_SIZES[learn.step_size].signed,
        RULES[learn.rule].averages,
    )


class Rows:
    """A buffer of records: a replica, a base or a block. Owned by whoever made it.

    Attributes: `raw` uint8 (n * row_bytes,), and views of it: `q` flat (n * stride,), `clock_words`
    flat uint32, `values` (n, width) and `clock` (n, width), both strided.

    raw : uint8 (n * row_bytes,) to view in place of memory of its own.
    """

    def __init__(self, record: Record, n_rows: int, raw: np.ndarray | None = None) -> None:
        self.record, self.n_rows = record, n_rows
        self.raw = aligned(n_rows * record.row_bytes) if raw is None else raw
        self.q: np.ndarray = self.raw.view(record.dtype)
        self.clock_words: np.ndarray = self.raw.view(np.uint32)
        width, offset = record.width, record.clock_offset
        self.values = self.q.reshape(n_rows, record.stride)[:, :width]
        words = self.clock_words.reshape(n_rows, record.clock_stride)
        self.clock = words[:, offset : offset + width]

    def between(self, first: int, stop: int) -> Rows:
        """Rows [first, stop), a view."""
        row_bytes = self.record.row_bytes
        return Rows(self.record, stop - first, self.raw[first * row_bytes : stop * row_bytes])

    def part(self, number: int) -> np.ndarray:
        """Values (n, A) of one part, a view."""
        n_actions = self.record.n_actions
        return self.values[:, number * n_actions : (number + 1) * n_actions]

    def policy_values(self, rows: Any = slice(None)) -> np.ndarray:
        """Values (n, A) that the policy is greedy on and that estimate Q*: a view of part 0; under
        Double Q the mean of both (their sum, as the behaviour sees it, but for a power of
        two).

        rows : an index of rows, where not all are wanted.
        """
        if self.record.n_seen == 1:
            return self.part(0)[rows]
        return (self.part(0)[rows] + self.part(1)[rows]) * self.record.dtype.type(0.5)

    def policy_table(self) -> tuple[np.ndarray, int]:
        """What `policy_values` says as flat q, and values per state in it; a view if it can be."""
        if self.record.n_seen == 1:
            return self.q, self.record.stride
        return self.policy_values().reshape(-1), self.record.n_actions

    def visited(self) -> np.ndarray:
        """Clocks, uint32 (n, A): 0 means never learned (in one of the parts under Double Q)."""
        n_actions = self.record.n_actions
        if self.record.n_seen == 1:
            return self.clock[:, :n_actions]
        return np.minimum(self.clock[:, :n_actions], self.clock[:, n_actions:])

    def part_slices(self) -> Iterator[np.ndarray]:
        """Yield what `table_sha256` hashes: the parts one after the other, in slices (n, A)."""
        for number in range(self.record.n_parts):
            for start in range(0, self.n_rows, SLICE_ROWS):
                yield self.part(number)[start : start + SLICE_ROWS]


def aligned(size: int) -> np.ndarray:
    """Zeroed bytes: cache-line aligned; on huge pages (10 x beyond the cache) where it pays."""
    if size < HUGE_PAGE:
        buffer = np.zeros(size + 64, np.uint8)
        start = -buffer.ctypes.data % 64
        return buffer[start : start + size]
    region = mmap.mmap(-1, size + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        region.madvise(mmap.MADV_HUGEPAGE)
    buffer = np.frombuffer(region, np.uint8)
    start = -buffer.ctypes.data % HUGE_PAGE
    return buffer[start : start + size]


def initialise(rows: Rows, first_row: int, kind: str, bound: float | None, seed: int) -> None:
    """Write the initial values of rows [first_row, first_row + n) in place; clocks are zero. Local.

    kind : `zeros`; `optimistic`: `bound`, the environment's declared bound on the return (0 where
    none is declared); `random`: uniform between 0 and that bound (1 where there is none or it
    is 0), a function of (seed, state, action), never of the rank.
    """
    if kind == "optimistic" and bound:  # memory is zero already, and is taken when it is written
        rows.values[...] = bound
    if kind != "random":
        return
    width, scale = rows.record.width, bound or 1.0
    for start in range(0, rows.n_rows, SLICE_ROWS):
        stop = min(start + SLICE_ROWS, rows.n_rows)
        pairs = np.arange((first_row + start) * width, (first_row + stop) * width)
        zero = np.zeros(1, np.uint64)
        word, _ = threefry(pairs.astype(np.uint64), zero, zero + np.uint64(seed), zero + INITIAL)
        uniform = (word >> np.uint64(11)).astype(np.float64) * 2.0**-53
        rows.values[start:stop] = (scale * uniform).reshape(-1, width)


def first_bound(learn: Any, environment: Any) -> float | None:
    """The bound that `initialise` takes under a resolved `[learn]` configuration. Local."""
    if learn.rule in OPTIMISTIC:
        return float(learn.value_high)
    bound: float | None = environment.return_bound
    return bound


def table_sha256(slices: Iterable[np.ndarray]) -> str:
    """SHA-256 over the concatenated SHA-256 of q in slices of 65,536 rows, little endian. Local.

    slices : (n, A) arrays in row order, each of `SLICE_ROWS` rows but the last; under Double Q all
        of the first part, then all of the second.
    """
    whole = hashlib.sha256()
    for values in slices:
        whole.update(slice_sha256(values))
    return whole.hexdigest()


def slice_sha256(values: np.ndarray) -> bytes:
    """SHA-256 of one slice (n, A), little endian, 32 bytes. Local."""
    data = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
    return hashlib.sha256(data.tobytes()).digest()
