"""FedQ-Hoeffding against one agent of as many episodes: the same regret, in a few rounds.

Zheng, Gao, Xue & Yang (2024), "Federated Q-learning: linear regret speedup with low communication
cost", algorithm 1 and the set-up of its appendix F.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from distq_mpi.kernels.episodic import AGENT, FIRST, N_EPISODES, SEED, episodic_kernels
from distq_mpi.kernels.objects import load
from distq_mpi.partition import Partition

if TYPE_CHECKING:
    from distq_mpi.transport import Transport

N_STATES, N_ACTIONS, N_STEPS, N_AGENTS = 3, 2, 5, 10
BONUS = 1.0
"""The c of c sqrt(H^3 iota / t), with iota = 1."""


@dataclass(frozen=True)
class Regrets:
    """What one instance came to: regret / sqrt(episodes of all agents), and rounds.

    late_rounds : those of the second half of the episodes.
    """

    federated: float
    alone: float
    rounds: int
    late_rounds: int


class Instance:
    """A random problem: rewards uniform in [0, 1], chances uniform on the simplex. Local."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.rewards = rng.uniform(0, 1, (N_STATES, N_ACTIONS))
        self.p = rng.dirichlet(np.ones(N_STATES), (N_STATES, N_ACTIONS))
        self.chances = np.cumsum(self.p, axis=2)
        self.optimal = self.worth(None)

    def worth(self, policy: np.ndarray | None) -> np.ndarray:
        """V of the first step, float64 (S,); policy : int64 (H, S), None = the best."""
        v = np.zeros(N_STATES)
        for h in reversed(range(N_STEPS)):
            q = self.rewards + self.p @ v
            v = q.max(axis=1) if policy is None else q[np.arange(N_STATES), policy[h]]
        return v


class Table:
    """The server's: values of every step, visits, and the update of a round. Local."""

    def __init__(self) -> None:
        self.q = np.full((N_STEPS, N_STATES, N_ACTIONS), float(N_STEPS))
        self.v = np.zeros((N_STEPS + 1, N_STATES))
        self.v[:N_STEPS] = N_STEPS
        self.visits = np.zeros(self.q.shape, np.int64)

    def policy(self) -> np.ndarray:
        """Greedy, int64 (H, S), the lowest of the best."""
        return np.ascontiguousarray(self.q.argmax(axis=2).astype(np.int64))

    def limits(self) -> np.ndarray:
        """Visits of one agent that end a round."""
        most = self.visits // (N_AGENTS * N_STEPS * (N_STEPS + 1))
        return np.maximum(1, most)

    def learn(self, counts: np.ndarray, rewards: np.ndarray) -> None:
        """Update by transitions of a round; counts : int64 (agents, H, S, A, S)."""
        few = 2 * N_AGENTS * N_STEPS * (N_STEPS + 1)
        following = self.v.copy()
        for h, s, a in np.argwhere(counts.sum(axis=(0, 4)) > 0):
            met, old = counts[:, h, s, a], int(self.visits[h, s, a])
            n, q, reward = int(met.sum()), self.q[h, s, a], rewards[s, a]
            t = np.arange(old + 1, old + n + 1)
            alpha = (N_STEPS + 1) / (N_STEPS + t)
            bonus = BONUS * np.sqrt(N_STEPS**3 / t)
            if old < few:
                seen = [s_ for one in met for s_ in np.repeat(np.arange(N_STATES), one)]
                for size, extra, state in zip(alpha, bonus, seen, strict=True):
                    q = (1 - size) * q + size * (reward + following[h + 1, state] + extra)
            else:
                left = np.cumprod((1 - alpha)[::-1])[::-1]  # of step k: product from k on
                weights = alpha * np.append(left[1:], 1.0)
                mean = float(met.sum(axis=0) @ following[h + 1]) / n
                q = left[0] * q + (1 - left[0]) * (reward + mean) + float(weights @ bonus)
            self.q[h, s, a] = q
        self.visits += counts.sum(axis=(0, 4))
        self.v[:N_STEPS] = np.minimum(N_STEPS, self.q.max(axis=2))


def kernels_of(transport: Transport) -> dict[str, Any]:
    """Load the kernels of this study. COLLECTIVE."""
    return load(episodic_kernels() if transport.leads_node else None, transport)


def regrets(
    seed: int, n_episodes: int, kernels: dict[str, Any], transport: Transport
) -> Regrets:
    """Run N_AGENTS agents of n_episodes each, spread over the ranks, and one of them all.

    COLLECTIVE; the same on any number of ranks.
    """
    problem, table = Instance(seed), Table()
    mine = range(*Partition.balanced(N_AGENTS, transport.size).block(transport.rank))
    done, rounds, late, lost = 0, 0, 0, 0.0
    control = np.zeros(4, np.uint64)
    while done < n_episodes:
        policy, limits = table.policy(), table.limits()
        counts, starts, n = _round(
            mine, problem, policy, limits, (done, n_episodes - done, seed), kernels, transport
        )
        lost += float(starts @ (problem.optimal - problem.worth(policy)))
        table.learn(counts, problem.rewards)
        rounds, late = rounds + 1, late + (2 * done >= n_episodes)
        done += n
    found = np.zeros(1)
    if transport.rank == 0:
        control[[FIRST, N_EPISODES, AGENT, SEED]] = 0, N_AGENTS * n_episodes, N_AGENTS, seed
        kernels["explore"](
            problem.chances, problem.rewards, problem.optimal, BONUS, np.zeros_like(table.v),
            np.zeros_like(table.v), np.zeros_like(table.q), np.zeros_like(table.visits), found,
            control,
        )  # fmt: skip
    scale = math.sqrt(N_AGENTS * n_episodes)
    alone = float(transport.broadcast(float(found[0])))
    return Regrets(lost / scale, alone / scale, rounds, late)


def _round(
    mine: range, problem: Instance, policy: np.ndarray, limits: np.ndarray,
    episodes: tuple[int, int, int], kernels: dict[str, Any], transport: Transport,
) -> tuple[np.ndarray, np.ndarray, int]:  # fmt: skip
    """Play until an agent has seen enough; return transitions (agents, H, S, A, S), starts (S,),
    episodes of each agent. The episode in which that is comes first, then all play up to it."""
    first, left, seed = episodes
    counts = np.zeros((N_AGENTS, *limits.shape, N_STATES), np.int64)
    played, starts = np.zeros(1, np.int64), np.zeros(N_STATES, np.int64)
    least = np.array([-left], np.int64)
    for final in (False, True):
        for agent in mine:
            control = np.array([first, -int(least[0]), agent, seed], np.uint64)
            scratch = counts[agent] if final else np.zeros_like(counts[agent])
            kernels["play"](
                policy, limits, problem.chances, scratch, np.zeros_like(limits),
                starts if final else np.zeros_like(starts), played, control,
            )  # fmt: skip
            least[0] = max(least[0], -played[0])
        if not final:
            transport.max_int(least)
    transport.sum_int(counts)
    transport.sum_int(starts)
    return counts, starts, -int(least[0])
