"""Exact values by Bellman sweeps, in parallel, with the same bits on any number of ranks.

The states are cut into blocks by the environment alone; a sweep is Gauss-Seidel within a block and
Jacobi between blocks, so it does not matter which rank sweeps which block. A rank keeps its own
rows and, behind them, its halo: the states of others that its own lead to, whose values it fetches
after every sweep. Small environments are one block: rank 0 then plans alone, and the others wait
for what it tells them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from distq_mpi.bounds import PATIENCE, Orders, offsets
from distq_mpi.compact import MOST_TRANSITIONS, Compact, compact_bytes
from distq_mpi.kernels.sweeps import (
    BEGIN,
    BOTTOM,
    CHANGED,
    END,
    FALL,
    FIRST_START,
    GAUSS_SEIDEL,
    JACOBI,
    LAST_START,
    LEAST_MASS,
    MOST_CHANCE,
    MOST_MASS,
    N_KEPT,
    N_MET,
    N_OUT,
    N_STACK,
    N_STARTS,
    READ,
    REWARDED,
    RISE,
    SETTLED,
    TOP,
    UNSETTLED,
)
from distq_mpi.krylov import KRYLOV_BYTES, Krylov
from distq_mpi.partition import Partition
from distq_mpi.values import Values

if TYPE_CHECKING:
    from distq_mpi.environments.base import Environment
    from distq_mpi.transport import Neighbours, Transport

BLOCK_TRANSITIONS = 500_000
"""Transitions that are worth a message per sweep: 1 ms of work, of one action's 0.2 ms."""
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
SMOOTHS = 4
"""Sweeps where one kind takes the place of two, which may end before."""
FEW = 0.01
"""Share of rows whose action may change without sweeps being cut short: far from all rewards some
do so for long."""
EVEN = 0.1
"""What may be left of the unevenness of TV - V when sweeps over a new policy's pairs end."""
NEAR_ONE = (1 - 1e-5, 1 - 1e-6, 1 - 1e-7)
OPTIMAL = 1e-9
"""Residual of an undiscounted policy, as a share of the largest value, that counts as none."""
DENSE = 0.25
"""Share of others' states from which on all of them are fetched: to find them is then no search."""
ROW_BYTES = 45
"""Of a state that is planned: its values, twice, V*, three policies, a stack and a mask."""
MOST_ITERATIONS, ITERATION_SWEEPS = 300, 5
"""Iterations of `Krylov` at a time, and how many sweeps one takes as long as."""
REWARDS, STEPS = (1.0, 0.0), (0.0, 1.0)
"""Weight of the environment's reward, and what every step earns besides."""
PART = 65_536
"""Numbers taken at a time where all rows or start states are gone over, and states of others that
are met before their owners are told."""


def logical_blocks(n_states: int, n_transitions: int) -> Partition:
    """Return the blocks that sweeps see, cut by the environment alone."""
    n_blocks = min(max(1, n_transitions // BLOCK_TRANSITIONS), MAX_BLOCKS, n_states)
    return Partition.balanced(n_states, n_blocks)


def planner_rows(n_states: int, n_transitions: int, n_ranks: int) -> Partition:
    """Return the rows that each rank plans: whole blocks, near the rows of an even cut, or none."""
    blocks = logical_blocks(n_states, n_transitions).starts
    return Partition(blocks[-(-np.arange(n_ranks + 1) * (blocks.size - 1) // n_ranks)])


def planner_bytes(n_states: int, n_actions: int, n_transitions: int, n_ranks: int) -> int:
    """Bytes a rank needs to plan, but for the states of others that its own lead to. Local."""
    rows = planner_rows(n_states, n_transitions, n_ranks)
    alone, most = rows.block(0) == (0, n_states), int(rows.counts.max())
    needed = (ROW_BYTES + KRYLOV_BYTES) * most + (0 if alone else -(-n_states // 8))
    if n_transitions <= MOST_TRANSITIONS:
        needed += compact_bytes(most, n_actions, n_transitions * most / max(1, n_states))
    return needed


class Planner:
    """Reachable states, optimal and policy values of one environment.

    Constructing it and every public method are COLLECTIVE over the `planners` (all ranks, or rank
    0 alone where `alone`; the others then have no rows and nothing to call). A method's policy is
    int32 (n_own,), None for every action; what it returns of rows is scratch that the next method
    may overwrite, but for policies.

    Attributes: `rows`, who plans what; `first`, `last`, this rank's rows, n_own in all; `halo`
    int64 (n_halo,), ascending, the states of others that reachable own ones lead to, or, where
    these are many, all of others; `mask` uint8 (n_own,), the states that can be met under any
    policy; `n_reachable` of them on all ranks; `most`, `least`, bounds on the probability of going
    on; `most_sweeps`, between two checks; `every`, the policy of all actions.
    """

    every: np.ndarray | None = None

    def __init__(
        self, environment: Environment, kernels: dict[str, Any], transport: Transport
    ) -> None:
        self.environment, self.transport = environment, transport
        self._kernels = kernels
        n_states, n_transitions = environment.n_states, environment.n_transitions
        self.count_ranks()
        self.alone = self.rows.block(0) == (0, n_states)
        self.first, self.last = self.rows.block(transport.rank)
        starts = logical_blocks(n_states, n_transitions).starts
        mine = (starts >= self.first) & (starts <= self.last) & (self.first < self.last)
        self._cuts = starts[mine] - self.first
        self._first_block, self._n_blocks = int(np.argmax(mine)), starts.size - 1
        per_policy = max(1, n_transitions // environment.n_actions)
        self.most_sweeps = max(MOST_SWEEPS, CHECK_WORK // per_policy // 2 * 2)
        self._starts, self._chance = (0, 0), 0.0
        self.halo = np.zeros(0, np.int64)
        self.n_reachable = 0
        self.most = self.least = 0.0
        n_own = self.last - self.first
        self._neighbours: Neighbours | None = None
        self._compact: Compact | None = None
        self._krylov: Krylov | None = None
        self.where = (self.first, n_own, 63, self.halo, np.zeros(2, np.int32))
        self.mask = np.zeros(n_own, np.uint8)
        if not self.alone or transport.rank == 0:
            self._discover()
        # Not a method of this object: large arrays would wait for the collector of cycles.
        self._most_of = _own if self.alone else transport.max_float
        self._values = Values(n_own, self.halo.size, self._most_of)

    def count_ranks(self) -> None:
        """Take as many ranks as there are for those that plan; where one plans alone, others may
        be lost. Local."""
        n_states, n_transitions = self.environment.n_states, self.environment.n_transitions
        self.rows = planner_rows(n_states, n_transitions, self.transport.size)

    def _discover(self) -> None:
        """Find reachable states, bounds on the mass, the halo and own start states."""
        seen, control, found = self._reach(self.mask, None, np.zeros(self.mask.size, np.int64))
        self.halo, others = _bits(seen), self.environment.n_states - self.mask.size
        dense = self.halo.size > DENSE * others
        if dense:
            self.halo = np.arange(others)
            self.halo[self.first :] += self.mask.size
        self._chance = float(found[MOST_CHANCE])
        self._starts = int(control[FIRST_START]), int(control[LAST_START])
        self.most, self.least = float(found[MOST_MASS]), -float(found[LEAST_MASS])
        n_met = control[N_MET : N_MET + 1].copy()
        if not self.alone:
            self.transport.sum_int(n_met)
            self._neighbours = self.transport.neighbours(self.rows, self.halo)
        self.n_reachable = int(n_met[0])
        buckets = (63, self.halo[:0], np.zeros(0, np.int32))
        if not dense:
            buckets = _directory(self.halo, self.environment.n_states)
        self.where = (self.first, self.mask.size, *buckets)
        if self.environment.n_transitions <= MOST_TRANSITIONS:
            self._compact = Compact(self, self._cuts, int(control[N_KEPT]))

    def call(self, name: str, *arguments: Any) -> None:
        """Call one of the kernels. Local."""
        self._kernels["plan_" + name](*arguments)

    def scratch(self) -> Values:
        """Values of 0 that the next method may overwrite. Local."""
        return self._values.begin(self.mask)

    def fetch(self, array: np.ndarray) -> None:
        """Fill in the halo of an array of own rows and halo, float64 or uint8."""
        if self._neighbours is not None:
            self._neighbours.fetch(array)

    def reach(self, policy: np.ndarray | None) -> np.ndarray:
        """Return the mask of the states met under a policy."""
        mask = np.zeros_like(self.mask)
        self._reach(mask, policy, self._values.other[: mask.size].view(np.int64))
        return mask

    def _reach(
        self, mask: np.ndarray, policy: np.ndarray | None, stack: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Raise a mask; return a bit per state of others met, and what the kernel was left with.

        Every planner goes as far as it can in its own rows and tells the owners what it met of
        theirs, until nobody has anything to tell.
        """
        n_starts = self.environment.n_starts
        seen = np.zeros(1 if self.alone else -(-self.environment.n_states // 8), np.uint8)
        inbox, outbox = np.zeros(0, np.int64), np.zeros(1 if self.alone else PART, np.int64)
        control = np.array([n_starts, policy is None, 0, 0, 0, n_starts, 0, 0], np.int64)
        found, none = np.array([0.0, -1.0, 0.0]), np.zeros(0, np.int32)
        while True:
            self.call(
                "reach", mask, stack, seen, inbox, outbox, none if policy is None else policy,
                self.where, control, self.environment.params, found,
            )  # fmt: skip
            control[N_STARTS] = 0
            left = np.array([control[N_STACK] + control[N_OUT]], np.float64)
            self.most_of(left)
            if left[0] == 0.0:
                break
            inbox = self._told(np.sort(outbox[: control[N_OUT]]))
        self.most_of(found)
        return seen, control, found

    def _told(self, states: np.ndarray) -> np.ndarray:
        """Tell states (int64, ascending) to their owners; return what this rank is told."""
        places = np.searchsorted(states, self.rows.starts)
        told = self.transport.redistribute(
            states.view(np.uint8).reshape(-1, 8), places[:-1], np.diff(places)
        )
        return told.reshape(-1).view(np.int64)

    def expectation(self, v: np.ndarray) -> float:
        """The mean of v, of own rows or more, over the start distribution."""
        own = v[: self.mask.size]
        bound = np.array([max(own.max(initial=0.0), -own.min(initial=0.0))])
        self.most_of(bound)
        return self.total(self._expected(v), self._chance * bound[0], self.environment.n_starts)

    def _expected(self, v: np.ndarray) -> Iterator[np.ndarray]:
        begin, end = self._starts
        terms = np.zeros(min(PART, max(0, end - begin)))
        for k in range(begin, end, PART):
            control = np.array([k, min(k + PART, end)], np.int64)
            self.call("expected", v, self.where, control, self.environment.params, terms)
            yield terms[: control[1] - k]

    def total(self, parts: Iterable[np.ndarray], bound: float, n: int) -> float:
        """The sum of all planners' numbers, rounded once: it does not matter who has which.

        parts : float64, at most n numbers over all planners, none of them larger than `bound`.
        """
        if not 0.0 < bound < math.inf:
            return float(bound)
        # 62 bits hold the sum of the leading digits, another 62 that of what these leave.
        _, exponent = math.frexp(bound)
        room = n.bit_length()
        coarse, fine = min(62 - exponent - room, 900), 63 - room
        sums = np.zeros(2, np.int64)
        for part in parts:
            leading = np.rint(part * 2.0**coarse)
            rest = part - leading * 2.0**-coarse
            sums[0] += leading.astype(np.int64).sum()
            sums[1] += np.rint(rest * 2.0 ** (coarse + fine)).astype(np.int64).sum()
        if not self.alone:
            self.transport.sum_int(sums)
        return math.ldexp(float((int(sums[0]) << fine) + int(sums[1])), -coarse - fine)

    def most_of(self, found: np.ndarray) -> None:
        """Make `found` the elementwise largest of all planners, in place."""
        if not self.alone:
            self.transport.max_float(found)

    def backup(
        self,
        values: Values,
        policy: np.ndarray | None,
        greedy: np.ndarray | None,
        discount: float,
        slack: float = 0.0,
        reward: tuple[float, float] = REWARDS,
    ) -> tuple[float, float, float]:
        """Replace V by TV; return max(TV - V), max(V - TV) and the largest share of a block's rows
        whose `greedy` changed.

        greedy : int32 (n_own,), written where given: per state the lowest action within `slack`
        of the best.
        reward : REWARDS or STEPS.
        """
        rates = np.array([discount, slack, *reward])
        found = self._sweep(values, policy, greedy, JACOBI, 1, rates)
        self.most_of(found)
        values.top, values.bottom = float(found[TOP]), -float(found[BOTTOM])
        return float(found[RISE]), float(found[FALL]), float(found[CHANGED])

    def relax(
        self,
        values: Values,
        policy: np.ndarray | Compact | None,
        greedy: np.ndarray | None,
        discount: float,
        n_sweeps: int,
        reward: tuple[float, float] = REWARDS,
    ) -> None:
        """Bring V nearer to the policy's values by an even number of Gauss-Seidel sweeps."""
        rates = np.array([discount, 0.0, *reward])
        self._sweep(values, policy, greedy, GAUSS_SEIDEL, n_sweeps, rates)

    def follow(self, policy: np.ndarray) -> np.ndarray | Compact:
        """Return a policy's outcomes, until the next call; the policy itself where the environment
        has too many to copy. Local."""
        return policy if self._compact is None else self._compact.follow(policy, self)

    def close(
        self,
        values: Values,
        path: np.ndarray | Compact,
        discount: float,
        n_sweeps: int,
        orders: Orders,
        spans: tuple[float, float],
    ) -> None:
        """Bring V nearer to a policy's values.

        n_sweeps : of each kind, or that many times `SMOOTHS` of one. spans : largest minus smallest
        TV - V before, and what suffices to end earlier.
        """
        rates = np.array([discount, 0.0, 1.0, 0.0])
        if not orders.smooths_only:
            self.relax(values, path, None, discount, n_sweeps)
        # The last state of a Gauss-Seidel sweep has a TV - V of 0: Jacobi sweeps even them out.
        most, span, n = n_sweeps * (SMOOTHS if orders.smooths_only else 1), math.inf, 0
        while n < most and span > spans[1]:
            found = self._sweep(values, path, None, JACOBI, FIRST_SWEEPS, rates)
            self.most_of(found)
            span, n = found[RISE] + found[FALL], n + FIRST_SWEEPS
        orders.swept(n if orders.smooths_only else n + n_sweeps, spans[0], span)

    def solve(
        self,
        values: Values,
        path: np.ndarray | Compact,
        discount: float,
        share: float,
        most: int,
        reward: tuple[float, float] = REWARDS,
    ) -> tuple[int, bool]:
        """Bring V nearer to a policy's values by iterations of `Krylov`, until sweeps change
        `share` of what they did, at most `most`; return how many, and whether it was worth it."""
        if self._krylov is None:
            self._krylov = Krylov(
                self._cuts, (self._first_block, self._n_blocks), values.v.size, self._kernels,
                self._most_of, _own if self._neighbours is None else self._neighbours.fetch,
            )  # fmt: skip
        swept = self._krylov.swept

        def sweep(given: tuple[float, float] = reward) -> None:
            self.relax(swept, path, None, discount, 2, given)

        linear: Callable[[], None] = functools.partial(sweep, (0.0, 0.0))
        if isinstance(path, Compact):  # bound once: on a small model a call takes as long as sweeps
            control = np.array([0, 0, GAUSS_SEIDEL, 0, 0, 0], np.int64)
            call = self._kernels["plan_sweep_followed"].bind(
                swept.both, values.mask, self._cuts, control,
                np.array([discount, 0.0, 0.0, 0.0]), *path.policy, np.zeros(5),
            )  # fmt: skip
            linear = functools.partial(self._repeat, swept, control, 2, call)
        return self._krylov.solve(values, sweep, linear, share, most)

    def optimise(self, discount: float) -> Values:
        """Return V* for a discount below 1, within `SOLVED` or what float64 can give.

        Modified policy iteration (Puterman and Shin 1978), stopped by the span of TV - V. Each
        check moves V to its lower bound, after which V <= TV: from there on every kind of sweep
        can only raise V, so they converge whatever the policy.
        """
        values, policy = self.scratch(), np.zeros(self.mask.size, np.int32)
        n_sweeps, orders, path = FIRST_SWEEPS, Orders(), None
        while True:
            rise, fall, changed = self.backup(values, self.every, policy, discount)
            lower, upper = offsets(rise, fall, self.most, self.least, discount)
            accuracy = self._accuracy(values, discount, SOLVED)
            if upper - lower <= accuracy:
                values.shift((lower + upper) / 2)
                return values
            values.shift(lower)
            n_sweeps = min(2 * n_sweeps, self.most_sweeps) if changed <= FEW else FIRST_SWEEPS
            orders.told(upper - lower)
            if changed and not orders.smooths_only:
                self.relax(values, self.every, policy, discount, 2)
            path = self.follow(policy) if changed or path is None else path
            share = accuracy / (upper - lower) / 2
            spans = rise + fall, (rise + fall) * (max(EVEN, share) if changed else share)
            self.close(values, path, discount, n_sweeps, orders, spans)

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
            values = self._values.begin(self.mask, v)
            rise, fall, _ = self.backup(values, self.every, None, 1.0)
            if max(rise, fall) <= OPTIMAL * values.size:
                # What float64 hid from the policy, value iteration from below finds.
                budget = self._budget() / self.environment.n_actions
                while rise > 1e-14 * values.size and budget > 0:
                    self.relax(values, self.every, None, 1.0, FIRST_SWEEPS)
                    rise, _, _ = self.backup(values, self.every, None, 1.0)
                    budget -= FIRST_SWEEPS
                return values, policy
        return None

    def greedy(self, v: np.ndarray, discount: float) -> np.ndarray:
        """Return per own row the lowest action that is best for v but for rounding; -1 outside.

        v : with halo.
        """
        values, policy = self._values.begin(self.mask, v), np.full(self.mask.size, -1, np.int32)
        span, size = values.extent()
        slack = max(TIES * span, 16 * np.finfo(float).eps * size)
        self.backup(values, self.every, policy, discount, slack)
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
        n_sweeps, orders, path = FIRST_SWEEPS, Orders(), self.follow(policy)
        while True:
            rise, fall, _ = self.backup(values, policy, None, discount)
            lower, upper = offsets(rise, fall, *masses, discount)
            values.shift(lower)
            limit = max(enough(upper - lower), self._accuracy(values, discount, 0.0))
            if upper - lower <= limit:
                return
            values.shift((upper - lower) / 2)
            orders.told(upper - lower)
            share = limit / (upper - lower) / 2
            if orders.too_slow(share):
                orders.solved(self.solve(values, path, discount, share, MOST_ITERATIONS)[1])
                continue
            spans = rise + fall, (rise + fall) * share
            self.close(values, path, discount, n_sweeps, orders, spans)
            n_sweeps = min(2 * n_sweeps, self.most_sweeps)

    def horizon(
        self, policy: np.ndarray | None, mask: np.ndarray, n_steps: int
    ) -> np.ndarray | None:
        """The undiscounted values of a policy over `n_steps` steps; None if that is too much work.

        mask : states that the policy does not leave.
        """
        values = self._values.begin(mask)
        for step in range(n_steps):
            rise, fall, _ = self.backup(values, policy, None, 1.0)
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
        inside, endless, rewarded = self.settle(policy, mask)
        if rewarded:
            return None
        # States from which nothing ends earn nothing: worth 0, like an end.
        inside = mask & inside if endless else mask
        values, budget, path = self._values.begin(inside), self._budget(), self.follow(policy)
        approach = _Approach(self, path)
        while (rise := self.backup(values, policy, None, 1.0, 0.0, STEPS)[0]) >= 0.5:
            if approach.spent > budget:
                return None
            approach.go_on(values, 0.25 / rise, STEPS)
        longest = (values.size + 1.0) / (1.0 - max(rise, 0.0))
        accuracy = max(1e-12, 64 * np.finfo(float).eps * longest)
        values.begin(inside)
        approach.begin()
        while True:
            rise, fall, _ = self.backup(values, policy, None, 1.0)
            error, enough = max(rise, fall) * longest, accuracy * values.size
            if error <= enough:
                return values.v
            if approach.spent > budget:
                return None
            approach.go_on(values, enough / error / 2, REWARDS)

    def settle(self, policy: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, bool, bool]:
        """Return where a policy can end the episode, uint8 (n_own,), and whether there are masked
        states where it cannot, and rewards in these."""
        settled, found = np.zeros(mask.size + self.halo.size, np.uint8), np.zeros(3)
        while True:
            self.call(
                "settle", settled, policy, mask, self.where, self.environment.params, found
            )
            self.most_of(found)
            if self.alone or found[SETTLED] == 0:
                return settled[: mask.size], found[UNSETTLED] > 0, found[REWARDED] > 0
            self.fetch(settled)

    def _sweep(
        self,
        values: Values,
        policy: np.ndarray | Compact | None,
        greedy: np.ndarray | None,
        order: int,
        n_sweeps: int,
        rates: np.ndarray,
    ) -> np.ndarray:
        found, none = np.zeros(5), np.zeros(0, np.int32)
        how = (order, policy is None, greedy is not None)
        control = np.array([0, 0, *how, 0], np.int64)
        policies = none if policy is None else policy, none if greedy is None else greedy
        compact, over = self._compact, (values.mask, self._cuts, control, rates)

        def call() -> None:
            if isinstance(policy, Compact):
                self.call("sweep_followed", values.both, *over, *policy.policy, found)
            elif compact is not None:
                self.call("sweep_compact", values.both, *policies, *over, *compact.model, found)
            else:
                self.call(
                    "sweep", values.v, values.other, *policies, values.mask, self._cuts,
                    self.where, control, rates, self.environment.params, found,
                )  # fmt: skip

        self._repeat(values, control, n_sweeps, call)
        return found

    def _repeat(
        self, values: Values, control: np.ndarray, n_sweeps: int, call: Callable[[], None]
    ) -> None:
        """Sweep so often; `call` makes those that `control` says, at once where nobody else does.
        """
        at_once = n_sweeps if self.alone else 1
        for begin in range(0, n_sweeps, at_once):
            control[BEGIN], control[END] = begin, begin + at_once
            control[READ] = values.reads_from
            call()
            if at_once % 2:
                values.swap()
            self.fetch(values.v)

    def _accuracy(self, values: Values, discount: float, tolerance: float) -> float:
        """The largest error to accept; rounding alone leaves some units in the last place."""
        size = max(abs(values.top), abs(values.bottom))
        rounding = 64 * np.finfo(float).eps * size / (1.0 - discount * min(self.most, 1.0))
        return max(tolerance * (values.top - values.bottom), rounding)

    def _budget(self) -> float:
        return max(1e3, WORK_LIMIT / self.environment.n_transitions * self.environment.n_actions)


class _Approach:
    """Sweeps and iterations that bring V nearer to a policy's undiscounted values.

    Attributes: `spent`, in sweeps, or as many as would have taken as long.
    """

    def __init__(self, planner: Planner, path: np.ndarray | Compact) -> None:
        self._planner, self._path = planner, path
        self.spent, self._n_sweeps, self._solves = 0.0, 0, True

    def begin(self) -> None:
        """Other values are swept from now on."""
        self._n_sweeps, self._solves = 0, True

    def go_on(self, values: Values, share: float, reward: tuple[float, float]) -> None:
        """Sweep, a few times at first; or iterate until sweeps change `share` of what they did, as
        long as that is worth it. COLLECTIVE."""
        planner, path = self._planner, self._path
        if self._solves and self._n_sweeps >= PATIENCE:
            n, self._solves = planner.solve(values, path, 1.0, share, MOST_ITERATIONS, reward)
            self.spent += ITERATION_SWEEPS * (n + 1)
            return
        n = max(FIRST_SWEEPS, min(self._n_sweeps, planner.most_sweeps)) // 2 * 2
        planner.relax(values, path, None, 1.0, n, reward)
        self.spent, self._n_sweeps = self.spent + n, self._n_sweeps + n


def _own(found: np.ndarray) -> None:
    """What others have to say, where one planner is alone."""


def _bits(bits: np.ndarray) -> np.ndarray:
    """Numbers of the bits that are set, int64, ascending; bits : uint8, lowest bit first."""
    found = [
        np.flatnonzero(np.unpackbits(bits[k : k + PART], bitorder="little")) + 8 * k
        for k in range(0, bits.size, PART)
    ]
    return np.concatenate(found)


def _directory(halo: np.ndarray, n_states: int) -> tuple[int, np.ndarray, np.ndarray]:
    """Return (shift, halo, directory) as `kernels.sweeps.place` takes them.

    With about as many buckets as halo states, a state is found in one or two steps where they are
    scattered; where they lie close together, by halving.
    """
    most = max(1, halo.size - 1)
    shift = max(0, (n_states - 1).bit_length() - most.bit_length() + 1)
    n_buckets = ((n_states - 1) >> shift) + 1
    borders = np.arange(n_buckets + 1) << shift
    return shift, halo, np.searchsorted(halo, borders).astype(np.int32)
