"""Passes that leave out what nobody touched: which rows they go over, and that no bit changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from distq_mpi import environments
from distq_mpi.architectures import Allreduce
from distq_mpi.architectures.tiles import Tiles
from distq_mpi.config import EnvConfig
from tests.stand_in import compiled, config, together

N = 110


def flags(tiles: Tiles, *numbers: int) -> np.ndarray:
    found = np.zeros_like(tiles.changed)
    found[list(numbers)] = 1
    return found


def test_runs_are_of_flagged_tiles_within_a_block() -> None:
    tiles = Tiles(10 * 1024 + 5, 4, True)
    assert tiles.rows == 1024 and len(tiles.changed) == 11
    some = flags(tiles, 0, 1, 3, 10)
    assert list(tiles.runs(some, 0, tiles.n_rows)) == [(0, 2048), (3072, 4096), (10240, 10245)]
    assert list(tiles.runs(some, 1000, 3500)) == [(1000, 2048), (3072, 3500)]
    assert [run for run in tiles.runs(some, 700, 700) if run[0] < run[1]] == []
    tiles.sparse = False
    assert list(tiles.runs(some, 3, 9)) == [(3, 9)]


def test_what_differs_after_a_commit_and_after_a_rollback() -> None:
    tiles = Tiles(4 * 1024, 4, True)
    assert list(tiles.replica_runs()) == [(0, 4096)]
    tiles.begin()
    tiles.touched[1] = 1
    tiles.learned()
    tiles.meet([tiles.touched, flags(tiles, 2)])
    assert tiles.due.all() and list(tiles.stale_sums(0, 4096)) == [(0, 1024), (3072, 4096)]
    tiles.commit()
    assert list(tiles.replica_runs()) == [(1024, 3072)] and list(tiles.replica_runs()) == []
    tiles.begin()
    tiles.meet([tiles.touched])
    assert tiles.due.tolist() == [0, 1, 1, 0]
    assert list(tiles.stale_sums(0, 4096)) == [(1024, 3072)]
    tiles.commit()
    tiles.begin()
    tiles.meet([tiles.touched])
    assert not tiles.due.any()
    tiles.forget()
    assert list(tiles.replica_runs()) == [(0, 4096)]


def learned(transport: Any, kernels: Any, settings: Any, environment: Any) -> tuple[bytes, ...]:
    """Rows, visits and lanes after some rounds, of which two are taken back and made again."""
    state = Allreduce(settings, environment, kernels, transport)
    told = []
    for number in range(12):
        state.learn()
        agreed = state.exchange((False, False, False))
        if agreed is None or number in (3, 4):
            state.rollback()
            continue
        state.commit()
        told.append(state.base.raw.tobytes())
    (visits,) = (state.lifetime.copy(),)
    lanes = b"".join(agent.committed.raw.tobytes() for agent in state.agents)
    sparse = state.tiles.sparse
    state.close()
    return told[-1], visits.tobytes(), lanes, bytes([sparse])


@pytest.mark.parametrize(
    "changes",
    [{}, {"fusion": "count"}, {"rule": "double_q"}, {"step_size": "sign_change"},
     {"fusion": "delta_capped"}],
)  # fmt: skip
def test_in_common_memory_the_bits_are_those_of_messages(changes: dict[str, Any]) -> None:
    env = EnvConfig(id="grid", kwargs={"rows": N, "columns": N, "slip": 0.2})
    environment = environments.make(env)
    settings = config(agents=4, lanes=12, steps_per_round=9, seed=3, **changes)
    kernels = compiled(Allreduce.requests(settings, environment))

    def run(transport: Any) -> tuple[bytes, ...]:
        return learned(transport, kernels, settings, environment)

    shared, apart = together(3, run, [0, 0, 0]), together(3, run, [0, 1, 2])
    assert [one[3] for one in shared] == [b"\1"] * 3 and [one[3] for one in apart] == [b"\0"] * 3
    assert [one[:3] for one in shared] == [one[:3] for one in apart]
    assert len({one[0] for one in shared}) == 1
