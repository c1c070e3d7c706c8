"""The rows of `validate`: what is published or exact, and how the program computes its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from distq_mpi.config import EnvConfig
from distq_mpi.environments import make
from distq_mpi.study.arms import STUDIES
from distq_mpi.study.judging import Told
from distq_mpi.study.problems import mazes, two_chains
from distq_mpi.study.running import fused_in_turn
from distq_mpi.validation.bench import Bench, Solved
from distq_mpi.validation.copies import Runs, left_percent
from distq_mpi.validation.textbook import (
    car_rental,
    dyna_maze,
    gambler,
    jumps,
    mixed,
    one_state,
    outcomes_of,
    windy,
)

Numbers = float | tuple[float, ...]
CLIFF_START, EPSILON = 36, 0.1
EXACT = 1e-8


@dataclass(frozen=True)
class Row:
    """One number, or a few, that the program must reproduce.

    Parameters
    ----------
    id : of docs/validation.md. task : in words.
    expected : published or exact.
    ours : computes the program's own; COLLECTIVE.
    tolerance : largest |ours - expected|.
    full : left out of the quick set, for it takes long.
    needs : keywords of `QLearning` that `ours` uses; without them the row is skipped.
    absent : why the program cannot compute it at all; "" = it can.
    """

    id: str
    task: str
    expected: Numbers
    ours: Callable[[Bench], Any]
    tolerance: float = EXACT
    full: bool = False
    needs: Mapping[str, Any] = field(default_factory=dict)
    absent: str = ""


def _at(solved: Solved, *states: int) -> tuple[float, ...]:
    return tuple(float(solved.values[state]) for state in states)


def _lake(bench: Bench) -> tuple[float, ...]:
    solved = bench.solved("FrozenLake-v1", 0.99)
    return solved.optimal_value or np.nan, float(solved.values.sum())


def _large_lake(bench: Bench) -> tuple[Any, ...]:
    solved = bench.solved("FrozenLake8x8-v1", 0.99)
    patient = bench.solved("FrozenLake8x8-v1", 0.999)
    return (
        solved.optimal_value, solved.optimal_policy_return, patient.optimal_policy_return,
        solved.best_return,
    )  # fmt: skip


def _taxi(bench: Bench) -> tuple[float, ...]:
    solved, law = bench.solved("Taxi-v4", 0.99), make(EnvConfig(id="Taxi-v4"))
    assert solved.returns is not None
    found = solved.returns[[law.start(i, law.params)[1] for i in range(law.n_starts)]]
    return float(found.mean()), float(found.std()), float(found.min()), float(found.max())


def _soft(bench: Bench) -> tuple[float, ...]:
    """Online return of the policy along the edge, of the best soft one, of the one at the top."""
    cliff = make(EnvConfig(id="CliffWalking-v1"))
    greedy = np.zeros((48, 1), np.int64)
    greedy[:, 0] = np.maximum(bench.solved("CliffWalking-v1", 1.0).policy, 0)
    top = np.zeros((48, 1), np.int64)
    top[:12], top[[11, 23, 35]] = 1, 2
    soft = (1.0 - EPSILON) * np.eye(4) + EPSILON / 4
    worlds = (soft[greedy], soft, soft[top])
    solved = [bench.solve(mixed(cliff, world, CLIFF_START), 1.0) for world in worlds]
    return tuple(float(s.values[CLIFF_START]) for s in solved)


def _safe_steps(bench: Bench) -> float:
    """Steps of the greedy path of the best soft policy on the cliff."""
    cliff = make(EnvConfig(id="CliffWalking-v1"))
    soft = (1.0 - EPSILON) * np.eye(4) + EPSILON / 4
    policy = bench.solve(mixed(cliff, soft, CLIFF_START), 1.0).policy
    return _steps(cliff, policy)


def _steps(environment: Any, policy: np.ndarray, state: int = CLIFF_START) -> float:
    for step in range(1, 1000):
        ((_, state, _, ended),) = outcomes_of(environment, state, int(policy[state]))
        if ended:
            return step
    return np.inf


def _jacks(bench: Bench) -> tuple[float, ...]:
    solved = bench.solve(car_rental(), 0.9)
    states = (0, 10 * 21 + 10, 440, 20 * 21, 20)
    actions = [float(np.sum(solved.policy == moved + 5)) for moved in (0, 5, -5)]
    return (*_at(solved, *states), *actions)


def _at_random(bench: Bench) -> tuple[float, ...]:
    return _at(bench.solve(mixed(jumps(), np.full((1, 4), 0.25)), 0.9), 0, 1, 2, 3, 4)


def _worth(bench: Bench, env: str, discount: float, loss: float, **more: Any) -> tuple[Any, ...]:
    """Value and return of a learned policy."""
    found = bench.learned(env, discount=discount, policy_loss=loss, agents=4, seed=1, **more)
    return found.policy_value, found.policy_return


def _left(bench: Bench, step_size: str, discount: float, n: int, **more: Any) -> float:
    """Share of the first error that n updates leave in one state of reward 1."""
    q = bench.values(
        one_state(), n, step_size=step_size, discount=discount, agents=1, lanes=1,
        initial="zeros", dtype="float64", **more,
    )  # fmt: skip
    return 1.0 - float(q[0, 0]) * (1.0 - discount)


def _relative(found: float, expected: float) -> float:
    return found / expected


def _arm(bench: Bench, study: str, number: int, n_runs: int) -> Told:
    """What a line of a study comes to."""
    told = list(STUDIES[study](n_runs))[number](bench.transport)
    bench.told(told)
    return told


def _woo(bench: Bench) -> tuple[float, ...]:
    """Errors of count, importance, mean."""
    means = dict(zip(("count", "pooled", "importance", "mean"),
                     _arm(bench, "fusion", 1, 40).means, strict=True))  # fmt: skip
    return means["count"], means["importance"], means["mean"]


def _ratio(means: list[float]) -> float:
    """Of the regrets of ten agents and of one."""
    return means[0] / means[1]


def _left_at(bench: Bench, rule: str) -> tuple[float, ...]:
    """Sutton & Barto's figure 6.5; 2.9 is four standard errors of the difference of two studies."""
    found = left_percent(rule, 10_000, bench.transport)
    bench.curve(f"V19, {rule}", "episode", range(1, 301), found, "% left")
    return tuple(float(found[k - 1]) for k in (1, 5, 10, 20, 50, 100, 300))


def _online(bench: Bench) -> tuple[float, ...]:
    """Mean returns of 300 runs under Q-learning, SARSA, Expected SARSA."""
    cliff = make(EnvConfig(id="CliffWalking-v1"))
    found = (
        Runs(cliff, 300, 500, 2000, 0.5, rule, bench.transport)
        for rule in ("q_learning", "sarsa", "expected_sarsa")
    )
    return tuple(runs.mean_return(100, 500)[0] for runs in found)


def _differing(bench: Bench) -> tuple[float, ...]:
    """Means over rounds of the fused table; backups are linear with one action."""
    pair = two_chains()
    found: list[float] = []
    for period, n_rounds in ((2, 40_000), (10, 20_000)):
        tables = fused_in_turn(bench.transport, pair, 2, period, n_rounds, 0.9, alpha=0.5)
        found += np.mean(tables[n_rounds // 10 :], axis=0).reshape(-1).tolist()
    return tuple(found)


def _mazes(bench: Bench) -> tuple[float, ...]:
    """What is left of the error after 16,000 steps."""
    world, optimal = mazes(20, 1, 0.99)
    ends = []
    for period in (1, 10, 40, 200):
        tables = fused_in_turn(
            bench.transport, world, 20, period, 16_000 // period, 0.99, first=2.0, alpha=0.2
        )
        errors = np.abs(np.array(tables) - optimal).max(axis=(1, 2))
        bench.curve(f"V23, {period} local steps", "round", range(1, len(errors) + 1), errors,
                    "error")  # fmt: skip
        ends.append(float(errors[-10:].mean()))
    return tuple(ends)


def _speedy(bench: Bench) -> tuple[float, ...]:
    found = [
        bench.values(
            one_state(), n, rule="speedy_q", discount=0.9, agents=1, lanes=1, initial="zeros",
            dtype="float64",
        )
        for n in (1, 2, 10, 100)
    ]  # fmt: skip
    return tuple(10.0 - float(q[0, 0]) for q in found)


ROWS = (
    Row("V1", "FrozenLake 4x4, discount .99: V*(0), sum V*", (0.5420259320, 6.3398195383), _lake),
    Row(
        "V2", "same, discount .95, .9, 1: V*(0)", (0.1804715784, 0.0688909049, 14 / 17),
        lambda b: tuple(b.solved("FrozenLake-v1", g).optimal_value for g in (0.95, 0.9, 1.0)),
    ),
    Row(
        "V3", "same, success in 100 steps: with the clock, stationary",
        (0.7441902878, 0.7401648978),
        lambda b: (
            b.solved("FrozenLake-v1", 0.99).best_return,
            b.solved("FrozenLake-v1", 0.99).optimal_policy_return,
        ),
    ),
    Row(
        "V3-learned", "same, success of the learned policy", 0.7401648978,
        lambda b: _worth(b, "FrozenLake-v1", 0.99, 1e-6)[1],
    ),
    Row(
        "V4", "FrozenLake 8x8: V*(0), success .99, .999, with the clock",
        (0.4146403618, 0.8629553800, 0.8856539193, 0.9132201502), _large_lake,
    ),
    Row(
        "V5", "FrozenLake 4x4 without ice: V*(0), success", (0.9509900499, 1.0),
        lambda b: (
            b.solved("FrozenLake-v1", 0.99, is_slippery=False).optimal_value,
            b.solved("FrozenLake-v1", 0.99, is_slippery=False).optimal_policy_return,
        ),
    ),
    Row(
        "V5-learned", "same, learned: value, success", (0.9509900499, 1.0),
        lambda b: _worth(b, "FrozenLake-v1", 0.99, 1e-9, env_kwargs={"is_slippery": False}),
    ),
    Row(
        "V6", "CliffWalking: V*(36) at .99, .95, return", (-12.2478977001, -9.7331583344, -13.0),
        lambda b: (
            b.solved("CliffWalking-v1", 0.99).optimal_value,
            b.solved("CliffWalking-v1", 0.95).optimal_value,
            b.solved("CliffWalking-v1", 0.99).optimal_policy_return,
        ),
    ),
    Row(
        "V7", "CliffWalking, epsilon .1, return: edge, best soft, top",
        (-45.803322, -20.707677, -22.272817), _soft, 1e-6,
    ),
    Row(
        "V8", "CliffWalking: steps of the learned policy of Q-learning", 13.0,
        lambda b: -(_worth(b, "CliffWalking-v1", 0.99, 1e-9)[1] or np.nan),
    ),
    Row("V8-soft", "same, of the best soft policy", 15.0, _safe_steps),
    Row(
        "V10", "Taxi: optimal return over 300 starts: mean, sd, min, max",
        (7.93, 2.5894, 3.0, 15.0), _taxi, 5e-5,
    ),
    Row(
        "V10-learned", "same, of the learned policy", 7.93,
        lambda b: _worth(b, "Taxi-v4", 0.99, 1e-3)[1],
    ),
    Row(
        "V11", "Taxi: mean V* at .99, .95, .9", (6.3274643149, 1.7299300168, -1.2633230990),
        lambda b: tuple(b.solved("Taxi-v4", g).optimal_value for g in (0.99, 0.95, 0.9)),
    ),
    Row(
        "V15", "Gambler, heads .4: V(25), V(50), V(75), V(99)", (0.16, 0.4, 0.64, 0.9643329672),
        lambda b: _at(b.solve(gambler(0.4), 1.0), 25, 50, 75, 99),
    ),
    Row(
        "V15-.25", "Gambler, heads .25: V(25), V(50), V(75)", (0.0625, 0.25, 0.4375),
        lambda b: _at(b.solve(gambler(0.25), 1.0), 25, 50, 75),
    ),
    Row(
        "V16", "Car rental: V of 5 states; states that move 0, 5, -5",
        (421.414063, 574.948324, 636.989607, 554.947706, 567.768509, 270.0, 26.0, 0.0), _jacks,
        1e-6,
    ),
    Row(
        "V17", "Gridworld, discount .9: V*(A), V*(0, 2), V*(B), V*(corner)",
        (24.4194, 21.9775, 19.4194, 11.6797),
        lambda b: _at(b.solve(jumps(), 0.9), 1, 0, 3, 24), 5e-5,
    ),
    Row(
        "V17-random", "same, top row of the random policy",
        (3.3090, 8.7893, 4.4276, 5.3224, 1.4922), _at_random, 5e-5,
    ),
    Row(
        "V18", "Steps: windy, with king's moves, Dyna maze", (15.0, 7.0, 14.0),
        lambda b: tuple(
            -(b.solve(world, 1.0).optimal_value or np.nan)
            for world in (windy(False), windy(True), dyna_maze())
        ),
    ),
    Row(
        "V19", "Maximization bias, % left at episode 1 to 300: Q-learning",
        (49.7, 68.5, 86.3, 94.0, 82.6, 46.1, 11.9), lambda b: _left_at(b, "q_learning"), 2.9,
        full=True,
    ),
    Row(
        "V19-double", "same: Double Q", (50.2, 49.8, 44.5, 28.0, 13.7, 9.8, 6.9),
        lambda b: _left_at(b, "double_q"), 2.9, full=True,
    ),
    Row(
        "V22", "Woo et al. (2023), T = 2000: count, importance, mean", (0.098, 0.224, 0.328),
        _woo, 0.03,
    ),
    Row(
        "T17", "Two agents in two environments, 2 and 10 local steps: fixed points",
        (4.69917, 5.95291, 4.58794, 6.94766), _differing, 0.04,
    ),
    Row(
        "V23", "20 agents in 20 mazes: error after 1, 10, 40, 200 local steps a round",
        (0.0, 0.01990, 0.04703, 0.20967), _mazes, 1e-4, full=True,
    ),
    Row(
        "T1-rescaled", "error left / (1 / (1 + (1 - g) N)), g .99, N 1e6", 1.0,
        lambda b: _relative(_left(b, "rescaled_linear", 0.99, 10**6), 1 / (1 + 0.01 * 10**6)),
        1e-6,
    ),
    Row(
        "T1-linear", "error left, 1/k steps, g .99, N 1e6", 0.865879,
        lambda b: _left(b, "linear", 0.99, 10**6), 1e-6,
    ),
    Row(
        "T1-polynomial", "error left, k^-.8 steps, g .99, N 1e6", 0.473224,
        lambda b: _left(b, "polynomial", 0.99, 10**6, exponent=0.8), 1e-6,
    ),
    Row(
        "T1-constant", "error left / (1 - .1 (1 - g))^N, alpha .1, g .9, N 1000", 1.0,
        lambda b: _relative(_left(b, "constant", 0.9, 1000, alpha=0.1), 0.99**1000), 1e-6,
    ),
    Row(
        "T3", "CliffWalking, mean return of episodes 100 to 500: three rules",
        (-49.6, -27.9, -21.1), _online, 2.5, full=True,
    ),
    Row(
        "T5", "Speedy Q, one state, g .9: error after 1, 2, 10, 100",
        (9.0, 8.55, 5.861894, 0.899976), _speedy, 1e-6, needs={"rule": "speedy_q"},
    ),
    Row(
        "S-live-1", "Speedup, a fusion after every step: slope of error over agents", -0.5,
        lambda b: _arm(b, "speedup", 0, 10).slope, 0.1, full=True,
    ),
    Row(
        "S-frozen", "Speedup, 50 steps of frozen targets: slope of error over agents", -0.5,
        lambda b: _arm(b, "speedup", 1, 20).slope, 0.1, full=True,
    ),
    Row(
        "S-live-50", "Speedup, 50 live steps between fusions: it is flat", 0.0,
        lambda b: _arm(b, "speedup", 2, 20).slope, 0.15,
    ),
    Row(
        "S-FedQ", "FedQ-Hoeffding / UCB-Hoeffding: ratio of regrets", 1.0,
        lambda b: _ratio(_arm(b, "communication", 0, 10).means), 0.1, full=True,
    ),
    Row(
        "S-Fed-DVR", "Fed-DVR-Q, 1, 4 and 16 agents that share samples out: error",
        (0.062, 0.067, 0.064), lambda b: tuple(_arm(b, "communication", 1, 20).means), 0.01,
    ),
    Row(
        "S-horizon", "Rounds of frozen targets over 1 / (1 - g): slope", 1.0,
        lambda b: _arm(b, "horizon", 0, 1).slope, 0.2,
    ),
)  # fmt: skip
