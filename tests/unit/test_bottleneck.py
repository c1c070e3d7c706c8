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


@pytest.mark.parametrize(
    ("table", "ceiling"), [(80 << 20, 40e6), (2 << 30, 30e6), (2 << 20, 200e6)]
)
def test_the_ceiling_is_that_of_the_nearest_table(table: int, ceiling: float) -> None:
    found = bottleneck(TIMES, 10.0, table, False, 20e6, CEILINGS)
    assert found.of_ceiling == 20e6 / ceiling
    assert f"at {100 * 20e6 / ceiling:.0f} % of what `probe` found" in found.sentence
    assert "would say how near" in bottleneck(TIMES, 10.0, table, False, 20e6, {}).sentence
