"""Exact values by Bellman sweeps, in parallel, with the same bits on any number of ranks.

The states are cut into blocks by the environment alone; a sweep is Gauss-Seidel within a block and
Jacobi between blocks, so it does not matter which rank sweeps which block. Small environments are
one block: rank 0 then plans alone, and the others wait for what it tells them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from distq_mpi.kernels.sweeps import (
    CHANGED,
    FALL,
    GAUSS_SEIDEL,
    JACOBI,
    LEAST_MASS,
    MOST_MASS,
    N_FOUND,
    REWARDED,
    RISE,
    UNSETTLED,
)
from distq_mpi.partition import Partition

if TYPE_CHECKING:
    from distq_mpi.environments.base import Environment
    from distq_mpi.transport import Transport

BLOCK_TRANSITIONS = 2_000_000
"""Transitions that are worth a message per sweep: about 5 ms of work."""
MAX_BLOCKS = 64
WORK_LIMIT = 3e8
"""Backed-up transitions after which an undiscounted problem counts as unsolvable."""
FIRST_SWEEPS, MOST_SWEEPS = 4, 64
"""Sweeps of one kind between two checks of the bounds; more where they are short."""
CHECK_WORK = 100_000
"""Backed-up transitions that are worth a check: more than it costs by itself."""
SOLVED = 1e-12
"""Error of V*, as a share of the value range."""
TIES = 1e-12
"""Actions this close to the best, as a share of the value range, count as equal."""
NEAR_ONE = (1 - 1e-5, 1 - 1e-6, 1 - 1e-7)
OPTIMAL = 1e-9
"""Residual of an undiscounted policy, as a share of the largest value, that counts as none."""


def beyond(change: float, mass: float, discount: float) -> float:
    """The sum of change k + change k^2 + ..., k = discount x mass: what further backups can add."""
    k = discount * mass
    return change * k / (1.0 - k) if k < 1.0 else (0.0 if change == 0.0 else change * np.inf)


def offsets(
    rise: float, fall: float, most: float, least: float, discount: float
) -> tuple[float, float]:
    """Return (lower, upper): the fixed point of T lies in TV + [lower, upper] in every state.

    rise, -fall : largest and smallest of TV - V. most, least : bounds on the probability of going
    on; both are 1 where nothing terminates. MacQueen (1966), Porteus (1971).
    """
    lower = beyond(-fall, most if fall > 0 else least, discount)
    upper = beyond(rise, most if rise > 0 else least, discount)
    return lower, upper


class Values:
    """Values of all states, float64 (S,), swept between two arrays; 0 outside the mask."""

    def __init__(self, n_states: int, mask: np.ndarray) -> None:
        self.v, self.other = np.zeros(n_states), np.zeros(n_states)
        self.mask, self._inside = mask, mask.view(np.bool_)

    def shift(self, amount: float) -> None:
        """Add the same amount to every state's value."""
        np.add(self.v, amount, out=self.v, where=self._inside)

    @property
    def range(self) -> float:
        """Largest minus smallest value."""
        inside = self.v[self._inside]
        return float(inside.max() - inside.min()) if inside.size else 0.0

    @property
    def size(self) -> float:
        """Largest absolute value."""
        return float(np.abs(self.v).max(initial=0.0))


class Planner:
    """Reachable states, optimal and policy values of one environment.

    Constructing it and every public method are COLLECTIVE over the `planners` (all ranks, or rank
    0 alone where `alone`).

    Attributes: `mask` uint8 (S,), the states that can be met under any policy; `n_reachable`;
    `most`, `least`, bounds on the probability of going on; `every`, the policy (int32 (S,)) of all
    actions; `first`, `last`, this rank's rows.
    """

    def __init__(
        self, environment: Environment, kernels: dict[str, Any], transport: Transport
    ) -> None:
        self.environment, self.transport = environment, transport
        self._kernels = kernels
        n_states = environment.n_states
        n_blocks = min(max(1, environment.n_transitions // BLOCK_TRANSITIONS), MAX_BLOCKS, n_states)
        blocks = Partition.balanced(n_states, n_blocks)
        n_solvers = min(n_blocks, transport.size)
        share = Partition.balanced(n_blocks, n_solvers)
        borders = [blocks.starts[k] for k in share.starts]
        borders += [n_states] * (transport.size - n_solvers)
        self.alone = n_solvers == 1
        self.rows = Partition(np.array(borders, np.int64))
        self.first, self.last = self.rows.block(transport.rank)
        mine = share.block(transport.rank) if transport.rank < n_solvers else (n_blocks, n_blocks)
        self._cuts = np.array(blocks.starts[mine[0] : mine[1] + 1], np.int64)
        per_policy = max(1, environment.n_transitions // environment.n_actions)
        self._most_sweeps = max(MOST_SWEEPS, CHECK_WORK // per_policy // 2 * 2)
        self.every = np.full(n_states, -1, np.int32)
        self.chances = np.zeros(environment.n_starts)
        self.firsts = np.zeros(environment.n_starts, np.int64)
        self.mask, found = self.reach(self.every)
        self.most, self.least = float(found[MOST_MASS]), float(found[LEAST_MASS])
        self.n_reachable = int(found[N_FOUND])

    def call(self, name: str, *arguments: Any) -> None:
        """Call one of the kernels. Local."""
        self._kernels["plan_" + name](*arguments)

    def reach(self, policy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the mask of the states met under a policy, and what the kernel found."""
        mask, found = np.zeros(self.environment.n_states, np.uint8), np.zeros(3)
        if self.transport.rank == 0:
            stack = np.zeros(self.environment.n_states, np.int64)
            params = self.environment.params
            self.call("reach", mask, stack, policy, self.chances, self.firsts, params, found)
        self._tell(mask, found)
        return mask, found

    def expectation(self, v: np.ndarray) -> float:
        """The mean of v over the start distribution."""
        # One rank adds, so that no two processors can round differently; the maximum tells all.
        told = np.full(1, -np.inf)
        if self.transport.rank == 0:
            told[0] = np.sum(self.chances * v[self.firsts])
        self.most_of(told)
        return float(told[0])

    def most_of(self, found: np.ndarray) -> None:
        """Make `found` the elementwise largest of all planners, in place."""
        if not self.alone:
            self.transport.max_float(found)

    def backup(
        self,
        values: Values,
        policy: np.ndarray,
        greedy: np.ndarray,
        discount: float,
        slack: float = 0.0,
        reward: tuple[float, float] = (1.0, 0.0),
    ) -> tuple[float, float, bool]:
        """Replace V by TV; return max(TV - V), max(V - TV) and whether `greedy` changed.

        greedy : int32 (S,), this rank's rows written: per state the lowest action within `slack`
        of the best.
        reward : weight of the environment's reward, and what every step earns besides.
        """
        rates = np.array([discount, slack, *reward])
        found = self._sweep(values, policy, greedy, JACOBI, 1, rates)
        self.most_of(found)
        return float(found[RISE]), float(found[FALL]), found[CHANGED] > 0

    def relax(
        self,
        values: Values,
        policy: np.ndarray,
        greedy: np.ndarray,
        discount: float,
        n_sweeps: int,
        reward: tuple[float, float] = (1.0, 0.0),
    ) -> None:
        """Bring V nearer to the policy's values by an even number of Gauss-Seidel sweeps."""
        rates = np.array([discount, 0.0, *reward])
        self._sweep(values, policy, greedy, GAUSS_SEIDEL, n_sweeps, rates)

    def smooth(
        self, values: Values, policy: np.ndarray, discount: float, n_sweeps: int
    ) -> None:
        """Even out TV - V by Jacobi sweeps; the last state of a Gauss-Seidel sweep has none."""
        rates = np.array([discount, 0.0, 1.0, 0.0])
        self._sweep(values, policy, policy.copy(), JACOBI, n_sweeps, rates)

    def optimise(self, discount: float) -> Values:
        """Return V* for a discount below 1, within `SOLVED` or what float64 can give.

        Modified policy iteration (Puterman and Shin 1978), stopped by the span of TV - V. Each
        check moves V to its lower bound, after which V <= TV: from there on every kind of sweep
        can only raise V, so they converge whatever the policy.
        """
        values = Values(self.environment.n_states, self.mask)
        policy = np.zeros(self.environment.n_states, np.int32)
        n_sweeps = FIRST_SWEEPS
        while True:
            rise, fall, changed = self.backup(values, self.every, policy, discount)
            lower, upper = offsets(rise, fall, self.most, self.least, discount)
            if upper - lower <= self._accuracy(values, discount, SOLVED):
                values.shift((lower + upper) / 2)
                return values
            values.shift(lower)
            n_sweeps = FIRST_SWEEPS if changed else min(2 * n_sweeps, self._most_sweeps)
            if changed:
                self.relax(values, self.every, policy, discount, 2)
            self.relax(values, policy, policy, discount, n_sweeps)
            self.smooth(values, policy, discount, n_sweeps)

    def optimise_undiscounted(self) -> tuple[Values, np.ndarray] | None:
        """Return V* and an optimal policy at discount 1; None where they are not found.

        A policy that is optimal for all discounts near 1 is optimal at 1 (Blackwell 1962). Of
        those tried, the first whose own undiscounted values satisfy Bellman's equation is taken;
        it ends every episode, or goes on without reward.
        """
        if self.least >= 1.0:
            return None
        for discount in NEAR_ONE:
            policy = self.greedy(self.optimise(discount).v, discount)
            v = self.undiscounted(policy, self.mask)
            if v is None:
                return None
            values, trial = Values(self.environment.n_states, self.mask), policy.copy()
            values.v[:] = v
            rise, fall, _ = self.backup(values, self.every, trial, 1.0)
            if max(rise, fall) <= OPTIMAL * values.size:
                # What float64 hid from the policy, value iteration from below finds.
                budget = self._budget() / self.environment.n_actions
                while rise > 1e-14 * values.size and budget > 0:
                    self.relax(values, self.every, trial, 1.0, FIRST_SWEEPS)
                    rise, _, _ = self.backup(values, self.every, trial, 1.0)
                    budget -= FIRST_SWEEPS
                return values, policy
        return None

    def greedy(self, v: np.ndarray, discount: float) -> np.ndarray:
        """Return per state the lowest action that is best for v but for rounding; -1 outside."""
        values, policy = Values(self.environment.n_states, self.mask), self.every.copy()
        values.v[:] = v
        slack = max(TIES * values.range, 16 * np.finfo(float).eps * values.size)
        self.backup(values, self.every, policy, discount, slack)
        if not self.alone:
            self.transport.allgather_rows(policy, self.rows)
        return policy

    def evaluate(
        self,
        values: Values,
        policy: np.ndarray,
        masses: tuple[float, float],
        discount: float,
        enough: Callable[[float], float],
    ) -> None:
        """Bring `values` from any start to a lower bound on the policy's values, discount < 1.

        masses : largest and smallest probability of going on under the policy. enough : the
        largest error that suffices, asked at every check.
        """
        n_sweeps, greedy = FIRST_SWEEPS, policy.copy()
        while True:
            rise, fall, _ = self.backup(values, policy, greedy, discount)
            lower, upper = offsets(rise, fall, *masses, discount)
            values.shift(lower)
            limit = max(enough(upper - lower), self._accuracy(values, discount, 0.0))
            if upper - lower <= limit:
                return
            values.shift((upper - lower) / 2)
            self.relax(values, policy, greedy, discount, n_sweeps)
            self.smooth(values, policy, discount, n_sweeps)
            n_sweeps = min(2 * n_sweeps, self._most_sweeps)

    def horizon(self, policy: np.ndarray, mask: np.ndarray, n_steps: int) -> np.ndarray | None:
        """The undiscounted values of a policy over `n_steps` steps; None if that is too much work.

        mask : states that the policy does not leave.
        """
        values, greedy = Values(self.environment.n_states, mask), policy.copy()
        for step in range(n_steps):
            rise, fall, _ = self.backup(values, policy, greedy, 1.0)
            # Changes never grow from one backup to the next.
            if max(rise, fall) * (n_steps - step - 1) <= 1e-15 * values.size:
                break
            if step > self._budget():
                return None
        return values.v

    def undiscounted(self, policy: np.ndarray, mask: np.ndarray) -> np.ndarray | None:
        """The undiscounted values of a policy on a mask it does not leave; None if not finite.

        Finite where every episode ends, or only goes on without reward. With W >= 0 and
        max(1 + PW - W) = d < 1 the expected length is at most W / (1 - d), which makes
        a residual a bound on the error.
        """
        settled, found = self.settle(policy, mask)
        if found[REWARDED] > 0:
            return None
        # States from which nothing ends earn nothing: worth 0, like an end.
        inside = mask & settled if found[UNSETTLED] > 0 else mask
        steps, budget = Values(self.environment.n_states, inside), self._budget()
        values, greedy = Values(self.environment.n_states, inside), policy.copy()
        n_sweeps = FIRST_SWEEPS
        while (rise := self.backup(steps, policy, greedy, 1.0, 0.0, (0.0, 1.0))[0]) >= 0.5:
            if budget <= 0:
                return None
            self.relax(steps, policy, greedy, 1.0, n_sweeps, (0.0, 1.0))
            budget, n_sweeps = budget - n_sweeps, min(2 * n_sweeps, self._most_sweeps)
        longest = (steps.size + 1.0) / (1.0 - max(rise, 0.0))
        accuracy, n_sweeps = max(1e-12, 64 * np.finfo(float).eps * longest), FIRST_SWEEPS
        while max(self.backup(values, policy, greedy, 1.0)[:2]) * longest > accuracy * values.size:
            if budget <= 0:
                return None
            self.relax(values, policy, greedy, 1.0, n_sweeps)
            budget, n_sweeps = budget - n_sweeps, min(2 * n_sweeps, self._most_sweeps)
        return values.v

    def settle(
        self, policy: np.ndarray, mask: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return where a policy can end the episode (uint8 (S,)), and what the kernel found."""
        settled, found = np.zeros(self.environment.n_states, np.uint8), np.zeros(2)
        if self.transport.rank == 0:
            self.call("settle", settled, policy, mask, self.environment.params, found)
        self._tell(settled, found)
        return settled, found

    def share(self, *arrays: np.ndarray) -> None:
        """Give every planner all rows of arrays (S, ...), of which each wrote its own, in place."""
        if not self.alone:
            for array in arrays:
                self.transport.allgather_rows(array, self.rows)

    def _sweep(
        self,
        values: Values,
        policy: np.ndarray,
        greedy: np.ndarray,
        order: int,
        n_sweeps: int,
        rates: np.ndarray,
    ) -> np.ndarray:
        found = np.zeros(3)
        at_once = n_sweeps if self.alone else 1
        for begin in range(0, n_sweeps, at_once):
            control = np.array([begin, begin + at_once, order], np.int64)
            self.call(
                "sweep", values.v, values.other, policy, greedy, values.mask, self._cuts, control,
                rates, self.environment.params, found,
            )  # fmt: skip
            if at_once % 2:
                values.v, values.other = values.other, values.v
            if not self.alone:
                self.transport.allgather_rows(values.v, self.rows)
        return found

    def _tell(self, *arrays: np.ndarray) -> None:
        if not self.alone:
            for array in arrays:
                self.transport.broadcast_array(array)

    def _accuracy(self, values: Values, discount: float, tolerance: float) -> float:
        """The largest error to accept; rounding alone leaves some units in the last place."""
        rounding = 64 * np.finfo(float).eps * values.size / (1.0 - discount * min(self.most, 1.0))
        return max(tolerance * values.range, rounding)

    def _budget(self) -> float:
        return max(1e3, WORK_LIMIT / self.environment.n_transitions * self.environment.n_actions)
