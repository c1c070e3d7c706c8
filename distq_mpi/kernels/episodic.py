"""Episodes of a fixed number of steps, whose table has a part for every step (finite horizon)."""

from __future__ import annotations

import math

import numpy as np

from distq_mpi.kernels import Kernel
from distq_mpi.kernels.draws import TRANSITION, threefry

u8, i8 = np.uint64, np.int64

FIRST, N_EPISODES, AGENT, SEED = range(4)
UNIT = 2.0**-53


def unit(word):
    """Return the uniform number in [0, 1) of a draw."""
    return float(word >> u8(11)) * UNIT


def walk(s, a, word, chances):
    """Return the next state; chances : float64 (S, A, S), cumulative."""
    x, following = unit(word), 0
    while following < chances.shape[2] - 1 and x >= chances[s, a, following]:
        following += 1
    return following


def play(policy, limits, chances, counts, visits, starts, played, control):
    """Play episodes until one in which a pair of a step has been visited to its limit.

    policy : int64 (H, S). limits, visits : int64 (H, S, A), visits of this agent in this round,
    raised. chances : float64 (S, A, S), cumulative. counts : int64 (H, S, A, S), transitions,
    raised. starts : int64 (S,), raised. played : int64 (1,), written: how many. control : uint64
    (4,): first episode, most episodes, agent, seed. Starts are uniform. Every draw is a function
    of (seed, agent, episode, step).
    """
    n_steps, n_states = policy.shape
    for k in range(i8(control[N_EPISODES])):
        at = (control[FIRST] + u8(k)) * u8(n_steps + 1)
        s = i8(unit(threefry(at, control[AGENT], control[SEED], TRANSITION)[0]) * n_states)
        starts[s] += 1
        reached = False
        for h in range(n_steps):
            a = policy[h, s]
            word = threefry(at + u8(h + 1), control[AGENT], control[SEED], TRANSITION)[0]
            following = walk(s, a, word, chances)
            counts[h, s, a, following] += 1
            visits[h, s, a] += 1
            if visits[h, s, a] >= limits[h, s, a]:
                reached = True
            s = following
        if reached:
            played[0] = k + 1
            return
    played[0] = i8(control[N_EPISODES])


def explore(chances, rewards, optimal, bonus, values, worth, q, counts, losses, control):
    """Run UCB-Hoeffding by one agent (Jin, Allen-Zhu, Bubeck & Jordan 2018, algorithm 1).

    rewards : float64 (S, A), in [0, 1]. optimal : float64 (S,), V* of the first step. bonus : c of
    c sqrt(H^3 / t). values, worth : float64 (H + 1, S), q : (H, S, A), counts : int64 (H, S, A),
    all scratch. losses : float64 (1,), the regret, written: the sum over episodes of
    V* - V of the policy that is played, exact, at their starts. control : as in `play`.
    """
    n_steps, n_states, n_actions = q.shape
    values[:, :] = 0.0
    values[:n_steps, :] = n_steps
    q[:, :, :] = n_steps
    counts[:, :, :] = 0
    worth[:, :] = 0.0
    total = 0.0
    changed = True
    for k in range(i8(control[N_EPISODES])):
        if changed:
            for h in range(n_steps - 1, -1, -1):
                for s in range(n_states):
                    a = best_action(q, h, s)
                    worth[h, s], below = rewards[s, a], 0.0
                    for following in range(n_states):
                        p = chances[s, a, following] - below
                        worth[h, s] += p * worth[h + 1, following]
                        below = chances[s, a, following]
        changed = False
        at = (control[FIRST] + u8(k)) * u8(n_steps + 1)
        s = i8(unit(threefry(at, control[AGENT], control[SEED], TRANSITION)[0]) * n_states)
        total += optimal[s] - worth[0, s]
        for h in range(n_steps):
            a = best_action(q, h, s)
            word = threefry(at + u8(h + 1), control[AGENT], control[SEED], TRANSITION)[0]
            following = walk(s, a, word, chances)
            counts[h, s, a] += 1
            t = counts[h, s, a]
            alpha = (n_steps + 1.0) / (n_steps + t)
            target = rewards[s, a] + values[h + 1, following] + bonus * math.sqrt(n_steps**3 / t)
            q[h, s, a] = (1.0 - alpha) * q[h, s, a] + alpha * target
            if best_action(q, h, s) != a:
                changed = True
            values[h, s] = min(float(n_steps), q[h, s, best_action(q, h, s)])
            s = following
    losses[0] = total


def best_action(q, h, s):
    """Return the lowest of the best actions."""
    best = 0
    for a in range(1, q.shape[2]):
        if q[h, s, a] > q[h, s, best]:
            best = a
    return best


def episodic_kernels() -> dict[str, Kernel]:
    """Return the requests for `play` and `explore`. Local."""
    three, values, q = np.zeros((1, 1, 1)), np.zeros((2, 1)), np.zeros((1, 1, 1))
    counts, control = np.zeros((1, 1, 1), i8), np.zeros(4, u8)
    return {
        "play": Kernel(play, {}, (
            np.zeros((1, 1), i8), counts, three, np.zeros((1, 1, 1, 1), i8), counts,
            np.zeros(1, i8), np.zeros(1, i8), control,
        )),
        "explore": Kernel(explore, {}, (
            three, np.zeros((1, 1)), np.zeros(1), 0.0, values, values, q, counts, np.zeros(1),
            control,
        )),
    }  # fmt: skip
