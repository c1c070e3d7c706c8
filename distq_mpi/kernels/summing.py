"""The loops of fusion: agents' contributions, their sums, and the table that follows from these.

Contributions are differences to the base in 64-bit fixed point, so their sum does not depend on
the order or the number of ranks. Sums go through memory (`contribute`, then `fuse`), or, where the
owner of a row can read every agent's replica, never leave the cache (`fuse_replicas`): the same
bits. What is done with a chunk of pairs stands in `chunks`.

Free names that are parts: TILE_ROWS, and those of `chunks.chunk_parts`.
"""

from __future__ import annotations

import numpy as np

from distq_mpi.kernels.chunks import (
    AGENTS,
    ALL,
    CHUNK,
    FIRST,
    GAIN,
    RENEWS,
    ROWS,
    SLOT,
    SUM,
    TICKS,
    VOTES,
    N,
)
from distq_mpi.kernels.fusing import LENGTH, UNIT
from distq_mpi.kernels.storing import exact

u8, i8 = np.uint64, np.int64

# Stand-ins for the parts.
WIDTH, TILE_ROWS, CHUNK_ROWS, PAIRS = 4, 1, 1, CHUNK
TICKED, SIGNED, GAINS = False, False, False
visits_of, bases, differences, alphas, powers, shares, others, clear = (exact,) * 8
changes, scatter, still, renew = exact, exact, exact, exact


def contribute(q, clock, base_q, base_clock, values, visits, ticks, votes, gains, rates, found,
               marks, touched, work, counts):  # fmt: skip
    """Add one agent's round to the fixed-point sums.

    q, clock : the agent's replica; base_q, base_clock : the last committed table; same layout.
    values, visits : int64 (S * width,), added to: contributions, and visits.
    ticks : the same, of what clocks counted, times visits where an average is WEIGHTED; votes :
        visits times sign of the TD error; gains : 1 - kept in units of 1 / GAIN_SCALE. Each has one
        element where unused.
    rates : float64 (4,): discount, parameter of the step size, the scale 2^f, the bound below which
        a scaled sum of all agents cannot overflow.
    found : float64 (5,), written: contributions at or above the bound (as a count), those above a
        sixteenth of it, non-finite ones, sum of alpha n (n - 1) and of n.
    marks : uint64 (tiles,), 0 where no row of the tile can have been visited. touched : uint8
        (tiles,), set to 1 where one was. work, counts : see `chunks.scratch`.
    """
    found[:] = 0.0
    n_rows = values.size // WIDTH
    for tile in range(marks.size):
        if marks[tile] == 0:
            continue
        stop = min((tile + 1) * TILE_ROWS, n_rows)
        for first in range(tile * TILE_ROWS, stop, CHUNK_ROWS):
            end = min(first + CHUNK_ROWS, stop)
            seen = visits_of(clock, base_clock, first, end, u8(0), counts)
            if seen == 0:
                continue
            touched[tile] = 1
            n, pair = (end - first) * WIDTH, u8(first * WIDTH)
            bases(base_q, base_clock, first, end, work, counts)
            alphas(work, counts, n, rates)
            powers(work, counts, n, seen, u8(N * PAIRS))
            differences(q, first, end, u8(0), work)
            shares(work, counts, n, rates, found, values, pair, visits, pair)
            if TICKED or GAINS:
                clear(counts, n)
                others(clock, first, end, u8(0), counts, rates)
            if TICKED:
                for i in range(n):
                    ticks[pair + u8(i)] += counts[u8(TICKS * PAIRS) + u8(i)]
            if SIGNED:
                for i in range(n):
                    votes[pair + u8(i)] += counts[u8(VOTES * PAIRS) + u8(i)]
            if GAINS:
                for i in range(n):
                    gains[pair + u8(i)] += counts[u8(GAIN * PAIRS) + u8(i)]
    found[LENGTH] /= UNIT


def fuse(next_q, next_clock, base_q, base_clock, values, visits, ticks, votes, gains, lifetime,
         control, rates, unstable, due, work, counts):  # fmt: skip
    """Write the fused rows [first, first + n) of tiles that are due from the sums of all agents.

    next_q, next_clock, base_q, base_clock : whole tables. values, visits, ticks, votes, gains :
    sums of the rows' pairs as in `contribute`, element 0 the first pair. lifetime : uint64 of the
    same pairs, before this round. control : uint64 (5,): first row, rows, agents, seed, round.
    unstable : int64 (1,), written: pairs whose gains add up to GAIN_LIMIT or more. due : uint8
    (tiles of the table,), 0 where the next table is as the base, and the sums are 0. work, counts :
    see `chunks.scratch`.
    """
    unstable[0] = 0
    begin, stop = i8(control[FIRST]), i8(control[FIRST] + control[ROWS])
    tile = begin // TILE_ROWS
    while tile * TILE_ROWS < stop:
        low, high = max(begin, tile * TILE_ROWS), min((tile + 1) * TILE_ROWS, stop)
        for first in range(low, high if due[tile] != 0 else low, CHUNK_ROWS):
            end = min(first + CHUNK_ROWS, high)
            n, pair, seen = (end - first) * WIDTH, u8((first - begin) * WIDTH), i8(0)
            for i in range(n):
                visited = visits[pair + u8(i)]
                counts[u8(ALL * PAIRS) + u8(i)] = visited
                seen |= visited
            if seen == 0:
                still(next_q, next_clock, base_q, base_clock, first, end)
                continue
            for i in range(n):
                counts[u8(SUM * PAIRS) + u8(i)] = values[pair + u8(i)]
            if TICKED:
                for i in range(n):
                    counts[u8(TICKS * PAIRS) + u8(i)] = ticks[pair + u8(i)]
            if SIGNED:
                for i in range(n):
                    counts[u8(VOTES * PAIRS) + u8(i)] = votes[pair + u8(i)]
            if GAINS:
                for i in range(n):
                    counts[u8(GAIN * PAIRS) + u8(i)] = gains[pair + u8(i)]
            bases(base_q, base_clock, first, end, work, counts)
            alphas(work, counts, n, rates)
            powers(work, counts, n, seen, u8(ALL * PAIRS))
            changes(work, counts, n, u8(first * WIDTH), rates, control, unstable)
            scatter(next_q, next_clock, first, end, pair, lifetime, control, work, counts)
        tile += 1


def fuse_replicas(next_q, next_clock, base_q, base_clock, q, clock, lifetime, next_lifetime,
                  control, rates, found, unstable, changed, due, places, work, counts):  # fmt: skip
    """As `contribute` of every agent and `fuse`, of rows that are read from the replicas.

    q, clock : rows of all agents, one agent after the other. next_lifetime : `lifetime` after this
    round, uint64, written. control : uint64 (7,): as in `fuse`, then the rows of an agent, and
    which rows of the next table are written to the replicas, too: 0 none, 1 those that somebody has
    visited, 2 all. found : as in `contribute`, of all agents, in these rows. changed : uint8
    (tiles,), 0 where nobody has visited a row. places : uint64 (tiles,), by how much further on
    than in a table a tile's rows stand in the first agent's, modulo 2^64.
    """
    found[:] = 0.0
    unstable[0] = 0
    begin, stop = i8(control[FIRST]), i8(control[FIRST] + control[ROWS])
    tile = begin // TILE_ROWS
    while tile * TILE_ROWS < stop:
        low, high = max(begin, tile * TILE_ROWS), min((tile + 1) * TILE_ROWS, stop)
        for first in range(low, high if due[tile] != 0 else low, CHUNK_ROWS):
            end = min(first + CHUNK_ROWS, high)
            n, pair, seen = (end - first) * WIDTH, u8((first - begin) * WIDTH), i8(0)
            for agent in range(i8(control[AGENTS]) if changed[tile] != 0 else 0):
                ahead = u8(agent) * control[SLOT] + places[tile]
                visited = visits_of(clock, base_clock, first, end, ahead, counts)
                if visited == 0:
                    continue
                if seen == 0:
                    bases(base_q, base_clock, first, end, work, counts)
                    alphas(work, counts, n, rates)
                    clear(counts, n)
                seen |= visited
                powers(work, counts, n, visited, u8(N * PAIRS))
                differences(q, first, end, ahead, work)
                shares(
                    work, counts, n, rates, found, counts, u8(SUM * PAIRS), counts, u8(ALL * PAIRS)
                )
                if TICKED or GAINS:
                    others(clock, first, end, ahead, counts, rates)
            if seen == 0:
                still(next_q, next_clock, base_q, base_clock, first, end)
                for i in range(n):
                    next_lifetime[pair + u8(i)] = lifetime[pair + u8(i)]
            else:
                seen = i8(0)
                for i in range(n):
                    visited = counts[u8(ALL * PAIRS) + u8(i)]
                    next_lifetime[pair + u8(i)] = lifetime[pair + u8(i)] + u8(visited)
                    seen |= visited
                powers(work, counts, n, seen, u8(ALL * PAIRS))
                changes(work, counts, n, u8(first * WIDTH), rates, control, unstable)
                scatter(next_q, next_clock, first, end, pair, lifetime, control, work, counts)
            if changed[tile] != 0 and control[RENEWS] + u8(seen != 0) > u8(1):
                for agent in range(i8(control[AGENTS])):
                    renew(q, next_q, first, end, u8(agent) * control[SLOT] + places[tile])
        tile += 1
    found[LENGTH] /= UNIT
