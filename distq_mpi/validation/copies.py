"""Thousands of independent runs as the lanes of one learner, each in a copy of the world of its
own, so that no table is shared: online returns, and what is chosen, by the number of the episode.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

from distq_mpi.config import LearnConfig
from distq_mpi.environments.base import Environment
from distq_mpi.environments.explicit import explicit_model
from distq_mpi.kernels import Kernel, loop
from distq_mpi.kernels.exploration import EXPLORATIONS, best_of, epsilon_greedy
from distq_mpi.kernels.objects import load
from distq_mpi.kernels.rules import RULES
from distq_mpi.lanes import Lanes
from distq_mpi.partition import Partition
from distq_mpi.table import Rows, record_of

if TYPE_CHECKING:
    from distq_mpi.transport import Transport

u8, i8 = np.uint64, np.int64
NO_LIMIT = 2**32 - 1
EPSILON = 0.1


def copies(environment: Environment, n: int, n_episodes: int) -> Environment:
    """`n` copies of an environment without a time limit, one per lane, which keep a record of their
    episodes.

    `params` are the environment's own, its number of states, and int64 arrays: calls (3,), of
    transitions, and of starts and ends after the first of all lanes; waiting (n,), the copies that
    ended, in their order; episode (n,), age (n,), and per number of the episode: how many have
    ended, and how many chose action 0 first; float64: the return so far (n,), the sum and the sum
    of squares of returns.
    """
    if environment.max_episode_steps:
        raise ValueError("copies of an environment with a time limit: an episode that is cut tells "
                         "the laws nothing")  # fmt: skip
    inner_step, inner_start = environment.law_step, environment.law_start

    def law_start(bits, params):  # type: ignore[no-untyped-def]
        inner, n_states, calls, waiting = params[0], params[1], params[2], params[3]
        # Lanes are begun in turn, each with a transition; those that end start again in that order.
        copy = calls[0]
        if copy >= waiting.size:
            copy = waiting[calls[1] % waiting.size]
            calls[1] += 1
        return inner_start(bits, inner) + u8(copy) * u8(n_states)

    def law_step(state, action, bits, params):  # type: ignore[no-untyped-def]
        inner, n_states, calls, waiting, episode, age, ended, first, gain, total, squares = params
        copy = state // u8(n_states)
        new, reward, terminated = inner_step(state - copy * u8(n_states), action, bits, inner)
        calls[0] += 1
        if terminated:
            waiting[calls[2] % waiting.size] = i8(copy)
            calls[2] += 1
        number = u8(episode[copy])
        if number < u8(ended.size):
            if age[copy] == 0 and action == u8(0):
                first[number] += 1
            age[copy] += 1
            gain[copy] += reward
            if terminated:
                ended[number] += 1
                total[number] += gain[copy]
                squares[number] += gain[copy] * gain[copy]
                episode[copy] += 1
                age[copy], gain[copy] = 0, 0.0
        return new + copy * u8(n_states), reward, terminated

    whole = (np.zeros(3, i8), *(np.zeros(n, i8) for _ in range(3)))
    counts = (np.zeros(n_episodes, i8), np.zeros(n_episodes, i8))
    sums = (np.zeros(n), np.zeros(n_episodes), np.zeros(n_episodes))
    return replace(
        environment,
        n_states=n * environment.n_states,
        params=(environment.params, environment.n_states, *whole, *counts, *sums),
        law_step=law_step,
        law_start=law_start,
    )


class Runs:
    """What `n` independent runs of `n_episodes` did, spread over the ranks. COLLECTIVE.

    Attributes: `first`, int64 (n_episodes,), runs whose episode of that number began with action 0.
    `values`, float (runs of this rank, S, A), learned.
    """

    def __init__(
        self, environment: Environment, n: int, n_episodes: int, steps: int, alpha: float,
        rule: str, transport: Transport, choose_first: Any = None, seed: int = 1,
        discount: float = 1.0,
    ) -> None:  # fmt: skip
        start, stop = Partition.balanced(n, transport.size).block(transport.rank)
        self.n, mine = n, stop - start
        world = copies(environment, mine, n_episodes)
        learn = LearnConfig(
            rule=rule, step_size="constant", alpha=alpha, discount=discount,  # type: ignore[arg-type]
            epsilon=EPSILON, dtype="float64", initial="zeros",
        )  # fmt: skip
        record, lanes = record_of(learn, environment.n_actions), Lanes(start, mine)
        requests = loop.learning_kernels(learn, world, record, lanes)
        if choose_first is not None:
            requests = {
                name: Kernel(k.template, {**k.parts, "choose_first": choose_first}, k.arguments)
                for name, k in requests.items()
            }
        kernels = load(requests if transport.leads_node else None, transport)
        rows = Rows(record, world.n_states)
        control = np.array(
            [steps, 0, start, mine, seed, EXPLORATIONS[learn.exploration].encode(EPSILON),
             NO_LIMIT], u8,
        )  # fmt: skip
        rates, totals = np.array([discount, alpha]), np.zeros(3)
        work = np.zeros(loop.work_words(mine), u8)
        kernels["begin"](rows.q, *lanes.arrays(), world.params, control)
        control[loop.N_STEPS], control[loop.FIRST_STEP] = steps, 1
        _, _, _, _, _, _, ended, self.first, _, self.total, self.squares = world.params
        while mine and ended[-1] < mine:
            kernels["learn"](
                rows.q, rows.q, rows.clock_words, *lanes.arrays(), lanes.trace(), work,
                world.params, control, rates, totals,
            )  # fmt: skip
            control[loop.FIRST_STEP] += u8(steps)
        transport.sum_int(self.first)
        # In the order of the ranks: the same sums on any number of them, but for rounding.
        sums = transport.gather_everywhere((self.total, self.squares))
        self.total = np.sum([one[0] for one in sums], axis=0)
        self.squares = np.sum([one[1] for one in sums], axis=0)
        self.values = rows.policy_values().reshape(mine, environment.n_states, -1)

    def mean_return(self, first: int, stop: int) -> tuple[float, float]:
        """Mean return over episodes [first, stop), and its standard error if all were independent.
        """
        count = self.n * (stop - first)
        mean = self.total[first:stop].sum() / count
        return mean, float(np.sqrt((self.squares[first:stop].sum() / count - mean**2) / count))


N_REWARDS = 1024
B_ACTIONS = 10


def quantiles() -> np.ndarray:
    """Equally likely rewards with mean -0.1 and variance 1 that lie as those of a normal law do."""
    z = np.array([NormalDist().inv_cdf((k + 0.5) / N_REWARDS) for k in range(N_REWARDS)])
    return np.asarray(z / z.std() - 0.1)


def two_states() -> Environment:
    """A (0): action 0 to B (1), any other ends with 0. B: every action ends, reward N(-0.1, 1)."""
    rows: list[Any] = [([1], [1.0], [0.0], [0])] + [([0], [1.0], [0.0], [1])] * (B_ACTIONS - 1)
    reward = quantiles()
    rows += [([1] * N_REWARDS, [1 / N_REWARDS] * N_REWARDS, reward, [1] * N_REWARDS)] * B_ACTIONS
    indptr = np.cumsum([0, *(len(row[0]) for row in rows)])
    following, probability, rewards, ends = (
        np.concatenate([np.asarray(row[k]) for row in rows]) for k in range(4)
    )
    return explicit_model(
        "bias", 2, B_ACTIONS, indptr, following, probability, rewards, ends, [1.0, 0.0]
    )


def left_percent(rule: str, n: int, transport: Transport) -> np.ndarray:
    """In how many of `n` runs, %, an episode begins with left, by its number from 0. COLLECTIVE."""
    at = EXPLORATIONS["epsilon_greedy"].seen(RULES[rule].averages, B_ACTIONS)
    # In A there are two actions only; the rest of its row is never chosen.
    choose = loop.first_action(best_of(2, at), epsilon_greedy(2, at), 2, False)
    runs = Runs(two_states(), n, 300, 601, 0.1, rule, transport, choose)
    return 100.0 * runs.first / n
