"""Blocks: contiguous, balanced, complete."""

from __future__ import annotations

import numpy as np
import pytest

from distq_mpi.partition import Partition


def test_every_row_has_one_owner_and_blocks_differ_by_one() -> None:
    for n in range(40):
        for parts in range(1, 50):
            blocks = Partition.balanced(n, parts)
            assert blocks.n == n and len(blocks.counts) == parts
            assert blocks.counts.max() - blocks.counts.min() <= 1
            assert sorted(blocks.counts, reverse=True) == list(blocks.counts)
            rows = np.concatenate([np.arange(*blocks.block(k)) for k in range(parts)])
            assert np.array_equal(rows, np.arange(n))
            owners = blocks.owner(np.arange(n))
            for k in range(parts):
                first, stop = blocks.block(k)
                assert np.all(owners[first:stop] == k)


def test_known_cut() -> None:
    assert list(Partition.balanced(7, 3).starts) == [0, 3, 5, 7]
    assert list(Partition.balanced(2, 4).starts) == [0, 1, 2, 2, 2]


@pytest.mark.parametrize("starts", [[0], [1, 2], [0, 3, 2]])
def test_nonsense_is_refused(starts: list[int]) -> None:
    with pytest.raises(ValueError, match="starts"):
        Partition(starts)
