"""Exact values beside QuantEcon's modified policy iteration; needs `pip install quantecon`.

    [mpirun -n 2] python benchmarks/exact_values.py [--states 100000,1000000] [--repeats 9]

A garnet of 4 actions and 5 next states, discount .99. QuantEcon iterates to its epsilon of 1e-6,
and to 1e-10, which is as near as ours comes with 1e-12 of the value range; how far they are apart
is printed. In changing order; on several ranks QuantEcon runs on the first alone, the others wait.
Compiling is done before; making the models is not counted.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from typing import Any

import numpy as np
import scipy.sparse
from quantecon.markov import DiscreteDP

from distq_mpi import environments
from distq_mpi.certificate import Solver, requests
from distq_mpi.config import EnvConfig
from distq_mpi.environments.sharing import share
from distq_mpi.kernels.objects import load
from distq_mpi.transport import Transport

DISCOUNT = 0.99
EPSILONS = (1e-6, 1e-10)


def discrete_dp(environment: Any) -> Any:
    """QuantEcon's form of an explicit model: pairs, and a sparse matrix of chances."""
    indptr, alias, reward, chance = environment.params[:4]
    n_states, n_actions = environment.n_states, environment.n_actions
    following = (alias[1::2] >> np.uint64(1)).astype(np.int64)
    n_pairs = n_states * n_actions
    pair = np.repeat(np.arange(n_pairs), np.diff(indptr))
    rewards = np.bincount(pair, weights=reward * chance, minlength=n_pairs)
    chances = scipy.sparse.csr_matrix((chance, following, indptr), shape=(n_pairs, n_states))
    states, actions = np.divmod(np.arange(n_pairs), n_actions)
    return DiscreteDP(rewards, chances, DISCOUNT, states, actions)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--states", default="100000,1000000")
    parser.add_argument("--repeats", type=int, default=9)
    asked = parser.parse_args()
    transport = Transport.connect()
    for n_states in map(int, asked.states.split(",")):
        kwargs = {"states": n_states, "actions": 4, "branching": 5, "seed": 1}
        made = environments.make(EnvConfig("garnet", kwargs)) if transport.rank == 0 else None
        theirs = discrete_dp(made) if made is not None else None
        make = functools.partial(environments.make, EnvConfig("garnet", kwargs))
        environment = share(made, make, transport)
        wanted = requests(environment, np.dtype(np.float64)) if transport.leads_node else None
        kernels = load(wanted, transport)

        def ours(environment: Any = environment, kernels: Any = kernels) -> tuple[float, Any]:
            transport.sum_int(np.zeros(1, np.int64))
            begin = time.perf_counter()
            solver = Solver(environment, DISCOUNT, kernels, transport)
            solver.solve()
            return time.perf_counter() - begin, solver.values

        def quantecon(epsilon: float, theirs: Any = theirs) -> tuple[float, Any]:
            begin, found = time.perf_counter(), None
            if theirs is not None:
                found = theirs.modified_policy_iteration(epsilon=epsilon).v
            return time.perf_counter() - begin, found

        works = [ours, *(functools.partial(quantecon, epsilon) for epsilon in EPSILONS)]
        values, *references = [work()[1] for work in works]
        took = []
        for k in range(asked.repeats):
            seconds = [0.0] * len(works)
            for which in (np.arange(len(works)) + k) % len(works):
                seconds[which] = works[which]()[0]
            took.append(seconds)
        for k, (epsilon, reference) in enumerate(zip(EPSILONS, references, strict=True), 1):
            if transport.rank == 0:
                ratios = [seconds[k] / seconds[0] for seconds in took]
                low, middle, high = statistics.quantiles(ratios, n=4)
                apart = np.abs(values - reference[: values.size]).max()
                print(f"{n_states:,} states, {transport.size} ranks: {middle:.2f} x as fast as to "
                      f"{epsilon:g} ({low:.2f}-{high:.2f}); {apart:.1e} apart",
                      flush=True)  # fmt: skip
    transport.close()


if __name__ == "__main__":
    main()
