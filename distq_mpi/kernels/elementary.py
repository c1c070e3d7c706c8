"""Exponential and power from sums and products alone: the same bits with any C library."""

from math import factorial

import numpy as np

from distq_mpi.kernels.storing import bits_of, float_of

u8, i8, f8 = np.uint64, np.int64, np.float64

LOG2_E = 1.4426950408889634
LN2_HIGH = 0.693147180369123816490
LN2_LOW = 1.90821492927058770002e-10
SQRT_2 = 1.4142135623730951
EXPONENT_BITS = u8(52)
MANTISSA = u8((1 << 52) - 1)
ONE = u8(1023 << 52)
# 1 / k! and 2 / k: written out, for a division costs four products and no compiler may replace it.
C3, C4, C5, C6, C7, C8, C9, C10, C11, C12, C13 = (1.0 / factorial(k) for k in range(3, 14))
D1, D3, D5, D7, D9, D11, D13, D15, D17, D19, D21 = (2.0 / k for k in range(1, 22, 2))


def exponential(x):
    """e^x for x <= 0, to 2 ulp; below -700 as at -700 (1e-304). NaN gives NaN."""
    if not x >= -700.0:
        return x if x != x else 9.859676543759770e-305
    n = np.rint(x * LOG2_E)
    r = (x - n * LN2_HIGH) - n * LN2_LOW
    p = C7 + r * (C8 + r * (C9 + r * (C10 + r * (C11 + r * (C12 + r * C13)))))
    p = 1.0 + r * (1.0 + r * (0.5 + r * (C3 + r * (C4 + r * (C5 + r * (C6 + r * p))))))
    return p * float_of(u8(i8(n) + i8(1023)) << EXPONENT_BITS)


def logarithm(x):
    """ln x for finite x >= 2^-1022, to 2 ulp; next to 1 to 2 ulp of 1 - x. 0 counts as 2^-1023."""
    bits = bits_of(x)
    n = f8(i8(bits >> EXPONENT_BITS) - i8(1023))
    m = float_of((bits & MANTISSA) | ONE)
    if m > SQRT_2:
        m, n = m * 0.5, n + 1.0
    t = (m - 1.0) / (m + 1.0)
    square = t * t
    p = D11 + square * (D13 + square * (D15 + square * (D17 + square * (D19 + square * D21))))
    p = D1 + square * (D3 + square * (D5 + square * (D7 + square * (D9 + square * p))))
    return n * LN2_HIGH + (t * p + n * LN2_LOW)


def inverse_power(x, exponent):
    """x^-exponent for x >= 1 and exponent >= 0; the relative error grows with exponent x ln x."""
    return exponential(-exponent * logarithm(x))
