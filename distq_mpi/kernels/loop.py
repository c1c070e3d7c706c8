"""The learning loop over lanes. Free names that are parts are bound by `learning_kernels`."""

from __future__ import annotations

import numpy as np

from distq_mpi.kernels import Kernel
from distq_mpi.kernels.draws import RESET, TRANSITION, threefry
from distq_mpi.kernels.exploration import best_of, epsilon_greedy
from distq_mpi.kernels.rules import RULES, q_learning
from distq_mpi.kernels.step_sizes import STEP_SIZES, rescaled_linear
from distq_mpi.kernels.storing import exact, prefetch, stochastic

u8, u4, f8 = np.uint64, np.uint32, np.float64

BATCH = 64
GROUP = 16

# Stand-ins for the parts, so that the loops below are ordinary functions to a reader and a linter.
STRIDE = CLOCK_STRIDE = CLOCK_OFFSET = u8(0)
best, choose, law_step, law_start = best_of(4), epsilon_greedy(4), exact, exact
bootstrap, step_size, store = q_learning, rescaled_linear, exact

N_STEPS, FIRST_STEP, FIRST_LANE, N_LANES, SEED, EPSILON, LIMIT = range(7)
DISCOUNT, ALPHA = range(2)
RETURN_SUM, SQUARE_SUM, EPISODES = range(3)


def begin(q, state, action, next_state, reward, terminated, age, gain, params, control):
    """Put fresh lanes at a start state with their first transition made (step 0), unlearned."""
    for lane in range(control[N_LANES]):
        number = control[FIRST_LANE] + u8(lane)
        word, bits = threefry(u8(0), number, control[SEED], TRANSITION)
        s = law_start(threefry(u8(0), number, control[SEED], RESET)[0], params)
        a = choose(q, s * STRIDE, best(q, s * STRIDE)[1], word, control[EPSILON])
        age[lane], gain[lane] = u4(0), 0.0
        state[lane], action[lane] = s, a
        next_state[lane], reward[lane], terminated[lane] = law_step(s, a, bits, params)


def learn(q, clock, state, action, next_state, reward, terminated, age, gain, draws, params,
          control, rates, totals):  # fmt: skip
    """Step every lane of one agent `control[N_STEPS]` times, learning from each transition once.

    A lane holds the transition it has made but not yet learned from; a step learns from it,
    chooses the next action with the table as it was before that update, and makes the next one.

    q : table (n,) float64 or float32, `STRIDE` values per state; changed in place.
    clock : the same buffer as uint32, the count of (s, a) at s * CLOCK_STRIDE + CLOCK_OFFSET + a.
    state, action, next_state : uint64 (L,); reward, gain : float64 (L,); terminated : bool (L,);
        age : uint32 (L,); changed in place.
    draws : uint64 (2 * BATCH,), scratch.
    control : uint64 (7,): steps, number of the first step (>= 1), number of the first lane, lanes,
        seed, epsilon as a threshold of 2^32, time limit in steps (2^32 - 1 = none).
    rates : float64 (2,): discount, alpha.
    totals : float64 (3,): return sum and number of finished episodes, sum of squared TD errors;
        added to. A sum, not a maximum: NaN must survive.

    Local. Checks no bounds: the caller validates. Bootstrapping continues through truncation.
    """
    n_lanes, epsilon, seed = np.int64(control[N_LANES]), control[EPSILON], control[SEED]
    first_step, first_lane, limit = control[FIRST_STEP], control[FIRST_LANE], u4(control[LIMIT])
    discount, alpha = rates[DISCOUNT], rates[ALPHA]
    n_episodes, return_sum, square_sum = 0.0, 0.0, 0.0
    for step in range(control[N_STEPS]):
        now = first_step + u8(step)
        for batch in range(0, n_lanes, BATCH):
            for i in range(BATCH):
                number = first_lane + u8(batch + i)
                draws[i], draws[BATCH + i] = threefry(now, number, seed, TRANSITION)
            size = min(BATCH, n_lanes - batch)
            for group in range(0, size, GROUP):
                stop = min(group + GROUP, size)
                for i in range(group, stop):
                    lane = u8(batch + i)  # unsigned: no test for negative indices
                    word, bits = draws[u8(i)], draws[u8(BATCH + i)]
                    s, ended = next_state[lane], terminated[lane]
                    value = best(q, s * STRIDE)[1]
                    a = choose(q, s * STRIDE, value, word, epsilon)
                    future = f8(bootstrap(q, s * STRIDE, a, value))
                    target = reward[lane] + (0.0 if ended else discount * future)
                    pair = state[lane] * STRIDE + action[lane]
                    cell = state[lane] * CLOCK_STRIDE + CLOCK_OFFSET + action[lane]
                    count = clock[cell] + u4(1)
                    clock[cell] = count
                    td_error = target - q[pair]
                    square_sum += td_error * td_error
                    q[pair] = store(q[pair], step_size(count, discount, alpha) * td_error, bits)
                    total, length = gain[lane] + reward[lane], age[lane] + u4(1)
                    if ended or length >= limit:
                        n_episodes += 1.0
                        return_sum += total
                        total, length = 0.0, u4(0)
                        reset = threefry(now, first_lane + lane, seed, RESET)[0]
                        s = law_start(reset, params)
                        a = choose(q, s * STRIDE, best(q, s * STRIDE)[1], word, epsilon)
                    gain[lane], age[lane] = total, length
                    state[lane], action[lane] = s, a
                    next_state[lane], reward[lane], terminated[lane] = law_step(s, a, bits, params)
                for i in range(group, stop):  # close together, so that the waits overlap
                    prefetch(q, next_state[u8(batch + i)] * STRIDE)
    totals[RETURN_SUM] += return_sum
    totals[SQUARE_SUM] += square_sum
    totals[EPISODES] += n_episodes


def learning_kernels(learn_config, environment, record, lanes) -> dict[str, Kernel]:
    """Return the requests for `begin` and `learn` under a `[learn]` configuration. Local.

    environment : `environments.base.Environment`; record : `table.Record`; lanes : example
    `lanes.Lanes`, for the types of its arrays.
    """
    parts = dict(
        STRIDE=u8(record.stride), CLOCK_STRIDE=u8(record.clock_stride),
        CLOCK_OFFSET=u8(record.clock_offset),
        best=best_of(environment.n_actions), choose=epsilon_greedy(environment.n_actions),
        bootstrap=RULES[learn_config.rule], step_size=STEP_SIZES[learn_config.step_size],
        store=exact if record.dtype == np.float64 else stochastic,
        law_step=environment.law_step, law_start=environment.law_start,
    )  # fmt: skip
    q, clock = np.zeros(1, record.dtype), np.zeros(1, u4)
    control, rates = np.zeros(7, u8), np.zeros(2)
    arrays, params = lanes.arrays(), environment.params
    return {
        "begin": Kernel(begin, parts, (q, *arrays, params, control)),
        "learn": Kernel(
            learn, parts, (q, clock, *arrays, np.zeros(2 * BATCH, u8), params, control, rates,
                           np.zeros(3))
        ),
    }  # fmt: skip
