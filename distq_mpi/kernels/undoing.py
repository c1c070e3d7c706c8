"""A log of rows as they were before they changed, within an array of uint64 words.

| words | hold |
|---|---|
| COUNT | rows that changed since the log was emptied; beyond CAPACITY they are counted only |
| CAPACITY | rows that there is room for |
| ENTRIES | first word of the first entry |
| from LOG_HEAD on | a bit for every row: whether it is in the log |
| entries | number of the row, then the row as it was |
"""

from __future__ import annotations

import numpy as np

u8 = np.uint64

COUNT, CAPACITY, ENTRIES, LOG_HEAD = range(4)
ONE = u8(1)


def words_of_log(n_rows: int, capacity: int, row_bytes: int) -> int:
    """Return words of a log of up to `capacity` of `n_rows` rows. Local."""
    return LOG_HEAD + -(-n_rows // 64) + capacity * (1 + row_bytes // 8)


def keep_nothing(clock, slots, log, row):
    """keep(...) where rows are changed for good."""


def keep_row(row_words):
    """Return keep(...) that notes a row, once, before it changes.

    clock : the rows, as uint32. slots : uint64, in which the log begins at word `log`; written.
    """

    def keep(clock, slots, log, row):
        mark, bit = log + u8(LOG_HEAD) + (row >> u8(6)), ONE << (row & u8(63))
        if slots[mark] & bit == u8(0):
            n = slots[log + u8(COUNT)]
            slots[log + u8(COUNT)] = n + ONE
            if n < slots[log + u8(CAPACITY)]:
                slots[mark] |= bit
                at, first = slots[log + u8(ENTRIES)] + n * u8(row_words + 1), row * u8(row_words)
                slots[at] = row
                for i in range(row_words):
                    low = u8(clock[u8(2) * (first + u8(i))])
                    high = u8(clock[u8(2) * (first + u8(i)) + ONE])
                    slots[at + ONE + u8(i)] = low | (high << u8(32))

    return keep
