"""Random numbers that are functions of (seed, purpose, lane, step): nothing to store or migrate.

Threefry-2x64 with 13 rounds (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").
Key = (seed, purpose), counter = (step, lane). Every function works on uint64 scalars and, in plain
Python, elementwise on uint64 arrays.

Which bits of a draw serve what (part of the checkpoint's `format_version`):

| purpose | counter | word | bits | serves |
|---|---|---|---|---|
| TRANSITION | (step, lane) | 0 | 0-31 | explore if below epsilon x 2^32 |
| | | 0 | 32-63 | the random action, or which of the tied greedy actions (of a part, too) |
| | | 0 | 32-63 | softmax: the action |
| | | 1 | 32-63 | the outcome of (state, action); 0-63 where it has more than 2^16 outcomes |
| | | 1 | 29 | Double Q: which part is updated |
| | | 1 | 0-28 | stochastic rounding of a float32 write |
| RESET | (step, lane) | 0 | 0-63 | the start state of the next episode |
| | | 0 | 32-63 | stepped in Python: the seed of its `reset` |
| | | 1 | 32-63 | exploring starts: its first action |
| INITIAL | (pair, 0) | 0 | 11-63 | a random initial value |
| ROUNDING | (round, pair) | 1 | 0-28 | stochastic rounding of a fused float32 value |
| | | 0 | 32-63 | fusion `mean` of signed clocks: rounding of the count |
| EVALUATION | (step, episode) | 1 | 32-63 | the outcome in a sampled evaluation |
| EVALUATION_RESET | (0, episode) | 0 | 0-63 | its start state (32-63: its seed, where stepped) |
| CERTIFICATE | (check and sample, pair) | 1 | 32-63 | the outcome in a sampled certificate |
"""

import numpy as np

u8 = np.uint64

PARITY = u8(0x1BD11BDAA9FC1A22)
ONE, TWO, THREE = u8(1), u8(2), u8(3)

TRANSITION = u8(1)
RESET = u8(2)
INITIAL = u8(3)
ROUNDING = u8(4)
EVALUATION = u8(5)
EVALUATION_RESET = u8(6)
CERTIFICATE = u8(7)


def rotate(x, k):
    """Rotate the 64 bits of x left by k (0 < k < 64)."""
    return (x << u8(k)) | (x >> u8(64 - k))


def threefry(c0, c1, k0, k1):
    """Return the two words of Threefry-2x64-13; counter (c0, c1), key (k0, k1), all uint64."""
    k2 = PARITY ^ k0 ^ k1
    x0 = c0 + k0
    x1 = c1 + k1
    x0 = x0 + x1
    x1 = rotate(x1, 16) ^ x0
    x0 = x0 + x1
    x1 = rotate(x1, 42) ^ x0
    x0 = x0 + x1
    x1 = rotate(x1, 12) ^ x0
    x0 = x0 + x1
    x1 = rotate(x1, 31) ^ x0
    x0 = x0 + k1
    x1 = x1 + k2 + ONE
    x0 = x0 + x1
    x1 = rotate(x1, 16) ^ x0
    x0 = x0 + x1
    x1 = rotate(x1, 32) ^ x0
    x0 = x0 + x1
    x1 = rotate(x1, 24) ^ x0
    x0 = x0 + x1
    x1 = rotate(x1, 21) ^ x0
    x0 = x0 + k2
    x1 = x1 + k0 + TWO
    x0 = x0 + x1
    x1 = rotate(x1, 16) ^ x0
    x0 = x0 + x1
    x1 = rotate(x1, 42) ^ x0
    x0 = x0 + x1
    x1 = rotate(x1, 12) ^ x0
    x0 = x0 + x1
    x1 = rotate(x1, 31) ^ x0
    x0 = x0 + k0
    x1 = x1 + k1 + THREE
    x0 = x0 + x1
    x1 = rotate(x1, 16) ^ x0
    return x0, x1


LOW32, SHIFT32 = u8(0xFFFFFFFF), u8(32)
NARROW = u8(1 << 16)
"""Slots up to which the high 32 bits of a draw choose one: each is met to 2^-16 of itself."""


def scaled(bits, n):
    """floor(bits n / 2^64), of uint64: any of n numbers, each equally likely."""
    low, high = n & LOW32, n >> SHIFT32
    carried = (bits & LOW32) * low >> SHIFT32
    middle = (bits >> SHIFT32) * low + carried
    other = (bits & LOW32) * high + (middle & LOW32)
    return (bits >> SHIFT32) * high + (middle >> SHIFT32) + (other >> SHIFT32)


def slot_of(bits, n):
    """Any of n slots, uint64, each equally likely, and 32 bits to decide within it.

    The high 32 bits of a draw are too few for many slots: of 5e7 some would be met by 86 of 2^32
    words, others by 85. Beyond `NARROW` all 64 choose, and what is left of their product decides.
    """
    if n > NARROW:
        return scaled(bits, n), bits * n >> SHIFT32
    return (bits >> SHIFT32) * n >> SHIFT32, bits & LOW32
