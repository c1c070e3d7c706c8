"""Step sizes, the clocks behind them, and the functions they are made of."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distq_mpi.kernels import Kernel, fusing
from distq_mpi.kernels.elementary import exponential, inverse_power, logarithm
from distq_mpi.kernels.step_sizes import (
    CLOCK_LIMIT,
    COUNT,
    SIGN_SHIFT,
    STEP_SIZES,
    saturating,
    step_parameter,
    tick_sign,
)
from tests.stand_in import compiled, config

f8, u4 = np.float64, np.uint32


@pytest.mark.parametrize("clock", [1, 2, 1000, 2**29])
@pytest.mark.parametrize("discount", [0.0, 0.5, 0.99])
def test_step_sizes(clock: int, discount: float) -> None:
    def size(name: str, parameter: float) -> float:
        return float(STEP_SIZES[name].size(u4(clock), f8(discount), f8(parameter)))

    expected = 1 / (1 + (1 - discount) * clock)
    assert size("rescaled_linear", 0.3) == pytest.approx(expected, rel=1e-15)
    assert size("constant", 0.3) == 0.3
    assert size("linear", 0.3) == 1 / clock
    assert size("polynomial", 0.8) == pytest.approx(clock**-0.8, rel=1e-14)
    assert size("sign_change", 0.6) == pytest.approx((1 + clock) ** -0.6, rel=1e-14)


def test_the_sign_in_a_clock_is_no_part_of_its_count() -> None:
    for sign in range(4):
        clock = u4((sign << 30) | 7)
        assert STEP_SIZES["sign_change"].size(clock, 0.9, 0.6) == pytest.approx(8**-0.6)


def ticks(errors: list[float]) -> tuple[int, int]:
    """Count and sign of a clock after these TD errors."""
    clock = u4(0)
    for error in errors:
        clock = u4(tick_sign(clock, error))
    return int(clock & COUNT), int(clock >> SIGN_SHIFT)


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ([], (0, 0)), ([0.0], (0, 3)), ([1.0], (0, 1)), ([-1.0], (0, 2)), ([0.0, -1.0], (0, 2)),
        ([1.0, 2.0, 3.0], (0, 1)), ([1.0, -1.0], (1, 2)), ([1.0, 0.0, -1.0, 0.0], (1, 2)),
        ([1.0, -1.0, 1.0, -1.0], (3, 2)), ([1.0, math.nan, -1.0], (1, 2)), ([math.nan], (0, 3)),
    ],
)  # fmt: skip
def test_a_clock_counts_changes_of_sign(errors: list[float], expected: tuple[int, int]) -> None:
    assert ticks(errors) == expected


@given(st.lists(st.sampled_from([-2.0, 0.0, 0.5]), max_size=40))
def test_changes_of_sign_are_those_of_the_errors_that_have_one(errors: list[float]) -> None:
    signs = [error > 0 for error in errors if error]
    changes = sum(a != b for a, b in zip(signs, signs[1:], strict=False))
    assert ticks(errors)[0] == changes
    assert (ticks(errors)[1] == 0) == (not errors)


@pytest.mark.parametrize("name", STEP_SIZES)
def test_a_clock_that_saturates_ticks_up_to_its_limit(name: str) -> None:
    """Below the limit as any clock; from there on the count stays, and signs go on changing."""
    every, limited = STEP_SIZES[name].tick, saturating(STEP_SIZES[name]).tick
    most = int(COUNT) if STEP_SIZES[name].signed else 2**32 - 1
    signs = (1, 2, 3) if STEP_SIZES[name].signed else (0,)
    for sign in signs:
        for error in (-1.0, 0.0, 1.0):
            for count in (0, 1, int(CLOCK_LIMIT) - 1, int(CLOCK_LIMIT), most):
                clock = u4(sign << 30 | count)
                found = int(limited(clock, error))
                if count < CLOCK_LIMIT:
                    assert found == int(every(clock, error))
                elif sign:
                    after = sign if not error else 1 if error > 0 else 2
                    assert found == after << 30 | count
                else:
                    assert found == count


def test_a_vote_decides_the_sign_and_a_tie_keeps_it() -> None:
    def voted(old: int, vote: int) -> int:
        return int(fusing.signed_clock(u4(old << 30), 5, vote) >> SIGN_SHIFT)

    assert [voted(1, vote) for vote in (-3, 0, 3)] == [2, 1, 1]
    assert [voted(2, vote) for vote in (-3, 0, 3)] == [2, 2, 1]
    assert voted(0, 0) == 3


def test_what_visits_leave_of_a_value() -> None:
    for name, alphas in (
        ("rescaled_linear", [1 / (1 + 0.5 * k) for k in range(4, 9)]),
        ("constant", [0.3] * 5),
        ("polynomial", [k**-0.7 for k in range(4, 9)]),
        ("sign_change", [4**-0.7] * 5),
    ):
        kept = fusing.kept_after(STEP_SIZES[name])
        parameter = 0.3 if name == "constant" else 0.7
        expected = math.prod(1 - alpha for alpha in alphas)
        assert kept(u4(3), 5, 0.5, parameter) == pytest.approx(expected, rel=1e-12)
    assert fusing.kept_after(STEP_SIZES["linear"])(u4(0), 2, 0.5, 0.0) == 1e-300  # alpha 1 first


def test_the_parameter_is_the_exponent_where_there_is_one() -> None:
    learn = config(alpha=0.25, exponent=0.7).learn
    for name, expected in (("constant", 0.25), ("polynomial", 0.7), ("sign_change", 0.7)):
        learn.step_size = name
        assert step_parameter(learn) == expected


@given(st.floats(-700, 0))
def test_exponential(x: float) -> None:
    assert exponential(f8(x)) == pytest.approx(math.exp(x), rel=1e-15)


def test_exponential_at_its_ends() -> None:
    assert exponential(f8(0.0)) == 1.0
    assert 0.0 < exponential(f8(-1e9)) == exponential(f8(-math.inf)) < 1e-303
    assert math.isnan(exponential(f8(math.nan)))


@given(st.floats(1, 1e300))
def test_logarithm(x: float) -> None:
    assert logarithm(f8(x)) == pytest.approx(math.log(x), rel=1e-15, abs=1e-16)


@given(st.integers(1, 2**30), st.floats(0.5, 1))
def test_inverse_power(k: int, exponent: float) -> None:
    assert inverse_power(f8(k), f8(exponent)) == pytest.approx(k**-exponent, rel=1e-14)


def table(x: Any, out: Any) -> None:
    """All three functions over an array."""
    for i in range(x.size):
        out[0, i] = exponential(-x[i])
        out[1, i] = logarithm(1.0 + x[i])
        out[2, i] = inverse_power(1.0 + x[i], 0.6)


def test_compiled_code_has_the_bits_of_plain_python() -> None:
    x = np.random.default_rng(0).exponential(30.0, 500)
    found, expected = np.zeros((3, 500)), np.zeros((3, 500))
    compiled({"table": Kernel(table, {}, (x, found))})["table"](x, found)
    table(x, expected)
    assert found.tobytes() == expected.tobytes()
