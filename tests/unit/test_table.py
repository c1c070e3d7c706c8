"""The row record, initial values, and the hash of a table; the lanes' buffer."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distq_mpi.lanes import FIELDS, LANE_DTYPE, Lanes
from distq_mpi.table import HUGE_PAGE, SLICE_ROWS, Record, Rows, initialise, table_sha256

F8, F4 = np.dtype(np.float64), np.dtype(np.float32)

# (A, dtype) -> row_bytes, stride, clock_stride, clock_offset
LAYOUTS = [
    (1, F8, 16, 2, 4, 2), (2, F8, 32, 4, 8, 4), (3, F8, 64, 8, 16, 6), (4, F8, 64, 8, 16, 8),
    (5, F8, 64, 8, 16, 10), (6, F8, 128, 16, 32, 12), (10, F8, 128, 16, 32, 20),
    (11, F8, 192, 24, 48, 22), (18, F8, 256, 32, 64, 36),
    (1, F4, 8, 2, 2, 1), (2, F4, 16, 4, 4, 2), (3, F4, 32, 8, 8, 3), (4, F4, 32, 8, 8, 4),
    (5, F4, 64, 16, 16, 5), (8, F4, 64, 16, 16, 8), (9, F4, 128, 32, 32, 9),
    (16, F4, 128, 32, 32, 16), (18, F4, 192, 48, 48, 18),
]  # fmt: skip


@pytest.mark.parametrize(
    ("n_actions", "dtype", "row_bytes", "stride", "clock_stride", "offset"), LAYOUTS
)
def test_layout(
    n_actions: int, dtype: np.dtype, row_bytes: int, stride: int, clock_stride: int, offset: int
) -> None:
    record = Record(n_actions, dtype)
    found = (record.row_bytes, record.stride, record.clock_stride, record.clock_offset)
    assert found == (row_bytes, stride, clock_stride, offset)


records = st.builds(Record, st.integers(1, 100), st.sampled_from([F8, F4]))


@given(records)
def test_a_row_holds_its_values_and_clocks_apart(record: Record) -> None:
    size = record.dtype.itemsize
    assert record.n_actions * (size + 4) <= record.row_bytes
    assert record.clock_offset * 4 == record.n_actions * size
    assert record.row_bytes == record.stride * size == record.clock_stride * 4


@given(records, st.integers(0, 1000))
def test_a_row_never_straddles_a_cache_line(record: Record, row: int) -> None:
    start, used = row * record.row_bytes, record.n_actions * (record.dtype.itemsize + 4)
    lines = (start + used - 1) // 64 - start // 64 + 1
    assert lines == -(-used // 64)
    if record.row_bytes > 8:  # nothing smaller would do
        assert record.row_bytes < 2 * used or record.row_bytes - used < 64


@pytest.mark.parametrize("n_rows", [0, 1, 1000, HUGE_PAGE // 64, HUGE_PAGE // 64 + 1])
def test_rows_are_zero_aligned_and_views_of_one_buffer(n_rows: int) -> None:
    rows = Rows(Record(5, F8), n_rows)
    assert rows.raw.size == n_rows * 64 and not rows.raw.any()
    if n_rows:
        assert rows.raw.ctypes.data % 64 == 0
        if rows.raw.size >= HUGE_PAGE:
            assert rows.raw.ctypes.data % HUGE_PAGE == 0
    assert rows.values.shape == rows.clock.shape == (n_rows, 5)
    rows.values[...], rows.clock[...] = np.pi, 7
    assert np.all(rows.values == np.pi) and np.all(rows.clock == 7)
    row = rows.q[-8:].view(np.uint32)
    if n_rows:
        assert rows.q.reshape(n_rows, 8)[-1, :5].tolist() == [np.pi] * 5
        assert row[10:].tolist() == [7] * 5 + [0]
        assert np.shares_memory(rows.clock_words, rows.raw)


@pytest.mark.parametrize("bound", [None, 2.5])
@pytest.mark.parametrize("dtype", [F8, F4])
def test_random_values_do_not_depend_on_blocks(bound: float | None, dtype: np.dtype) -> None:
    record, n, first = Record(3, dtype), SLICE_ROWS + 100, SLICE_ROWS - 20
    whole = Rows(record, n)
    initialise(whole, 0, "random", bound, seed=5)
    for start, stop in ((0, 1), (7, 1000), (first, first + 40), (first, n)):
        block = Rows(record, stop - start)
        initialise(block, start, "random", bound, seed=5)
        assert np.array_equal(block.values, whole.values[start:stop])
    assert not whole.clock.any()
    scale = bound or 1.0
    assert whole.values.min() >= 0 and whole.values.max() <= scale
    # 196,908 uniform numbers: mean and variance within 6 standard deviations.
    uniform = whole.values.astype(float).reshape(-1) / scale
    assert abs(uniform.mean() - 1 / 2) < 6 * np.sqrt(1 / 12 / uniform.size)
    assert abs(uniform.var() - 1 / 12) < 6 * np.sqrt(1 / 180 / uniform.size)
    assert len(np.unique(uniform)) > 0.98 * uniform.size


def test_random_values_follow_the_seed() -> None:
    tables = []
    for seed in (1, 2, 2**64 - 1):
        rows = Rows(Record(4, F8), 50)
        initialise(rows, 0, "random", None, seed)
        tables.append(rows.values.copy())
    assert not np.isclose(tables[0], tables[1]).any()
    assert not np.isclose(tables[1], tables[2]).any()


@pytest.mark.parametrize(
    ("kind", "bound", "expected"),
    [("zeros", 3.0, 0.0), ("optimistic", 3.0, 3.0), ("optimistic", None, 0.0),
     ("optimistic", -2.0, -2.0)],
)  # fmt: skip
def test_constant_initial_values(kind: str, bound: float | None, expected: float) -> None:
    rows = Rows(Record(3, F4), 10)
    initialise(rows, 0, kind, bound, seed=1)
    assert np.all(rows.values == expected) and not rows.clock.any()
    assert not rows.q.reshape(10, -1)[:, 6:].any()


@pytest.mark.parametrize("dtype", [F8, F4])
@pytest.mark.parametrize("n_rows", [1, 10, SLICE_ROWS, SLICE_ROWS + 1, 2 * SLICE_ROWS + 5])
def test_table_hash_is_the_hash_of_hashes(dtype: np.dtype, n_rows: int) -> None:
    rows = Rows(Record(3, dtype), n_rows)
    initialise(rows, 0, "random", None, seed=9)
    rows.clock[...] = 3  # the hash does not see clocks and padding
    starts = range(0, n_rows, SLICE_ROWS)
    found = table_sha256(rows.values[s : s + SLICE_ROWS] for s in starts)
    packed = np.array(rows.values).astype(dtype.newbyteorder("<")).tobytes()
    width = SLICE_ROWS * 3 * dtype.itemsize
    digests = b"".join(
        hashlib.sha256(packed[i : i + width]).digest() for i in range(0, len(packed), width)
    )
    assert found == hashlib.sha256(digests).hexdigest()
    before = float(rows.values[-1, -1])
    rows.values[-1, -1] = np.nextafter(rows.values[-1, -1], dtype.type(2))
    assert table_sha256(rows.values[s : s + SLICE_ROWS] for s in starts) != found
    rows.values[-1, -1] = before
    assert table_sha256(rows.values[s : s + SLICE_ROWS] for s in starts) == found


def test_table_hash_of_a_known_table() -> None:
    values = np.array([[0.0, 1.0], [-2.0, 0.5]])
    inner = hashlib.sha256(
        bytes.fromhex("0000000000000000" "000000000000f03f" "00000000000000c0" "000000000000e03f")
    ).digest()
    assert table_sha256([values]) == hashlib.sha256(inner).hexdigest()
    assert table_sha256([values.astype(">f8")]) == table_sha256([values])


def test_lanes_pack_and_copy() -> None:
    rng = np.random.default_rng(4)
    packed = np.zeros(9, LANE_DTYPE)
    for name, kind in FIELDS:
        packed[name] = rng.integers(0, 2, 9) if kind == np.bool_ else rng.integers(1, 2**31, 9)
    lanes, other = Lanes(3, 9), Lanes(3, 9)
    lanes.unpack(packed)
    assert lanes.pack().tobytes() == packed.tobytes()
    other.copy_from(lanes)
    assert other.pack().tobytes() == packed.tobytes()
    lanes.arrays()[3][:] = -1.0
    assert other.pack().tobytes() == packed.tobytes()
    assert [a.dtype for a in lanes.arrays()] == [np.dtype(kind) for _, kind in FIELDS]
    assert all(a.flags.c_contiguous and a.flags.aligned for a in lanes.arrays())
    spans = sorted((a.ctypes.data, a.ctypes.data + a.nbytes) for a in lanes.arrays())
    assert all(end <= start for (_, end), (start, _) in zip(spans, spans[1:], strict=False))
