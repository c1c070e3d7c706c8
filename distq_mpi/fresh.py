"""Certificates by fresh samples, for environments whose law is not known, or is too large to read.

A snapshot is judged by transitions that it was not learned from. For b = TQ - Q of all pairs, known
to within h but for a probability of `delta` in all, |Q - Q*| <= max |b| / (1 - discount), and the
greedy policy loses at most (max b - min b) / (1 - discount).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from distq_mpi.environments.guard import refuse_noted
from distq_mpi.environments.worlds import wander
from distq_mpi.errors import ConfigError, ModelError
from distq_mpi.finite import FiniteFields, positive_part
from distq_mpi.holding import Holding
from distq_mpi.kernels import Kernel
from distq_mpi.kernels.elementary import logarithm
from distq_mpi.kernels.fresh import (
    FALL,
    FLOOR,
    OUTSIDE,
    RISE,
    fresh_kernels,
    note,
)
from distq_mpi.partition import Partition

if TYPE_CHECKING:
    from distq_mpi.environments.base import Environment
    from distq_mpi.transport import Transport

MOST_STATES = 200_000_000
"""States whose largest values every rank holds, float64."""
EPISODES_AT_ONCE, LONGEST = 64, 1000
"""Of environments stepped in Python: episodes between two looks at what is enough, steps in one."""


@dataclass(frozen=True)
class Asked:
    """What a certificate is to say.

    Parameters
    ----------
    samples : of a pair, >= 2. delta : chance that it is wrong, in (0, 1). check : number of this
        look at one run, from 1: all looks together are wrong with at most the chance delta.
    seed : of the samples. steps : most, where the environment is stepped in Python.
    least_reward, most_reward : of any transition; needed where it is stepped, else read.
    """

    samples: int = 2000
    delta: float = 0.05
    check: int = 1
    seed: int = 0
    steps: int = 1_000_000
    least_reward: float | None = None
    most_reward: float | None = None


@dataclass(frozen=True)
class Sampled(FiniteFields):
    """A certificate by fresh samples. In units of reward; over all pairs, or those of reachable
    states where they are known.

    It is wrong with at most the chance `delta`. `q_error_floor` : |Q - Q*| is no less.
    `uncertified_pairs` were tried less than `samples` times: bounds hold where no certified pair
    leads to one of them, and are None where no pair is certified.
    """

    samples: int
    delta: float
    check: int
    seed: int
    steps: int
    least_reward: float
    most_reward: float
    pairs: int
    uncertified_pairs: int
    q_error_bound: float | None
    q_error_floor: float | None
    policy_loss_bound: float | None


def requests(environment: Environment, q_dtype: Any) -> dict[str, Kernel]:
    """Return the kernels that `certify` needs; none where it is stepped in Python. Local."""
    return {} if environment.kind == "stepped" else fresh_kernels(environment, q_dtype)


def certify(
    holding: Holding, environment: Environment, kernels: dict[str, Any], discount: float,
    asked: Asked, inside: np.ndarray | None = None,
) -> Sampled:  # fmt: skip
    """Return the certificate of a table, on every rank; COLLECTIVE.

    inside : uint8 (S,), not 0 for the states that are spoken of, which no transition may leave;
    None: all. Where the environment is stepped in Python it is not read.

    Its numbers are a function of table, environment and `asked`, not of the number of ranks. Every
    rank holds the largest value of every state.

    Raises
    ------
    ConfigError
        If the discount is 1, the table has too many states, or rewards have no known range.
    ModelError
        If a reward is outside the range, or a law was noted to break its promises.
    """
    with holding.transport.same_outcome():
        _refuse(environment, discount, asked)
    rows = Partition.balanced(environment.n_states, holding.transport.size)
    v = np.zeros(environment.n_states)
    for piece in holding.slices(rows):
        q = piece.q.reshape(-1, piece.stride)[:, : environment.n_actions]
        v[piece.start : piece.stop] = q.max(axis=1)
    holding.transport.allgather_rows(v, rows)
    with holding.transport.same_outcome():
        if not np.isfinite(v).all():
            raise ModelError(f"{environment.id}: the table has values that are not finite")
    if environment.kind == "stepped":
        return _by_wandering(holding, environment, v, discount, asked)
    inside = np.ones(environment.n_states, np.uint8) if inside is None else inside
    return _by_drawing(holding, environment, kernels, v, inside, discount, asked, rows)


def _refuse(environment: Environment, discount: float, asked: Asked) -> None:
    if discount >= 1:
        raise ConfigError("a certificate by samples needs learn.discount < 1, not 1")
    if environment.n_states > MOST_STATES:
        raise ConfigError(
            f"{environment.n_states:,} states: a certificate by samples keeps a value of each on "
            f"every rank, and takes at most {MOST_STATES:,}"
        )
    if environment.kind == "stepped" and None in (asked.least_reward, asked.most_reward):
        raise ConfigError(
            f"{environment.id} is stepped in Python: say between what its rewards lie, "
            "--rewards LEAST,MOST"
        )


def _rates(
    v: np.ndarray, discount: float, asked: Asked, least: float, most: float, ends: bool, pairs: int
) -> np.ndarray:
    """What the kernels read. A sample is a reward and a discounted value, or 0 where it ends."""
    high, low = float(v.max()), float(v.min())
    if ends:
        high, low = max(high, 0.0), min(low, 0.0)
    delta = asked.delta / (asked.check * (asked.check + 1))
    extent = most - least + discount * (high - low)
    return np.array([discount, extent, logarithm(pairs / delta), least, most])


def _told(
    transport: Transport, found: np.ndarray, rates: np.ndarray, ends: bool, asked: Asked,
    pairs: int, uncertified: int,
) -> Sampled:  # fmt: skip
    discount, _, _, least, most = rates.tolist()
    with transport.same_outcome():
        if found[OUTSIDE]:
            raise ModelError(
                f"{int(found[OUTSIDE])} rewards are outside [{least:g}, {most:g}]: the range of "
                "rewards is wrong, and with it the certificate"
            )
    error = floor = loss = None
    if uncertified < pairs:
        rise, fall = float(found[RISE]), float(found[FALL])
        error = max(rise, fall) / (1 - discount)
        floor = positive_part(float(found[FLOOR]) / (1 + discount))
        if ends:  # what ends is backed up no further: a bound of one sign says nothing there
            rise, fall = max(rise, 0.0), max(fall, 0.0)
        loss = positive_part((rise + fall) / (1 - discount))
    return Sampled(
        asked.samples, asked.delta, asked.check, asked.seed, asked.steps, least, most, pairs,
        uncertified, error, floor, loss,
    )  # fmt: skip


def _by_drawing(
    holding: Holding, environment: Environment, kernels: dict[str, Any], v: np.ndarray,
    inside: np.ndarray, discount: float, asked: Asked, rows: Partition,
) -> Sampled:  # fmt: skip
    """All pairs inside, `samples` of each, by the rank that has the row."""
    transport, states = holding.transport, np.flatnonzero(inside)
    pairs = len(states) * environment.n_actions
    told = np.array([-np.inf, -np.inf, 0.0])
    kernels["rewards"](environment.params, inside, np.array(rows.block(transport.rank)), told)
    transport.max_float(told)
    least = -told[1] if asked.least_reward is None else asked.least_reward
    most = told[0] if asked.most_reward is None else asked.most_reward
    with transport.same_outcome():
        if least > -told[1] or most < told[0]:
            raise ConfigError(
                f"--rewards: rewards of {environment.id} lie in [{-told[1]:g}, {told[0]:g}], more "
                f"than {least:g},{most:g}; leave it out"
            )
    ends = bool(told[2])
    rates = _rates(v[states], discount, asked, least, most, ends, pairs)
    found = np.array([-np.inf, -np.inf, -np.inf, 0.0])
    control = np.zeros(5, np.uint64)
    for piece in holding.slices(rows):
        control[:] = piece.start, piece.stride, asked.samples, asked.seed, asked.check
        kernels["certify"](piece.q, v, inside, environment.params, control, rates, found)
    transport.max_float(found)
    refuse_noted(environment, transport, asked.seed, 0, range(0))
    return _told(transport, found, rates, ends, asked, pairs, 0)


def _by_wandering(
    holding: Holding, environment: Environment, v: np.ndarray, discount: float, asked: Asked
) -> Sampled:
    """The first `samples` visits of each pair, in episodes that are spread over the ranks.

    What a visit leads to is independent of how many there are: their number is fixed beforehand,
    and pairs that have less are not certified.
    """
    transport, n_actions = holding.transport, environment.n_actions
    pairs = environment.n_states * n_actions
    least, most = asked.least_reward, asked.most_reward
    assert least is not None and most is not None
    rates = _rates(v, discount, asked, least, most, True, pairs)
    found = np.array([-np.inf, -np.inf, -np.inf, 0.0])
    counts, moments = np.zeros(pairs, np.int64), np.zeros((pairs, 3))
    values = np.zeros(pairs)
    for piece in holding.slices(Partition([0, *[environment.n_states] * transport.size])):
        q = piece.q.reshape(-1, piece.stride)[:, :n_actions]
        values[piece.start * n_actions : piece.stop * n_actions] = q.reshape(-1)
    n_steps = 0
    for visits in _visits(holding, environment, v, discount, asked):
        n_steps += len(visits)
        for pair, reward, sample in visits.tolist():
            _count(int(pair), reward, sample, counts, moments, found, asked.samples, (least, most))
        tried = counts > 0
        enough = n_steps >= asked.steps or bool((counts[tried] >= asked.samples).all())
        if transport.broadcast(enough):
            break
    n = asked.samples
    for pair in np.flatnonzero(counts >= n):
        origin, total, squares = moments[pair]
        variance = max(0.0, (squares - total * total / n) / (n - 1))
        note(found, origin + total / n, variance, float(n), values[pair], rates)
    uncertified = int(np.count_nonzero(counts < n))
    found, uncertified = transport.broadcast((found, uncertified))
    return _told(transport, found, rates, True, asked, pairs, uncertified)


def _count(
    pair: int, reward: float, sample: float, counts: np.ndarray, moments: np.ndarray,
    found: np.ndarray, enough: int, limits: tuple[float, float],
) -> None:  # fmt: skip
    if not limits[0] <= reward <= limits[1]:
        found[OUTSIDE] += 1
    if counts[pair] == enough:
        return
    if counts[pair] == 0:
        moments[pair, 0] = sample
    counts[pair] += 1
    moved = sample - moments[pair, 0]
    moments[pair, 1:] += moved, moved * moved


def _visits(
    holding: Holding, environment: Environment, v: np.ndarray, discount: float, asked: Asked
) -> Iterator[np.ndarray]:
    """Yield what is met in the next episodes, float64 (n, 3): pair, reward, sample; in the order of
    the episodes on rank 0, nothing elsewhere. COLLECTIVE."""
    transport, first = holding.transport, 0
    while True:
        share = Partition.balanced(EPISODES_AT_ONCE, transport.size)
        low, high = share.block(transport.rank)
        with transport.same_outcome():
            met = wander(
                environment.worlds, asked.seed, asked.check, range(first + low, first + high),
                environment.max_episode_steps or LONGEST,
            )  # fmt: skip
        pairs, rewards, ahead, ended = np.array(met, np.float64).reshape(-1, 4).T
        following = np.where(ended > 0, 0.0, discount * v[ahead.astype(np.int64)])
        told = np.stack([pairs, rewards, rewards + following], axis=1)
        sizes = transport.gather_everywhere(len(told))
        gathered = transport.gather_rows(told, Partition(np.cumsum([0, *sizes])))
        yield np.zeros((0, 3)) if gathered is None or transport.rank else gathered
        first += EPISODES_AT_ONCE
