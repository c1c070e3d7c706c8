"""Ranks that die in any collective of a round, where no rank waits longer than MPI has it wait."""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from distq_mpi.architectures import Allreduce, Served, ServedInStep, Sharded
from distq_mpi.architectures.desk import Desk
from distq_mpi.architectures.hosting import Hosted
from distq_mpi.architectures.worker import Worker
from distq_mpi.errors import RanksLost
from tests.stand_in import Alone, Killed, compiled, config, random_model, together

N_RANKS, ROUNDS, BROKEN = 4, 7, 3
"""Rounds; the one in which a rank dies, when that many are committed."""
SMALL, LARGE = (20, 3), (9000, 3)
ONE_HOST, TWO_HOSTS = [0] * N_RANKS, [0, 0, 1, 1]
PATHS: dict[str, tuple[Any, tuple[int, int], list[int] | None, dict[str, Any]]] = {
    "one agent": (Allreduce, SMALL, None, {"agents": 1}),
    "one agent, signs": (Allreduce, SMALL, None, {"agents": 1, "step_size": "sign_change"}),
    "one agent, sweeps": (Allreduce, SMALL, None, {"agents": 1, "sampling": "generative"}),
    "one worker": (ServedInStep, SMALL, None, {"agents": 1, "servers": 3}),
    "two workers": (ServedInStep, LARGE, None, {"agents": 4, "servers": 2}),
    "whole": (Allreduce, SMALL, None, {"agents": 2}),
    "maximum": (Allreduce, SMALL, None, {"agents": 4, "fusion": "max", "force": True}),
    "median": (Allreduce, SMALL, None, {"agents": 4, "fusion": "median"}),
    "replicas by message": (Allreduce, LARGE, None, {"agents": 2}),
    "replicas in common": (Allreduce, LARGE, ONE_HOST, {"agents": 4}),
    "sums by message": (Allreduce, LARGE, None, {"agents": 8}),
    "sums in common": (Allreduce, LARGE, ONE_HOST, {"agents": 8}),
    "sums of two hosts": (Allreduce, LARGE, TWO_HOSTS, {"agents": 8}),
}
"""Ways to fuse: architecture, states and actions, hosts, configuration."""


@functools.cache
def made(path: str) -> tuple[Any, Any, Any]:
    """Environment, configuration and kernels."""
    kind, shape, _, changes = PATHS[path]
    environment = random_model(*shape)
    settings = config(**{"lanes": 8, "steps_per_round": 5, **changes})
    return environment, settings, compiled(kind.requests(settings, environment))


def play(path: str, transport: Any, survives: bool = True) -> tuple[bytes, bytes, int]:
    """Table and visits after all rounds, whoever is lost; and how often ranks were."""
    environment, settings, kernels = made(path)
    transport.survives = survives
    state = PATHS[path][0](settings, environment, kernels, transport)

    def go_on() -> None:
        while state.progress.round < ROUNDS:
            transport.round = state.progress.round
            state.learn()
            agreed = state.exchange((False, False, False))
            (state.rollback if agreed is None else state.commit)()
        transport.agree()

    lost = survived(go_on, functools.partial(recover, state, environment), transport)
    visits = np.concatenate([rows[3] for rows in state.iter_rows()])
    return state.base.raw.tobytes(), visits.tobytes(), lost


def survived(go_on: Callable[[], Any], recovering: Callable[[], Any], transport: Any) -> int:
    """Go on to the end, recovering after every loss; return how many there were."""
    work, lost = go_on, 0
    while True:
        try:
            work()
            if work is go_on:
                return lost
            work = go_on
        except RanksLost:
            lost += 1
            transport.recover()
            work = recovering


def recover(state: Any, environment: Any) -> None:
    assert state.recover(environment)


def watch(transport: Any, death: int | None) -> list[int]:
    """Count a rank's collectives in the round BROKEN; there it dies on entering number `death`,
    when every other rank has entered it."""
    real, count = transport._exchange, [0]

    def counted(*words: Any) -> Any:
        if getattr(transport, "round", -1) == BROKEN:
            if count[0] == death:
                for rank in range(transport.size):
                    if rank != transport.rank:
                        transport.await_rank(rank)
                raise Killed
            count[0] += 1
        return real(*words)

    transport._exchange = counted
    return count


@pytest.mark.parametrize("path", PATHS)
def test_a_rank_that_dies_in_any_collective_of_a_round_changes_no_bit(path: str) -> None:
    """A base is not written to while a rank may need it, whichever ranks leave early."""
    hosts = PATHS[path][2]
    wanted = play(path, Alone(), survives=False)[:2]

    def undisturbed(transport: Any) -> Any:
        count = watch(transport, None)
        return *play(path, transport), count[0]

    (n_collectives,) = {one[3] for one in together(N_RANKS, undisturbed, hosts)}
    assert n_collectives
    for victim in range(N_RANKS):
        for death in range(n_collectives):

            def dying(transport: Any, victim: int = victim, death: int = death) -> Any:
                if transport.rank == victim:
                    watch(transport, death)
                return play(path, transport)

            found = together(N_RANKS, dying, hosts)
            left = [one for rank, one in enumerate(found) if rank != victim]
            where = f"rank {victim} in collective {death} of {n_collectives}"
            assert found[victim] is None and {one[2] for one in left} == {1}, where
            assert left[0][:2] == wanted and {one[0] for one in left} == {wanted[0]}, where


MODEL = random_model(20, 3)


def play_protected(kernels: Any, transport: Any, **changes: Any) -> tuple[bytes, int]:
    """Table and clocks of a sharded run after all rounds, and how often ranks were lost."""
    settings = config(agents=0, lanes=8, steps_per_round=5, **changes)
    transport.survives = transport.size > 1
    state = Sharded(settings, MODEL, kernels, transport)

    def go_on() -> None:
        while state.progress.round < ROUNDS:
            transport.round = state.progress.round
            state.learn()
            state.exchange((False, False, False))
            state.commit()
        transport.agree()

    lost = survived(go_on, functools.partial(recover, state, MODEL), transport)
    rows = [q.tobytes() + clock.tobytes() for _, q, clock, _ in state.iter_rows()]
    return b"".join(rows), lost


@pytest.mark.parametrize("often", [True, False])
def test_a_rank_that_dies_in_any_collective_of_a_sharded_round_changes_no_bit(
    often: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows change in place; they return to the last commit, of the round or of the first one."""
    monkeypatch.setattr("distq_mpi.architectures.sharded.COMMIT_STEPS", 1 if often else 10**6)
    given = config(agents=0, lanes=8, protect="partner")
    kernels = compiled(Sharded.requests(given, MODEL))
    plain = compiled(Sharded.requests(config(agents=0, lanes=8), MODEL))
    wanted, _ = play_protected(plain, Alone())

    def undisturbed(transport: Any) -> Any:
        count = watch(transport, None)
        return *play_protected(kernels, transport, protect="partner"), count[0]

    (n_collectives,) = {one[2] for one in together(N_RANKS, undisturbed)}
    for victim in range(N_RANKS):
        for death in range(n_collectives):

            def dying(transport: Any, victim: int = victim, death: int = death) -> Any:
                if transport.rank == victim:
                    watch(transport, death)
                return play_protected(kernels, transport, protect="partner")

            found = together(N_RANKS, dying)
            left = [one for rank, one in enumerate(found) if rank != victim]
            where = f"rank {victim} in collective {death} of {n_collectives}"
            assert found[victim] is None and {one[1] for one in left} == {1}, where
            assert left[0][0] == wanted, where


class Here(threading.local):
    """Of a rank that learns out of step: its state and transport, and pushes until it dies."""

    state: Any = None
    transport: Any = None
    left: float = float("inf")

    def count(self) -> None:
        """Count a push that was sent, or applied, from the third round on."""
        if self.state is not None and self.state.progress.round >= 2:
            self.left -= 1
            if self.left == 0:
                raise Killed


def play_out_of_step(here: Here, settings: Any, kernels: Any) -> int:
    """Return how often ranks were lost."""
    transport, lost = here.transport, 0
    transport.survives = True
    state = here.state = Served(settings, MODEL, kernels, transport)

    def go_on() -> None:
        while state.progress.round < 5:
            state.learn()
            state.exchange((False, False, False))
            state.commit()
        transport.agree()

    work: Callable[[], Any] = go_on
    while True:
        try:
            work()
            if work is go_on:
                return lost
            work = go_on
        except RanksLost:
            lost += 1
            transport.recover()
            work = functools.partial(recover, state, MODEL)


@pytest.mark.parametrize(
    ("servers", "victims", "protect"),
    [(1, {2}, "off"), (1, {1, 3}, "off"), (1, {2}, "partner"), (2, {1}, "partner"),
     (2, {1, 3}, "partner")],
)  # fmt: skip
def test_out_of_step_no_random_number_that_had_a_part_in_a_row_is_drawn_again(
    servers: int, victims: set[int], protect: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of steps that were pushed, of new starts, and of how servers round pushes."""
    steps: dict[int, list[int]] = {}
    versions: dict[int, set[int]] = {}
    here = Here()

    def learn(self: Any, agent: Any, now: int, n_steps: int, real: Any = Worker.learn) -> int:
        n_made: int = real(self, agent, now, n_steps)
        steps.setdefault(agent.number, []).extend(range(now + 1, now + n_made + 1))
        return n_made

    def begin(self: Any, *words: Any, real: Any = Hosted.begin) -> None:
        steps.setdefault(self.number, []).append(words[3] if words[3:] else 0)
        real(self, *words)

    def push(self: Any, *words: Any, real: Any = Worker.push) -> Any:
        found = real(self, *words)
        here.count()
        return found

    def apply(self: Any, words: Any, real: Any = Desk._apply) -> None:
        real(self, words)
        versions.setdefault(here.transport._generation, set()).add(self.version)
        here.count()

    monkeypatch.setattr(Worker, "learn", learn)
    monkeypatch.setattr(Hosted, "begin", begin)
    monkeypatch.setattr(Worker, "push", push)
    monkeypatch.setattr(Desk, "_apply", apply)
    settings = config(
        agents=5 - servers, lanes=8, steps_per_round=5, servers=servers, staleness=1,
        protect=protect, dtype="float32",
    )  # fmt: skip
    kernels = compiled(Served.requests(settings, MODEL))

    def work(transport: Any) -> int:
        here.transport = transport
        if transport.rank in victims:
            here.left = 3 + 2 * transport.rank
        return play_out_of_step(here, settings, kernels)

    found = together(5, work)
    assert [rank for rank in range(5) if found[rank] is None] == sorted(victims)
    for made in steps.values():
        assert sorted(made) == sorted(set(made))
    generations = [versions[k] for k in sorted(versions)]
    for before, after in itertools.pairwise(generations):
        assert max(before) < min(after)
