"""Ranks that die in any collective of a round, where no rank waits longer than MPI has it wait."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from distq_mpi.architectures import Allreduce, ServedInStep
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
    state, lost = PATHS[path][0](settings, environment, kernels, transport), 0

    def go_on() -> None:
        while state.progress.round < ROUNDS:
            transport.round = state.progress.round
            state.learn()
            agreed = state.exchange((False, False, False))
            (state.rollback if agreed is None else state.commit)()
        transport.agree()

    work: Callable[[], Any] = go_on
    while True:
        try:
            work()
            if work is go_on:
                break
            work = go_on
        except RanksLost:
            lost += 1
            transport.recover()
            work = functools.partial(recover, state, environment)
    visits = np.concatenate([rows[3] for rows in state.iter_rows()])
    return state.base.raw.tobytes(), visits.tobytes(), lost


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
