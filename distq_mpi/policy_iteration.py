"""Optimal values of a model: modified policy iteration, and policy iteration where that is slow."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from distq_mpi.bounds import EPSILON, Orders, offsets, safe_offsets
from distq_mpi.budget import Budget, Unsolved
from distq_mpi.compact import Path
from distq_mpi.planning import FIRST_SWEEPS, REWARDS, Planner
from distq_mpi.policy_evaluation import (
    CHECK_WORK,
    ITERATION_SWEEPS,
    MOST_ITERATIONS,
    PolicyEvaluator,
    add_to,
)
from distq_mpi.values import Values

SOLVED = 1e-12
"""Error of V*, as a share of the value range."""
GOOD, FLAT, FLAT_ERROR = 1e-9, 1e-9, 1e-14
"""Error of V* that is accepted where rounding of float64 allows no less, as a share of the value
range; the range that counts as none, and the error accepted there, as shares of the largest value.
"""
FEW = 0.01
"""Share of rows whose action may change without sweeps being cut short: far from all rewards some
do so for long."""
EVEN = 0.1
"""What may be left of the unevenness of TV - V when sweeps over a new policy's pairs end."""
DIRECT_SWEEPS, DIRECT_WORK, DIRECT_STEPS = 1000, 1e6, 4
"""What a factorisation takes, about: sweeps over a policy's pairs, and transitions that could be
backed up besides; and how many of these policy iteration may take before it pays: it begins where
sweeps have taken as long, and have as long to go."""
NEAR_ONE = (1 - 1e-5, 1 - 1e-6, 1 - 1e-7)
OPTIMAL, BETTER = 1e-9, 1e-12
"""Residual of an undiscounted policy, as a share of the largest value, that counts as none; and by
how much an action must be better to be taken instead."""
MOST_IMPROVEMENTS, MOST_STALLED = 60, 3


class Optimiser:
    """Finds optimal values on the model of a planner. Methods are COLLECTIVE over the planners,
    with the same bits on any number of ranks; they raise Unsolved where a budget ends.

    Attributes: `error`, a bound on the error of the values found last at a discount below 1.

    `reward` weighs the environment's reward: with (-1, 0) the worst policy's values are found,
    negated.
    """

    def __init__(self, planner: Planner, policies: PolicyEvaluator) -> None:
        self.planner, self.policies, self.error = planner, policies, math.inf

    def optimise(
        self, discount: float, budget: Budget, reward: tuple[float, float] = REWARDS,
        enough: Callable[[Values], float] | None = None,
    ) -> Values:  # fmt: skip
        """Return V* for a discount below 1.

        enough : the error that suffices, asked at every check; else `SOLVED` of the value range.
        Where float64 cannot give that, residuals are computed in twice its precision.

        Modified policy iteration (Puterman and Shin 1978), stopped by the span of TV - V. Each
        check moves V to its lower bound, after which V <= TV: from there on every kind of sweep
        can only raise V, so they converge whatever the policy. Where sweeps are too slow, a policy
        is solved for (Howard 1960), directly or by iterations.
        """
        planner, policies = self.planner, self.policies
        values, policy = planner.scratch(), np.zeros(planner.mask.size, np.int32)
        n_sweeps, orders, direct = FIRST_SWEEPS, Orders(), policies.may_factorise
        path: np.ndarray | Path | None = None
        spent, iterate, n_stalled, error_then = 0.0, True, 0, math.inf
        while True:
            rise, fall, changed = planner.backup(values, None, policy, discount, 0.0, reward)
            lower, upper = offsets(rise, fall, planner.most, planner.least, discount)
            error = upper - lower
            extent = values.top - values.bottom
            if not math.isfinite(error + extent):
                raise Unsolved("V* is unknown: values are beyond what float64 holds")
            wanted = SOLVED * extent
            if enough is not None:
                values.shift((lower + upper) / 2)  # the values as they would be returned
                wanted = enough(values)
                values.shift(-(lower + upper) / 2)
            rounding = planner.rounding(values, planner.most, discount)
            if error <= max(wanted, rounding):
                break
            if error_then < math.inf:  # a policy was solved for
                n_stalled = n_stalled + 1 if 2 * error > error_then else 0
                if planner.compact is not None and (not changed or n_stalled == MOST_STALLED):
                    break  # rounding allows no less
            error_then = math.inf
            values.shift(lower)
            orders.told(error)
            n_sweeps = min(2 * n_sweeps, planner.most_sweeps) if changed <= FEW else FIRST_SWEEPS
            share = max(wanted, rounding) / error / 2
            n_direct = DIRECT_STEPS if changed else 1
            direct_work = n_direct * (DIRECT_SWEEPS * planner.policy_work + DIRECT_WORK)
            many = int(n_direct * DIRECT_SWEEPS)
            if (direct or iterate) and spent >= direct_work and orders.too_slow(share, many):
                path, n = planner.follow(policy), 0
                policies.forget()
                if direct:
                    direct = policies.direct(values, path, discount, reward)
                else:
                    n, iterate = policies.solve(
                        values, path, discount, share, MOST_ITERATIONS, reward
                    )
                orders.solved()
                error_then = error
                budget.spend(direct_work / n_direct + ITERATION_SWEEPS * n * planner.policy_work)
                continue
            if changed and not orders.smooths_only:
                planner.relax(values, None, policy, discount, 2, reward)
            path = planner.follow(policy) if changed or path is None else path
            span = rise + fall
            spans = span, span * (max(EVEN, share) if changed else share)
            n = policies.close(values, path, discount, n_sweeps, orders, spans, reward)
            work = planner.model_work + n * planner.policy_work
            budget.spend(work)
            spent += work + CHECK_WORK
        size = max(abs(values.top), abs(values.bottom))
        if enough is not None:
            accepted = 10 * wanted
        else:
            accepted = FLAT_ERROR * size if extent <= FLAT * size else GOOD * extent
        # The span of TV - V can be smaller than the rounding of its largest and smallest.
        self.error = max(error, rounding)
        if self.error > max(wanted, accepted) and planner.compact is not None:
            self.refine(values, policy, discount, max(wanted, accepted / 10), budget, reward)
        else:
            values.shift((lower + upper) / 2)
        return values

    def optimise_undiscounted(
        self, budget: Budget, reward: tuple[float, float] = REWARDS
    ) -> tuple[Values, np.ndarray]:
        """Return V* and an optimal policy at discount 1.

        A policy that is optimal for all discounts near 1 is optimal at 1 (Blackwell 1962). Those
        of three discounts are improved at 1; the first whose own undiscounted values satisfy
        Bellman's equation is taken. It ends every episode, or comes to states where it earns
        nothing.
        """
        planner = self.planner
        if planner.compact is None:
            raise Unsolved("V* is unknown: the model is too large for learn.discount = 1")
        why = none = Unsolved("V* is unknown: no policy tried is optimal at learn.discount = 1")
        for discount in NEAR_ONE:
            values = self.optimise(discount, budget, reward)
            policy = planner.greedy(values.v, discount, reward)
            change, low = np.zeros(policy.size), np.zeros_like(values.v)
            try:
                for _ in range(MOST_IMPROVEMENTS):
                    v = self.policies.undiscounted(policy, planner.mask, budget, reward)
                    values = planner.values.begin(planner.mask, v)
                    size, better = values.size, policy.copy()
                    rise, fall, changed = planner.residue(
                        values, low, better, change, 1.0, True, reward, BETTER * size
                    )
                    if not changed:
                        if max(rise, fall) <= OPTIMAL * size:
                            return values, policy
                        why = none
                        break
                    policy = better
                    budget.spend(planner.model_work)
            except Unsolved as error:
                if budget.ended:
                    raise
                why = error
        raise why

    def refine(
        self, values: Values, policy: np.ndarray, discount: float, limit: float, budget: Budget,
        reward: tuple[float, float] = REWARDS,
    ) -> None:  # fmt: skip
        """Bring V to V*, to an error of `limit` or some units in the last place, by policy
        iteration whose residuals have twice the precision of float64.

        policy : int32 (n_own,), improved in place. Needs the planner's `compact`.
        """
        planner, n_own = self.planner, values.mask.size
        low, change = np.zeros_like(values.v), np.zeros(n_own)
        limit = max(limit, 4 * EPSILON * values.size)
        for _ in range(MOST_IMPROVEMENTS):
            rise, fall, _ = planner.residue(values, low, policy, change, discount, True, reward)
            lower, upper = safe_offsets(rise, fall, planner.most, planner.least, discount)
            error = upper - lower
            if error <= limit:
                inside, shift = values.mask.view(np.bool_), (lower + upper) / 2
                values.v[:n_own] += np.where(inside, low[:n_own] + change + shift, 0.0)
                planner.fetch(values.v)
                self.error = error
                return
            if not math.isfinite(error):
                break
            path = planner.follow(policy)
            assert isinstance(path, Path)
            masses = planner.most, planner.least
            self.policies.forget()
            correction = self.policies.correction(
                path, values.mask, change, masses, discount, max(abs(rise), abs(fall)), budget
            )
            add_to(values.v, low, correction)
            budget.spend(planner.model_work)
        raise Unsolved("V* is unknown: float64 cannot hold it accurately enough")
