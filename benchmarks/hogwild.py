"""Learning on one table of a host beside learning on private replicas. No other work.

    mpirun -n 2 python benchmarks/hogwild.py [--megabytes 1,64] [--repeats 9]

Every step goes to a random state of a table of so many megabytes of values (float32, 4 actions, the
default rule with counts); slices of the loops alone, without fusion, in turn; medians of ratios.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np
from uniform import Uniform

from distq_mpi import environments
from distq_mpi.architectures import architecture_of
from distq_mpi.config import Config, EnvConfig, LearnConfig, ParallelConfig, StopConfig, resolve
from distq_mpi.kernels.objects import load
from distq_mpi.transport import Transport

STEPS = 1 << 14


def learner(environment: Any, fusion: Any, transport: Transport) -> Any:
    """A learner of one agent per rank whose rounds are some tens of milliseconds. COLLECTIVE."""
    parallel = ParallelConfig(
        agents=transport.size, fusion=fusion, reproducible=fusion != "hogwild",
        steps_per_round=STEPS,
    )  # fmt: skip
    config = Config(
        learn=LearnConfig(dtype="float32", initial="zeros"), parallel=parallel,
        stop=StopConfig(wall_time_s=1e9),
    )  # fmt: skip
    config = resolve(
        config, environment.n_states, environment.n_actions, transport.size, solvable=False
    )
    kind = architecture_of(config, environment, transport.size)
    return kind(config, environment, load(kind.requests(config, environment), transport), transport)


def per_s(this: Any, transport: Transport) -> float:
    """Steps per second of the loops of all ranks. COLLECTIVE."""
    agent = this.agents[0]
    call = this._bind("learn", 0)
    transport.sum_int(np.zeros(1, np.int64))
    begin = time.perf_counter()
    agent.learn(call, 1, STEPS)
    took = np.array([time.perf_counter() - begin])
    transport.max_float(took)
    return transport.size * STEPS * agent.lanes.n / float(took[0])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", default="1,64")
    parser.add_argument("--repeats", type=int, default=9)
    asked = parser.parse_args()
    transport = Transport.connect()
    for megabytes in map(int, asked.megabytes.split(",")):
        environment = environments.from_object(
            Uniform((megabytes << 20) // 16), EnvConfig("uniform")
        )
        both = [learner(environment, fusion, transport) for fusion in ("hogwild", "pooled")]
        for this in both:
            this.learn()  # puts lanes and memory in their places
            while this.exchange((False, False, False)) is None:
                this.rollback()
                this.learn()
            this.commit()
            per_s(this, transport)
        pairs = []
        for k in range(asked.repeats):
            order = both if k % 2 else both[::-1]
            rates = [per_s(this, transport) for this in order]
            pairs.append(rates if k % 2 else rates[::-1])
        shared, private = (statistics.median(column) / 1e6 for column in zip(*pairs, strict=True))
        low, middle, high = statistics.quantiles([a / b for a, b in pairs], n=4)
        if transport.rank == 0:
            print(f"{megabytes:5d} MB: one table {shared:.1f} M steps/s, replicas {private:.1f}: "
                  f"{middle:.2f} ({low:.2f}-{high:.2f})", flush=True)  # fmt: skip
        for this in both:
            this.close()
    transport.close()


if __name__ == "__main__":
    main()
