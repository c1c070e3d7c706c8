"""Exact values by Bellman sweeps, in parallel, with the same bits on any number of ranks.

The states are cut into blocks by the environment alone; a sweep is Gauss-Seidel within a block and
Jacobi between blocks, so it does not matter which rank sweeps which block. A rank keeps its own
rows and, behind them, its halo: the states of others that its own lead to, whose values it fetches
after every sweep. Small environments are one block: rank 0 then plans alone, and the others wait
for what it tells them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from distq_mpi.budget import Budget
from distq_mpi.compact import MOST_TRANSITIONS, Compact, Path, compact_bytes
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
    MOST_REWARD,
    N_KEPT,
    N_MET,
    N_OUT,
    N_STACK,
    N_STARTS,
    READ,
    RISE,
    TOP,
)
from distq_mpi.krylov import KRYLOV_BYTES
from distq_mpi.partition import Partition
from distq_mpi.values import Values

if TYPE_CHECKING:
    from distq_mpi.environments.base import Environment
    from distq_mpi.transport import Neighbours, Transport

BLOCK_TRANSITIONS = 500_000
"""Transitions that are worth a message per sweep: 1 ms of work, of one action's 0.2 ms."""
LEAST_BLOCKS, MAX_BLOCKS = 4, 64
"""Models of fewer blocks are one: rank 0 then plans alone, and may factorise."""
FIRST_SWEEPS, MOST_SWEEPS = 4, 64
"""Sweeps of one kind between two checks of the bounds; more where they are short."""
CHECK_WORK = 100_000
"""Backed-up transitions that are worth a check: more than it costs by itself."""
TIES = 1e-12
"""Actions this close to the best, as a share of the value range, count as equal."""
DENSE = 0.25
"""Share of others' states from which on all of them are fetched: to find them is then no search."""
ROW_BYTES = 45
"""Of a state that is planned: its values, twice, V*, three policies, a stack and a mask."""
REWARDS, STEPS = (1.0, 0.0), (0.0, 1.0)
"""Weight of the environment's reward, and what every step earns besides."""
PART = 65_536
"""Numbers taken at a time where all rows or start states are gone over, and states of others that
are met before their owners are told."""


def logical_blocks(n_states: int, n_transitions: int) -> Partition:
    """Return the blocks that sweeps see, cut by the environment alone."""
    n_blocks = n_transitions // BLOCK_TRANSITIONS
    n_blocks = 1 if n_blocks < LEAST_BLOCKS else min(n_blocks, MAX_BLOCKS, n_states)
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
    on; `most_reward`, the largest expected |reward| of a pair; `most_sweeps`, between two checks.
    """

    def __init__(
        self, environment: Environment, kernels: dict[str, Any], transport: Transport,
        stop: Callable[[], bool] | None = None,
    ) -> None:  # fmt: skip
        self.environment, self.transport, self._stop = environment, transport, stop
        self.kernels = kernels
        n_states, n_transitions = environment.n_states, environment.n_transitions
        self.count_ranks()
        self.alone = self.rows.block(0) == (0, n_states)
        self.first, self.last = self.rows.block(transport.rank)
        starts = logical_blocks(n_states, n_transitions).starts
        mine = (starts >= self.first) & (starts <= self.last) & (self.first < self.last)
        self.cuts = starts[mine] - self.first
        self.first_block, self.n_blocks = int(np.argmax(mine)), starts.size - 1
        per_policy = max(1, n_transitions // environment.n_actions)
        self.most_sweeps = max(MOST_SWEEPS, CHECK_WORK // per_policy // 2 * 2)
        self._starts, self._chance = (0, 0), 0.0
        self.halo = np.zeros(0, np.int64)
        self.n_reachable = 0
        self.most = self.least = self.most_reward = 0.0
        n_own = self.last - self.first
        self.neighbours: Neighbours | None = None
        self.compact: Compact | None = None
        self.where = (self.first, n_own, 63, self.halo, np.zeros(2, np.int32))
        self.mask = np.zeros(n_own, np.uint8)
        if not self.alone or transport.rank == 0:
            self._discover()
        # Not a method of this object: large arrays would wait for the collector of cycles.
        self.all_most = _own if self.alone else transport.max_float
        self.values = Values(n_own, self.halo.size, self.all_most)

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
        self.most_reward = float(found[MOST_REWARD])
        n_met = control[N_MET : N_MET + 1].copy()
        if not self.alone:
            self.transport.sum_int(n_met)
            self.neighbours = self.transport.neighbours(self.rows, self.halo)
        self.n_reachable = int(n_met[0])
        buckets = (63, self.halo[:0], np.zeros(0, np.int32))
        if not dense:
            buckets = _directory(self.halo, self.environment.n_states)
        self.where = (self.first, self.mask.size, *buckets)
        if self.environment.n_transitions <= MOST_TRANSITIONS:
            self.compact = Compact(self, self.cuts, int(control[N_KEPT]))

    def call(self, name: str, *arguments: Any) -> None:
        """Call one of the kernels. Local."""
        self.kernels["plan_" + name](*arguments)

    def scratch(self) -> Values:
        """Values of 0 that the next method may overwrite. Local."""
        return self.values.begin(self.mask)

    @property
    def model_work(self) -> float:
        """Transitions in one backup of all actions. Local."""
        return float(self.environment.n_transitions)

    @property
    def policy_work(self) -> float:
        """Transitions in one backup of a policy. Local."""
        return max(1.0, self.environment.n_transitions / self.environment.n_actions)

    def rounding(self, values: Values, most: float, discount: float) -> float:
        """What rounding of a backup in float64 can leave of an error, after the last backup.

        most : largest probability of going on. Local.
        """
        size = max(abs(values.top), abs(values.bottom))
        return float(64 * np.finfo(float).eps * size / (1.0 - discount * min(most, 1.0)))

    @property
    def fetch_rows(self) -> Callable[[np.ndarray], None]:
        """`fetch`, as a function that does not keep this object alive."""
        return _own if self.neighbours is None else self.neighbours.fetch

    def budget(self, what: str) -> Budget:
        """The work that one solve may take. what : the quantity solved for. Local."""
        return Budget(self.environment.n_transitions, what, self._stop, self._any_of)

    def _any_of(self, condition: bool) -> bool:
        found = np.array([float(condition)])
        self.most_of(found)
        return bool(found[0])

    def fetch(self, array: np.ndarray) -> None:
        """Fill in the halo of an array of own rows and halo, float64 or uint8."""
        if self.neighbours is not None:
            self.neighbours.fetch(array)

    def reach(self, policy: np.ndarray | None) -> tuple[np.ndarray, float]:
        """Return the mask of the states met under a policy, and the largest expected |reward| of a
        step in them."""
        mask = np.zeros_like(self.mask)
        stack = self.values.other[: mask.size].view(np.int64)
        _, _, found = self._reach(mask, policy, stack)
        return mask, float(found[MOST_REWARD])

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
        found, none = np.array([0.0, -1.0, 0.0, 0.0]), np.zeros(0, np.int32)
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
        bound = np.array([np.nan_to_num(np.abs(own).max(initial=0.0), nan=np.inf)])
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
        NaN where the bound is not finite, or a number is beyond it.
        """
        if not 0.0 < bound < math.inf:
            return 0.0 if bound == 0.0 else math.nan
        # 62 bits hold the sum of the leading digits, another 62 that of what these leave.
        _, exponent = math.frexp(bound)
        room = n.bit_length()
        coarse, fine = min(62 - exponent - room, 900), 63 - room
        sums = np.zeros(3, np.int64)
        for part in parts:
            fits = np.abs(part) <= bound
            sums[2] += part.size - np.count_nonzero(fits)
            part = np.where(fits, part, 0.0)
            leading = np.rint(part * 2.0**coarse)
            rest = part - leading * 2.0**-coarse
            sums[0] += leading.astype(np.int64).sum()
            sums[1] += np.rint(rest * 2.0 ** (coarse + fine)).astype(np.int64).sum()
        if not self.alone:
            self.transport.sum_int(sums)
        if sums[2]:
            return math.nan
        return math.ldexp(float((int(sums[0]) << fine) + int(sums[1])), -coarse - fine)

    def most_of(self, found: np.ndarray) -> None:
        """Make `found` the elementwise largest of all planners, in place."""
        if not self.alone:
            self.transport.max_float(found)

    def backup(
        self,
        values: Values,
        policy: np.ndarray | Path | None,
        greedy: np.ndarray | None,
        discount: float,
        slack: float = 0.0,
        reward: tuple[float, float] = REWARDS,
    ) -> tuple[float, float, float]:
        """Replace V by TV; return max(TV - V), max(V - TV) and the largest share of a block's rows
        whose `greedy` changed. A `Path` leaves `top` and `bottom` at 0.

        greedy : int32 (n_own,), written where given: per state the lowest action within `slack`
        of the best.
        reward : REWARDS or STEPS.
        """
        rates = np.array([discount, slack, *reward])
        found = self.sweep(values, policy, greedy, JACOBI, 1, rates)
        # A NaN has no order and would not show in the largest change.
        if not np.isfinite(values.v[: self.mask.size]).all():
            found[RISE] = found[FALL] = math.inf
        self.most_of(found)
        values.top, values.bottom = float(found[TOP]), -float(found[BOTTOM])
        return float(found[RISE]), float(found[FALL]), float(found[CHANGED])

    def relax(
        self,
        values: Values,
        policy: np.ndarray | Path | None,
        greedy: np.ndarray | None,
        discount: float,
        n_sweeps: int,
        reward: tuple[float, float] = REWARDS,
    ) -> None:
        """Bring V nearer to the policy's values by an even number of Gauss-Seidel sweeps."""
        rates = np.array([discount, 0.0, *reward])
        self.sweep(values, policy, greedy, GAUSS_SEIDEL, n_sweeps, rates)

    def follow(self, policy: np.ndarray) -> np.ndarray | Path:
        """Return a policy's transitions, valid until the next call; the policy itself where the
        environment has too many to copy. Local."""
        return policy if self.compact is None else self.compact.follow(policy, self)

    def residue(
        self,
        values: Values,
        low: np.ndarray,
        policy: np.ndarray,
        change: np.ndarray,
        discount: float,
        every: bool,
        reward: tuple[float, float] = REWARDS,
        slack: float = 0.0,
    ) -> tuple[float, float, float]:
        """Write TV - V for V = values.v + low in twice the precision of float64; return the largest
        and the negated smallest change, and the share of rows whose policy changed.

        low : float64, own rows and halo. policy : int32 (n_own,), improved in place where `every`
        action is tried and one is better by more than `slack`. change : float64 (n_own,), written.
        Needs `compact`. COLLECTIVE.
        """
        assert self.compact is not None
        found = np.zeros(3)
        self.call(
            "residue", values.v, low, policy, values.mask, np.array([every], np.int64),
            np.array([discount, slack, *reward]), *self.compact.model, change, found,
        )  # fmt: skip
        self.most_of(found)
        return float(found[RISE]), float(found[FALL]), float(found[CHANGED])

    def steps_to_an_event(self, most: int) -> int | None:
        """Return the steps from the start states to the nearest end or change of reward under any
        policy; None where that is more than `most`, or the model is planned in several blocks.
        Local."""
        if self.n_blocks > 1 or not self.mask.size:
            return None
        control = np.array([self.environment.n_starts, most, 0], np.int64)
        queues = np.zeros((2, self.mask.size), np.int64)
        self.call(
            "nearest", np.zeros_like(self.mask), *queues, self.where, control,
            self.environment.params, np.zeros(1),
        )  # fmt: skip
        return int(control[2]) or None

    def greedy(
        self, v: np.ndarray, discount: float, reward: tuple[float, float] = REWARDS
    ) -> np.ndarray:
        """Return per own row the lowest action that is best for v but for rounding; -1 outside.

        v : with halo.
        """
        values, policy = self.values.begin(self.mask, v), np.full(self.mask.size, -1, np.int32)
        span, size = values.extent()
        slack = max(TIES * span, 16 * np.finfo(float).eps * size)
        self.backup(values, None, policy, discount, slack, reward)
        return policy

    def sweep(
        self,
        values: Values,
        policy: np.ndarray | Path | None,
        greedy: np.ndarray | None,
        order: int,
        n_sweeps: int,
        rates: np.ndarray,
    ) -> np.ndarray:
        """Call the sweeps of a policy, or of all actions where it is None; return what the kernel
        found in the last one, on this rank."""
        found, none = np.zeros(5), np.zeros(0, np.int32)
        how = (order, policy is None, greedy is not None)
        control = np.array([0, 0, *how, 0], np.int64)
        policies = none if policy is None else policy, none if greedy is None else greedy
        compact, over = self.compact, (values.mask, self.cuts, control, rates)

        def call() -> None:
            if isinstance(policy, Path):
                self.call("sweep_followed", values.both, *over, *policy, found)
            elif compact is not None:
                self.call("sweep_compact", values.both, *policies, *over, *compact.model, found)
            else:
                self.call(
                    "sweep", values.v, values.other, *policies, values.mask, self.cuts,
                    self.where, control, rates, self.environment.params, found,
                )  # fmt: skip

        self.repeat(values, control, n_sweeps, call)
        return found

    def repeat(
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


def _own(found: np.ndarray) -> None:
    """The largest of all planners, where one plans alone."""


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
