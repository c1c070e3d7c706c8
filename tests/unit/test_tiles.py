"""Passes that leave out what nobody touched: which rows they go over, and that no bit changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from distq_mpi import environments
from distq_mpi.architectures import Allreduce
from distq_mpi.architectures.tiles import Tiles
from distq_mpi.config import EnvConfig
from tests.stand_in import Alone, compiled, config, together

N = 110


def flags(tiles: Tiles, *numbers: int) -> np.ndarray:
    found = np.zeros_like(tiles.changed)
    found[list(numbers)] = 1
    return found


def test_runs_are_of_flagged_tiles_within_a_block() -> None:
    tiles = Tiles(10 * 1024 + 5, 4, True)
    assert tiles.rows == 1024 and len(tiles.changed) == 11
    some = flags(tiles, 0, 1, 3, 10)
    assert tiles.runs(some, 0, tiles.n_rows) == [(0, 2048), (3072, 4096), (10240, 10245)]
    assert tiles.runs(some, 1000, 3500) == [(1000, 2048), (3072, 3500)]
    assert [run for run in tiles.runs(some, 700, 700) if run[0] < run[1]] == []
    tiles.sparse = False
    assert tiles.runs(some, 3, 9) == [(3, 9)]


def test_what_differs_after_a_commit_and_after_a_rollback() -> None:
    tiles = Tiles(4 * 1024, 4, True)
    assert tiles.replica_runs() == [(0, 4096)]
    tiles.begin()
    tiles.touched[1] = 1
    tiles.learned()
    tiles.meet([tiles.touched, flags(tiles, 2)])
    assert tiles.due.all() and tiles.stale_sums(0, 4096) == [(0, 1024), (3072, 4096)]
    tiles.commit()
    assert tiles.replica_runs() == [(1024, 3072)] and tiles.replica_runs() == []
    tiles.begin()
    tiles.meet([tiles.touched])
    assert tiles.due.tolist() == [0, 1, 1, 0]
    assert tiles.stale_sums(0, 4096) == [(1024, 3072)]
    tiles.commit()
    tiles.begin()
    tiles.meet([tiles.touched])
    assert not tiles.due.any()
    tiles.forget()
    assert tiles.replica_runs() == [(0, 4096)]


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
    ways = bytes([state.tiles.sparse, state.reads])
    state.close()
    return told[-1], visits.tobytes(), lanes, ways


CHANGES = [
    {}, {"fusion": "count"}, {"rule": "double_q"}, {"step_size": "sign_change"},
    {"fusion": "delta_capped"}, {"fusion": "mean", "dtype": "float32"}, {"n_steps": 3},
]  # fmt: skip


@pytest.mark.parametrize("changes", CHANGES)
@pytest.mark.parametrize("agents", [4, 3, 2])
def test_common_memory_messages_and_replicas_that_owners_read_give_the_same_bits(
    changes: dict[str, Any], agents: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four agents on three ranks are added up; three, or two, are read where they learned."""
    env = EnvConfig(id="grid", kwargs={"rows": N, "columns": N, "slip": 0.2})
    environment = environments.make(env)
    settings = config(agents=agents, lanes=12, steps_per_round=9, seed=3, **changes)
    kernels = compiled(Allreduce.requests(settings, environment))
    ways = []

    def run(transport: Any) -> tuple[bytes, ...]:
        found = learned(transport, kernels, settings, environment)
        ways.append(found[3])
        return found

    alone = run(Alone())
    shared, apart = together(3, run, [0, 0, 0]), together(3, run, [0, 1, 2])
    two, messages = together(2, run, [0, 0]), together(3, run)
    sparse, reads = "n_steps" not in changes, agents < 4
    assert [one[3] for one in shared] == [bytes([sparse, reads])] * 3
    assert [one[3] for one in apart] == [bytes([sparse and reads, reads])] * 3
    assert [one[3] for one in two] == [bytes([sparse, agents == 2])] * 2
    assert [one[3] for one in messages] == [bytes([sparse and reads, reads])] * 3
    assert {one[0] for one in (*shared, *apart, *two, *messages)} == {alone[0]}
    for ranks in (shared, apart, two, messages):
        visits = b"".join(one[1] for one in ranks)
        assert visits == alone[1]
        assert b"".join(one[2] for one in ranks) == alone[2]
