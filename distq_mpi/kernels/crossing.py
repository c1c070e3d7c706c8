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

A target is two words: entry of `q` at its owner << TAG_BITS | a tag; its value, float64. The tag is
the lane's number in lockstep, and the bits that a float32 is rounded with when lanes run free.

What goes to a peer, or stays, is written outwards from the middle of a region of words: lanes
upwards, targets downwards. So a message, one word that counts lanes | targets << 32, then targets,
then lanes, lies together without being copied, and no branch depends on where a lane goes.

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
from distq_mpi.kernels.undoing import keep_nothing, keep_row

u8, u4, i8, f4, f8 = np.uint64, np.uint32, np.int64, np.float32, np.float64

RECORD, HEAD, TARGET, SLOT = 4, 1, 2, 3
"""Words of a lane's record, of a message's head, of a target, of a slot."""
ACTION_BITS, TAG_BITS, ENTRY_BITS = 15, 28, 36
NONE = u8(0xFFFFFFFFFFFFFFFF)
LOW32, SHIFT32, ONE = u8(0xFFFFFFFF), u8(32), u8(1)
EIGHT, BYTE = u8(3), u8(255)
STATE_SHIFT, ACTIONS = u8(ACTION_BITS + 1), u8((1 << ACTION_BITS) - 1)
TAG_SHIFT, TAGS = u8(TAG_BITS), u8((1 << TAG_BITS) - 1)

(FIRST_TICK, N_TICKS, SENT_TICK, SEED, EXPLORE, LIMIT, RANK, SIZE, N_LANES, REGION, MIDDLE, INBOX,
 BORDERS) = range(13)  # fmt: skip
DISCOUNT, ALPHA, SCALE, CAP, RETURN_SCALE, RETURN_CAP = range(6)
LEARNED, EPISODES, RETURN_WHOLE, RETURN_FRACTION, SQUARES, NON_FINITE = range(6)

# What is known of the lanes of a batch: both words of their draws, their numbers, and
SO_FAR, WHERE, ACTION, PENDING, SCRATCH = (k * BATCH for k in range(3, 8))

# Stand-ins for the parts.
STRIDE = u8(0)
look, tag, deliver, collect, apply, choose_first, law_step, law_start = (exact,) * 8


def words_of(n_lanes: int) -> tuple[int, int]:
    """Return words of a region, and of its first lane, that hold all lanes and their targets."""
    middle = -(-(HEAD + TARGET * n_lanes) // 8) * 8
    return -(-(middle + RECORD * (n_lanes + BATCH)) // 8) * 8, middle


def log_of(n_lanes):
    """Return where the log of changed rows begins in the slots, behind those of the lanes."""
    return u8(SLOT) * n_lanes + ((n_lanes + u8(63)) >> u8(6))


def owner_of(state, control):
    """Return the owner (uint64) of a state; rank k owns [control[BORDERS + k], ... + k + 1])."""
    low, n = u8(0), control[SIZE]
    while n > ONE:
        half = n >> ONE
        # Arithmetic, not a comparison: which owner it is nobody can predict.
        low += half * ((control[u8(BORDERS) + low + half] - state - ONE) >> u8(63))
        n -= half
    return low


def square(td_error, rates):
    """Return (the square in units of 1 / rates[SCALE], at most rates[CAP] of them; 1 if it is not
    finite, else 0), int64 both."""
    scaled = td_error * td_error * rates[SCALE]
    return i8(scaled if scaled < rates[CAP] else rates[CAP]), i8(not abs(td_error) < np.inf)


def parts_of(total, rates):
    """Return a return, at most rates[RETURN_CAP], as (whole, fraction in units of 1 /
    rates[RETURN_SCALE], 1 if it is not finite, else 0), int64 all."""
    if not abs(total) < np.inf:
        return i8(0), i8(0), i8(1)
    kept = min(max(total, -rates[RETURN_CAP]), rates[RETURN_CAP])
    floor = np.floor(kept)
    return i8(floor), i8((kept - floor) * rates[RETURN_SCALE]), i8(0)


def lane_tag(number, bits):
    """tag(...) of lockstep."""
    return number


def rounding_tag(number, bits):
    """tag(...) of free running: bits 1 to 28 of a draw's second word."""
    return (bits >> ONE) & TAGS


def deliver_kept(stride):
    """Return deliver(...) of lockstep: keep a target until all lanes were looked at."""

    def deliver(q, clock, slots, n_lanes, lane, row, entry, target, bits, rates):
        slot, index = u8(SLOT) * lane, row * stride + entry
        slots[slot], slots[slot + ONE], slots[slot + u8(2)] = index, bits_of(target), bits
        slots[u8(SLOT) * n_lanes + (lane >> u8(6))] |= ONE << (lane & u8(63))
        prefetch(q, index)
        return i8(0), i8(0)

    return deliver


def deliver_at_once(update, keep):
    """Return deliver(...) of free running: apply the target now."""

    def deliver(q, clock, slots, n_lanes, lane, row, entry, target, bits, rates):
        keep(clock, slots, log_of(n_lanes), row)
        td_error = update(
            q, clock, row, entry, target, bits, rates[DISCOUNT], rates[ALPHA]
        )
        return square(td_error, rates)

    return deliver


def collect_kept(deliver, stride):
    """Return collect(...) of lockstep: keep targets until all lanes were looked at."""

    def collect(q, clock, mail, first, n_targets, slots, draws, tick, control, rates):
        n_lanes, seed = control[N_LANES], control[SEED]
        for batch in range(0, i8(n_targets), BATCH):
            at, count = first + u8(TARGET) * u8(batch), min(BATCH, i8(n_targets) - batch)
            for i in range(BATCH):
                draws[u8(2 * BATCH + i)] = mail[at + u8(TARGET * i)] & TAGS
            for i in range(BATCH):  # apart, so that it is done by vectors
                draws[u8(i)] = threefry(tick, draws[u8(2 * BATCH + i)], seed, TRANSITION)[1]
            for i in range(count):
                packed = mail[at + u8(TARGET * i)]
                row = (packed >> TAG_SHIFT) // stride
                deliver(
                    q, clock, slots, n_lanes, packed & TAGS, row,
                    (packed >> TAG_SHIFT) - row * stride, float_of(mail[at + u8(TARGET * i + 1)]),
                    draws[u8(i)], rates,
                )  # fmt: skip
        return i8(0), i8(0)

    return collect


def apply_kept(stride, update, keep):
    """Return apply(...) of lockstep: all targets kept, in the order of their lanes."""

    def apply(q, clock, slots, n_lanes, rates):
        squares, non_finite, marks = i8(0), i8(0), u8(SLOT) * n_lanes
        log = log_of(n_lanes)
        for block in range((n_lanes + u8(63)) >> u8(6)):
            marked = slots[marks + u8(block)]
            slots[marks + u8(block)] = u8(0)
            while marked != u8(0):
                slot = u8(SLOT) * ((u8(block) << u8(6)) + lowest_bit(marked))
                marked &= marked - ONE
                row = slots[slot] // stride
                keep(clock, slots, log, row)
                td_error = update(
                    q, clock, row, slots[slot] - row * stride, float_of(slots[slot + ONE]),
                    slots[slot + u8(2)], rates[DISCOUNT], rates[ALPHA],
                )  # fmt: skip
                more, bad = square(td_error, rates)
                squares += more
                non_finite += bad
        return squares, non_finite

    return apply


def collect_at_once(deliver, stride):
    """Return collect(...) of free running: apply targets as they lie there."""

    def collect(q, clock, mail, first, n_targets, slots, draws, tick, control, rates):
        squares, non_finite, n_lanes = i8(0), i8(0), control[N_LANES]
        for batch in range(0, i8(n_targets), BATCH):
            at, count = first + u8(TARGET) * u8(batch), min(BATCH, i8(n_targets) - batch)
            for i in range(count):
                prefetch(q, mail[at + u8(TARGET * i)] >> TAG_SHIFT)
            for i in range(count):
                packed = mail[at + u8(TARGET * i)]
                row = (packed >> TAG_SHIFT) // stride
                more, bad = deliver(
                    q, clock, slots, n_lanes, u8(0), row, (packed >> TAG_SHIFT) - row * stride,
                    float_of(mail[at + u8(TARGET * i + 1)]), (packed & TAGS) << ONE, rates,
                )  # fmt: skip
                squares += more
                non_finite += bad
        return squares, non_finite

    return collect


def nothing_kept(q, clock, slots, n_lanes, rates):
    """apply(...) of free running."""
    return i8(0), i8(0)


def travel(q, clock, mail, counts, slots, draws, params, control, rates, totals):
    """Take what peers sent, apply the targets, step this rank's lanes, fill the messages to peers.

    q : this rank's rows (n,) float64 or float32, `STRIDE` values per state; changed in place.
    clock : the same buffer as uint32.
    mail : uint64, P regions to peers, that of this rank for what stays, then twice P regions from
        peers. Written by peers; written here.
    counts : uint64 (2 P,), written: lanes to each peer, targets to each; lanes here is the own one.
    slots : uint64 (SLOT * L + ceil(L / 64),), zero at first; belongs to `travel`. The log of
        `kernels.undoing` follows where there is one.
    draws : uint64 (SCRATCH,), scratch.
    control : uint64 (BORDERS + P + 1,): number of the first tick, ticks to make, the tick in which
        targets were sent, seed, `explore`, time limit in steps, rank, ranks, L, words of a region
        and of its first lane (`words_of`), first word from peers, and the borders of the blocks.
    rates : float64 (6,): discount, parameter of the step size; units in 1 of squared TD errors, and
        the most of one; units in 1 of fractions of returns, and the largest return.
    totals : int64 (6,), added to: transitions learned from, finished episodes, whole and fractional
        part of their returns, squared TD errors, numbers that are not finite.
        Integers, so that their order does not matter.

    With several ranks lockstep makes one tick a call; its targets are applied by the next call, as
    those sent by peers are. Local. Checks no bounds: the caller validates.
    """
    size, me, region = control[SIZE], control[RANK], control[REGION]
    seed, explore, limit = control[SEED], control[EXPLORE], u4(control[LIMIT])
    n_lanes, first_row = control[N_LANES], control[u8(BORDERS) + me]
    n_rows = control[u8(BORDERS) + me + ONE] - first_row
    home = me * region + control[MIDDLE]
    # Counters of up to eight peers fit a register while a group is worked on. In memory each would
    # wait for the last, which may or may not have been another's: nobody can predict that either.
    few, packed = size <= u8(8), u8(0)
    learned, episodes, whole, fraction = i8(0), i8(0), i8(0), i8(0)
    squares, non_finite = i8(0), i8(0)
    for peer in range(size):
        message = control[INBOX] + u8(peer) * region
        n_arrived, n_targets = mail[message] & LOW32, mail[message] >> SHIFT32
        more, bad = collect(
            q, clock, mail, message + u8(HEAD), n_targets, slots, draws, control[SENT_TICK],
            control, rates,
        )  # fmt: skip
        squares += more
        non_finite += bad
        if control[N_TICKS] == u8(0):
            here = home + u8(RECORD) * counts[me]
            message += u8(HEAD) + u8(TARGET) * n_targets
            for i in range(u8(RECORD) * n_arrived):
                mail[here + u8(i)] = mail[message + u8(i)]
            counts[me] += n_arrived
        if u8(peer) != me:
            counts[u8(peer)] = u8(0)
        counts[size + u8(peer)] = u8(0)
    more, bad = apply(q, clock, slots, n_lanes, rates)
    squares += more
    non_finite += bad
    for tick in range(control[N_TICKS]):
        now = control[FIRST_TICK] + u8(tick)
        n_here = i8(counts[me])
        counts[me] = u8(0)
        # What stayed first: it is written back into the place it is read from.
        for source in range(size + ONE if tick == 0 else ONE):
            start, count_here, sender = home, n_here, me
            if source > 0:
                sender = u8(source - 1)
                message = control[INBOX] + sender * region
                head = mail[message]
                start = message + u8(HEAD) + u8(TARGET) * (head >> SHIFT32)
                count_here = i8(head & LOW32)
                mail[message] = u8(0)
            for i in range(min(i8(BATCH), count_here)):
                prefetch(q, (mail[start + u8(RECORD * i)] - first_row) * STRIDE)
            for batch in range(0, count_here, BATCH):
                count = min(BATCH, count_here - batch)
                records = start + u8(RECORD) * u8(batch)
                for i in range(BATCH):
                    draws[u8(2 * BATCH + i)] = mail[records + u8(RECORD * i + 3)] & LOW32
                for i in range(BATCH):  # apart, so that it is done by vectors
                    number = draws[u8(2 * BATCH + i)]
                    draws[u8(i)], draws[u8(BATCH + i)] = threefry(now, number, seed, TRANSITION)
                for group in range(0, count, GROUP):
                    ahead = batch + BATCH + group
                    for i in range(ahead, min(ahead + GROUP, count_here)):
                        prefetch(q, (mail[start + u8(RECORD) * u8(i)] - first_row) * STRIDE)
                    # Three short loops, not one long one: the processor looks a few hundred
                    # instructions ahead, and so sees several lanes at once.
                    stop = min(group + GROUP, count)
                    for i in range(group, stop):
                        record = records + u8(RECORD * i)
                        where, pending = mail[record], mail[record + ONE]
                        so_far, tail = mail[record + u8(2)], mail[record + u8(3)]
                        word, bits = draws[u8(i)], draws[u8(BATCH + i)]
                        row = (where - first_row) * STRIDE
                        if pending == NONE:
                            number = tail & LOW32
                            a = choose_first(
                                q, row, word, threefry(now, number, seed, RESET)[1], explore
                            )
                            draws[u8(SO_FAR + i)] = u8(0)
                        else:
                            reward, ended = single_of(u4(tail >> SHIFT32)), (pending & ONE) == ONE
                            a, target, part = look(
                                q, row, f8(reward), ended, word, bits, explore, rates[DISCOUNT]
                            )
                            learned += 1
                            state = pending >> STATE_SHIFT
                            entry = part + ((pending >> ONE) & ACTIONS)
                            if state - first_row < n_rows:
                                more, bad = deliver(
                                    q, clock, slots, n_lanes, tail & LOW32, state - first_row,
                                    entry, target, bits, rates,
                                )  # fmt: skip
                                squares += more
                                non_finite += bad
                            else:
                                # Whoever sent the lane, unless borders have moved since.
                                owner = sender
                                begins = control[u8(BORDERS) + owner]
                                if state - begins >= control[u8(BORDERS) + owner + ONE] - begins:
                                    owner = owner_of(state, control)
                                    begins = control[u8(BORDERS) + owner]
                                counts[size + owner] += ONE
                                at = owner * region + control[MIDDLE]
                                at -= u8(TARGET) * counts[size + owner]
                                index = (state - begins) * STRIDE + entry
                                mail[at] = (index << TAG_SHIFT) | tag(tail & LOW32, bits)
                                mail[at + ONE] = bits_of(target)
                            total = single_of(u4(so_far >> SHIFT32)) + reward
                            length = u4(so_far & LOW32) + u4(1)
                            draws[u8(SO_FAR + i)] = (
                                u8(bits_of_single(total)) << SHIFT32 | u8(length)
                            )
                            if ended or length >= limit:
                                episodes += 1
                                draws[u8(SO_FAR + i)] = NONE
                                more, rest, bad = parts_of(f8(total), rates)
                                whole += more
                                fraction += rest
                                non_finite += bad
                        draws[u8(WHERE + i)], draws[u8(ACTION + i)] = where, a
                    for i in range(group, stop):
                        where, a = draws[u8(WHERE + i)], draws[u8(ACTION + i)]
                        ahead_state, reward_next, terminated = law_step(
                            where, a, draws[u8(BATCH + i)], params
                        )
                        draws[u8(WHERE + i)] = ahead_state
                        pair = (where << STATE_SHIFT) | (a << ONE)
                        draws[u8(PENDING + i)] = pair | u8(terminated)
                        draws[u8(ACTION + i)] = u8(bits_of_single(f4(reward_next))) << SHIFT32
                    for i in range(group, stop):
                        where, pending = draws[u8(WHERE + i)], draws[u8(PENDING + i)]
                        number, so_far = draws[u8(2 * BATCH + i)], draws[u8(SO_FAR + i)]
                        tail = draws[u8(ACTION + i)] | number
                        if so_far == NONE:
                            where = law_start(threefry(now, number, seed, RESET)[0], params)
                            pending, so_far, tail = NONE, u8(0), number
                        owner = owner_of(where, control)
                        so_many = counts[owner]
                        if few:
                            so_many += (packed >> (owner << EIGHT)) & BYTE
                            packed += ONE << (owner << EIGHT)
                        else:
                            counts[owner] = so_many + ONE
                        at = owner * region + control[MIDDLE] + u8(RECORD) * so_many
                        mail[at], mail[at + ONE] = where, pending
                        mail[at + u8(2)], mail[at + u8(3)] = so_far, tail
                    if few:
                        for peer in range(size):
                            counts[u8(peer)] += (packed >> (u8(peer) << EIGHT)) & BYTE
                        packed = u8(0)
        if size == ONE:
            more, bad = apply(q, clock, slots, n_lanes, rates)
            squares += more
            non_finite += bad
        if counts[me] == u8(0):
            break
    for peer in range(size):
        mail[control[INBOX] + u8(peer) * region] = u8(0)
        head = u8(peer) * region + control[MIDDLE] - u8(TARGET) * counts[size + u8(peer)] - ONE
        if u8(peer) != me:
            mail[head] = counts[u8(peer)] | (counts[size + u8(peer)] << SHIFT32)
    totals[LEARNED] += learned
    totals[EPISODES] += episodes
    totals[RETURN_WHOLE] += whole
    totals[RETURN_FRACTION] += fraction
    totals[SQUARES] += squares
    totals[NON_FINITE] += non_finite


def begin(mail, counts, params, control):
    """Put the fresh lanes that start in this rank's rows here (tick 0); writes `counts`."""
    me = control[RANK]
    n_here, home = u8(0), me * control[REGION] + control[MIDDLE]
    for lane in range(control[N_LANES]):
        where = law_start(threefry(u8(0), u8(lane), control[SEED], RESET)[0], params)
        if owner_of(where, control) == me:
            at = home + u8(RECORD) * n_here
            n_here += ONE
            mail[at], mail[at + ONE] = where, NONE
            mail[at + u8(2)], mail[at + u8(3)] = u8(0), u8(lane)
    counts[me] = n_here


def crossing_parts(
    learn_config: Any, n_actions: int, record: Any, lockstep: bool, undoes: bool = False
) -> Any:
    """Return the parts of loops in which targets cross between owners. Local.

    record : `table.Record`; lockstep : whether targets wait until all lanes were looked at, and are
    applied in lane order; undoes : whether rows are kept in the log before they change.
    """
    parts = learning_parts(learn_config, n_actions, record, saturates=True)
    stride, update = parts["STRIDE"], parts["update"]
    keep = keep_row(record.row_bytes // 8) if undoes else keep_nothing
    if lockstep:
        deliver = deliver_kept(stride)
        return parts | {
            "tag": lane_tag, "deliver": deliver, "collect": collect_kept(deliver, stride),
            "apply": apply_kept(stride, update, keep),
        }  # fmt: skip
    deliver = deliver_at_once(update, keep)
    return parts | {
        "tag": rounding_tag, "deliver": deliver, "collect": collect_at_once(deliver, stride),
        "apply": nothing_kept,
    }  # fmt: skip


def crossing_kernels(
    learn_config: Any, environment: Any, record: Any, lockstep: bool, undoes: bool = False
) -> dict[str, Kernel]:
    """Return the requests for `begin` and `travel` under a `[learn]` configuration. Local.

    environment : `environments.base.Environment`; others : as in `crossing_parts`.
    """
    parts = crossing_parts(learn_config, environment.n_actions, record, lockstep, undoes)
    parts |= {"law_step": environment.law_step, "law_start": environment.law_start}
    q, clock, words = np.zeros(1, record.dtype), np.zeros(1, u4), np.zeros(1, u8)
    params = environment.params
    travelling = (
        q, clock, *(words,) * 4, params, words, np.zeros(6), np.zeros(6, i8)
    )  # fmt: skip
    return {
        "begin": Kernel(begin, parts, (words, words, params, words)),
        "travel": Kernel(travel, parts, travelling),
    }
