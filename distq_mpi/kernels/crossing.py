"""Lanes that run on the owner of their state, and what crosses between owners.

A lane carries the transition it has made but not yet learned from. At the owner of next_state the
row is read once: it gives the target of the pending pair and the next action. The target goes back
to the owner of (state, action) in that rank's next message, in which a returning lane would travel
too, and targets are applied before lanes are looked at: a trajectory never sees a row without its
own updates.

A lane's record is four words (uint64), 32 bytes:

| word | bits | holds |
|---|---|---|
| 0 | 0-63 | the state at which the lane is looked at: next_state, or where an episode begins |
| 1 | 16-63, 1-15, 0 | state and action of the pending pair, terminated; all ones: none is pending |
| 2 | 0-31, 32-63 | steps in the episode; its return so far, float32 |
| 3 | 0-31, 32-63 | number of the lane; reward of the pending transition, float32 |

A target is two words: entry of `q` at its owner << LANE_BITS | number of the lane; its value,
float64. A message to a peer is one word, lanes | targets << 32, three unused, the lanes, the
targets.

An episode's first action takes a tick of its own, in which nothing is learned: the start may have
another owner.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from distq_mpi.kernels import Kernel
from distq_mpi.kernels.draws import RESET, TRANSITION, threefry
from distq_mpi.kernels.loop import BATCH, GROUP, learning_parts
from distq_mpi.kernels.storing import (
    bits_of,
    bits_of_single,
    exact,
    float_of,
    lowest_bit,
    prefetch,
    single_of,
)

u8, u4, i8, f4, f8 = np.uint64, np.uint32, np.int64, np.float32, np.float64

RECORD, HEAD, TARGET, SLOT = 4, 4, 2, 3
"""Words of a lane's record, of a message's head, of a target, of a slot."""
ACTION_BITS, LANE_BITS, ENTRY_BITS = 15, 28, 36
NONE = u8(0xFFFFFFFFFFFFFFFF)
LOW32, SHIFT32, ONE = u8(0xFFFFFFFF), u8(32), u8(1)
STATE_SHIFT, ACTIONS = u8(ACTION_BITS + 1), u8((1 << ACTION_BITS) - 1)
LANE_SHIFT, LANES = u8(LANE_BITS), u8((1 << LANE_BITS) - 1)

(N_HERE, FIRST_TICK, N_TICKS, SENT_TICK, SEED, EXPLORE, LIMIT, RANK, SIZE, N_LANES, REGION,
 BORDERS) = range(12)  # fmt: skip
DISCOUNT, ALPHA, SCALE, CAP = range(4)
LEARNED, EPISODES, RETURN_WHOLE, RETURN_FRACTION, SQUARES, NON_FINITE = range(6)

FRACTION = 2.0**40
LARGEST_RETURN = 2.0**60

# Stand-ins for the parts.
STRIDE = u8(0)
look, deliver, apply, choose_first, law_step, law_start = (exact,) * 6


def owner_of(state, control):
    """Return the owner (uint64) of a state; rank k owns [control[BORDERS + k], ... + k + 1])."""
    low, n = u8(0), control[SIZE]
    while n > ONE:
        half = n >> ONE
        low += half * u8(control[u8(BORDERS) + low + half] <= state)
        n -= half
    return low


def square(td_error, rates):
    """Return (the square in units of 1 / rates[SCALE], at most rates[CAP] of them; 1 if it is not
    finite, else 0), int64 both."""
    scaled = td_error * td_error * rates[SCALE]
    return i8(scaled if scaled < rates[CAP] else rates[CAP]), i8(not abs(td_error) < np.inf)


def keep_of(stride):
    """Return deliver(...) of lockstep: keep the target until all lanes were looked at."""

    def keep(q, clock, slots, n_lanes, lane, row, entry, target, bits, discount, alpha):
        slot = u8(SLOT) * lane
        index = row * stride + entry
        slots[slot], slots[slot + ONE], slots[slot + u8(2)] = index, bits_of(target), bits
        slots[u8(SLOT) * n_lanes + (lane >> u8(6))] |= ONE << (lane & u8(63))
        prefetch(q, index)
        return 0.0

    return keep


def apply_kept_of(stride, update):
    """Return apply(...) of lockstep: all targets kept, in the order of their lanes."""

    def apply_kept(q, clock, slots, n_lanes, rates):
        squares, non_finite, marks = i8(0), i8(0), u8(SLOT) * n_lanes
        for block in range((n_lanes + u8(63)) >> u8(6)):
            marked = slots[marks + u8(block)]
            slots[marks + u8(block)] = u8(0)
            while marked != u8(0):
                slot = u8(SLOT) * ((u8(block) << u8(6)) + lowest_bit(marked))
                marked &= marked - ONE
                row = slots[slot] // stride
                td_error = update(
                    q, clock, row, slots[slot] - row * stride, float_of(slots[slot + ONE]),
                    slots[slot + u8(2)], rates[DISCOUNT], rates[ALPHA],
                )  # fmt: skip
                more, bad = square(td_error, rates)
                squares += more
                non_finite += bad
        return squares, non_finite

    return apply_kept


def deliver_at_once(update):
    """Return deliver(...) of free running: apply the target now."""

    def deliver(q, clock, slots, n_lanes, lane, row, entry, target, bits, discount, alpha):
        return update(q, clock, row, entry, target, bits, discount, alpha)

    return deliver


def nothing_kept(q, clock, slots, n_lanes, rates):
    """apply(...) of free running."""
    return i8(0), i8(0)


def travel(q, clock, lanes, inbox, out, stage, slots, draws, params, control, rates, totals):
    """Take what peers sent, apply the targets, step this rank's lanes, fill the messages to peers.

    q : this rank's rows (n,) float64 or float32, `STRIDE` values per state; changed in place.
    clock : the same buffer as uint32.
    lanes : uint64 (RECORD * (L + BATCH),), the records of the lanes that are here; changed.
    inbox, out : uint64 (P * control[REGION],), per peer the message from it, and to it. Written by
        peers; written here.
    stage : uint64 (P * TARGET * L,), scratch. draws : uint64 (2 * BATCH,), scratch.
    slots : uint64 (SLOT * L + ceil(L / 64),), zero at first; belongs to `travel`.
    control : uint64 (BORDERS + P + 1,): lanes here (changed), number of the first tick, ticks to
        make, the tick in which targets were sent, seed, `explore`, time limit in steps, rank,
        ranks, L, words of a message, and the borders of the blocks.
    rates : float64 (4,): discount, parameter of the step size, and for squared TD errors the units
        in 1 and the most units of one.
    totals : int64 (6,), added to: transitions learned from, finished episodes, whole and fractional
        (in 1 / FRACTION) part of their returns, squared TD errors, numbers that are not finite.
        Integers, so that their order does not matter.

    With several ranks lockstep makes one tick a call; its targets are applied by the next call, as
    those sent by peers are. Local. Checks no bounds: the caller validates.
    """
    n_here, size, me = i8(control[N_HERE]), control[SIZE], control[RANK]
    seed, explore, limit = control[SEED], control[EXPLORE], u4(control[LIMIT])
    n_lanes, region = control[N_LANES], control[REGION]
    first_row = control[u8(BORDERS) + me]
    n_rows = control[u8(BORDERS) + me + ONE] - first_row
    discount, alpha = rates[DISCOUNT], rates[ALPHA]
    learned, episodes, whole, fraction = i8(0), i8(0), i8(0), i8(0)
    squares, non_finite = i8(0), i8(0)
    for peer in range(size):
        message = u8(peer) * region
        out[message] = u8(0)
        n_arrived, n_targets = inbox[message] & LOW32, inbox[message] >> SHIFT32
        inbox[message] = u8(0)
        message += u8(HEAD)
        start = u8(RECORD) * u8(n_here)
        for i in range(u8(RECORD) * n_arrived):
            lanes[start + u8(i)] = inbox[message + u8(i)]
        n_here += i8(n_arrived)
        message += u8(RECORD) * n_arrived
        for batch in range(0, i8(n_targets), BATCH):
            at, count = message + u8(TARGET) * u8(batch), min(BATCH, i8(n_targets) - batch)
            for i in range(count):
                prefetch(q, inbox[at + u8(TARGET * i)] >> LANE_SHIFT)
            for i in range(count):
                number = inbox[at + u8(TARGET * i)] & LANES
                draws[u8(i)] = threefry(control[SENT_TICK], number, seed, TRANSITION)[1]
            for i in range(count):
                packed = inbox[at + u8(TARGET * i)]
                row = (packed >> LANE_SHIFT) // STRIDE
                td_error = deliver(
                    q, clock, slots, n_lanes, packed & LANES, row,
                    (packed >> LANE_SHIFT) - row * STRIDE, float_of(inbox[at + u8(TARGET * i + 1)]),
                    draws[u8(i)], discount, alpha,
                )  # fmt: skip
                more, bad = square(td_error, rates)
                squares += more
                non_finite += bad
    more, bad = apply(q, clock, slots, n_lanes, rates)
    squares += more
    non_finite += bad
    for tick in range(control[N_TICKS]):
        now = control[FIRST_TICK] + u8(tick)
        kept = u8(0)
        for i in range(min(i8(BATCH), n_here)):
            prefetch(q, (lanes[u8(RECORD * i)] - first_row) * STRIDE)
        for batch in range(0, n_here, BATCH):
            for i in range(BATCH):
                number = lanes[u8(RECORD) * u8(batch + i) + u8(3)] & LOW32
                draws[u8(i)], draws[u8(BATCH + i)] = threefry(now, number, seed, TRANSITION)
            count = min(BATCH, n_here - batch)
            for group in range(0, count, GROUP):
                ahead = batch + BATCH + group
                for i in range(ahead, min(ahead + GROUP, n_here)):
                    prefetch(q, (lanes[u8(RECORD) * u8(i)] - first_row) * STRIDE)
                for i in range(group, min(group + GROUP, count)):
                    record = u8(RECORD) * u8(batch + i)
                    where, pending = lanes[record], lanes[record + ONE]
                    so_far, tail = lanes[record + u8(2)], lanes[record + u8(3)]
                    number, word, bits = tail & LOW32, draws[u8(i)], draws[u8(BATCH + i)]
                    row = (where - first_row) * STRIDE
                    length, total, over = u4(0), f4(0.0), False
                    if pending == NONE:
                        a = choose_first(
                            q, row, word, threefry(now, number, seed, RESET)[1], explore
                        )
                    else:
                        reward, ended = single_of(u4(tail >> SHIFT32)), (pending & ONE) == ONE
                        a, target, part = look(
                            q, row, f8(reward), ended, word, bits, explore, discount
                        )
                        learned += 1
                        state = pending >> STATE_SHIFT
                        entry = part + ((pending >> ONE) & ACTIONS)
                        if state - first_row < n_rows:
                            td_error = deliver(
                                q, clock, slots, n_lanes, number, state - first_row, entry, target,
                                bits, discount, alpha,
                            )  # fmt: skip
                            more, bad = square(td_error, rates)
                            squares += more
                            non_finite += bad
                        else:
                            owner = owner_of(state, control)
                            message = owner * region
                            at = u8(TARGET) * (owner * n_lanes + (out[message] >> SHIFT32))
                            out[message] += ONE << SHIFT32
                            index = (state - control[u8(BORDERS) + owner]) * STRIDE + entry
                            stage[at], stage[at + ONE] = (
                                (index << LANE_SHIFT) | number, bits_of(target),
                            )  # fmt: skip
                        total = single_of(u4(so_far >> SHIFT32)) + reward
                        length = u4(so_far & LOW32) + u4(1)
                        over = ended or length >= limit
                    if over:
                        episodes += 1
                        if abs(total) < LARGEST_RETURN:
                            floor = np.floor(f8(total))
                            whole += i8(floor)
                            fraction += i8((f8(total) - floor) * FRACTION)
                        else:
                            non_finite += 1
                        where = law_start(threefry(now, number, seed, RESET)[0], params)
                        pending, so_far, tail = NONE, u8(0), number
                    else:
                        ahead_state, reward_next, terminated = law_step(where, a, bits, params)
                        pending = (where << STATE_SHIFT) | (a << ONE) | u8(terminated)
                        so_far = (u8(bits_of_single(total)) << SHIFT32) | u8(length)
                        tail = (u8(bits_of_single(f4(reward_next))) << SHIFT32) | number
                        where = ahead_state
                    if where - first_row < n_rows:
                        at = u8(RECORD) * kept
                        kept += ONE
                        lanes[at], lanes[at + ONE] = where, pending
                        lanes[at + u8(2)], lanes[at + u8(3)] = so_far, tail
                    else:
                        message = owner_of(where, control) * region
                        at = message + u8(HEAD) + u8(RECORD) * (out[message] & LOW32)
                        out[message] += ONE
                        out[at], out[at + ONE] = where, pending
                        out[at + u8(2)], out[at + u8(3)] = so_far, tail
        n_here = i8(kept)
        if size == ONE:
            more, bad = apply(q, clock, slots, n_lanes, rates)
            squares += more
            non_finite += bad
        if n_here == 0:
            break
    for peer in range(size):
        message = u8(peer) * region
        at = message + u8(HEAD) + u8(RECORD) * (out[message] & LOW32)
        source = u8(TARGET) * u8(peer) * n_lanes
        for i in range(u8(TARGET) * (out[message] >> SHIFT32)):
            out[at + u8(i)] = stage[source + u8(i)]
    control[N_HERE] = u8(n_here)
    totals[LEARNED] += learned
    totals[EPISODES] += episodes
    totals[RETURN_WHOLE] += whole
    totals[RETURN_FRACTION] += fraction
    totals[SQUARES] += squares
    totals[NON_FINITE] += non_finite


def begin(lanes, params, control):
    """Put the fresh lanes that start in this rank's rows here (tick 0); writes control[N_HERE]."""
    first_row = control[u8(BORDERS) + control[RANK]]
    n_rows = control[u8(BORDERS) + control[RANK] + ONE] - first_row
    n_here = u8(0)
    for lane in range(control[N_LANES]):
        where = law_start(threefry(u8(0), u8(lane), control[SEED], RESET)[0], params)
        if where - first_row < n_rows:
            at = u8(RECORD) * n_here
            n_here += ONE
            lanes[at], lanes[at + ONE] = where, NONE
            lanes[at + u8(2)], lanes[at + u8(3)] = u8(0), u8(lane)
    control[N_HERE] = n_here


def crossing_kernels(
    learn_config: Any, environment: Any, record: Any, lockstep: bool
) -> dict[str, Kernel]:
    """Return the requests for `begin` and `travel` under a `[learn]` configuration. Local.

    environment : `environments.base.Environment`; record : `table.Record`; lockstep : whether
    targets wait until all lanes were looked at, and are applied in lane order.
    """
    parts = learning_parts(learn_config, environment.n_actions, record)
    parts |= {"law_step": environment.law_step, "law_start": environment.law_start}
    update = parts["update"]
    if lockstep:
        parts |= {
            "deliver": keep_of(parts["STRIDE"]), "apply": apply_kept_of(parts["STRIDE"], update)
        }
    else:
        parts |= {"deliver": deliver_at_once(update), "apply": nothing_kept}
    q, clock, words = np.zeros(1, record.dtype), np.zeros(1, u4), np.zeros(1, u8)
    params = environment.params
    return {
        "begin": Kernel(begin, parts, (words, params, words)),
        "travel": Kernel(
            travel, parts, (q, clock, *(words,) * 6, params, words, np.zeros(4), np.zeros(6, i8)),
        ),
    }  # fmt: skip
