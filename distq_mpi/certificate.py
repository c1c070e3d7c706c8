"""How good a table is: exact values, the value of its greedy policy, and bounds.

Certificates speak of reachable states: those that an episode can be in under any policy. That set
is closed, so the bounds are valid on it; outside it nothing is ever visited.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from distq_mpi.bounds import EPSILON, beyond
from distq_mpi.budget import Budget, Unsolved
from distq_mpi.finite import FiniteFields, finite, positive_part
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
from distq_mpi.policy_evaluation import CHECK_WORK, PolicyEvaluator
from distq_mpi.policy_iteration import Optimiser
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
ROUNDING = 1e-9
"""Differences of values, as a share of the largest |value|, that count as 0."""
CLOSE = 1e-9
"""Errors of the optimal and the worst value, as a share of the scale of gaps."""
COSTS = (-1.0, 0.0)
"""Weights with which the worst policy is optimal."""
BEST_WORK = 5e8
"""Backed-up transitions that the best return under a time limit may take."""


@dataclass(frozen=True)
class Certificate(FiniteFields):
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
    """(optimal_value - policy_value) / scale; see `gap_scale`."""
    policy_loss: float | None = None
    policy_loss_mean: float | None = None
    policy_value: float | None = None
    """Discounted, over the start distribution; so is `optimal_value`."""
    optimal_value: float | None = None
    worst_value: float | None = None
    """Of the policy with the smallest value over the start distribution."""
    value_range: float | None = None
    """Largest minus smallest V*."""
    policy_return: float | None = None
    """Undiscounted, under the time limit; only in tight certificates."""
    optimal_policy_return: float | None = None
    """Undiscounted return of the policy that is optimal at the discount; others can earn more."""
    best_return: float | None = None
    """Largest undiscounted return under the time limit, of decisions that may look at the clock."""
    unknown: str | None = None
    """Why a number that could be known is not, in words."""


def gap_scale(
    value_range: float | None, size: float, optimal: float | None, worst: float | None
) -> float | None:
    """Return what a gap is measured against: the smaller one, among those that are not 0, of the
    range of V* and of optimal - worst value at the start; 0.0 where both are 0, None = unknown.

    The range alone means nothing where the horizon ends before anything matters, and is 0 where
    all states are worth the same; the worst policy alone is lenient where one action is a
    catastrophe. size : the largest |V*|, or expected |reward| of an optimal step; `ROUNDING` of it
    counts as 0 in the range, as does that of |optimal| and |worst| in their difference. worst :
    None where it is infinite; the range then serves alone. Local.
    """
    known_range, best, least = finite(value_range), finite(optimal), finite(worst)
    if known_range is None or finite(size) is None:
        return None
    scales = [known_range] if known_range > ROUNDING * size else []
    spread = None if best is None or least is None else best - least
    if spread is not None and spread > ROUNDING * max(abs(best or 0.0), abs(least or 0.0)):
        scales.append(spread)
    if scales:
        return min(scales)
    return None if spread is None else 0.0


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


def _close(extent: float, size: float, optimal: float, worst: float) -> float:
    """The error of the optimal and the worst value that leaves their difference meaningful."""
    scale = gap_scale(extent, size, optimal, worst)
    return CLOSE * (scale or ROUNDING * max(abs(optimal), abs(worst), size))


@dataclass(frozen=True)
class Solution(FiniteFields):
    """What is known of an environment; a None is not known, `unknown` says why.

    stopped : whether that is because the run was asked to stop. size, scale : see `gap_scale`.
    """

    optimal_value: float | None = None
    worst_value: float | None = None
    value_range: float | None = None
    size: float = 0.0
    scale: float | None = None
    optimal_policy_return: float | None = None
    best_return: float | None = None
    unknown: str | None = None
    stopped: bool = False


class Solver:
    """Solves an environment and certifies tables for it.

    Constructing it and its methods are COLLECTIVE; results are the same on every rank and for
    every number of ranks, bit for bit.

    Parameters
    ----------
    stop : returns whether this rank was asked to stop; solves then end, and their answer is None.

    Attributes: `n_reachable`; `solution`, after `solve`.
    """

    def __init__(
        self,
        environment: Environment,
        discount: float,
        kernels: dict[str, Any],
        transport: Transport,
        stop: Callable[[], bool] | None = None,
    ) -> None:
        self.environment, self.discount = environment, discount
        self.transport = transport
        self.planner = Planner(environment, kernels, transport, stop)
        self.policies = PolicyEvaluator(self.planner)
        self.n_reachable: int = transport.broadcast(self.planner.n_reachable)
        self._optimal: np.ndarray | None = None
        self._policy = np.full(self.planner.mask.size, -1, np.int32)
        self.solution = Solution(unknown="V* was not computed")

    @property
    def optimal_value(self) -> float | None:
        """The discounted value of an optimal policy over the start distribution. Local."""
        return self.solution.optimal_value

    @property
    def value_range(self) -> float | None:
        """Largest minus smallest V* over reachable states. Local."""
        return self.solution.value_range

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
        self.solution = self.transport.broadcast(self._solve() if self._plans else None)
        self.policies.forget()

    def caveats(self, evaluation: dict[str, Any] | None) -> list[str]:
        """Return why a policy that met its target may still be of no use, with what to change; of
        this rank's part in the planning. Local.

        evaluation : of `sampling.sample`.
        """
        planner, found = self.planner, []
        ends = planner.least < 1.0
        if ends and evaluation is not None and evaluation["terminated"] == 0:
            found.append(
                f"none of {evaluation['episodes']} evaluation episodes ended: if that is not "
                "wanted, raise learn.discount or lower the target"
            )
        horizon = 1.0 / (1.0 - self.discount) if self.discount < 1 else np.inf
        steps = planner.steps_to_an_event(self.environment.n_states) or 0
        if steps > horizon:
            found.append(
                f"the horizon of learn.discount {self.discount:g}, {horizon:.0f} steps, is shorter "
                f"than the way from the start to any end or change of reward, {steps} steps: take "
                f"learn.discount {1 - 0.5 / steps:.6g} or learn.exploring_starts"
            )
        return found

    def certify(self, holding: Holding, tight: bool = False, exact: bool = True) -> Certificate:
        """Return the certificate of a table.

        tight : evaluate the policy to 1e-10 of the value range, not 1e-7 (or a hundredth of the
        loss at the start), and find its return. exact : False leaves out what needs V*.
        """
        certificate: Certificate = self.transport.broadcast(self._certify(holding, tight, exact))
        self.policies.forget()  # factors can take a gigabyte, and learning goes on
        return certificate

    @property
    def _plans(self) -> bool:
        return not self.planner.alone or self.transport.rank == 0

    def _solve(self) -> Solution:
        planner, optimiser = self.planner, Optimiser(self.planner, self.policies)
        budget = planner.budget("V*")
        try:
            if self.discount < 1:
                values = optimiser.optimise(self.discount, budget)
                optimal = values.v.copy()
                policy = planner.greedy(optimal, self.discount)
            else:
                values, policy = optimiser.optimise_undiscounted(budget)
                optimal = values.v.copy()
        except Unsolved as error:
            return Solution(unknown=str(error), stopped=error.stopped)
        extent, size = planner.scratch().begin(planner.mask, optimal).extent()
        value = finite(planner.expectation(optimal))
        if value is None:
            return Solution(unknown="V* is unknown: its values are beyond what float64 holds")
        self._optimal = optimal
        size, left = max(size, planner.reach(policy)[1]), optimiser.error
        worst, why = self._worst(optimiser, value, extent, size)
        if worst is not None and self.discount < 1 and planner.compact is not None:
            close = _close(extent, size, value, worst)
            if left > close:
                values = planner.scratch().begin(planner.mask, optimal)
                try:
                    optimiser.refine(values, policy.copy(), self.discount, close, budget)
                    refined = finite(planner.expectation(values.v))
                except Unsolved as unsolved:
                    why = unsolved
                else:  # else V* stays as it was: values are half corrected where it fails
                    if refined is not None:
                        value, self._optimal = refined, values.v.copy()
        scale = gap_scale(extent, size, value, worst) if why is None else None
        known, _ = self._return(policy)
        return Solution(
            value, worst, extent, size, scale, known,
            self._best_return(), None if why is None else str(why), why is not None and why.stopped,
        )  # fmt: skip

    def _worst(
        self, optimiser: Optimiser, best: float, extent: float, size: float
    ) -> tuple[float | None, Unsolved | None]:
        """The value of the worst policy over the start distribution; or None, and why where that
        is not that it is infinite."""
        planner = self.planner
        budget = planner.budget("the worst policy's value")

        def enough(values: Values) -> float:
            return _close(extent, size, best, -planner.expectation(values.v))

        try:
            if self.discount < 1:
                values = optimiser.optimise(self.discount, budget, COSTS, enough)
            else:
                values, _ = optimiser.optimise_undiscounted(budget, COSTS)
        except Unsolved as error:
            return None, None if error.endless else error
        value = finite(planner.expectation(values.v))
        return (None if value is None else 0.0 - value), None

    def _return(self, policy: np.ndarray) -> tuple[float | None, str | None]:
        """The undiscounted value of a policy at the start, under the time limit; or None, and why.
        """
        planner, policies = self.planner, self.policies
        mask, n_steps = planner.reach(policy)[0], self.environment.max_episode_steps
        budget = planner.budget("the return")
        try:
            if n_steps:
                v = policies.horizon(policy, mask, n_steps, budget)
            else:
                v = policies.undiscounted(policy, mask, budget)
        except Unsolved as error:
            return None, str(error)
        return finite(planner.expectation(v)), None

    def _best_return(self) -> float | None:
        planner, n_steps = self.planner, self.environment.max_episode_steps
        if not n_steps:
            return None
        if n_steps * (planner.model_work + CHECK_WORK / planner.most_sweeps) > BEST_WORK:
            return None
        budget = planner.budget("the best return")
        try:
            v = self.policies.horizon(None, planner.mask, n_steps, budget)
        except Unsolved:
            return None
        return finite(planner.expectation(v))

    def _certify(self, holding: Holding, tight: bool, exact: bool) -> Certificate | None:
        """What the planners find; the other ranks only hand out what they hold."""
        planner, policy, plans = self.planner, self._policy, self._plans
        optimal = self._optimal if exact else None
        values = planner.scratch()
        counts, size = np.zeros(2, np.int64), np.zeros(1)
        for piece in holding.slices(planner.rows):
            counts += self._read(piece, values.v, size)
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
        if exact:
            certificate = replace(certificate, unknown=self.solution.unknown)
        if optimal is not None:
            known = self.solution
            certificate = replace(
                certificate, optimal_value=known.optimal_value, worst_value=known.worst_value,
                value_range=known.value_range, optimal_policy_return=known.optimal_policy_return,
                best_return=known.best_return,
            )  # fmt: skip
        if non_finite:
            text = f"{int(non_finite)} values of the table are not finite"
            return replace(certificate, kind="none", unknown=text)
        planner.most_of(found)
        planner.most_of(size)
        if optimal is not None:
            certificate = replace(certificate, q_error=float(found[DISTANCE]))
        budget = planner.budget("the policy's value")
        try:
            if self.discount < 1:
                certificate = self._bounded(certificate, found, float(size[0]))
                masses = float(found[POLICY_MASS]), -float(found[POLICY_LEAST])
                self._evaluate(values, masses, tight, optimal is not None, budget)
                certificate = self._compared(certificate, values.v, optimal)
            else:
                certificate = self._compared_undiscounted(certificate, policy, optimal, budget)
        except Unsolved as error:
            certificate = replace(certificate, unknown=str(error))
        if not tight:
            return certificate
        policy_return, why = self._return(policy)
        return replace(
            certificate, policy_return=policy_return, unknown=certificate.unknown or why
        )

    def _read(self, piece: Slice, v: np.ndarray, size: np.ndarray) -> np.ndarray:
        """Note value and greedy action of a slice's states, and raise `size` to the largest |q|;
        return how many values are not finite and how many pairs were never learned from. Local."""
        planner, found = self.planner, np.zeros(2)
        control = np.array([piece.stride, piece.start, piece.stop, 0], np.int64)
        planner.call(
            "greedy", piece.q, v, self._policy, planner.mask, planner.where, control, found
        )
        np.maximum(size, found[1], out=size)
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

    def _bounded(self, certificate: Certificate, found: np.ndarray, size: float) -> Certificate:
        """Bounds from residuals: V* <= V + rise (1 + k + ...), V_policy >= V - fall (1 + ...).

        size : the largest |Q|.
        """
        planner, discount = self.planner, self.discount
        # Residuals are rounded: bounds hold for what they would be without.
        rounding = 16 * EPSILON * (size + planner.most_reward)
        rounding += beyond(rounding, planner.most, discount)
        rise, fall = float(found[STATE_RISE]), float(found[STATE_FALL])
        above = rise + beyond(rise, planner.most if rise > 0 else planner.least, discount)
        most, least = float(found[POLICY_MASS]), -float(found[POLICY_LEAST])
        below = fall + beyond(fall, most if fall > 0 else least, discount)
        error = float(max(found[PAIR_RISE], found[PAIR_FALL]))
        return replace(
            certificate,
            q_error_bound=rounding + error + beyond(error, planner.most, discount),
            policy_loss_bound=positive_part(2 * rounding + above + below),
        )

    def _evaluate(
        self, values: Values, masses: tuple[float, float], tight: bool, known: bool,
        budget: Budget,
    ) -> None:  # fmt: skip
        """Bring `values` to a lower bound on the policy's values, close to them.

        It starts from the table's own values, never from an earlier call's: a certificate, and so
        the end of a run, must be a function of the table alone.
        """

        def enough(width: float) -> float:
            scale = (self.solution.scale or self.solution.size) if known else values.range
            limit = (TIGHT if tight else LOOSE) * scale
            if tight or not known or self.optimal_value is None:
                return limit
            loss = self.optimal_value - self.planner.expectation(values.v)
            return max(limit, LOOSE_SHARE * (loss - width))

        self.policies.evaluate(values, self._policy, masses, self.discount, enough, budget)

    def _compared(
        self, certificate: Certificate, v: np.ndarray, optimal: np.ndarray | None
    ) -> Certificate:
        certificate = self._compared_at_start(certificate, v, optimal)
        if optimal is None:
            return certificate
        planner = self.planner
        largest = np.zeros(1)
        for losses in self._losses(v, optimal):
            # A NaN has no order, and would be lost on the way to the other planners.
            largest = np.nan_to_num(np.maximum(largest, losses.max()), nan=np.inf)
        planner.most_of(largest)
        loss = finite(float(largest[0]))
        if loss is None:
            return certificate
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
        value, scale = finite(self.planner.expectation(v)), self.solution.scale
        certificate = replace(certificate, policy_value=value)
        if optimal is None or self.optimal_value is None:
            return certificate
        if value is None or scale is None:
            why = "policy_gap is unknown: V* has no range, and the worst policy has no finite value"
            return replace(certificate, unknown=certificate.unknown or why)
        gap = 0.0 if scale == 0.0 else positive_part((self.optimal_value - value) / scale)
        return replace(certificate, policy_gap=gap)

    def _compared_undiscounted(
        self, certificate: Certificate, policy: np.ndarray, optimal: np.ndarray | None,
        budget: Budget,
    ) -> Certificate:  # fmt: skip
        """As `_compared`; only at the start where the policy is proper there, but not elsewhere."""
        planner, policies = self.planner, self.policies
        try:
            v = policies.undiscounted(policy, planner.mask, budget)
        except Unsolved as error:
            certificate = replace(certificate, unknown=certificate.unknown or str(error))
            v = policies.undiscounted(policy, planner.reach(policy)[0], budget)
            return self._compared_at_start(certificate, v, optimal)
        return self._compared(certificate, v, optimal)
