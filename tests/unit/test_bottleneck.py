"""What is said of a run's speed."""

from __future__ import annotations

import pytest

from distq_mpi.bottleneck import bottleneck

TIMES = {"startup": 1.0, "learn": 6.0, "exchange": 2.0, "certify": 0.5, "io": 0.5}
CEILINGS = {"random_rows_1mb": 200e6, "random_rows_64mb": 50e6, "random_rows_64mb_all": 40e6,
            "random_rows_1024mb": 30e6, "triad": 1e10, "ranks": 2.0}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "table", "stepped", "name", "share"),
    [
        ({}, 1 << 16, False, "in-cache compute", 0.6),
        ({}, 64 << 20, False, "random rows", 0.6),
        ({}, 64 << 20, True, "environment", 0.6),
        ({"exchange": 60.0}, 64 << 20, False, "exchange", 6.0),
        ({"certify": 7.0}, 1, False, "certificates", 0.7),
        ({"io": 9.0}, 1, False, "I/O", 0.9),
        ({"startup": 9.0}, 1, False, "startup", 0.9),
    ],
)
def test_what_took_longest_is_named(
    changes: dict[str, float], table: int, stepped: bool, name: str, share: float
) -> None:
    found = bottleneck(TIMES | changes, 10.0, table, stepped, 20e6, {})
    assert (found.name, found.share) == (name, share)
    assert found.of_ceiling is None and found.sentence.startswith(f"{name}: {100 * share:.0f} %")
    assert ("would say how near" in found.sentence) != stepped


@pytest.mark.parametrize(
    ("table", "ceiling"),
    [(1 << 16, 200e6), (1 << 20, 200e6), (8 << 20, (200e6 * 40e6) ** 0.5), (64 << 20, 40e6),
     (256 << 20, (40e6 * 30e6) ** 0.5), (2 << 30, 30e6)],
)  # fmt: skip
def test_the_ceiling_lies_between_those_of_probed_tables(table: int, ceiling: float) -> None:
    for seconds in (TIMES, TIMES | {"startup": 20.0}):
        found = bottleneck(seconds, 10.0, table, False, 20e6, CEILINGS)
        assert found.of_ceiling == pytest.approx(20e6 / ceiling)
        told = f"ran at {100 * 20e6 / ceiling:.0f} % of the {ceiling / 1e6:.3g} M random rows/s"
        assert told in found.sentence
