"""What learning costs where environments are stepped in Python: the product against a bare loop.

    python benchmarks/stepped.py [--repeats 9] [ID ...]

The bare loop steps the same number of the same environments with random actions and reseeds at
every reset, and learns nothing. Slices of both alternate; a figure is the median over pairs of
product time per step / bare time per step (1.30 = 30 % dearer).
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from typing import Any

import gymnasium

from distq_mpi.architectures import Allreduce
from distq_mpi.config import from_dict
from distq_mpi.environments.stepped import discretised
from distq_mpi.kernels.objects import load
from distq_mpi.preparation import settle
from distq_mpi.transport import Transport

LANES = 64
WORLDS: dict[str, dict[str, Any]] = {
    "Blackjack-v1": {},
    "CartPole-v1": {"bins": [1, 1, 6, 12], "clip": [2.4, 1.0, 0.21, 2.0]},
    "MountainCar-v0": {"bins": 20},
}


def made(id: str) -> Any:
    """The environment as the product makes it, without Gymnasium's own checks."""
    return gymnasium.make(id, disable_env_checker=True)


class Bare:
    """The environments alone, stepped at random."""

    def __init__(self, id: str, env: dict[str, Any]) -> None:
        self.worlds = [
            discretised(id, made(id), env.get("bins", 0), env.get("clip", 0.0))
            for _ in range(LANES)
        ]
        for number, world in enumerate(self.worlds):
            world.reset(seed=number)
        self.n_actions = int(self.worlds[0].action_space.n)

    def run(self, n_steps: int) -> float:
        """Seconds a step."""
        draw, n_actions = random.random, self.n_actions
        begin = time.perf_counter()
        for k in range(n_steps):
            for number, world in enumerate(self.worlds):
                *_, terminated, truncated, _ = world.step(int(draw() * n_actions))
                if terminated or truncated:
                    world.reset(seed=k * LANES + number)
        return (time.perf_counter() - begin) / (n_steps * LANES)


class Product:
    """One agent of as many lanes; every action at random, so that episodes are as long."""

    def __init__(self, id: str, env: dict[str, Any], transport: Transport) -> None:
        config = from_dict(
            {"env": {"id": id, **env}, "learn": {"epsilon": 1.0},
             "parallel": {"agents": 1, "lanes": LANES, "steps_per_round": 50},
             "stop": {"wall_time_s": 1e9}}
        )  # fmt: skip
        config, environment, _ = settle(config, 1)
        kernels = load(Allreduce.requests(config, environment), transport)
        self.learner = Allreduce(config, environment, kernels, transport)

    def run(self, n_rounds: int) -> float:
        """Seconds a step."""
        first, begin = self.learner.progress.steps, time.perf_counter()
        for _ in range(n_rounds):
            self.learner.learn()
            self.learner.exchange((False, False, False))
            self.learner.commit()
        return (time.perf_counter() - begin) / (self.learner.progress.steps - first)


def main() -> None:
    """Print one row per environment."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ids", nargs="*", default=list(WORLDS), metavar="ID")
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    transport = Transport.connect()
    for id in options.ids:
        bare, product = Bare(id, WORLDS[id]), Product(id, WORLDS[id], transport)
        bare.run(50), product.run(1)
        pairs = [(product.run(4), bare.run(200)) for _ in range(options.repeats)]
        low, middle, high = statistics.quantiles([p / b for p, b in pairs], n=4)
        rate = 1 / statistics.median(p for p, _ in pairs)
        print(f"{id:<16} {rate:8.0f} steps/s   {middle:.2f} x the bare loop"
              f"   ({low:.2f} to {high:.2f})", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
