"""Owners that read every agent's replica: the loop, who may, and what waits for whom."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from distq_mpi.architectures import Allreduce
from distq_mpi.fusion import fusion_kernels
from distq_mpi.kernels import chunks, fusing
from distq_mpi.table import Rows, record_of
from tests.stand_in import Alone, compiled, config, plain, random_model, together

N, K, RATES = 150, 3, np.array([0.9, 0.1, 2.0**50, 16.0])
FIRST, STOP = 17, 131


def replicas(settings: Any, record: Any) -> tuple[Rows, Rows]:
    """A base, and three replicas of it one after the other; some rows without visits."""
    rng = np.random.default_rng(0)
    base, all_ = Rows(record, N), Rows(record, K * N)
    base.values[...] = rng.normal(size=base.values.shape)
    base.clock[...] = rng.integers(0, 50, base.clock.shape)
    for k in range(K):
        mine = all_.raw[k * N * record.row_bytes : (k + 1) * N * record.row_bytes]
        mine[:] = base.raw
        one = Rows(record, N, mine)
        visits = rng.integers(0, 20, base.clock.shape) * (rng.random(base.clock.shape) < 0.4)
        visits[:40] = 0
        one.values[...] += rng.normal(size=visits.shape) * (visits > 0)
        if record.counts_visits:
            words = one.clock_words.reshape(N, -1)
            offset = record.clock_offset + record.visits_ahead
            words[:, offset : offset + record.width] = visits
            signs = np.where(visits > 0, (1 + visits % 2) << 30, 0)
            one.clock[...] = (one.clock + visits // 2) | signs
        else:
            one.clock[...] += visits.astype(np.uint32)
    return base, all_


def check_renewed(
    record: Any, before: Rows, after: Rows, fresh: Rows, visits: np.ndarray, renews: int
) -> None:
    """0: replicas are as they were; 2: they are the next table, in these rows; 1: where somebody
    has visited a chunk."""
    old, new = (rows.raw.reshape(K, N, -1) for rows in (before, after))
    table, each = fresh.raw.reshape(N, -1), chunks.chunk_rows(record.width)
    seen = np.zeros(N, bool)
    mine = visits.reshape(STOP - FIRST, -1).any(axis=1)
    for first in range(0, STOP - FIRST, each):
        seen[FIRST + first : FIRST + min(first + each, STOP - FIRST)] = (
            mine[first : first + each].any()
        )
    if renews == 2:
        seen[FIRST:STOP] = True
    if renews == 0:
        seen[:] = False
    assert seen.sum() < N
    assert np.array_equal(new[:, seen], np.broadcast_to(table[seen], new[:, seen].shape))
    assert np.array_equal(new[:, ~seen], old[:, ~seen])


@pytest.mark.parametrize(
    ("fusion", "step_size", "dtype", "rule", "renews"),
    [("pooled", "rescaled_linear", "float64", "q_learning", 1),
     ("count", "sign_change", "float32", "q_learning", 2),
     ("mean", "rescaled_linear", "float32", "double_q", 1),
     ("delta_capped", "sign_change", "float64", "double_q", 0)],
)  # fmt: skip
def test_what_is_read_gives_the_bits_of_what_is_added_up(
    fusion: str, step_size: str, dtype: str, rule: str, renews: int
) -> None:
    settings = config(agents=K, fusion=fusion, step_size=step_size, dtype=dtype, rule=rule)
    record = record_of(settings.learn, 3)
    width, requests = record.width, fusion_kernels(settings, record)
    loaded, (base, all_) = compiled(requests), replicas(settings, record)
    n_tiles = -(-N // fusing.tile_rows(width))
    ones, scratch = np.ones(n_tiles, np.uint8), chunks.scratch(width)
    tables = (base.q, base.clock_words)
    control = np.array([FIRST, STOP - FIRST, K, 7, 2, N, renews], np.uint64)
    lifetime = np.arange((STOP - FIRST) * width, dtype=np.uint64)
    unstable = np.zeros(1, np.int64)
    results, read = [], requests["fuse_replicas"]
    for loop in (plain(read.template, read.parts), loaded["fuse_replicas"]):
        fresh, after, found = Rows(record, N), np.zeros(lifetime.size, np.uint64), np.zeros(5)
        learned = Rows(record, K * N, all_.raw.copy())
        loop(fresh.q, fresh.clock_words, *tables, learned.q, learned.clock_words, lifetime, after,
             control, RATES, found, unstable, ones, ones, np.zeros(n_tiles, np.uint64),
             *scratch)  # fmt: skip
        visits = after - lifetime
        results.append((fresh.raw.tobytes(), visits.tobytes(), unstable.tobytes(), found.tolist()))
        check_renewed(record, all_, learned, fresh, visits, renews)
    assert results[0] == results[1] and results[0][3][fusing.VISITS] > 0
    sums = [np.zeros(N * width, np.int64) for _ in range(5)]
    for k in range(K):
        one = Rows(record, N, all_.raw[k * N * record.row_bytes : (k + 1) * N * record.row_bytes])
        loaded["contribute"](
            one.q, one.clock_words, *tables, *sums, RATES, np.zeros(5),
            np.ones(n_tiles, np.uint64), ones.copy(), *scratch,
        )  # fmt: skip
    own = [np.ascontiguousarray(array[FIRST * width : STOP * width]) for array in sums]
    fresh = Rows(record, N)
    loaded["fuse"](fresh.q, fresh.clock_words, *tables, *own, lifetime, control, RATES, unstable,
                   ones, *scratch)  # fmt: skip
    added = (fresh.raw.tobytes(), own[1].tobytes(), unstable.tobytes())
    assert added == results[0][:3]


@pytest.mark.parametrize("alpha", [1e-6, 1e-5, 3.1e-5, 0.3])
def test_small_steps_count_in_what_decides_the_period(alpha: float) -> None:
    settings = config(agents=2, step_size="constant", alpha=alpha)
    record = record_of(settings.learn, 4)
    base, replica = Rows(record, 1), Rows(record, 1)
    replica.clock[...] = 2000
    loop = fusion_kernels(settings, record)["contribute"]
    found, sums = np.zeros(5), [np.zeros(4, np.int64) for _ in range(5)]
    plain(loop.template, loop.parts)(
        replica.q, replica.clock_words, base.q, base.clock_words, *sums,
        np.array([0.9, alpha, 2.0**40, 16.0]), found, np.ones(1, np.uint64), np.ones(1, np.uint8),
        *chunks.scratch(4),
    )  # fmt: skip
    expected = 4 * min(alpha * 2000 * 1999, 2.0**20)
    assert found[fusing.LENGTH] == pytest.approx(expected, rel=1e-4)


def run(settings: Any, environment: Any, transport: Any) -> tuple[bytes, bool]:
    kernels = compiled(Allreduce.requests(settings, environment))
    state = Allreduce(settings, environment, kernels, transport)
    for _ in range(6):
        state.learn()
        while state.exchange((False, False, False)) is None:
            state.rollback()
            state.learn()
        state.commit()
    return state.base.raw.tobytes(), state.reads


def test_hosts_with_the_same_name_are_not_one_host() -> None:
    environment = random_model(9000, 3)
    settings = config(agents=4, lanes=8, steps_per_round=5)
    alone, _ = run(settings, environment, Alone())

    def named(transport: Any) -> tuple[bytes, bool]:
        transport.hosts = ("localhost",) * 4
        return run(settings, environment, transport)

    for nodes, reads in (([0, 0, 1, 1], False), ([0, 0, 0, 0], True), ([0, 1, 2, 3], True)):
        assert together(4, named, nodes) == [(alone, reads)] * 4


@pytest.mark.parametrize("agents", [2, 5])
def test_a_host_without_room_in_common_memory_is_told_and_changes_no_bit(agents: int) -> None:
    environment = random_model(12_000, 3)
    settings = config(agents=agents, lanes=8, steps_per_round=5)
    kernels = compiled(Allreduce.requests(settings, environment))
    alone, _ = run(settings, environment, Alone())

    def crowded(transport: Any) -> list[tuple[str, str]]:
        transport.host_memory = lambda *wanted: None
        assert run(settings, environment, transport) == (alone, agents == 2)
        state = Allreduce(settings, environment, kernels, transport)
        return state.notices()

    for told in together(2, crowded, [0, 0]):
        ((kind, message),) = told
        assert kind == "no_host_memory" and "/dev/shm has no room for" in message
    quiet = together(2, lambda t: Allreduce(settings, environment, kernels, t).notices(), [0, 0])
    assert quiet == [[], []]


@pytest.mark.parametrize("changes", [{}, {"n_steps": 3}])
def test_nobody_fuses_before_all_have_committed_the_round_before(changes: dict[str, Any]) -> None:
    """Ranks without agents send no rows: what comes first must wait for them all the same."""
    environment = random_model(9000, 3)
    settings = config(agents=2, lanes=8, steps_per_round=5, **changes)
    kernels = compiled(Allreduce.requests(settings, environment))

    def first_of_exchange(transport: Any) -> str:
        state = Allreduce(settings, environment, kernels, transport)
        assert state.reads
        state.learn()
        called: list[str] = []
        for name in ("max_int", "sum_int", "move_rows", "allgather_rows"):
            real = getattr(transport, name)

            def told(*words: Any, name: str = name, real: Any = real) -> Any:
                called.append(name)
                return real(*words)

            setattr(transport, name, told)
        state.exchange((False, False, False))
        return called[0]

    assert set(together(4, first_of_exchange)) == {"max_int"}
