"""The studies: what each changes, and what theory says of it. Presets of theory's section 8."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from distq_mpi.architectures import Allreduce
from distq_mpi.architectures.schedules import Exploring
from distq_mpi.study import reduced, regret
from distq_mpi.study.judging import Told, judged
from distq_mpi.study.problems import (
    N_PLAYED,
    best_policy,
    hard,
    mazes,
    policy_worth,
    random_models,
    two_states,
)
from distq_mpi.study.running import Runs, fused_in_turn, settings

if TYPE_CHECKING:
    from distq_mpi.transport import Transport

Arm = Callable[["Transport"], Told]
DISCOUNT = 0.9
AGENTS = (1, 4, 16, 64)
N_EPISODES = 30_000
CONSTANT = {"step_size": "constant", "alpha": 0.05}
FROZEN = {"target": "frozen", "frozen_rounds": 60, "step_size": "rescaled_linear"}


def _errors(
    transport: Transport, learn: dict[str, Any], n_runs: int, n_rounds: int, **parallel: Any
) -> list[float]:
    """Errors of runs on the hard problem; in a step every pair of every agent draws once."""
    environment, optimal = hard(DISCOUNT)
    learn = {"discount": DISCOUNT, "sampling": "generative", **learn}
    config = settings(environment, learn, **parallel)
    runs = Runs(transport, environment, config)
    return [runs.error(seed, n_rounds, optimal) for seed in range(n_runs)]


def _speedup_arm(
    name: str, learn: dict[str, Any], period: int, n_rounds: int, n_runs: int,
    low: float, high: float, transport: Transport, fusion: str = "mean",
) -> Told:  # fmt: skip
    found = [
        _errors(transport, learn, n_runs, n_rounds, agents=k, steps_per_round=period, fusion=fusion)
        for k in AGENTS
    ]
    return judged(name, "agents", AGENTS, np.array(found), low, high, "Li et al. (2024)")


def speedup(n_runs: int) -> Iterator[Arm]:
    """Error over agents: -1/2 where agents are fused at every step or targets are frozen; flat
    where they learn 50 live steps apart (Salgia & Chi 2024: rounds must be many or targets fixed).
    """
    arm = functools.partial
    yield arm(_speedup_arm, "live targets, a fusion after every step", CONSTANT, 1, 1500, n_runs,
              -0.6, -0.4)  # fmt: skip
    yield arm(_speedup_arm, "frozen targets, a fusion after 50 steps", FROZEN, 50, 120, n_runs,
              -0.6, -0.4, fusion="pooled")  # fmt: skip
    yield arm(_speedup_arm, "live targets, a fusion after 50 steps", CONSTANT, 50, 30, n_runs,
              -0.15, 0.15)  # fmt: skip


class OneActionEach(Allreduce):
    """`Allreduce` in which agent k always plays action k: no agent sees all pairs."""

    def _exploring_of(self, number: int) -> Exploring:
        return Exploring(replace(self.config.learn, epsilon=number), self.config.parallel.lanes)


def _fused(fusion: str, n_runs: int, equal: bool, transport: Transport) -> np.ndarray:
    """Errors x (1 - discount) of one fusion, all agents seeing all pairs, or each its own."""
    if equal:
        found = _errors(
            transport, CONSTANT, n_runs, 40, agents=N_PLAYED, steps_per_round=50, fusion=fusion
        )
        return (1 - DISCOUNT) * np.array(found)
    errors = []
    for seed in range(n_runs):
        environment, optimal = two_states(seed, DISCOUNT)
        learn = {"discount": DISCOUNT, "exploration": "one_action", **CONSTANT}
        config = settings(
            environment, learn, agents=N_PLAYED, lanes=N_PLAYED, steps_per_round=50, fusion=fusion
        )
        runs = Runs(transport, environment, config, OneActionEach)
        first = np.random.default_rng(seed + 1000).uniform(0, 10, optimal.shape)
        errors.append((1 - DISCOUNT) * runs.error(seed, 40, optimal, first))
    return np.array(errors)


def _fusion_arm(equal: bool, n_runs: int, transport: Transport) -> Told:
    fusions = ["count", "pooled", "importance", "mean"]
    means = [float(_fused(fusion, n_runs, equal, transport).mean()) for fusion in fusions]
    count, _, importance, mean = means
    if equal:
        fine, expected = abs(count - mean) <= 0.01 * mean, "count = mean where visits are equal"
    else:
        fine, expected = 2 * count <= importance <= mean, (
            "count at least 2 x better than importance (Woo, Joshi & Chi 2023, T = 2000)"
        )
    name = "equal coverage, hard problem" if equal else "agent k plays action k, two states"
    verdict = "pass" if fine else "fail"
    return Told(name, "fusion", fusions, means, None, None, None, expected, verdict)


def fusion(n_runs: int) -> Iterator[Arm]:
    """Fusions against Q*, where agents see the same and where they do not."""
    yield functools.partial(_fusion_arm, True, n_runs)
    yield functools.partial(_fusion_arm, False, n_runs)


def _staleness_arm(target: str, n_runs: int, transport: Transport) -> Told:
    """Error over the steps for which a table may be out of date, at equal samples."""
    periods, n_steps = (1, 5, 25, 125), 3000
    learn = CONSTANT if target == "live" else FROZEN
    fusion = "mean" if target == "live" else "pooled"
    found = np.array([
        _errors(transport, learn, n_runs, n_steps // period, agents=16, steps_per_round=period,
                fusion=fusion)
        for period in periods
    ])  # fmt: skip
    means = found.mean(axis=1)
    if target == "live":
        fine, expected = bool(np.all(np.diff(means) > 0)), "every step apart costs accuracy"
    else:
        fine, expected = bool(means[2] < means[3]), (
            "rounds are what counts: too few of them, and the first error is still there"
        )
    return Told(
        f"{target} targets, 16 agents", "steps per round", list(map(float, periods)),
        means.tolist(), None, None, None, expected, "pass" if fine else "fail",
    )  # fmt: skip


def staleness(n_runs: int) -> Iterator[Arm]:
    """Error over steps between fusions, with live and with frozen targets."""
    yield functools.partial(_staleness_arm, "live", n_runs)
    yield functools.partial(_staleness_arm, "frozen", n_runs)


def _horizon_arm(n_runs: int, transport: Transport) -> Told:
    """Rounds of frozen targets until the error is a twentieth of the first, over 1/(1 - g)."""
    discounts = (0.7, 0.8, 0.9, 0.95)
    horizons, found = [1 / (1 - discount) for discount in discounts], []
    for discount in discounts:
        environment, optimal = hard(discount)
        learn = {"discount": discount, "sampling": "generative", **FROZEN, "frozen_rounds": 10**6}
        config = settings(environment, learn, agents=16, steps_per_round=100, fusion="pooled")
        runs, limit = Runs(transport, environment, config), 0.05 * float(optimal.max())

        def enough(state: Any, optimal: np.ndarray = optimal, limit: float = limit) -> bool:
            return bool(np.abs(state.base.values - optimal).max() <= limit)

        found.append([float(runs.table(seed, enough).progress.round) for seed in range(n_runs)])
    return judged("rounds to 5 % of the value range, frozen targets", "1 / (1 - discount)",
                  horizons, np.array(found), 0.8, 1.2, "linear in the horizon")  # fmt: skip


def horizon(n_runs: int) -> Iterator[Arm]:
    """Rounds over the horizon: at least linear for whoever speeds up (Salgia & Chi 2024)."""
    yield functools.partial(_horizon_arm, n_runs)


def _regret_arm(n_runs: int, transport: Transport) -> Told:
    """FedQ-Hoeffding with 10 agents against UCB-Hoeffding with one, on random problems."""
    kernels = regret.kernels_of(transport)
    found = [regret.regrets(seed, N_EPISODES, kernels, transport) for seed in range(n_runs)]
    federated, alone, rounds, late = (
        float(np.mean(column))
        for column in zip(*((r.federated, r.alone, r.rounds, r.late_rounds) for r in found),
                          strict=True)
    )  # fmt: skip
    fine = 0.9 <= federated / alone <= 1.1 and rounds < 2500 and late < 0.15 * rounds
    return Told(
        f"FedQ-Hoeffding, 10 agents x 30,000 episodes, against one agent, {n_runs} runs",
        "regret / sqrt(episodes), rounds",
        ["federated", "alone", "rounds", "rounds of the second half"],
        [federated, alone, rounds, late], None, None, None,
        "ratio .9 to 1.1, rounds < 2500, of the second half < 15 % (Zheng et al. 2024)",
        "pass" if fine else "fail",
    )  # fmt: skip


def _reduced_arm(n_runs: int, transport: Transport) -> Told:
    """Fed-DVR-Q: agents that share the samples out come to the same error, in as many rounds."""
    agents = (1, 4, 16)
    environment, optimal = hard(DISCOUNT)
    found, drawn, rounds = [], [], []
    for k in agents:
        runs = [reduced.learn(environment, DISCOUNT, k, s, transport) for s in range(n_runs)]
        found.append([float(np.abs(q - optimal).max()) for q, _, _ in runs])
        drawn.append(runs[0][1])
        rounds.append(runs[0][2])
    told = ", ".join(f"{n:,}" for n in drawn)
    source = f"samples of an agent {told}, {rounds[0]} rounds, 16 bits (Salgia & Chi 2024)"
    one = judged("Fed-DVR-Q, error", "agents", agents, np.array(found), -0.1, 0.1, source)
    return one if len(set(rounds)) == 1 else replace(one, verdict="fail")


def communication(n_runs: int) -> Iterator[Arm]:
    """What few messages can do: regret in few rounds; samples shared out among agents."""
    yield functools.partial(_regret_arm, min(n_runs, 10))
    yield functools.partial(_reduced_arm, n_runs)


def _average_arm(n_runs: int, transport: Transport) -> Told:
    """Policies for the mean of five models, and for each alone, in those five and in 20 others.

    What exact backups fused after every step converge to is solved for; agents are not simulated.
    """
    found = []
    for seed in range(transport.rank, n_runs, transport.size):
        chances, rewards = random_models(25, seed)
        seen = chances[:5]
        fused, apart = [best_policy(seen.mean(axis=0), rewards, DISCOUNT)], [
            best_policy(p, rewards, DISCOUNT) for p in seen
        ]
        worths = [
            [[policy_worth(p, rewards, policy, DISCOUNT) for p in chances] for policy in policies]
            for policies in (fused, apart)
        ]
        found.append([
            float(np.mean(np.array(one)[:, part])) - 0.5 / (1 - DISCOUNT)
            for one in worths for part in (slice(0, 5), slice(5, 25))
        ])  # fmt: skip
    told = [row for part in transport.gather_everywhere(found) for row in part]
    means = np.mean(sorted(told), axis=0).tolist()
    fine = means[0] - means[2] >= 0.2 and means[1] - means[3] >= 0.2
    return Told(
        f"one policy for five environments, {n_runs} runs",
        "mean value - 5, in those, in 20 others",
        ["fused", "fused, others", "alone", "alone, others"], means, None, None, None,
        "fused at least .2 above alone, in both (Jin et al. 2022)", "pass" if fine else "fail",
    )  # fmt: skip


def _local_steps_arm(n_runs: int, transport: Transport) -> Told:
    """Error of 20 agents in 20 mazes after 8,000 steps, over local steps between fusions."""
    periods, found = (1, 10, 40, 200), []
    for period in periods:
        errors = []
        for seed in range(n_runs):
            world, optimal = mazes(20, seed, 0.99)
            tables = fused_in_turn(
                transport, world, 20, period, 8_000 // period, 0.99, first=2.0, alpha=0.2
            )
            errors.append(float(np.abs(tables[-1] - optimal).max()))
        found.append(errors)
    means = np.mean(found, axis=1).tolist()
    fine = means[0] < 1e-9 and bool(np.all(np.diff(means) > 0))
    return Told(
        f"20 agents in 20 mazes, {n_runs} runs", "local steps", list(map(float, periods)), means,
        None, None, None,
        "one local step converges, more end further off (Wang, Yang & Su 2024)",
        "pass" if fine else "fail",
    )  # fmt: skip


def heterogeneity(n_runs: int) -> Iterator[Arm]:
    """Agents in different environments: what one table is worth to all, and where it ends."""
    yield functools.partial(_average_arm, 150)
    yield functools.partial(_local_steps_arm, max(1, n_runs // 5))


STUDIES: dict[str, Callable[[int], Iterator[Arm]]] = {
    "speedup": speedup, "fusion": fusion, "staleness": staleness, "horizon": horizon,
    "communication": communication, "heterogeneity": heterogeneity,
}  # fmt: skip
