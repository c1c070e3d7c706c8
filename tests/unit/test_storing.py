"""Rounding at random: neighbours only, unbiased, exact values untouched; the step sizes."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from distq_mpi.kernels import Kernel
from distq_mpi.kernels.storing import bits_of, exact, float_of, stochastic
from tests.stand_in import compiled, plain

u8, f4, f8 = np.uint64, np.float32, np.float64
STEP = 1 << 29  # bits of a float64 below the last one of a float32

singles = st.floats(width=32, allow_nan=False, allow_infinity=False).filter(
    lambda x: x == 0 or 2.0**-100 < abs(x) < 2.0**100
)
changes = st.floats(-(2.0**90), 2.0**90, allow_nan=False)


def store(old: float, change: float, bits: int) -> np.float32:
    with np.errstate(all="ignore"):
        return stochastic(f4(old), f8(change), u8(bits))


def neighbours(x: float) -> tuple[float, float]:
    """The float32 next to x towards zero, and the one away from it (equal where x is one)."""
    near = f4(x)
    if abs(float(near)) > abs(x):
        near = np.nextafter(near, f4(0))
    far = near if float(near) == x else np.nextafter(near, f4(math.copysign(np.inf, x)))
    return float(near), float(far)


@given(st.floats(allow_nan=False))
def test_bits_and_floats_are_inverse(x: float) -> None:
    assert float(float_of(bits_of(x))) == x
    assert int(bits_of(x)) == struct.unpack("<Q", struct.pack("<d", x))[0]


@given(st.floats(allow_nan=False), st.floats(allow_nan=False), st.integers(0, 2**64 - 1))
def test_float64_is_stored_exactly(old: float, change: float, bits: int) -> None:
    with np.errstate(all="ignore"):
        expected = f8(old) + f8(change)
        assert np.array_equal(exact(f8(old), f8(change), u8(bits)), expected, equal_nan=True)


@given(singles, changes, st.integers(0, 2**64 - 1))
def test_only_the_two_neighbours_are_stored(old: float, change: float, bits: int) -> None:
    x = old + change
    assume(x == 0 or 2.0**-100 < abs(x) < 2.0**100)
    stored = store(old, change, bits)
    assert stored.dtype == f4
    assert float(stored) in neighbours(x)


@given(singles, st.integers(0, 2**64 - 1))
def test_a_float32_value_stays(old: float, bits: int) -> None:
    assert store(old, 0.0, bits) == f4(old)
    assert store(0.0, old, bits) == f4(old)


@given(singles, changes)
def test_the_share_of_the_far_neighbour_is_the_distance(old: float, change: float) -> None:
    """Over all 2^29 draws exactly fraction x 2^29 go away from zero: no bias at all."""
    x = old + change
    assume(2.0**-100 < abs(x) < 2.0**100)
    near, far = neighbours(x)
    fraction = int(bits_of(x)) % STEP
    assert fraction == 0 or fraction / STEP == pytest.approx((x - near) / (far - near), abs=2**-24)
    for low in (0, STEP - fraction - 1):  # the last draws that stay
        if 0 <= low < STEP - fraction:
            assert float(store(old, change, low)) == near
    for low in (STEP - fraction, STEP - 1):
        if STEP - fraction <= low < STEP:
            assert float(store(old, change, low)) == far


def test_only_the_low_29_bits_count() -> None:
    high = 0xFFFFFFFFFFFFFFFF ^ (STEP - 1)
    assert store(1.0, 1e-9, high) == store(1.0, 1e-9, 0) == f4(1.0)


def additions(total, change, draws):  # type: ignore[no-untyped-def]
    for i in range(draws.size):
        for j in range(total.size):
            total[j] = put(total[j], change[0], draws[i] >> u8(j))


put = stochastic


def test_many_small_changes_add_up() -> None:
    """1e5 changes of a thousandth of an ulp each: plain float32 would never move."""
    n, lanes, change = 100_000, 32, 2.0**-33
    draws = np.random.default_rng(3).integers(0, 2**64, n, dtype=np.uint64)
    total, step = np.full(lanes, 1.0, f4), np.array([change])
    assert f4(1.0) + f4(change) == f4(1.0)
    few = total.copy()
    plain(additions, {})(few, step, draws[:200])
    check = total.copy()
    kernel = compiled({"additions": Kernel(additions, {}, (total, step, draws))})["additions"]
    kernel(check, step, draws[:200])
    assert np.array_equal(few, check)
    kernel(total, step, draws)
    moved, ulp = total.astype(f8) - 1.0, 2.0**-23
    expected, deviation = n * change, ulp * math.sqrt(n * change / ulp)
    assert abs(moved[0] - expected) < 5 * deviation
    assert np.all(np.abs(moved - expected) < 6 * deviation)


def test_not_a_number_is_not_hidden() -> None:
    assert np.isnan(store(1.0, math.nan, 0))
    assert not np.isfinite(store(1.0, math.inf, STEP - 1))
    assert not np.isfinite(store(3.4e38, 1e38, 0))
