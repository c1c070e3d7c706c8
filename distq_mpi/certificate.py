"""How good a table is: exact values, the value of its greedy policy, and bounds.

Certificates speak of reachable states: those that an episode can be in under any policy. That set
is closed, so the bounds are valid on it; outside it nothing is ever visited.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from distq_mpi.bounds import beyond
from distq_mpi.holding import Holding, Slice
from distq_mpi.kernels import Kernel
from distq_mpi.kernels.sweeps import (
    DISTANCE,
    PAIR_FALL,
    PAIR_RISE,
    POLICY_LEAST,
    POLICY_MASS,
    STATE_FALL,
    STATE_RISE,
    planning_kernels,
)
from distq_mpi.planning import PART, Planner
from distq_mpi.values import Values

if TYPE_CHECKING:
    from distq_mpi.environments.base import Environment
    from distq_mpi.transport import Transport

TRANSITION_LIMIT = 50_000_000
UNDISCOUNTED_LIMIT = 5_000_000
"""Transitions of an environment beyond which it is not solved; undiscounted takes more sweeps."""

TIGHT, LOOSE = 1e-10, 1e-7
"""Errors of a policy's values, as shares of the value range."""
LOOSE_SHARE = 1e-2
"""Error that is good enough on the way, as a share of the loss at the start."""


@dataclass(frozen=True)
class Certificate:
    """What is known of a table; a None is not known. In units of reward; over reachable states.

    `q_error_bound` and `policy_loss_bound` need no V*: the largest |TQ - Q| / (1 - discount), and
    the span of TV - V and T_policy V - V for V = max Q over (1 - discount). They are loose for a
    sampled table. `policy_loss` is never below the truth but for rounding.
    """

    kind: str = "exact"
    q_error_bound: float | None = None
    policy_loss_bound: float | None = None
    uncertified_pairs: int | None = None
    """Pairs of reachable states that were never learned from."""
    q_error: float | None = None
    policy_gap: float | None = None
    """(optimal_value - policy_value) / (largest - smallest V*)."""
    policy_loss: float | None = None
    policy_loss_mean: float | None = None
    policy_value: float | None = None
    """Discounted, over the start distribution; so is `optimal_value`."""
    optimal_value: float | None = None
    policy_return: float | None = None
    """Undiscounted, under the time limit; only in tight certificates; so is `optimal_return`."""
    optimal_return: float | None = None


def solvable(environment: Environment, discount: float) -> str | None:
    """Return None where exact values are affordable, else the reason why they are not. Local."""
    if environment.kind == "stepped":
        return f"{environment.id} is stepped in Python and its law is not known"
    limit = TRANSITION_LIMIT if discount < 1 else UNDISCOUNTED_LIMIT
    if environment.n_transitions <= limit:
        return None
    return (
        f"{environment.id} has {environment.n_transitions:,} transitions, and exact values "
        f"{'' if discount < 1 else 'at learn.discount = 1 '}are computed up to {limit:,}"
    )


def requests(environment: Environment, q_dtype: Any) -> dict[str, Kernel]:
    """Return the kernels a `Solver` needs; q_dtype : float32 or float64, of its tables. Local."""
    return planning_kernels(environment, q_dtype)


class Solver:
    """Solves an environment and certifies tables for it.

    Constructing it and its methods are COLLECTIVE; results are the same on every rank and for
    every number of ranks, bit for bit.

    Attributes: `n_reachable`; after `solve`: `optimal_value`, `value_range`, `optimal_return`
    (None where not known).
    """

    def __init__(
        self,
        environment: Environment,
        discount: float,
        kernels: dict[str, Any],
        transport: Transport,
    ) -> None:
        self.environment, self.discount = environment, discount
        self.transport = transport
        self.planner = Planner(environment, kernels, transport)
        self.n_reachable: int = transport.broadcast(self.planner.n_reachable)
        self._optimal: np.ndarray | None = None
        self._policy = np.full(self.planner.mask.size, -1, np.int32)
        self.optimal_value: float | None = None
        self.value_range: float | None = None
        self.optimal_return: float | None = None

    @property
    def values(self) -> np.ndarray | None:
        """V* of this rank's `planner.rows`, float64, 0 where not reachable; None = unknown. Local.
        """
        return None if self._optimal is None else self._optimal[: self.planner.mask.size]

    def reachable(self) -> np.ndarray:
        """Return for all states, uint8 (S,), whether an episode can come there. COLLECTIVE."""
        planner = self.planner
        if planner.alone:
            found: np.ndarray = self.transport.broadcast(planner.mask if self._plans else None)
            return found
        whole = np.zeros(self.environment.n_states, np.uint8)
        first, stop = planner.rows.block(self.transport.rank)
        whole[first:stop] = planner.mask
        self.transport.allgather_rows(whole, planner.rows)
        return whole

    def solve(self) -> None:
        """Find V*, to within 1e-12 of the value range or what float64 can give.

        At discount 1 it stays unknown where a policy that never ends would be optimal or infinite.
        """
        told = self.transport.broadcast(self._solve() if self._plans else None)
        self.optimal_value, self.value_range, self.optimal_return = told

    def certify(self, holding: Holding, tight: bool = False, exact: bool = True) -> Certificate:
        """Return the certificate of a table.

        tight : evaluate the policy to 1e-10 of the value range, not 1e-7 (or a hundredth of the
        loss at the start), and find its return. exact : False leaves out what needs V*.
        """
        return self.transport.broadcast(self._certify(holding, tight, exact))

    @property
    def _never_ends(self) -> bool:
        return self.planner.least >= 1.0 and not self.environment.max_episode_steps

    @property
    def _plans(self) -> bool:
        return not self.planner.alone or self.transport.rank == 0

    def _solve(self) -> tuple[float | None, float | None, float | None]:
        planner, policy = self.planner, None
        if self.discount < 1:
            solution = planner.optimise(self.discount)
        else:
            found = planner.optimise_undiscounted()
            if found is None:
                return None, None, None
            solution, policy = found
        self._optimal = solution.v.copy()
        value, extent = planner.expectation(self._optimal), solution.range
        if policy is None:
            policy = planner.greedy(self._optimal, self.discount)
        return value, extent, self._return(policy, value)

    def _return(self, policy: np.ndarray, value: float | None) -> float | None:
        """The undiscounted value of a policy at the start; value : the discounted one, if known."""
        if self._never_ends and value:
            return None  # what it earns it earns for ever
        mask = self.planner.reach(policy)
        n_steps = self.environment.max_episode_steps
        if n_steps:
            v = self.planner.horizon(policy, mask, n_steps)
        else:
            v = self.planner.undiscounted(policy, mask)
        return None if v is None else self.planner.expectation(v)

    def _certify(self, holding: Holding, tight: bool, exact: bool) -> Certificate | None:
        """What the planners find; the other ranks only hand out what they hold."""
        planner, policy, plans = self.planner, self._policy, self._plans
        optimal = self._optimal if exact else None
        values = planner.scratch()
        counts = np.zeros(2, np.int64)
        for piece in holding.slices(planner.rows):
            counts += self._read(piece, values.v)
        self.transport.sum_int(counts)
        non_finite, pairs = counts.tolist()
        found = np.full(7, -np.inf)
        if not non_finite:
            planner.fetch(values.v)
            compared = values.v if optimal is None else optimal
            for piece in holding.slices(planner.rows):
                one = self._residual(piece, values.v, compared, optimal is not None)
                np.maximum(found, one, out=found)
        if not plans:
            return None
        certificate = Certificate(uncertified_pairs=pairs)
        if optimal is not None:
            certificate = replace(
                certificate, optimal_value=self.optimal_value, optimal_return=self.optimal_return
            )
        if non_finite:
            return replace(certificate, kind="none")
        planner.most_of(found)
        if optimal is not None:
            certificate = replace(certificate, q_error=float(found[DISTANCE]))
        if self.discount < 1:
            certificate = self._bounded(certificate, found)
            masses = float(found[POLICY_MASS]), -float(found[POLICY_LEAST])
            self._evaluate(values, masses, tight, optimal is not None)
            certificate = self._compared(certificate, values.v, optimal)
        else:
            certificate = self._compared_undiscounted(certificate, policy, optimal)
        if not tight:
            return certificate
        return replace(certificate, policy_return=self._return(policy, certificate.policy_value))

    def _read(self, piece: Slice, v: np.ndarray) -> np.ndarray:
        """Note value and greedy action of a slice's states; return how many values are not finite
        and how many pairs were never learned from. Local."""
        planner, found = self.planner, np.zeros(1)
        control = np.array([piece.stride, piece.start, piece.stop, 0], np.int64)
        planner.call(
            "greedy", piece.q, v, self._policy, planner.mask, planner.where, control, found
        )
        rows = slice(piece.start - planner.first, piece.stop - planner.first)
        inside = planner.mask[rows].view(np.bool_)
        return np.array([found[0], np.count_nonzero(piece.visited[inside] == 0)], np.int64)

    def _residual(
        self, piece: Slice, v: np.ndarray, compared: np.ndarray, known: bool
    ) -> np.ndarray:
        """What the kernel `residual` finds in a slice. Local."""
        planner, found = self.planner, np.zeros(7)
        planner.call(
            "residual", piece.q, v, compared, self._policy, planner.mask, planner.where,
            np.array([piece.stride, piece.start, piece.stop, known], np.int64),
            np.array([self.discount, 0.0, 1.0, 0.0]), self.environment.params, found,
        )  # fmt: skip
        return found

    def _bounded(self, certificate: Certificate, found: np.ndarray) -> Certificate:
        """Bounds from residuals: V* <= V + rise (1 + k + ...), V_policy >= V - fall (1 + ...)."""
        planner, discount = self.planner, self.discount
        rise, fall = float(found[STATE_RISE]), float(found[STATE_FALL])
        above = rise + beyond(rise, planner.most if rise > 0 else planner.least, discount)
        most, least = float(found[POLICY_MASS]), -float(found[POLICY_LEAST])
        below = fall + beyond(fall, most if fall > 0 else least, discount)
        error = float(max(found[PAIR_RISE], found[PAIR_FALL]))
        return replace(
            certificate,
            q_error_bound=error + beyond(error, planner.most, discount),
            policy_loss_bound=max(0.0, above + below),
        )

    def _evaluate(
        self, values: Values, masses: tuple[float, float], tight: bool, known: bool
    ) -> None:
        """Bring `values` to a lower bound on the policy's values, close to them.

        It starts from the table's own values, never from an earlier call's: a certificate, and so
        the end of a run, must be a function of the table alone.
        """

        def enough(width: float) -> float:
            scale = self.value_range if known and self.value_range else values.range
            limit = (TIGHT if tight else LOOSE) * scale
            if tight or not known or self.optimal_value is None:
                return limit
            loss = self.optimal_value - self.planner.expectation(values.v)
            return max(limit, LOOSE_SHARE * (loss - width))

        self.planner.evaluate(values, self._policy, masses, self.discount, enough)

    def _compared(
        self, certificate: Certificate, v: np.ndarray, optimal: np.ndarray | None
    ) -> Certificate:
        certificate = self._compared_at_start(certificate, v, optimal)
        if optimal is None:
            return certificate
        planner = self.planner
        largest = np.zeros(1)
        for losses in self._losses(v, optimal):
            largest[0] = max(largest[0], losses.max())
        planner.most_of(largest)
        loss = float(largest[0])
        total = planner.total(self._losses(v, optimal), loss, planner.n_reachable)
        return replace(
            certificate, policy_loss=loss, policy_loss_mean=total / planner.n_reachable
        )

    def _losses(self, v: np.ndarray, optimal: np.ndarray) -> Iterator[np.ndarray]:
        """Yield optimal - v of own rows, part by part; 0 where that is less, or not reachable."""
        mask = self.planner.mask
        for k in range(0, mask.size, PART):
            rows = slice(k, min(k + PART, mask.size))
            yield np.maximum(optimal[rows] - v[rows], 0.0) * mask[rows]

    def _compared_at_start(
        self, certificate: Certificate, v: np.ndarray, optimal: np.ndarray | None
    ) -> Certificate:
        value = self.planner.expectation(v)
        certificate = replace(certificate, policy_value=value)
        if optimal is None or self.optimal_value is None:
            return certificate
        gap = max(0.0, self.optimal_value - value)
        return replace(
            certificate, policy_gap=gap / self.value_range if self.value_range else 0.0
        )

    def _compared_undiscounted(
        self, certificate: Certificate, policy: np.ndarray, optimal: np.ndarray | None
    ) -> Certificate:
        """As `_compared`; only at the start where the policy is proper there, but not elsewhere."""
        v = self.planner.undiscounted(policy, self.planner.mask)
        if v is not None:
            return self._compared(certificate, v, optimal)
        v = self.planner.undiscounted(policy, self.planner.reach(policy))
        return certificate if v is None else self._compared_at_start(certificate, v, optimal)
