"""The learning loop over lanes. Free names that are parts are bound by `learning_kernels`."""

from __future__ import annotations

from typing import Any

import numpy as np

from distq_mpi.kernels import Kernel
from distq_mpi.kernels.draws import RESET, TRANSITION, threefry
from distq_mpi.kernels.exploration import EXPLORATIONS, best_of, epsilon_greedy
from distq_mpi.kernels.optimism import LAWS, capped
from distq_mpi.kernels.planning import LAWS as PLANNING
from distq_mpi.kernels.rules import RULES, coin, only_part
from distq_mpi.kernels.step_sizes import STEP_SIZES, saturating
from distq_mpi.kernels.storing import bits_of, exact, float_of, prefetch, stochastic
from distq_mpi.kernels.traces import (
    TRACES,
    drop,
    nothing_to_drop,
    nudging_law,
    trace_of,
)

u8, u4, f8 = np.uint64, np.uint32, np.float64

BATCH = 64
GROUP = 16

# Fields of a batch of lanes in `work`, as words: one pointer and fixed distances instead of an
# array for each field, for which the processor has too few registers.
STATE, ACTION, NEXT_STATE, REWARD, TERMINATED, AGE, GAIN = (u8(k * BATCH) for k in range(7))
BATCH_WORDS, LANES = u8(7 * BATCH), u8(2 * BATCH)

# Stand-ins for the parts, so that the loops below are ordinary functions to a reader and a linter.
STRIDE = u8(0)
best, choose, law_step, law_start = best_of(4), epsilon_greedy(4), exact, exact
learn_one, choose_first, move, FROZEN = exact, exact, exact, False
MARKS, TILE_SHIFT = False, u8(0)

N_STEPS, FIRST_STEP, FIRST_LANE, N_LANES, SEED, EXPLORE, LIMIT = range(7)
DISCOUNT, ALPHA = range(2)
RETURN_SUM, SQUARE_SUM, EPISODES = range(3)


def begin(q, state, action, next_state, reward, terminated, age, gain, params, control):
    """Put fresh lanes at a start state with their first transition made, unlearned, in step
    control[FIRST_STEP]: 0, or one whose draws no lane has used."""
    now = control[FIRST_STEP]
    for lane in range(control[N_LANES]):
        number = control[FIRST_LANE] + u8(lane)
        word, bits = threefry(now, number, control[SEED], TRANSITION)
        where, first = threefry(now, number, control[SEED], RESET)
        s = law_start(where, params)
        a = choose_first(q, s * STRIDE, word, first, control[EXPLORE])
        age[lane], gain[lane] = u4(0), 0.0
        state[lane], action[lane] = s, a
        next_state[lane], reward[lane], terminated[lane] = law_step(s, a, bits, params)


def work_words(n_lanes: int) -> int:
    """Words of `work` that `learn` wants for so many lanes: draws, and the lanes themselves."""
    return int(LANES) + -(-n_lanes // BATCH) * int(BATCH_WORDS)


def take_lanes(work, state, action, next_state, reward, terminated, age, gain, n_lanes):
    """Copy lanes to `work`."""
    for lane in range(n_lanes):
        k = LANES + u8(lane // BATCH) * BATCH_WORDS + u8(lane % BATCH)
        work[k + STATE], work[k + ACTION] = state[lane], action[lane]
        work[k + NEXT_STATE], work[k + REWARD] = next_state[lane], bits_of(reward[lane])
        work[k + TERMINATED], work[k + AGE] = u8(terminated[lane]), u8(age[lane])
        work[k + GAIN] = bits_of(gain[lane])


def give_lanes(work, state, action, next_state, reward, terminated, age, gain, n_lanes):
    """Copy lanes back from `work`."""
    for lane in range(n_lanes):
        k = LANES + u8(lane // BATCH) * BATCH_WORDS + u8(lane % BATCH)
        state[lane], action[lane] = work[k + STATE], work[k + ACTION]
        next_state[lane], reward[lane] = work[k + NEXT_STATE], float_of(work[k + REWARD])
        terminated[lane], age[lane] = work[k + TERMINATED] != u8(0), u4(work[k + AGE])
        gain[lane] = float_of(work[k + GAIN])


def earn(work, first, n):
    """Count n steps from lane `first` (in `work`) on, and their rewards."""
    for i in range(n):
        lane = first + u8(i)
        gain = float_of(work[lane + GAIN]) + float_of(work[lane + REWARD])
        work[lane + GAIN] = bits_of(gain)
        work[lane + AGE] += u8(1)


def moving_law(law_step):
    """Return move(...): make the next transition of n lanes from lane `first` (in `work`) on, with
    the words from `drawn` on."""

    def move(work, first, drawn, params, n):
        for i in range(n):
            lane, bits = first + u8(i), work[drawn + u8(i)]
            s, reward, ended = law_step(work[lane + STATE], work[lane + ACTION], bits, params)
            work[lane + NEXT_STATE], work[lane + REWARD] = u8(s), bits_of(f8(reward))
            work[lane + TERMINATED] = u8(ended)

    return move


def learn(seen, q, clock, state, action, next_state, reward, terminated, age, gain, trace, work,
          params, control, rates, totals):  # fmt: skip
    """Step every lane of one agent `control[N_STEPS]` times, learning from each transition once.

    A lane holds the transition it has made but not yet learned from; a step learns from it,
    chooses the next action with the table as it was before that update, and makes the next one.

    seen : the table that targets and actions are taken from where FROZEN; else `q` is.
    q : table (n,) float64 or float32, `STRIDE` values per state; changed in place.
    clock : the same buffer as uint32.
    state, action, next_state : uint64 (L,); reward, gain : float64 (L,); terminated : bool (L,);
        age : uint32 (L,); changed in place.
    trace : the lanes' (lengths, pairs, values), see `traces`; changed in place.
    work : uint64 (`work_words(L)`,) or more, scratch; where it MARKS, the last (tiles,) are set to
        1 where a row of the tile, of 2^TILE_SHIFT rows, is learned.
    control : uint64 (7,): steps, number of the first step (>= 1), number of the first lane, lanes,
        seed, `explore` (see `exploration`), time limit in steps (2^32 - 1 = none).
    rates : float64 (2,): discount, parameter of the step size.
    totals : float64 (3,): return sum and number of finished episodes, sum of squared TD errors;
        added to. A sum, not a maximum: NaN must survive.

    Local. Checks no bounds: the caller validates. Bootstrapping continues through truncation.
    """
    n_lanes, explore, seed = np.int64(control[N_LANES]), control[EXPLORE], control[SEED]
    first_step, first_lane, limit = control[FIRST_STEP], control[FIRST_LANE], control[LIMIT]
    discount, alpha, last = rates[DISCOUNT], rates[ALPHA], first_step + control[N_STEPS] - u8(1)
    table = seen if FROZEN else q
    marks = u8(work.size) - (((u8(q.size) // STRIDE - u8(1)) >> TILE_SHIFT) + u8(1))
    n_episodes, return_sum, square_sum = 0.0, 0.0, 0.0
    take_lanes(work, state, action, next_state, reward, terminated, age, gain, n_lanes)
    for i in range(BATCH):
        work[i], work[BATCH + i] = threefry(first_step, first_lane + u8(i), seed, TRANSITION)
    for step in range(control[N_STEPS]):
        now, lanes = first_step + u8(step), LANES
        for batch in range(0, n_lanes, BATCH):
            following, later = batch + BATCH, now
            if following >= n_lanes:
                following, later = 0, now + u8(1)
            size, goes_on = min(BATCH, n_lanes - batch), later <= last
            for group in range(0, BATCH, GROUP):
                stop, first_of = min(group + GROUP, size), lanes + u8(group)
                # Short loops, not one long one: the processor sees more lanes at once, and those
                # over whole groups are done by vectors.
                if stop - group == GROUP:
                    earn(work, first_of, GROUP)
                else:
                    earn(work, first_of, stop - group)
                for i in range(group, stop):
                    lane, number = lanes + u8(i), u8(batch + i)
                    word, bits = work[u8(i)], work[u8(BATCH + i)]
                    s, length = work[lane + NEXT_STATE], work[lane + AGE]
                    ended, state_now = work[lane + TERMINATED] != u8(0), work[lane + STATE]
                    a, square = learn_one(
                        table, q, clock, state_now, work[lane + ACTION],
                        float_of(work[lane + REWARD]), s, ended, word, bits, explore, discount,
                        alpha, number, length >= limit, trace,
                    )  # fmt: skip
                    square_sum += square
                    if MARKS:
                        work[marks + (state_now >> TILE_SHIFT)] = u8(1)
                    if ended or length >= limit:
                        n_episodes += 1.0
                        return_sum += float_of(work[lane + GAIN])
                        work[lane + GAIN], work[lane + AGE] = bits_of(0.0), u8(0)
                        where, first = threefry(now, first_lane + number, seed, RESET)
                        s = law_start(where, params)
                        a = choose_first(table, s * STRIDE, word, first, explore)
                    work[lane + STATE], work[lane + ACTION] = s, a
                if stop - group == GROUP:
                    move(work, first_of, u8(BATCH + group), params, GROUP)
                else:
                    move(work, first_of, u8(BATCH + group), params, stop - group)
                for i in range(group, stop):  # close together, so that the waits overlap
                    prefetch(table, work[lanes + u8(i) + NEXT_STATE] * STRIDE)
                for i in range(GROUP if goes_on else 0):  # while these are waited for
                    ahead = first_lane + u8(following + group + i)
                    word, bits = threefry(later, ahead, seed, TRANSITION)
                    work[u8(group + i)], work[u8(BATCH + group + i)] = word, bits
            lanes += BATCH_WORDS
    give_lanes(work, state, action, next_state, reward, terminated, age, gain, n_lanes)
    totals[RETURN_SUM] += return_sum
    totals[SQUARE_SUM] += square_sum
    totals[EPISODES] += n_episodes


def looking_law(record, best, choose, bootstrap, toss):
    """Return look(...) -> (next action uint64, target float64, part uint64): what it teaches.

    record : `table.Record`; best, choose : `exploration`; bootstrap, toss : `rules`. `row` is the
    first index of next_state's row in `q`; `part` the first index, within a row, of what the target
    is for. Reads that row only.
    """

    def look(q, row, reward, terminated, word, bits, explore, discount):
        part = toss(bits)
        value = best(q, row)[1]
        a_next = choose(q, row, value, word, explore)
        future = bootstrap(q, row, a_next, value, explore, part, word)
        return a_next, reward + (0.0 if terminated else discount * future), part

    return look


def writing_law(record, step_size, store):
    """Return update(...) -> td_error float64: move entry `entry` (uint64) of state's row to target.

    record : `table.Record`; step_size : `step_sizes.StepSize`; store : `storing`. The clock of
    entry i of a row of `q` stands at word clock_offset + i of the same row.
    """
    stride, clock_stride = u8(record.stride), u8(record.clock_stride)
    clock_offset, visits_ahead = u8(record.clock_offset), u8(record.visits_ahead)
    counts_apart = record.counts_visits
    size, tick = step_size.size, step_size.tick

    def update(q, clock, state, entry, target, bits, discount, alpha):
        pair = state * stride + entry
        cell = state * clock_stride + clock_offset + entry
        value = q[pair]
        td_error = target - value
        ticked = tick(clock[cell], td_error)
        clock[cell] = ticked
        if counts_apart:
            clock[cell + visits_ahead] += u4(1)
        q[pair] = store(value, size(ticked, discount, alpha) * td_error, bits)
        return td_error

    return update


def transition_law(record, look, update):
    """Return learn_one(...) -> (next action uint64, sum of squared TD errors float64): what is
    learned from a transition.

    look, update : `looking_law`, `writing_law`. The action at next_state is chosen with the table
    as it was before the update. `table` is looked at, `q` changed. `cut` says that the episode is
    truncated here; `trace` is that of all lanes, see `traces`.
    """
    stride = u8(record.stride)

    def learn_one(table, q, clock, state, action, reward, next_state, terminated, word, bits,
                  explore, discount, alpha, lane, cut, trace):  # fmt: skip
        a_next, target, part = look(
            table, next_state * stride, reward, terminated, word, bits, explore, discount
        )
        td_error = update(q, clock, state, part + action, target, bits, discount, alpha)
        return a_next, td_error * td_error

    return learn_one


def first_action(best, choose, n_actions, explores):
    """Return choose_first(q, row, word, first, explore): the action at a start state.

    first : second word of the RESET draw; it alone decides under exploring starts (`explores`).
    """
    count = u8(n_actions)

    def as_always(q, row, word, first, explore):
        return choose(q, row, best(q, row)[1], word, explore)

    def at_random(q, row, word, first, explore):
        return ((first >> u8(32)) * count) >> u8(32)

    return at_random if explores else as_always


def learning_parts(
    learn_config: Any, n_actions: int, record: Any, n_states: int = 0, saturates: bool = False
) -> dict[str, Any]:
    """Return the parts that make a loop learn under a `[learn]` configuration. Local.

    `best`, `choose` and `choose_first` of the behaviour; `learn_one`, the law of one transition,
    and its halves `look` and `update`; `drop`, which empties a lane's trace. n_states : only rules
    that learn a model ask for it, where they learn. saturates : whether clocks are limited at every
    tick, not between rounds.
    """
    rule = RULES[learn_config.rule]
    exploration = EXPLORATIONS[learn_config.exploration]
    at = exploration.seen(rule.averages, n_actions)
    best, choose = best_of(n_actions, at), exploration.choose(n_actions, at)
    bootstrap = rule.bootstrap(n_actions, exploration.expected(n_actions, at))
    if learn_config.rule == "ucb_hoeffding":
        bootstrap = capped(bootstrap, float(learn_config.value_high))
    toss = (coin if rule.averages else only_part)(n_actions)
    store = exact if record.dtype == np.float64 else stochastic
    look = looking_law(record, best, choose, bootstrap, toss)
    frozen = learn_config.target == "frozen"
    # Where targets are frozen an agent's value is the mean of those of the round.
    step_size = STEP_SIZES["linear" if frozen else learn_config.step_size]
    if saturates:
        step_size = saturating(step_size)
    update = writing_law(record, step_size, store)
    if learn_config.rule in LAWS:
        update = LAWS[learn_config.rule](learn_config, record, step_size, store)
    learn_one = transition_law(record, look, update)
    kind = trace_of(learn_config)
    if kind == "model":
        law = PLANNING[learn_config.rule]
        halves = {"best": best, "choose": choose, "look": look, "update": update}
        learn_one = law(learn_config, record, halves, n_states)
    elif kind:
        nudge = nudging_law(record, step_size, store)
        learn_one = TRACES[kind](learn_config, record, best, look, update, nudge)
    return {
        "STRIDE": u8(record.stride),
        "FROZEN": frozen,
        "best": best,
        "choose": choose,
        "choose_first": first_action(best, choose, n_actions, learn_config.exploring_starts),
        "look": look,
        "update": update,
        "learn_one": learn_one,
        "drop": drop if kind in TRACES else nothing_to_drop,
    }


def learning_kernels(
    learn_config: Any, environment: Any, record: Any, lanes: Any, tile_rows: int = 0
) -> dict[str, Kernel]:
    """Return the requests for `begin` and `learn` under a `[learn]` configuration. Local.

    environment : `environments.base.Environment`; record : `table.Record`; lanes : example
    `lanes.Lanes`, for the types of its arrays. tile_rows : rows of the tiles that are marked, a
    power of two; 0: none are.
    """
    parts = learning_parts(learn_config, environment.n_actions, record, environment.n_states)
    parts |= {
        "law_step": environment.law_step, "law_start": environment.law_start,
        "move": moving_law(environment.law_step),
    }  # fmt: skip
    parts |= {"MARKS": tile_rows > 0, "TILE_SHIFT": u8(max(0, tile_rows.bit_length() - 1))}
    q, clock = np.zeros(1, record.dtype), np.zeros(1, u4)
    control, rates = np.zeros(7, u8), np.zeros(2)
    arrays, params = lanes.arrays(), environment.params
    return {
        "begin": Kernel(begin, parts, (q, *arrays, params, control)),
        "learn": Kernel(
            learn, parts, (q, q, clock, *arrays, lanes.trace(), np.zeros(1, u8), params,
                           control, rates, np.zeros(3))
        ),
    }  # fmt: skip
