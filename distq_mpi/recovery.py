"""What a run does when ranks are lost: those left agree on a round, and go on from there."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from distq_mpi import checkpoint
from distq_mpi.errors import ConfigError, DistqError, QuorumLost, RanksLost
from distq_mpi.monitor import Monitor, RunDirectory

if TYPE_CHECKING:
    from distq_mpi.trainer import Run

LOCK_S = 5.0
"""Seconds in which the system lets go of the locks of a process that was killed."""


def recover(run: Run, loss: RanksLost) -> None:
    """Bring the run back to the last round that all who are left have committed. COLLECTIVE.

    Ranks that are lost meanwhile are recovered from, too. Raises QuorumLost where too few are left.
    """
    begin, phase, number = time.perf_counter(), run.phase, run.architecture.progress.round
    transport, known = run.transport, len(run.transport.lost)
    if phase in ("learn", "exchange"):
        number += 1
    first = transport.members[0]
    run.enter("recover")
    while True:
        try:
            transport.recover(loss)
            with transport.losses():
                _take_directory(run)
                told = _take_state(run)
                _keep_or_drop_solver(run, transport.members[0] == first)
                break
        except RanksLost as another:
            loss = another
        except QuorumLost as end:
            if run.monitor is not None:
                run.monitor.interrupt(str(end))
            raise
    run.recoveries += 1
    if run.monitor is not None:
        gone, seconds = transport.lost[known:], time.perf_counter() - begin
        run.monitor.event(
            "ranks_lost",
            _sentence(gone, phase, transport.size) + f"; recovered in {seconds:.2f} s, {told}, "
            f"goes on from round {run.architecture.progress.round}",
            ranks=[member.number for member in gone],
            hosts=[member.host for member in gone],
            phase=phase,
            seconds=seconds,
            rounds_replayed=max(0, number - run.architecture.progress.round),
            ranks_left=transport.size,
        )


def _sentence(gone: list[Any], phase: str, n_left: int) -> str:
    if not gone:
        return f"a message failed in {phase}, but no rank was lost"
    names = ", ".join(f"{member.number} on {member.host}" for member in gone)
    return f"lost rank{'s' * (len(gone) > 1)} {names} in {phase}, {n_left} left"


def _take_directory(run: Run) -> None:
    """Whoever is first now keeps the files and talks to the user. COLLECTIVE."""
    place = run.prepared.place
    with run.transport.same_outcome():
        if place and run.transport.rank == 0 and run.monitor is None:
            directory = RunDirectory.open(place)
            _lock(directory)
            run.prepared.directory, run.monitor = directory, Monitor(directory)
            run.enter("recover")


def _lock(directory: RunDirectory) -> None:
    end = time.monotonic() + LOCK_S
    while True:
        try:
            directory.lock()
            return
        except ConfigError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


def _take_state(run: Run) -> str:
    """State of the last common round: from those left, else from disk, else from the beginning.

    COLLECTIVE. Returns which, in words.
    """
    transport, saver = run.transport, run.saver
    unready = np.array([not run.begun], np.int64)
    transport.max_int(unready)
    saver.begin_again(run.prepared.directory)
    if not unready[0] and run.architecture.recover(run.environment):
        run.settle_agreement()
        return run.architecture.lost or "nothing is lost"
    if run.environment.rows is not None:
        mistake = DistqError(
            "the model is cut over the ranks, and rows of it are lost with them: go on with "
            "`python -m distq_mpi resume`"
        )
        mistake.agreed = True
        raise mistake
    run.begun = False
    path: Any = None
    with transport.same_outcome():
        if run.prepared.directory is not None:
            path, _ = checkpoint.newest_good(
                run.prepared.directory.checkpoints, run.environment.model_id
            )
    path = transport.broadcast(path or run.prepared.checkpoint)
    steps = saver.restored_steps
    run.rebuild()
    if path is not None:
        saver.restore(path, transport)
        saver.restored_steps = steps
        saver.begin_again(run.prepared.directory)
    run.settle_agreement()
    transport.agree()
    run.begun = True
    return f"state taken from {path.name}" if path is not None else "begins anew"


def _keep_or_drop_solver(run: Run, same_first: bool) -> None:
    """Exact values stay where the rank that planned alone is still the first. COLLECTIVE."""
    solver = run.solver
    lacks = np.array([solver is None or not solver.planner.alone or not same_first], np.int64)
    run.transport.max_int(lacks)
    if lacks[0]:
        run.solver = None
    elif run.solver is not None:
        run.solver.planner.count_ranks()
