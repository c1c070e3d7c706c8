"""What a clever user writes: textbook Q-learning in one numba function; against the whole program.

    python benchmarks/textbook.py [--steps 50000000] [--repeats 9] [ID ...]

One table, one trajectory, Gymnasium's own transitions drawn by cumulated probabilities,
epsilon-greedy with the first of equal values, steps 1 / (1 + (1 - discount) visits). In pairs, in
changing order, with everything compiled before: the program (a job of one rank, from launch to its
end, without certificates and evaluation) and this file in a process of its own, so many steps each.
`--alone ID STEPS` is that process. Beside it the share that its loop reaches of one lane of the C
loop of `kernels.c`, so that a slow opponent shows.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import gymnasium
import numba
import numpy as np

DISCOUNT, EPSILON = 0.99, 0.3
IDS = ("FrozenLake8x8-v1", "Taxi-v4")


@numba.njit(cache=True)
def learn(
    chances: Any, following: Any, rewards: Any, ends: Any, starts: Any, limit: int, n_steps: int
) -> Any:
    """Return Q after so many steps."""
    n_states, n_actions, _ = chances.shape
    q, visits = np.zeros((n_states, n_actions)), np.zeros((n_states, n_actions))
    state, age = starts[np.random.randint(len(starts))], 0
    for _ in range(n_steps):
        if np.random.random() < EPSILON:
            action = np.random.randint(n_actions)
        else:
            action = 0
            for a in range(1, n_actions):
                if q[state, a] > q[state, action]:
                    action = a
        drawn, k = np.random.random(), 0
        while drawn > chances[state, action, k]:
            k += 1
        new, over = following[state, action, k], ends[state, action, k]
        best = q[new, 0]
        for a in range(1, n_actions):
            best = max(best, q[new, a])
        target = rewards[state, action, k] + (0.0 if over else DISCOUNT * best)
        visits[state, action] += 1.0
        alpha = 1.0 / (1.0 + (1.0 - DISCOUNT) * visits[state, action])
        q[state, action] += alpha * (target - q[state, action])
        age += 1
        if over or age >= limit:
            state, age = starts[np.random.randint(len(starts))], 0
        else:
            state = new
    return q


def arrays(id: str) -> tuple[Any, ...]:
    """Cumulated chances, next states, rewards, ends, starts, time limit."""
    env = gymnasium.make(id)
    table: Any = env.unwrapped
    n_states, n_actions = int(env.observation_space.n), int(env.action_space.n)  # type: ignore
    width = max(len(table.P[s][a]) for s in range(n_states) for a in range(n_actions))
    shape = n_states, n_actions, width
    chances, following = np.ones(shape), np.zeros(shape, np.int64)
    rewards, ends = np.zeros(shape), np.zeros(shape, np.bool_)
    for s in range(n_states):
        for a in range(n_actions):
            total = 0.0
            for k, (p, new, reward, over) in enumerate(table.P[s][a]):
                total += p
                chances[s, a, k] = total if k + 1 < len(table.P[s][a]) else 1.0
                following[s, a, k], rewards[s, a, k], ends[s, a, k] = new, reward, over
    starts = np.flatnonzero(table.initial_state_distrib)
    limit = env.spec.max_episode_steps if env.spec else 0
    return chances, following, rewards, ends, starts, limit or 2**31


def program(id: str, n_steps: int, folder: Path) -> float:
    """Seconds of the program, from launch to end."""
    words = ["-m", "distq_mpi", "train", "--env.id", id, "--stop.steps", str(n_steps), "--run.dir",
             str(folder / "run"), "--run.overwrite", "--parallel.agents", "1", "--evaluate.exact",
             "false", "--evaluate.episodes", "0"]  # fmt: skip
    begin = time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, capture_output=True, timeout=600)
    return time.perf_counter() - begin


def textbook(id: str, n_steps: int, folder: Path) -> float:
    """Seconds of this file, from launch to end."""
    begin = time.perf_counter()
    words = [sys.executable, __file__, "--alone", id, str(n_steps)]
    subprocess.run(words, check=True, capture_output=True, timeout=600)
    return time.perf_counter() - begin


def share_of_c(id: str, n_steps: int) -> float | None:
    """The loop's rate over that of one lane in C; None without gcc."""
    from textbook_c import TextbookC, missing

    from distq_mpi.config import EnvConfig, LearnConfig
    from distq_mpi.environments import make

    if missing():
        return None
    given = arrays(id)
    learn(*given, 1000)
    begin = time.perf_counter()
    learn(*given, n_steps)
    rate = n_steps / (time.perf_counter() - begin)
    environment = make(EnvConfig(id))
    initial = np.zeros((environment.n_states, environment.n_actions))
    opponent = TextbookC(environment, initial, LearnConfig(), 1)
    opponent.run(n_steps // 10)
    return rate / float(opponent.run(n_steps))


def main() -> None:
    """Run pairs, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ids", nargs="*", default=list(IDS))
    parser.add_argument("--steps", type=int, default=50_000_000)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--alone", nargs=2)
    asked = parser.parse_args()
    if asked.alone:
        print(learn(*arrays(asked.alone[0]), int(asked.alone[1])).sum())
        return
    folder = Path(tempfile.mkdtemp(prefix="textbook-"))
    for id in asked.ids:
        for work in (program, textbook):
            work(id, 10_000, folder)
        ratios = []
        for k in range(asked.repeats):
            order = [program, textbook] if k % 2 else [textbook, program]
            seconds = {work.__name__: work(id, asked.steps, folder) for work in order}
            ratios.append(seconds["textbook"] / seconds["program"])
        low, middle, high = statistics.quantiles(ratios, n=4)
        share = share_of_c(id, 20_000_000)
        beside = "no gcc" if share is None else f"its loop {share:.2f} of C"
        print(f"{id:<18} {asked.steps:,} steps: {middle:.2f} x ({low:.2f}-{high:.2f}) as fast as "
              f"the textbook, {beside}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
