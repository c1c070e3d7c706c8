"""The C library's functions have no part in what ranks must compute alike."""

from __future__ import annotations

import ast
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import distq_mpi
from distq_mpi.architectures.schedules import exploration_at
from distq_mpi.bounds import Orders
from distq_mpi.fusion import FixedPoint
from distq_mpi.kernels import elementary
from distq_mpi.kernels.traces import depth_of
from distq_mpi.stopping import CHECK_GROWTH, _checks

ROOT = Path(distq_mpi.__file__).parent
APART = ("study", "validation", "probe", "doctor", "monitor")
"""Packages that report, on one rank or on none of a run's."""
INEXACT = {"exp", "expm1", "exp2", "log", "log1p", "log2", "log10", "pow", "power", "float_power",
           "sin", "cos", "tan", "asin", "acos", "atan", "atan2", "sinh", "cosh", "tanh", "cbrt",
           "hypot", "gamma", "lgamma", "erf", "erfc", "arctan", "logaddexp"}  # fmt: skip
"""IEEE 754 asks for sums, products, quotients, square roots and roundings to the last bit, and for
none of these."""
ALLOWED = {
    "preparation.py with_horizon": "rank 0 computes it; it is in the configuration it sends",
    "preparation.py warnings": "words for the user",
    "bottleneck.py _ceiling": "words for the user",
    "environments/spaces.py counted": "words for the user",
    "api.py _act": "actions of a policy that is asked for, on one rank",
    "kernels/episodic.py explore": "the cube of a whole number",
}


def inexact(path: Path) -> list[str]:
    """Uses of such functions, and of `**` but of numbers that are powers of two, or integers."""
    found, name = [], path.relative_to(ROOT).as_posix()

    def visit(node: ast.AST, function: str) -> None:
        if isinstance(node, ast.FunctionDef):
            function = node.name
        told = ""
        if isinstance(node, ast.Attribute) and node.attr in INEXACT:
            module = ast.unparse(node.value)
            told = f"{module}.{node.attr}" * (module in ("math", "np"))
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
            base, by = node.left, node.right
            two = isinstance(base, ast.Constant) and base.value in (2, 10)
            square = isinstance(by, ast.Constant) and by.value == 2
            told = "" if two or square else "**"
        if told:
            found.append(f"{name} {function}: {told}")
        for child in ast.iter_child_nodes(node):
            visit(child, function)

    visit(ast.parse(path.read_text()), "")
    return found


def test_nothing_that_ranks_compute_alike_comes_from_the_c_library() -> None:
    found = [
        use
        for path in sorted(ROOT.rglob("*.py"))
        if path.relative_to(ROOT).parts[0] not in APART
        for use in inexact(path)
        if use.split(":")[0] not in ALLOWED
    ]
    assert not found


@pytest.fixture
def another_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library whose logarithms and exponentials are one unit above those of this one."""
    for name in ("log", "log2", "exp"):
        real = getattr(math, name)
        monkeypatch.setattr(math, name, lambda *x, real=real: math.nextafter(real(*x), math.inf))


def decisions() -> list[float]:
    schedule = SimpleNamespace(
        exploration="epsilon_greedy", epsilon=1.0, epsilon_final=0.01, epsilon_steps=1000,
        epsilon_schedule="exponential",
    )  # fmt: skip
    found = [exploration_at(schedule, n) for n in range(0, 1001, 7)]
    found += [FixedPoint(n).scale for n in range(1, 300)]
    for decay in np.arange(0.02, 0.999, 0.001):
        learn = SimpleNamespace(
            rule="watkins_q_lambda", discount=float(decay), trace_decay=1.0, n_steps=1
        )
        found.append(depth_of(learn))
    _checks.cache_clear()
    found += _checks(CHECK_GROWTH)
    orders = Orders()
    for k in range(1, 30):
        orders.swept(3, 2.0**-k, 2.0 ** -(k + 1))
        orders.told(2.0**-k)
        found += [orders._decline, orders._gain, orders.smooths_only, orders.too_slow(1e-9)]
    return found


def test_another_c_library_makes_the_same_decisions(request: pytest.FixtureRequest) -> None:
    here = decisions()
    request.getfixturevalue("another_library")
    assert decisions() == here


def test_they_are_what_the_library_says_but_for_rounding() -> None:
    def schedule(first: float, final: float) -> SimpleNamespace:
        return SimpleNamespace(
            exploration="epsilon_greedy", epsilon=first, epsilon_final=final, epsilon_steps=1000,
            epsilon_schedule="exponential",
        )  # fmt: skip

    for first, final in ((1.0, 0.01), (0.01, 1.0), (0.3, 0.3), (1.0, 1e-9), (2e-9, 5e-10)):
        for n in (0, 1, 250, 500, 999, 1000, 2000):
            expected = first * (final / first) ** min(1.0, n / 1000)
            found = exploration_at(schedule(first, final), n)
            assert found == pytest.approx(expected, rel=2e-14)
        assert exploration_at(schedule(first, final), 0) == first
        assert exploration_at(schedule(first, final), 1000) == final
    for n in range(1, 1000):
        assert FixedPoint(n, 5, 5).scale == 2.0 ** (57 - math.ceil(math.log2(n)))
    for x in (1e-300, 0.1, 0.99999, 1.0, 1.00001, 7.0, 1e300):
        assert elementary.logarithm(x) == pytest.approx(math.log(x), rel=1e-14)
    assert _checks(CHECK_GROWTH) == [
        math.ceil(5**k / 4**k) if k < 20 else -(-(5**k) // 4**k) for k in range(196)
    ]
