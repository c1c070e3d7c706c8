"""Rows that partners keep: what is left of a table when ranks are gone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from distq_mpi.architectures import Sharded
from distq_mpi.architectures import partner as partner_module
from distq_mpi.architectures.partner import (
    SMALL_BYTES,
    memory_bytes,
    partner_distance,
    room_for,
)
from distq_mpi.kernels import undoing
from distq_mpi.kernels.objects import LoadedKernel
from distq_mpi.table import Rows, record_of
from tests.stand_in import compiled, config, random_model, together

N_STATES, ROUNDS = 200, 12
ENVIRONMENT = random_model(N_STATES, 3)


def settings(**changes: Any) -> Any:
    given = {"agents": 0, "lanes": 5, "steps_per_round": 20, "protect": "partner", **changes}
    return config(**given)


def play(this: Any, n_rounds: int) -> None:
    for _ in range(n_rounds):
        this.learn()
        this.exchange((False, False, False))
        this.commit()


def table(this: Any) -> np.ndarray:
    """Values and clocks (S, 2 A): a clock left ahead of its value learns it anew too slowly."""
    return np.concatenate([np.hstack([q, clock]) for _, q, clock, _ in this.iter_rows()])


def alone(n_rounds: int) -> np.ndarray:
    given = settings(protect="off")
    kernels = compiled(Sharded.requests(given, ENVIRONMENT))

    def work(transport: Any) -> np.ndarray:
        this = Sharded(given, ENVIRONMENT, kernels, transport)
        play(this, n_rounds)
        return table(this)

    found: np.ndarray = together(1, work)[0]
    return found


def until_loss(
    size: int, kernels: dict[str, LoadedKernel], point: str, hosts: list[int] | None = None
) -> list[Any]:
    """Ranks after five rounds and a part of the sixth, in which they come to a point."""

    def work(transport: Any) -> Any:
        transport.survives = True
        this = Sharded(settings(), ENVIRONMENT, kernels, transport)
        play(this, 5)
        this.learn()
        if point == "learned":
            return this
        if point == "staging":  # nobody has agreed
            assert this.protection is not None
            this.protection.is_due(True)
            this.protection.stage()
            return this
        this.exchange((False, False, False))
        if point == "committed" or transport.rank == 1:
            this.commit()
        if point == "ahead" and transport.rank == 1:  # it has begun the next round: rows change
            this._travel(this.progress.lane_steps + 1, 1)
        return this

    return together(size, work, hosts)


def recovered(ranks: list[Any], lost: set[int]) -> list[tuple[bool, int, np.ndarray]]:
    """Whether those left came to a table, after which rounds, and the table after `ROUNDS`."""
    left = [k for k in range(len(ranks)) if k not in lost]

    def work(transport: Any) -> Any:
        transport.survives, transport.numbers = True, left
        this = ranks[left[transport.rank]]
        this.transport = transport
        if not this.recover(ENVIRONMENT):
            return False, 0, np.zeros(0)
        found = this.progress.round
        play(this, ROUNDS - found)
        return True, found, table(this)

    told: list[tuple[bool, int, np.ndarray]] = together(len(left), work)
    return told


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commits after 500 steps: every fifth round."""
    monkeypatch.setattr(partner_module, "COMMIT_STEPS", 2.5)
    monkeypatch.setattr("distq_mpi.architectures.sharded.COMMIT_STEPS", 2.5)


@pytest.mark.parametrize("point", ["learned", "staging", "between", "committed", "ahead"])
@pytest.mark.parametrize(("size", "lost"), [(2, {0}), (3, {1}), (3, {2}), (4, {0, 2})])
def test_those_left_go_on_from_one_commit_with_the_same_bits(
    point: str, size: int, lost: set[int], often: None
) -> None:
    kernels = compiled(Sharded.requests(settings(), ENVIRONMENT))
    ranks = until_loss(size, kernels, point)
    told = recovered(ranks, lost)
    assert all(found for found, _, _ in told)
    assert {number for _, number, _ in told} <= {1, 6}
    assert np.array_equal(told[0][2], alone(ROUNDS))


def test_a_block_that_is_gone_with_its_copy_is_missed(often: None) -> None:
    kernels = compiled(Sharded.requests(settings(), ENVIRONMENT))
    assert [found for found, _, _ in recovered(until_loss(4, kernels, "learned"), {1, 2})] == [
        False, False,
    ]  # fmt: skip


def test_a_host_may_go_where_partners_are_on_others(often: None) -> None:
    kernels = compiled(Sharded.requests(settings(), ENVIRONMENT))
    ranks = until_loss(6, kernels, "learned", [0, 0, 1, 1, 2, 2])
    told = recovered(ranks, {2, 3})
    assert all(found for found, _, _ in told) and np.array_equal(told[0][2], alone(ROUNDS))


def test_partners_are_on_other_hosts_where_there_are_any() -> None:
    assert partner_distance(["a"] * 4) == 1
    assert partner_distance(["a", "a", "b", "b"]) == 2
    assert partner_distance(["a", "b", "a", "b"]) == 1
    assert partner_distance(["a", "a", "a", "b", "b", "b"]) == 3


def test_it_takes_at_most_one_and_a_half_blocks_more() -> None:
    for n_rows in (10**7, 10**8, 10**9):
        for row_bytes in (16, 32, 64, 192):
            more, block = sum(memory_bytes(n_rows, row_bytes).values()), n_rows * row_bytes
            # Blocks below 300 MB: the copy, and the most that a small log and its like take.
            assert more <= (1.5 * block if block > 300e6 else block + 2.2 * SMALL_BYTES)
            assert room_for(n_rows, row_bytes) > 0.15 * n_rows
    assert room_for(1000, 32) == 1000


def test_a_full_log_is_told_and_cannot_be_undone(
    often: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distq_mpi.architectures.sharded.room_for", lambda *a: 3)
    kernels = compiled(Sharded.requests(settings(), ENVIRONMENT))
    ranks = until_loss(3, kernels, "learned")
    told = [kind for rank in ranks for kind, _ in rank.notices()]
    assert set(told) == {"log_full"}
    assert [found for found, _, _ in recovered(ranks, {1})] == [False, False]


def test_the_log_holds_rows_as_they_were_once() -> None:
    record = record_of(config().learn, 3)
    rows = Rows(record, 70)
    rows.raw[:] = np.random.default_rng(1).integers(0, 256, rows.raw.size, np.uint8)
    before, slots = rows.raw.copy(), partner_module.slots_with_log(4, rows, 2)
    keep = undoing.keep_row(record.row_bytes // 8)
    for row in (65, 3, 65, 69, 65):
        keep(rows.clock_words, slots, np.uint64(4), np.uint64(row))
        rows.raw.reshape(70, -1)[row] += 1
    log = slots[4:]
    assert log[undoing.COUNT] == 3 and log[undoing.CAPACITY] == 2
    entries = slots[int(log[undoing.ENTRIES]) :].reshape(2, -1)
    assert entries[:, 0].tolist() == [65, 3]
    for number, *row in entries.tolist():
        old = before.reshape(70, -1)[number].view(np.uint64)
        assert old.tolist() == row
