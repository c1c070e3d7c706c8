"""Where the borders of the blocks should stand. Pure functions of reduced numbers."""

from __future__ import annotations

import numpy as np

from distq_mpi.partition import Partition

N_BUCKETS = 1024
"""Ranges of rows of which the load is known."""
MOST_ROWS = 1.25
"""Rows a rank may own, as a multiple of its share."""
PAYS = 1.1
"""The factor by which the largest load must fall before borders move."""
MOST_MOVED = 0.25
"""Rows by which a border may move at once, as a share of a rank's."""
BISECTIONS = 40


def most_rows(n_states: int, size: int) -> int:
    """Rows that a rank may own at most. Local."""
    return min(n_states, max(-(-n_states // size), int(MOST_ROWS * n_states / size)))


def bucket_of(states: np.ndarray, n_states: int) -> np.ndarray:
    """The bucket of each state, int64, elementwise."""
    width = -(-n_states // min(N_BUCKETS, n_states))
    return (states // np.uint64(width)).astype(np.int64)


def slack_rows(n_states: int, size: int) -> int:
    """Rows by which the borders of a rank may be off an even cut where its model is cut. Local."""
    return (most_rows(n_states, size) - n_states // size) // 2


def balanced(
    loads: np.ndarray, blocks: Partition, within: np.ndarray | None = None
) -> Partition | None:
    """Return better borders, or None where moving them does not pay.

    loads : int64 (N_BUCKETS,), of equal ranges of rows (the last ones may be empty); within a range
    the load is taken to be even. Every new border is within `MOST_MOVED` of the old one. within :
    int64 (2, n_ranks), first and last rows (exclusive) that each rank can own; None = any.
    """
    n, size = blocks.n, len(blocks.counts)
    if size == 1 or not loads.any():
        return None
    width = -(-n // min(N_BUCKETS, n))
    edges = np.minimum(np.arange(len(loads) + 1) * width, n)
    below = np.concatenate([[0.0], np.cumsum(loads, dtype=np.float64)])
    limit = most_rows(n, size)
    low, high = below[-1] / size, below[-1]
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if _cut(edges, below, middle, limit, size)[-1] >= n:
            high = middle
        else:
            low = middle
    wanted = np.minimum(_cut(edges, below, high, limit, size), n)
    step = max(1, int(MOST_MOVED * n / size))
    lowest, highest = blocks.starts - step, blocks.starts + step
    if within is not None:
        lowest[1:-1] = np.maximum(lowest, np.append(within[0], n))[1:-1]
        highest[1:-1] = np.minimum(highest, np.append(0, within[1]))[1:-1]
    moved = np.clip(wanted, lowest, highest)
    # Borders that move less than they want may leave too many rows between two of them.
    for k in range(1, size + 1):
        moved[k] = min(moved[k], moved[k - 1] + limit)
    moved[-1] = n
    for k in range(size - 1, 0, -1):
        moved[k] = max(moved[k], moved[k + 1] - limit)
    if np.any(moved < lowest) or np.any(moved > highest):
        return None
    now = np.diff(np.interp(blocks.starts, edges, below)).max()
    then = np.diff(np.interp(moved, edges, below)).max()
    return Partition(moved) if now > PAYS * then else None


def _cut(
    edges: np.ndarray, below: np.ndarray, load: float, limit: int, size: int
) -> np.ndarray:
    """Borders where every rank takes rows until it has `load`, or `limit` rows."""
    starts = np.zeros(size + 1, np.int64)
    for k in range(size):
        at = np.interp(starts[k], edges, below) + load
        row = edges[-1] if at >= below[-1] else int(np.interp(at, below, edges))
        starts[k + 1] = min(max(row, starts[k]), starts[k] + limit)
    return starts
