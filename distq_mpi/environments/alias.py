"""Alias tables in exact 32-bit fixed point."""

from __future__ import annotations

import numpy as np

ONE = 1 << 32


def alias_tables(indptr: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Build one alias table per row of a CSR matrix of probabilities, in O(nnz).

    Parameters
    ----------
    indptr : int64 (n_rows + 1,), no row empty.
    probability : float64 (nnz,), positive; the sum of every row is 1 up to rounding.

    Returns
    -------
    uint64 (nnz,) : threshold << 32 | other, `other` counted from the row's beginning. Slot i of a
        row of n entries stands for entry i if a 32-bit fraction is below the threshold, else for
        entry `other`. The probability of an entry is met to 2^-32.

    Notes
    -----
    The sweep of Huebschle-Schneider and Sanders (2022), "Parallel weighted random sampling", with
    its two pointers found by binary search: light entries (weight below one slot) are filled up by
    the heavy ones in order. Weights are integers of which each row has exactly n * 2^32, so the
    deficits and surpluses of a row cancel exactly and one running sum serves all rows.
    """
    lengths = np.diff(indptr)
    rows = np.repeat(np.arange(lengths.size), lengths)
    total = np.add.reduceat(probability, indptr[:-1])
    weight = np.rint(probability / total[rows] * lengths[rows] * ONE).astype(np.int64)
    # What rounding lost goes to the largest entry of the row, which holds at least one slot.
    residue = lengths * ONE - np.add.reduceat(weight, indptr[:-1])
    peak = np.maximum.reduceat(weight, indptr[:-1])
    peaks = np.flatnonzero(weight == peak[rows])
    first = peaks[np.searchsorted(peaks, indptr[:-1])]
    weight[first] += residue

    light = np.flatnonzero(weight < ONE)
    heavy = np.flatnonzero(weight >= ONE)
    deficit = np.concatenate([[0], np.cumsum(ONE - weight[light])])
    surplus = np.cumsum(weight[heavy] - ONE)
    threshold, other = weight, np.arange(weight.size)
    other[light] = heavy[np.searchsorted(surplus, deficit[:-1], side="right")]
    # A heavy entry keeps what is left of it when the lights before its surplus ended are filled;
    # the rest of its slot belongs to the next heavy one. The last of a row keeps all of its slot.
    filled = np.searchsorted(deficit[:-1], surplus, side="left")
    left = ONE + surplus - deficit[filled]
    threshold[heavy] = np.minimum(left, ONE - 1)
    shared = left < ONE
    other[heavy[shared]] = heavy[np.flatnonzero(shared) + 1]
    offset = other - indptr[:-1][rows]
    return (threshold.astype(np.uint64) << np.uint64(32)) | offset.astype(np.uint64)
