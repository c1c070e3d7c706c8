"""What a small table's round does between learning and fusing, in compiled calls."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from distq_mpi.architectures import Allreduce
from distq_mpi.architectures.room import Room
from distq_mpi.fusion import FUSIONS
from distq_mpi.kernels.rounds import LINE, MET, room_bytes, round_kernels
from tests.driving import Job
from tests.stand_in import Alone, compiled, config, plain, random_model, together

u8, i8 = np.uint64, np.int64
SUMMED = [name for name in FUSIONS if FUSIONS[name].adds]


def both(name: str) -> list[Callable[..., Any]]:
    """A kernel as the plain function it is, and compiled."""
    request = round_kernels(name)[name]
    return [plain(request.template, request.parts), compiled({name: request})[name]]


@pytest.mark.parametrize("use_compiled", [False, True])
def test_a_round_begins_where_the_last_one_ended(use_compiled: bool) -> None:
    rng = np.random.default_rng(0)
    base, committed = (rng.integers(0, 256, n).astype(np.uint8) for n in (97, 41))
    replica, lanes = np.zeros(97, np.uint8), np.zeros(41, np.uint8)
    message, totals = np.arange(5), np.ones(3)
    both("take_up")[use_compiled](base, replica, committed, lanes, message, totals)
    assert np.array_equal(base, replica) and np.array_equal(committed, lanes)
    assert not message.any() and not totals.any()


@pytest.mark.parametrize("use_compiled", [False, True])
def test_visits_are_counted_beside_the_old_ones(use_compiled: bool) -> None:
    before = np.array([2**63, 0, 7], u8)
    after = np.zeros(3, u8)
    both("count_visits")[use_compiled](before, np.array([5, 0, 1], i8), after)
    assert after.tolist() == [2**63 + 5, 0, 8] and before.tolist() == [2**63, 0, 7]


def test_kernels_are_called_in_turn() -> None:
    kernels = compiled(round_kernels("in_turn", "count_visits"))
    count = kernels["count_visits"].bind
    a, b, c, visits = np.zeros(1, u8), np.zeros(1, u8), np.zeros(1, u8), np.ones(1, i8)
    turns = kernels["in_turn"].bind_calls([count(a, visits, b), count(b, visits, c)])
    del count
    for now in range(3):
        a[0] = now
        turns()
        assert (b[0], c[0]) == (now + 1, now + 2)


def test_a_sum_in_a_room_is_that_of_all_ranks_in_every_meeting() -> None:
    """Real threads, of which one comes late now and then; 5 on fewer cores."""
    n, ranks, n_meetings = 37, 5, 400
    room = np.zeros(room_bytes(n, ranks) // 8, i8)
    kernel = compiled(round_kernels("sum_in_room"))["sum_in_room"]
    wrong: list[tuple[int, int]] = []

    def work(rank: int) -> None:
        message, control = np.zeros(n, i8), np.array([rank, ranks, 0, 50 * rank], u8)
        add = kernel.bind(message, room, control)
        for now in range(n_meetings):
            if now % 100 == 20 * rank:
                time.sleep(0.005)
            message[:] = (now + 1) * (rank + 1) * np.arange(n)
            add()
            if not np.array_equal(message, (now + 1) * 15 * np.arange(n)):
                wrong.append((rank, now))
        if control[MET] != n_meetings:
            wrong.append((rank, int(control[MET])))

    threads = [threading.Thread(target=work, args=(rank,), daemon=True) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert wrong == []


def test_a_rank_waits_in_a_room_until_all_have_come() -> None:
    room, message = np.zeros(room_bytes(1, 2) // 8, i8), np.array([3], i8)
    add = compiled(round_kernels("sum_in_room"))["sum_in_room"].bind(
        message, room, np.array([0, 2, 0, 10], u8)
    )
    waiting = threading.Thread(target=add, daemon=True)
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive() and message[0] == 3
    room[2 * LINE + 2 + 1] = 4  # rank 1, meeting 1: its message, then that it has come
    room[LINE] = 1
    waiting.join(60)
    assert not waiting.is_alive() and message[0] == 7


@pytest.mark.parametrize("fusion", SUMMED)
def test_a_room_gives_the_bits_of_messages(fusion: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with more ranks than agents, and in rounds that overflow and are run again."""
    settings = config(
        agents=3, lanes=23, steps_per_round="auto", discount=0.95, fusion=fusion, dtype="float32"
    )
    environment = random_model(17, 3)
    work = Job(settings, environment, compiled(Allreduce.requests(settings, environment)))
    found: list[Room | None] = []
    make = Room.of
    monkeypatch.setattr(Room, "of", lambda *given: found.append(make(*given)) or found[-1])
    for exponent in (None, -6):
        alone = work.run(Alone(), 8, exponent)
        assert exponent is None or alone["repeated"] >= 1
        for size in (2, 4):
            found.clear()
            ranks = together(size, lambda one, e=exponent: work.run(one, 8, e), [0] * size)
            assert len(found) == size and None not in found
            for rank in ranks:
                for key in ("table", "visits", "progress", "repeated"):
                    assert rank[key] == alone[key], key


def test_there_is_no_room_where_a_lost_rank_would_be_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kernel = compiled(round_kernels("sum_in_room"))["sum_in_room"]

    def room(transport: Any) -> Room | None:
        return Room.of(transport, np.zeros(4, i8), kernel)

    assert all(together(2, room, [0, 0]))
    assert together(2, room, [0, 1]) == [None, None]
    monkeypatch.setenv("OMPI_MCA_mpi_ft_enable", "1")
    assert together(2, room, [0, 0]) == [None, None]
