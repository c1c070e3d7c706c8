"""Where rows are computed: the program's own solver and learner, on all ranks of the job."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from distq_mpi.api import QLearning
from distq_mpi.certificate import Certificate, Solver, requests
from distq_mpi.config import EnvConfig
from distq_mpi.environments import make
from distq_mpi.environments.base import Environment
from distq_mpi.environments.sharing import share
from distq_mpi.kernels.objects import load
from distq_mpi.keys import choices, keyword_names
from distq_mpi.study.figures import Curve, curve_of
from distq_mpi.study.judging import Told

if TYPE_CHECKING:
    from distq_mpi.transport import Transport


def missing(needs: Mapping[str, Any]) -> str:
    """Return the first keyword of `QLearning`, with its value, that this program lacks; "" = none.

    Local.
    """
    known = keyword_names()
    for name, value in needs.items():
        key = known.get(name)
        allowed = choices(key) if key else ()
        if key is None or (allowed and str(value) not in allowed):
            return f"learn.{name} = {value}"
    return ""


@dataclass(frozen=True)
class Solved:
    """Exact values of an environment, on every rank.

    values : V* (S,), 0 where not reachable; None where not known. policy : greedy, -1 there.
    """

    optimal_value: float | None
    optimal_policy_return: float | None
    values: np.ndarray
    policy: np.ndarray
    n_reachable: int
    best_return: float | None
    """Under the time limit, of a policy that may see the clock; None = no limit or not known."""
    returns: np.ndarray | None
    """Undiscounted values (S,) of `policy` under the time limit; None = no limit."""


class Bench:
    """Solves and learns for the rows. Its methods are COLLECTIVE, with the same results everywhere.
    """

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self._solved: dict[tuple[Any, ...], Solved] = {}
        self.curves: list[Curve] = []

    def curve(
        self, name: str, over: str, at: Iterable[float], values: np.ndarray, what: str
    ) -> None:
        """Keep a curve for a figure. Local."""
        self.curves.append(Curve(name, over, what, list(at), values.tolist()))

    def told(self, line: Told) -> None:
        """Keep what a line of a study found for a figure, where it is a curve. Local."""
        if (curve := curve_of(line)) is not None:
            self.curves.append(curve)

    def solved(self, id: str, discount: float, **kwargs: Any) -> Solved:
        """Exact values of what `env.id` and `env.kwargs` name; kept."""
        key = (id, discount, *sorted(kwargs.items()))
        if key not in self._solved:
            work = functools.partial(make, EnvConfig(id=id, kwargs=kwargs))
            self._solved[key] = self.solve(self._shared(work), discount)
        return self._solved[key]

    def solve(self, environment: Environment, discount: float) -> Solved:
        """Exact values of an environment, found by rank 0 alone."""
        transport, found = self.transport, None
        with transport.same_outcome():
            wanted = requests(environment, np.dtype(np.float64)) if transport.leads_node else None
            kernels = load(wanted, transport)
        values = None
        if transport.rank == 0:
            apart = type(transport).alone()
            solver = Solver(environment, discount, kernels, apart)
            solver.solve()
            planner, policies, values = solver.planner, solver.policies, solver.values
            apart.close()
        if values is not None:
            limit = environment.max_episode_steps
            policy = planner.greedy(values, discount)
            returns = None
            if limit:
                budget = planner.budget("the return")
                returns = policies.horizon(policy, planner.reach(policy)[0], limit, budget).copy()
            found = Solved(
                solver.optimal_value, solver.solution.optimal_policy_return, values.copy(), policy,
                solver.n_reachable, solver.solution.best_return, returns,
            )  # fmt: skip
        told: Solved = transport.broadcast(found)
        return told

    def learned(self, env: Any, steps: float | None = None, **keywords: Any) -> Certificate:
        """The certificate of what is learned until a stop rule, or for so many steps."""
        with QLearning(env, evaluate_episodes=0, **keywords) as model:
            model.learn(steps)
            found = model.certificate()
        return found if found is not None else Certificate(kind="none")

    def values(self, env: Environment, steps: float, **keywords: Any) -> np.ndarray:
        """Learned Q (S, A) after so many steps of all lanes together."""
        with QLearning(
            env, evaluate_episodes=0, evaluate_exact=False, **keywords
        ) as model:
            model.learn(steps)
            return model.q_values

    def _shared(self, work: Any) -> Environment:
        first: Environment | None = None
        with self.transport.same_outcome():
            if self.transport.rank == 0:
                first = work()
        return share(first, work, self.transport, None)
