"""Values of a policy: sweeps first, then iterations, then a factorisation; all checked by a backup.

Whatever method comes near them, the values that are returned carry a bound on their error that was
computed from a backup of themselves (MacQueen and Porteus below discount 1, expected episode
lengths at 1). Where float64 cannot hold the residual that an accuracy asks for, as where discounts
near 1 make values large and nearly equal, residuals are computed in twice its precision and values
corrected (iterative refinement, Wilkinson 1963).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from distq_mpi.bounds import EPSILON, PATIENCE, Orders, offsets, safe_offsets
from distq_mpi.budget import Budget, Unsolved
from distq_mpi.compact import Path
from distq_mpi.factorisation import Factors, factorise
from distq_mpi.kernels.sweeps import (
    BY_REWARD,
    FALL,
    GAUSS_SEIDEL,
    JACOBI,
    MARKED,
    MOST_PASSES,
    PASSES,
    RISE,
    UNMARKED,
)
from distq_mpi.krylov import Krylov
from distq_mpi.planning import FIRST_SWEEPS, REWARDS, STEPS, Planner
from distq_mpi.values import Values

SMOOTHS = 4
"""Sweeps where one kind takes the place of two, which may end before."""
FEW_ITERATIONS, MOST_ITERATIONS, ITERATION_SWEEPS = 60, 300, 5
"""Iterations of `Krylov` before a factorisation and without one, and how many sweeps one takes as
long as."""
CHECK_WORK = 5e4
"""Transitions that could be backed up in the time of a call from Python, about."""
PASSES_AT_ONCE = 64
"""Passes of `settle` between two checks of the budget."""
CORRECTED, MOST_CORRECTIONS = 1e-4, 12
"""Share of the largest residual that a correction may leave, and corrections of one policy's
values."""

Bounds = Callable[[float, float], tuple[float, float]]


class PolicyEvaluator:
    """Evaluates policies on the model of a planner. Methods are COLLECTIVE over the planners, with
    the same bits on any number of ranks; they raise Unsolved where a budget ends."""

    def __init__(self, planner: Planner) -> None:
        self.planner = planner
        self._krylov: Krylov | None = None
        self._spare: Values | None = None
        self._factors: Factors | None = None

    def evaluate(
        self,
        values: Values,
        policy: np.ndarray,
        masses: tuple[float, float],
        discount: float,
        enough: Callable[[float], float],
        budget: Budget,
    ) -> float:
        """Bring `values` from any start to a lower bound on the policy's values, discount < 1;
        return by how much they may be too low.

        policy : int32 (n_own,). masses : largest and smallest probability of going on under it.
        enough : the largest error that suffices, asked at every check with the error so far.
        """
        planner, path = self.planner, self.planner.follow(policy)
        self._factors = None
        error = self._approach(values, policy, path, masses, discount, enough, budget)
        if isinstance(path, Path) and error > max(enough(error), 4 * EPSILON * values.size):
            bounds = functools.partial(
                safe_offsets, most=masses[0], least=masses[1], discount=discount
            )

            def correct(change: np.ndarray, size: float) -> np.ndarray:
                return self.correction(path, values.mask, change, masses, discount, size, budget)

            error = self._refine(values, policy, discount, bounds, enough, correct, budget)
        planner.fetch(values.v)
        return error

    def solve(
        self, values: Values, path: np.ndarray | Path, discount: float, share: float, most: int,
        reward: tuple[float, float] = REWARDS,
    ) -> tuple[int, bool]:  # fmt: skip
        """Bring V nearer to a policy's values by iterations of `Krylov`, until sweeps change
        `share` of what they did, at most `most`; return how many, and whether that much helped."""
        planner = self.planner
        if self._krylov is None:
            self._krylov = Krylov(
                planner.cuts, (planner.first_block, planner.n_blocks), values.v.size,
                planner.kernels, planner.all_most, planner.fetch_rows,
            )  # fmt: skip
        swept = self._krylov.swept

        def sweep(given: tuple[float, float] = reward) -> None:
            planner.relax(swept, path, None, discount, 2, given)

        linear: Callable[[], None] = functools.partial(sweep, (0.0, 0.0))
        if isinstance(path, Path):  # bound once: on a small model a call takes as long as sweeps
            control = np.array([0, 0, GAUSS_SEIDEL, 0, 0, 0], np.int64)
            call = planner.kernels["plan_sweep_followed"].bind(
                swept.both, values.mask, planner.cuts, control,
                np.array([discount, 0.0, 0.0, 0.0]), *path, np.zeros(5),
            )  # fmt: skip
            linear = functools.partial(planner.repeat, swept, control, 2, call)
        return self._krylov.solve(values, sweep, linear, share, most)

    def close(
        self,
        values: Values,
        path: np.ndarray | Path,
        discount: float,
        n_sweeps: int,
        orders: Orders,
        spans: tuple[float, float],
        reward: tuple[float, float] = REWARDS,
    ) -> int:
        """Bring V nearer to a policy's values by sweeps; return how many.

        n_sweeps : of each kind, or that many times `SMOOTHS` of one. spans : largest minus smallest
        TV - V before, and what suffices to end earlier.
        """
        planner, rates = self.planner, np.array([discount, 0.0, *reward])
        if not orders.smooths_only:
            planner.relax(values, path, None, discount, n_sweeps, reward)
        # The last state of a Gauss-Seidel sweep has a TV - V of 0: Jacobi sweeps even them out.
        most, span, n = n_sweeps * (SMOOTHS if orders.smooths_only else 1), math.inf, 0
        at_once = max(FIRST_SWEEPS, planner.most_sweeps // 16 // 2 * 2)
        while n < most and span > spans[1]:
            n_more = min(at_once, most - n)
            found = planner.sweep(values, path, None, JACOBI, n_more, rates)
            planner.most_of(found)
            span, n = found[RISE] + found[FALL], n + n_more
        n_swept = n if orders.smooths_only else n + n_sweeps
        orders.swept(n_swept, spans[0], span)
        return n_swept

    def horizon(
        self, policy: np.ndarray | None, mask: np.ndarray, n_steps: int, budget: Budget
    ) -> np.ndarray:
        """The undiscounted values of a policy over `n_steps` steps; of the best decision at every
        step where the policy is None.

        mask : states that the policy does not leave.
        """
        planner = self.planner
        values, left = planner.values.begin(mask), n_steps
        rates, work = np.array([1.0, 0.0, *REWARDS]), planner.policy_work
        while left:
            n = min(left, planner.most_sweeps)
            found = planner.sweep(values, policy, None, JACOBI, n, rates)
            if not np.isfinite(values.v[: mask.size]).all():
                found[RISE] = found[FALL] = math.inf
            planner.most_of(found)
            left, change = left - n, max(found[RISE], found[FALL])
            if not math.isfinite(change):
                raise Unsolved("the return is unknown: rewards are too large to be added up")
            # Changes never grow from one backup to the next.
            if change * left <= 1e-15 * values.size:
                break
            budget.spend(n * (planner.model_work if policy is None else work) + CHECK_WORK)
        return values.v

    def undiscounted(
        self, policy: np.ndarray, mask: np.ndarray, budget: Budget,
        reward: tuple[float, float] = REWARDS,
    ) -> np.ndarray:  # fmt: skip
        """The undiscounted values of a policy on a mask it does not leave, with halo.

        Finite where the policy ends every episode, or comes to states among which it earns nothing
        for ever. With W >= 0 and max(1 + PW - W) = d < 1 the expected number of steps until then
        is at most W / (1 - d), which makes a residual a bound on the error.
        """
        planner, inside = self.planner, self._proper(policy, mask, budget)
        values, path = planner.values.begin(inside), planner.follow(policy)
        self._factors = None
        approach = _Approach(self, path, 1.0, STEPS, budget)
        while (rise := planner.backup(values, policy, None, 1.0, 0.0, STEPS)[0]) >= 0.5:
            approach.go_on(values, 0.25 / rise)
        longest = (values.size + 1.0) / (1.0 - max(rise, 0.0))
        own = values.v[: inside.size]
        least = np.array([-own.min(initial=0.0)])
        planner.most_of(least)
        if least[0] > 1.0:
            raise Unsolved("the undiscounted value is unknown: probabilities sum to more than 1")
        accuracy = max(1e-12, 64 * EPSILON * longest)
        values.begin(inside)
        approach = _Approach(self, path, 1.0, reward, budget)
        while True:
            rise, fall, _ = planner.backup(values, policy, None, 1.0, 0.0, reward)
            error, enough = max(rise, fall) * longest, accuracy * values.size
            if error <= enough:
                break
            approach.go_on(values, enough / error / 2)
        if isinstance(path, Path) and accuracy > 1e-12:

            def correct(change: np.ndarray, size: float) -> np.ndarray:
                return self._correction_undiscounted(path, inside, change, longest, size, budget)

            limit = max(1e-12, 4 * EPSILON) * values.size
            self._refine(
                values, policy, 1.0, lambda rise, fall: (-max(fall, 0.0) * longest,
                                                         max(rise, 0.0) * longest),
                lambda _: limit, correct, budget, reward,
            )  # fmt: skip
        planner.fetch(values.v)
        return values.v

    def direct(
        self, values: Values, path: np.ndarray | Path, discount: float, reward: tuple[float, float]
    ) -> bool:
        """Replace V by the policy's values, solved for by a factorisation; return whether that was
        possible: the model is one block, its factors are affordable, and no state goes on for ever
        at discount 1."""
        if not self._factorised(path, values.mask, discount):
            return False
        assert self._factors is not None and isinstance(path, Path)
        x = self._factors.solve(reward[0] * path.rewards + reward[1])
        if not np.isfinite(x).all():
            return False
        values.v[:] = x
        return True

    @property
    def may_factorise(self) -> bool:
        """Whether rank 0 plans alone whatever the number of ranks, with a copy of the model."""
        return self.planner.n_blocks == 1 and self.planner.compact is not None

    def _factorised(self, path: np.ndarray | Path, mask: np.ndarray, discount: float) -> bool:
        if self._factors is None and self.may_factorise and isinstance(path, Path):
            self._factors = factorise(path, mask, discount)
        return self._factors is not None

    def forget(self) -> None:
        """Drop the factors of the last policy. Local."""
        self._factors = None

    def _approach(
        self,
        values: Values,
        backed: np.ndarray | Path,
        path: np.ndarray | Path,
        masses: tuple[float, float],
        discount: float,
        enough: Callable[[float], float],
        budget: Budget,
    ) -> float:
        """As `evaluate`, to an error that suffices or that float64 rounding leaves.

        backed : what backups follow: the policy, or the path where its rewards are others.
        """
        planner, begun_anew = self.planner, False
        approach = _Approach(self, path, discount, REWARDS, budget)
        while True:
            rise, fall, _ = planner.backup(values, backed, None, discount)
            lower, upper = offsets(rise, fall, *masses, discount)
            error = upper - lower
            if not math.isfinite(error):
                if begun_anew:
                    raise Unsolved("the policy's value is unknown: it is beyond what float64 holds")
                begun_anew = True
                values.begin(values.mask)
                continue
            values.shift(lower)
            rounding = planner.rounding(values, masses[0], discount)
            limit = max(enough(error), rounding)
            if error <= limit:
                # The span of TV - V can be smaller than the rounding of its ends.
                return max(error, rounding)
            approach.told(error)
            approach.go_on(values, limit / error / 2, rise + fall)

    def _refine(
        self,
        values: Values,
        policy: np.ndarray,
        discount: float,
        bounds: Bounds,
        enough: Callable[[float], float],
        correct: Callable[[np.ndarray, float], np.ndarray],
        budget: Budget,
        reward: tuple[float, float] = REWARDS,
    ) -> float:
        """Bring V to a lower bound on the policy's values as `_approach` does, by residuals in
        twice the precision of float64; return by how much it may be too low.

        bounds : of the error V' - TV, from the largest and the negated smallest residual.
        correct : returns a solution of (I - discount P) d = residual, to `CORRECTED` of the largest
        |residual|, its second argument.
        """
        planner, n_own = self.planner, values.mask.size
        low, change = np.zeros_like(values.v), np.zeros(n_own)
        for _ in range(MOST_CORRECTIONS):
            rise, fall, _ = planner.residue(values, low, policy, change, discount, False, reward)
            lower, upper = bounds(rise, fall)
            error = upper - lower
            if not math.isfinite(error):
                break
            if error <= max(enough(error), 4 * EPSILON * values.size):
                inside = values.mask.view(np.bool_)
                values.v[:n_own] += np.where(inside, low[:n_own] + change + lower, 0.0)
                return error
            add_to(values.v, low, correct(change, max(abs(rise), abs(fall))))
            budget.spend(planner.policy_work)
        raise Unsolved("the policy's value is unknown: float64 cannot hold it accurately enough")

    def correction(
        self, path: Path, mask: np.ndarray, change: np.ndarray, masses: tuple[float, float],
        discount: float, size: float, budget: Budget,
    ) -> np.ndarray:  # fmt: skip
        """A solution d of (I - discount P) d = change, with halo, to `CORRECTED` of the largest
        |change|, `size`, or what float64 allows; by the factors that there are, if any."""
        if self._factors is not None:
            return self._factors.solve(change)
        other = path._replace(rewards=change)
        values = self._other_values().begin(mask)
        rounding = 64 * EPSILON / (1.0 - discount * min(masses[0], 1.0))

        def enough(error: float) -> float:
            return max(CORRECTED * size, rounding * values.size)

        self._approach(values, other, other, masses, discount, enough, budget)
        return values.v

    def _correction_undiscounted(
        self, path: Path, mask: np.ndarray, change: np.ndarray, longest: float, size: float,
        budget: Budget,
    ) -> np.ndarray:  # fmt: skip
        if self._factors is not None:
            return self._factors.solve(change)
        other = path._replace(rewards=change)
        values = self._other_values().begin(mask)
        approach = _Approach(self, other, 1.0, REWARDS, budget)
        while True:
            rise, fall, _ = self.planner.backup(values, other, None, 1.0)
            error = max(rise, fall) * longest
            enough = max(CORRECTED * size, 64 * EPSILON * longest * values.size)
            if error <= enough:
                return values.v
            approach.go_on(values, enough / error / 2)

    def _other_values(self) -> Values:
        if self._spare is None:
            planner = self.planner
            self._spare = Values(planner.mask.size, planner.halo.size, planner.all_most)
        return self._spare

    def _proper(self, policy: np.ndarray, mask: np.ndarray, budget: Budget) -> np.ndarray:
        """Return the masked states in which a policy earns until it ends or comes to states without
        rewards, uint8 (n_own,): the other ones are worth 0. Raises Unsolved where there are states
        from which it never comes to either."""
        earning = self._marked(policy, mask, True, np.zeros(mask.size, np.uint8), budget)[0]
        quiet = mask & (1 - earning)
        settled, n_left = self._marked(policy, mask, False, quiet, budget)
        if n_left:
            raise Unsolved(
                "the undiscounted value is unknown: the policy can go on for ever in states that "
                "have rewards",
                endless=True,
            )
        return settled & earning

    def _marked(
        self, policy: np.ndarray, mask: np.ndarray, by_reward: bool, begin: np.ndarray,
        budget: Budget,
    ) -> tuple[np.ndarray, bool]:  # fmt: skip
        """Return the states from which a policy can come to a reward, or else to an end or the
        states of `begin`, uint8 (n_own,); and whether masked ones are left."""
        planner = self.planner
        marked = np.zeros(mask.size + planner.halo.size, np.uint8)
        marked[: mask.size] = begin
        planner.fetch(marked)
        control = np.zeros(2, np.int64)
        control[BY_REWARD], control[MOST_PASSES] = by_reward, PASSES_AT_ONCE
        while True:
            found = np.zeros(3)
            planner.call(
                "settle", marked, policy, mask, planner.where, control,
                planner.environment.params, found,
            )  # fmt: skip
            planner.most_of(found)
            done = found[PASSES] < PASSES_AT_ONCE if planner.alone else found[MARKED] == 0
            if done:
                return marked[: mask.size], bool(found[UNMARKED] > 0)
            planner.fetch(marked)
            budget.spend(found[PASSES] * planner.policy_work)


class _Approach:
    """Chooses what brings V nearer to a policy's values next: sweeps, iterations, a factorisation.

    Sweeps come first, in the order that closes bounds faster. Where they are too slow, a few
    iterations of BiCGSTAB, then a factorisation where the model is one block, then iterations as
    long as they help.
    """

    def __init__(
        self, evaluator: PolicyEvaluator, path: np.ndarray | Path, discount: float,
        reward: tuple[float, float], budget: Budget,
    ) -> None:  # fmt: skip
        self._evaluator, self._path = evaluator, path
        self._discount, self._reward, self._budget = discount, reward, budget
        self._orders, self._n_sweeps, self._n_swept = Orders(), FIRST_SWEEPS, 0
        self._share_then = 0.0
        # Functions, not methods of this object: it would refer to itself, and live on.
        self._remedies: list[Any] = [_Approach._iterate]
        if evaluator.may_factorise:
            self._remedies = [_Approach._iterate_briefly, _Approach._factorise, _Approach._iterate]

    def told(self, error: float) -> None:
        """Note a bound on the error, at discounts below 1. Local."""
        self._orders.told(error)

    def go_on(self, values: Values, share: float, span: float = math.inf) -> None:
        """Bring V nearer. share : of the error now, what suffices. span : largest minus smallest
        TV - V, at discounts below 1. COLLECTIVE."""
        planner = self._evaluator.planner
        work, slow = planner.policy_work, self._orders.too_slow(share)
        if self._discount == 1.0:
            slow = self._n_swept >= PATIENCE
        if share < 2 * self._share_then:  # the error was not halved: iterations are at their end
            self._remedies.clear()
        self._share_then = 0.0
        if slow and self._remedies:
            remedy = self._remedies[0]
            n, helped = remedy(self, values, share)
            if not helped or len(self._remedies) > 1:
                self._remedies.pop(0)
            else:
                self._share_then = share
            self._orders.solved()
            self._budget.spend(ITERATION_SWEEPS * (n + 1) * work)
            return
        if self._discount == 1.0:
            n = max(FIRST_SWEEPS, min(self._n_swept, planner.most_sweeps)) // 2 * 2
            planner.relax(values, self._path, None, 1.0, n, self._reward)
        else:
            n = self._evaluator.close(
                values, self._path, self._discount, self._n_sweeps, self._orders,
                (span, span * share), self._reward,
            )  # fmt: skip
            self._n_sweeps = min(2 * self._n_sweeps, planner.most_sweeps)
        self._n_swept += n
        self._budget.spend(n * work)

    def _iterate(
        self, values: Values, share: float, most: int = MOST_ITERATIONS
    ) -> tuple[int, bool]:
        return self._evaluator.solve(
            values, self._path, self._discount, share, most, self._reward
        )

    def _iterate_briefly(self, values: Values, share: float) -> tuple[int, bool]:
        return self._iterate(values, share, FEW_ITERATIONS)

    def _factorise(self, values: Values, share: float) -> tuple[int, bool]:
        return 0, self._evaluator.direct(values, self._path, self._discount, self._reward)


def add_to(high: np.ndarray, low: np.ndarray, x: np.ndarray) -> None:
    """Add x to high + low, in place, with the error of each sum kept in `low` (Knuth). Local."""
    total = high + x
    part = total - high
    low += (high - (total - part)) + (x - part)
    high[:] = total + low
    low -= high - total
