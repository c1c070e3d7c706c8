"""Explicit models of which every rank holds the rows of its own states only.

The params of a cut model are those of a whole one but for their rows: `indptr` begins at 0 with
the first row held, and `shape` says which state that is. Its functions are the same, take the same
state numbers, and give the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from distq_mpi.environments.base import Environment
from distq_mpi.environments.explicit import functions, law_step
from distq_mpi.environments.exploring import model_functions
from distq_mpi.environments.rows import Packed, assembled, cut_into_runs
from distq_mpi.errors import DistqError
from distq_mpi.partition import Partition

if TYPE_CHECKING:
    from distq_mpi.transport import Transport

u8, i8 = np.uint64, np.int64
FAILED = -1
"""Rows in the header of a run that will not come."""

Cuts = Sequence[tuple[int, int]]


def hulls(*partitions: Partition) -> list[tuple[int, int]]:
    """Per owner the least [low, high) that covers its blocks of all partitions of the states.

    (0, 0) for an owner all of whose blocks are empty.
    """
    found = []
    for owner in range(partitions[0].starts.size - 1):
        blocks = [p.block(owner) for p in partitions]
        some = [(low, high) for low, high in blocks if low < high] or [(0, 0)]
        found.append((min(low for low, _ in some), max(high for _, high in some)))
    return found


def can_be_cut(environment: Environment) -> bool:
    """Whether the environment is a table of transitions whose rows are packed as ours. Local."""
    return environment.kind == "explicit" and environment.law_step is law_step


def n_entries(environment: Environment, low: int, high: int) -> int:
    """Transitions of the states [low, high), or a close bound where nobody holds them. Local."""
    if environment.source is not None:
        return int(environment.source.most_entries(low, high))
    if environment.rows is not None:
        raise ValueError(f"{environment.id} is cut: what other ranks hold is not known here")
    indptr, n_actions = environment.params[0], environment.n_actions
    return int(indptr[high * n_actions] - indptr[low * n_actions])


def share_rows(
    environment: Environment | None, shared: Environment, cuts: Cuts, transport: Transport
) -> Environment:
    """Return the environment on every rank with the rows of its own states alone. COLLECTIVE.

    environment : on rank 0, one that `can_be_cut`. shared : the same without params and functions,
    and cuts : for each rank the states [low, high) it shall have, both the same on all ranks.

    Rank 0 sends what it holds a run at a time. What lies in a file every rank reads for itself;
    where a host has no such file rank 0 reads and sends. Start states are stored once per host;
    functions are None on ranks that do not compile. Raises ModelError on all ranks where a rank
    cannot read its rows.
    """
    starts = transport.share_on_node(None if environment is None else environment.params[4:7])
    entries = transport.from_rank_0(
        lambda: [n_entries(environment, *cut) for cut in cuts]  # type: ignore[arg-type]
    )
    served = np.zeros(transport.size, i8)
    reads = shared.source is not None and shared.source.visible()
    served[transport.rank] = environment is None and not reads
    transport.max_int(served)
    low, high = cuts[transport.rank]
    rows: Packed | None = None
    with transport.same_outcome():
        if environment is None and reads:
            runs = shared.source.read(low, high)
        elif environment is None:
            runs = _received(shared, low, high, transport)
        else:
            _serve(environment, cuts, np.flatnonzero(served).tolist(), transport)
            runs = _runs(environment, low, high)
        if environment is not None and shared.source is None and high - low == shared.n_states:
            rows = Packed(*environment.params[:4])
        else:
            n_rows = (high - low) * shared.n_actions
            rows = assembled(runs, n_rows, entries[transport.rank])
    assert rows is not None
    params = (*rows, *starts, np.array([shared.n_states, shared.n_actions, low], i8))
    made: dict[str, Any] = {}
    if transport.leads_node:
        made = functions(shared.n_starts, params)
        if shared.explores_starts:
            made |= model_functions()
    return replace(shared, params=params, rows=(low, high), source=None, **made)


def _runs(environment: Environment, low: int, high: int) -> Iterator[Packed]:
    """Yield the rows of the states [low, high) in order, a run at a time: views where held."""
    if environment.source is not None:
        yield from environment.source.read(low, high)
        return
    held, first = Packed(*environment.params[:4]), low * environment.n_actions
    for start, stop in cut_into_runs(held.pointers[first : high * environment.n_actions + 1]):
        yield held.part(first + start, first + stop)


def _serve(
    environment: Environment, cuts: Cuts, ranks: list[int], transport: Transport
) -> None:
    """Send these ranks their rows; if that fails they are told before it is raised."""
    for number, rank in enumerate(ranks):
        try:
            for run in _runs(environment, *cuts[rank]):
                sizes = np.array([run.pointers.size - 1, run.reward.size], i8)
                for array in (sizes, *run):
                    transport.send_array(array, rank)
        except DistqError:
            for waiting in ranks[number:]:
                transport.send_array(np.array([FAILED, 0], i8), waiting)
            raise


def _received(
    shared: Environment, low: int, high: int, transport: Transport
) -> Iterator[Packed]:
    """Yield the rows of the states [low, high) as rank 0 sends them."""
    row, n_rows = 0, (high - low) * shared.n_actions
    while row < n_rows:
        sizes = np.empty(2, i8)
        transport.receive_array(sizes, 0)
        n, m = sizes.tolist()
        if n == FAILED:
            raise DistqError(f"{shared.id}: rank 0 could not read the rows of other ranks")
        run = Packed(np.empty(n + 1, i8), np.empty(2 * m, u8), np.empty(m), np.empty(m))
        for array in run:
            transport.receive_array(array, 0)
        yield run
        row += n
