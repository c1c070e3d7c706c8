"""How a new value enters the table: exactly in float64, rounded at random in float32.

A decreasing step size stops moving a float32 below half an ulp; rounding at random with keyed
bits keeps the expectation (Connolly, Higham & Mary 2021). `prefetch`, `lowest_bit` and what takes
floats as bits are single machine instructions once compiled; what stands here is their meaning in
plain Python.
"""

import struct

import numpy as np

u8, u4, f4, f8 = np.uint64, np.uint32, np.float32, np.float64
LOW29 = u8((1 << 29) - 1)
HIGH35 = u8(0xFFFFFFFFFFFFFFFF ^ ((1 << 29) - 1))


def prefetch(array, index):
    """Ask for the cache line of array[index], to be written; changes nothing."""


def prefetch_read(array, index):
    """Ask for the cache line of array[index], to be read; changes nothing."""


def bits_of(x):
    """The bits of a float64 as uint64."""
    return u8(struct.unpack("<Q", struct.pack("<d", float(x)))[0])


def float_of(x):
    """The float64 of which x (uint64) is the bits."""
    return f8(struct.unpack("<d", struct.pack("<Q", int(x)))[0])


def bits_of_single(x):
    """The bits of a float32 as uint32."""
    return u4(struct.unpack("<I", struct.pack("<f", float(x)))[0])


def single_of(x):
    """The float32 of which x (uint32) is the bits."""
    return f4(struct.unpack("<f", struct.pack("<I", int(x)))[0])


def lowest_bit(x):
    """The number (uint64) of the lowest bit that is set in x (uint64), which is not 0."""
    return u8((int(x) & -int(x)).bit_length() - 1)


def exact(old, change, bits):
    """old + change; for float64 tables."""
    return old + change


def stochastic(old, change, bits):
    """old + change rounded to float32, up or down at random with the low 29 bits of `bits`."""
    return f4(float_of((bits_of(f8(old) + change) + (bits & LOW29)) & HIGH35))
