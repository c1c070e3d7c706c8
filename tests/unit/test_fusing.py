"""The loops of fusion and their fixed-point sums."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distq_mpi.architectures import Allreduce
from distq_mpi.architectures.progress import FIELDS, HEADER, Agreement
from distq_mpi.errors import ConfigError
from distq_mpi.fusion import FUSIONS, FixedPoint
from distq_mpi.kernels import fusing, step_sizes
from distq_mpi.kernels.rounds import LIMB, report, round_kernels, split_float
from distq_mpi.table import Rows
from tests.driving import Fuser, Job
from tests.stand_in import Alone, compiled, config, one_state, plain, random_model, together


def rounds(fuser: Fuser, n: int, seed: int = 0) -> list[Rows]:
    """Random rounds of n agents; a third of the pairs unvisited and unchanged."""
    rng = np.random.default_rng(seed)
    shape = fuser.base.values.shape
    fuser.base.values[...] = rng.normal(size=shape)
    fuser.base.clock[...] = rng.integers(0, 50, shape)
    fuser.lifetime[...] = fuser.base.clock.reshape(-1).astype(np.uint64) * np.uint64(2)
    replicas = []
    for _ in range(n):
        visits = rng.integers(0, 40, shape) * (rng.random(shape) > 0.34)
        replicas.append(fuser.replica(rng.normal(size=shape) * 0.1 * (visits > 0), visits))
    return replicas


CASES = [
    (fusion, step_size, dtype, 3)
    for fusion in FUSIONS
    for step_size, dtype in (("rescaled_linear", "float64"), ("sign_change", "float32"))
] + [
    (list(FUSIONS)[n - 1], ("constant", "rescaled_linear", "sign_change")[n % 3],
     ("float64", "float32")[n % 3 % 2], n)
    for n in range(1, 10)
]  # fmt: skip


@pytest.mark.parametrize(("fusion", "step_size", "dtype", "n_actions"), CASES)
def test_plain_python_and_compiled_code_agree_bit_for_bit(
    fusion: str, step_size: str, dtype: str, n_actions: int
) -> None:
    settings = config(fusion=fusion, step_size=step_size, dtype=dtype, agents=5)
    results = []
    for use_compiled in (False, True):
        fuser = Fuser(settings, 13, n_actions, use_compiled)
        replicas = rounds(fuser, 5)
        found = [fuser.contribute(replica).tobytes() for replica in replicas]
        sums = [array.tobytes() for array in fuser.sums.values()]
        results.append([*found, *sums, fuser.fuse().raw.tobytes(), fuser.visits.tobytes()])
        assert fuser.visits.sum() > 0
    assert results[0] == results[1]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_adopting_agrees_bit_for_bit_and_takes_the_replica(dtype: str) -> None:
    settings, results = config(agents=1, dtype=dtype), []
    for use_compiled in (False, True):
        fuser = Fuser(settings, 5, 3, use_compiled)
        (replica,) = rounds(fuser, 1)
        replica.clock[0, 0] = step_sizes.CLOCK_LIMIT + 7
        found = np.full(5, np.nan)
        cut = np.minimum(replica.clock, step_sizes.CLOCK_LIMIT)
        for limits, clock in ((0, replica.clock), (1, cut)):
            fuser.kernels["adopt"](
                fuser.next.q, fuser.next.clock_words, fuser.base.clock_words, replica.q,
                replica.clock_words, fuser.visits, np.array([limits], np.uint64), found,
            )  # fmt: skip
            assert np.array_equal(fuser.next.clock, clock)
        assert np.array_equal(fuser.next.values, replica.values)
        grown = replica.clock.astype(np.int64) - fuser.base.clock
        assert np.array_equal(fuser.visits, grown.reshape(-1))
        assert found.tolist() == [0, 0, 0, 0, grown.sum()]
        results.append(fuser.next.raw.tobytes() + fuser.visits.tobytes())
    assert results[0] == results[1]


def exact_pair(
    fusion: str, base: float, clock: int, lifetime: int, agents: list[tuple[float, int]],
    alpha_at: Callable[[int], Fraction],
) -> tuple[float, int]:  # fmt: skip
    """The new value and clock of a pair in rational numbers, from (change, visits) per agent.

    alpha_at : alpha at a clock. Order statistics trim one visitor at either end.
    """
    n = sum(visits for _, visits in agents)
    if n == 0:
        return base, clock
    changes = [(Fraction(change), visits) for change, visits in agents]
    alpha, spread = alpha_at(clock + 1), Fraction(sum(k * k for _, k in changes), n)

    def left(visits: int) -> Fraction:
        return math.prod((1 - alpha_at(clock + 1 + k) for k in range(visits)), start=Fraction(1))

    if fusion == "pooled":
        kept = 1 - alpha
        targets = sum(k * x / (1 - kept**k) for x, k in changes if k)
        return float(Fraction(base) + (1 - kept**n) * targets / n), clock + n
    if fusion == "count":
        ratio = Fraction(sum(k * k for _, k in changes), n)
        average = sum(k * x for x, k in changes) / n
        return float(Fraction(base) + average), clock + math.floor(ratio + Fraction(1, 2))
    if fusion == "mean":
        average = sum(x for x, _ in changes) / len(agents)
        return float(Fraction(base) + average), max(clock, (lifetime + n) // len(agents), 1)
    total, gain = sum(x for x, _ in changes), sum(1 - left(k) for _, k in changes)
    if fusion == "delta":
        return float(Fraction(base) + total), clock + n
    if fusion == "delta_capped":
        cap = max(Fraction(1), gain)
        return float(Fraction(base) + total / cap), clock + round(n / cap)
    if fusion == "importance":
        weights = [1 / left(k) for _, k in changes]
        average = sum(w * x for w, (x, _) in zip(weights, changes, strict=True)) / sum(weights)
        return float(Fraction(base) + average), clock + math.floor(spread + Fraction(1, 2))
    seen = sorted(x for x, k in changes if k)
    if len(seen) < 3:
        return base, clock
    if fusion == "median":
        middle = (seen[(len(seen) - 1) // 2] + seen[len(seen) // 2]) / 2
    else:
        middle = sum(seen[1:-1]) / (len(seen) - 2)
    return float(Fraction(base) + middle), clock + math.floor(spread + Fraction(1, 2))


def alpha_of(step_size: str) -> Callable[[int], Fraction]:
    if step_size == "constant":
        return lambda clock: Fraction(1, 4)
    return lambda clock: 1 / (1 + Fraction(clock, 2))


@pytest.mark.parametrize("fusion", [name for name in FUSIONS if name != "max"])
@pytest.mark.parametrize("step_size", ["rescaled_linear", "constant"])
def test_fused_rows_are_the_formulas(fusion: str, step_size: str) -> None:
    settings = config(
        fusion=fusion, step_size=step_size, agents=4, alpha=0.25, discount=0.5, trim=1
    )
    fuser = Fuser(settings, 9, 3)
    replicas = rounds(fuser, 4)
    for replica in replicas:
        fuser.contribute(replica)
    fused, seen = fuser.fuse(), 0
    for s, a in itertools.product(range(9), range(3)):
        base, clock = float(fuser.base.values[s, a]), int(fuser.base.clock[s, a])
        agents = [
            (float(r.values[s, a]) - base, int(r.clock[s, a]) - clock) for r in replicas
        ]
        lifetime = int(fuser.lifetime[s * 3 + a])
        value, new_clock = exact_pair(
            fusion, base, clock, lifetime, agents, alpha_of(step_size)
        )
        assert fused.values[s, a] == pytest.approx(value, abs=1e-13)
        assert fused.clock[s, a] == new_clock
        seen += sum(k for _, k in agents) > 0
    assert seen > 20


def test_max_takes_the_largest_value_and_the_clock_of_its_holder() -> None:
    fuser = Fuser(config(fusion="max", agents=3), 1, 4)
    fuser.base.values[...] = [[1.0, 1.0, 1.0, -0.0]]
    fuser.base.clock[...] = 10
    for changes, visits in (
        ([[0.5, 0.0, -1.0, 0.0]], [[3, 0, 2, 0]]),
        ([[0.2, 0.0, -2.0, 0.0]], [[9, 0, 5, 0]]),
        ([[0.5, -1.0, -1.5, 0.0]], [[4, 6, 1, 2]]),
    ):
        found = fuser.contribute(fuser.replica(np.array(changes), np.array(visits)))
        assert found[fusing.VISITS] == np.sum(visits)
    fused = fuser.fuse()
    assert fused.values.tolist() == [[1.5, 1.0, 0.0, 0.0]]
    # Of equals the more visited one; a base that nobody beat keeps its clock.
    assert fused.clock.tolist() == [[14, 10, 12, 12]]
    assert not np.signbit(fused.values).any()


# The others are merged in the order of the agents, which is that of their numbers on any rank.
UNORDERED = [name for name, fusion in FUSIONS.items() if fusion.merge is None]


@pytest.mark.parametrize("fusion", UNORDERED)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_sums_do_not_depend_on_the_order_of_the_agents(fusion: str, dtype: str) -> None:
    settings, tables = config(fusion=fusion, agents=4, dtype=dtype), set()
    for order in itertools.permutations(range(4)):
        fuser = Fuser(settings, 6, 2, use_compiled=True)
        replicas = rounds(fuser, 4)
        for k in order:
            fuser.contribute(replicas[k])
        tables.add(fuser.fuse().raw.tobytes())
    assert len(tables) == 1


@pytest.mark.parametrize("fusion", list(FUSIONS))
def test_rows_that_nobody_visited_keep_every_bit(fusion: str) -> None:
    fuser = Fuser(config(fusion=fusion, agents=2, dtype="float32"), 3, 4)
    fuser.base.values[...] = np.random.default_rng(0).normal(size=(3, 4))
    fuser.base.clock[...] = 5
    still = fuser.replica(np.zeros((3, 4)), np.zeros((3, 4), np.uint32))
    for _ in range(2):
        found = fuser.contribute(still)
        assert found.tolist() == [0, 0, 0, 0, 0]
    assert fuser.fuse().raw.tobytes() == fuser.base.raw.tobytes()


@pytest.mark.parametrize("fusion", list(FUSIONS))
def test_owners_fuse_their_rows_alone_to_the_same_bits(fusion: str) -> None:
    settings = config(fusion=fusion, agents=3, dtype="float32")
    whole = Fuser(settings, 10, 3, use_compiled=True)
    for replica in rounds(whole, 3):
        whole.contribute(replica)
    expected = whole.fuse().raw.copy()
    sums, each, lifetime = dict(whole.sums), list(whole.each), whole.lifetime
    whole.next.raw[:] = 0
    for first, stop in ((0, 4), (4, 4), (4, 9), (9, 10)):
        mine = slice(first * 3, stop * 3)
        whole.sums = {name: array[mine].copy() for name, array in sums.items()}
        whole.each = [[array[mine].copy() for array in agent] for agent in each]
        whole.lifetime = lifetime[mine].copy()
        whole.control[:2] = first, stop - first
        whole.fuse()
    assert whole.next.raw.tobytes() == expected.tobytes()


def test_the_round_decides_the_rounding_bits() -> None:
    tables = set()
    for number in (1, 2):
        fuser = Fuser(config(agents=2, dtype="float32"), 20, 3)
        for replica in rounds(fuser, 2):
            fuser.contribute(replica)
        fuser.control[4] = number
        tables.add(fuser.fuse().raw.tobytes())
    assert len(tables) == 2


def test_clocks_stop_at_their_limit() -> None:
    fuser = Fuser(config(agents=2), 1, 1)
    fuser.base.clock[...] = step_sizes.CLOCK_LIMIT - 3
    for _ in range(2):
        fuser.contribute(fuser.replica(np.array([[0.0]]), np.array([[2]])))
    assert fuser.fuse().clock.tolist() == [[step_sizes.CLOCK_LIMIT]]


def test_what_was_found_counts_every_kind_of_contribution() -> None:
    settings = config(fusion="mean", agents=2, step_size="constant", alpha=0.25)
    fuser = Fuser(settings, 1, 6, exponent=4)
    changes = np.array([[0.5, 1.0, 15.9, -16.0, np.nan, -np.inf]])
    found = fuser.contribute(fuser.replica(changes, np.array([[1, 2, 3, 4, 5, 6]])))
    assert found[fusing.OVERFLOWS] == 1  # -16, at the bound
    assert found[fusing.LARGE] == 2  # 1 and 15.9: from a sixteenth of the bound on
    assert found[fusing.NON_FINITE] == 2
    assert found[fusing.VISITS] == 21
    assert found[fusing.LENGTH] == 0.25 * sum(n * (n - 1) for n in range(1, 7))
    # Nothing that does not fit enters the sums.
    assert fuser.values[3:].tolist() == [0, 0, 0]


def test_max_counts_what_is_not_finite() -> None:
    fuser = Fuser(config(fusion="max", agents=2), 1, 3)
    replica = fuser.replica(np.array([[np.nan, np.inf, 0.0]]), np.array([[1, 1, 1]]))
    assert fuser.contribute(replica)[fusing.NON_FINITE] == 2


def test_max_is_refused_where_it_keeps_overestimates() -> None:
    with pytest.raises(ConfigError, match="not known to be"):
        FUSIONS["max"].check(False, True, config(agents=2))
    with pytest.raises(ConfigError, match="may start above"):
        FUSIONS["max"].check(True, False, config(agents=2))
    FUSIONS["max"].check(True, True, config(agents=2))
    FUSIONS["max"].check(False, False, config(agents=2, force=True))
    FUSIONS["max"].check(False, False, config(agents=1))
    FUSIONS["pooled"].check(False, False, config())


@given(st.floats(0, 1), st.integers(0, 5000))
def test_remaining_is_a_power(alpha: float, n: int) -> None:
    expected = (1.0 - alpha) ** n
    assert fusing.remaining(alpha, n) == pytest.approx(expected, rel=1e-11, abs=1e-300)


@given(st.integers(1, 5000), st.integers(-6, 60))
def test_sums_of_all_agents_fit_64_bits(n_agents: int, exponent: int) -> None:
    point = FixedPoint(n_agents, exponent, exponent)
    assert n_agents * Fraction(point.bound) * Fraction(point.scale) <= 2**62
    assert math.log2(point.scale) == int(math.log2(point.scale))
    # and no bit is given away: the next power of two of agents would just fit
    assert 2 ** math.ceil(math.log2(n_agents)) * point.bound * point.scale == 2.0**62


points = st.builds(
    lambda k, peak, below: FixedPoint(k, peak - below, peak),
    st.integers(1, 1000), st.integers(-8, 60), st.integers(0, 24),
)  # fmt: skip


@given(points)
def test_a_raised_scale_is_coarser_and_reaches_the_peak_at_once(point: FixedPoint) -> None:
    raised = point.raised()
    assert raised.exponent > point.exponent and raised.n_agents == point.n_agents
    assert raised.peak == max(point.peak, raised.exponent)
    if point.exponent < point.peak:
        assert raised.exponent == point.peak
    else:
        assert raised.exponent == point.peak + 8


@given(points, st.integers(0, 1000))
def test_a_quiet_round_lowers_the_bound_slowly(point: FixedPoint, n_large: int) -> None:
    after = point.after(n_large)
    assert after.peak == point.peak and after.n_agents == point.n_agents
    if n_large:
        assert after == point
    else:
        assert after.exponent == max(point.exponent - 1, min(point.exponent, point.peak - 24))
    assert point.peak - 24 <= after.exponent <= point.peak


def split(x: float, n_agents: int = 1) -> tuple[int, int]:
    """The two integers of a float."""
    found = np.zeros(2, np.int64)
    split_float(np.float64(x), 2.0**61 / n_agents, found, 0)
    whole, fraction = found.tolist()
    return whole, fraction


def join(whole: int, fraction: int) -> float:
    """The float again."""
    return whole + fraction / LIMB


def told(agents: list[tuple[list[float], list[float]]], n_agents: int) -> np.ndarray:
    """The header after some agents' findings and totals: plain and compiled, which are equal."""
    headers = np.zeros((2, HEADER), np.int64)
    loops = plain(report, {}), compiled(round_kernels("report"))["report"]
    for header, add in zip(headers, loops, strict=True):
        for found, totals in agents:
            add(np.array(found), np.array(totals), header, n_agents, 1024.0)
    assert np.array_equal(*headers)
    return headers[0]


@given(st.lists(st.floats(-(2.0**40), 2.0**40), max_size=50), st.randoms())
def test_split_floats_add_up_in_any_order(numbers: list[float], random: Any) -> None:
    pairs = [split(x) for x in numbers]
    for (whole, fraction), x in zip(pairs, numbers, strict=True):
        assert abs(join(whole, fraction) - x) <= 2.0**-41 + abs(x) * 2.0**-52
        assert 0 <= fraction <= 2**40
    total = [sum(column) for column in zip(*pairs, strict=True)] or [0, 0]
    assert join(*total) == pytest.approx(math.fsum(numbers), abs=50 * 2.0**-41, rel=1e-15)
    random.shuffle(pairs)
    assert [sum(column) for column in zip(*pairs, strict=True)] in (total, [])


@pytest.mark.parametrize("x", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_counted(x: float) -> None:
    assert told([([0.0] * 5, [x, 0.0, 1.0])], 1)[FIELDS.index("non_finite")] == 1
    assert told([([0.0] * 5, [0.0, x, 1.0])], 1)[FIELDS.index("non_finite")] == 1


@pytest.mark.parametrize("x", [2.0**61, -(2.0**61), 1e300, math.inf])
def test_what_is_too_large_saturates_without_overflow(x: float) -> None:
    whole, fraction = split(x, 64)
    assert (abs(whole), fraction) == (2**55, 0) and (whole > 0) == (x > 0)
    header = told([([0.0] * 5, [0.0, abs(x), 1.0])] * 64, 64)
    assert header[FIELDS.index("square_whole")] == 2**61
    assert header[FIELDS.index("non_finite")] == (64 if math.isinf(x) else 0)


def test_the_header_is_read_back_as_it_was_written() -> None:
    header = told([([1.0, 2, 3, 0.5, 7], [x, 1e6, 4.0]) for x in (2.25, -0.5)], 2)
    header[FIELDS.index("want_checkpoint")] = 1
    expected = Agreement(2, 4, 6, 1024, 14, 8, 1.75, 2e6, want_checkpoint=True)
    assert Agreement.read(header) == expected


def job(**changes: Any) -> Job:
    settings = config(
        **{"agents": 5, "lanes": 23, "steps_per_round": 3, "discount": 0.95, **changes}
    )
    environment = random_model(17, 3)
    kernels = compiled(Allreduce.requests(settings, environment))
    return Job(settings, environment, kernels)


@pytest.mark.parametrize("fusion", list(FUSIONS))
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_hosting_does_not_matter(fusion: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    work = job(fusion=fusion, dtype=dtype, steps_per_round="auto")
    alone = work.run(Alone(), 12)
    for size, whole_bytes in ((2, 1 << 19), (3, 0), (7, 0), (7, 1 << 19)):
        monkeypatch.setattr("distq_mpi.architectures.allreduce.WHOLE_BYTES", whole_bytes)
        ranks = together(size, lambda transport: work.run(transport, 12))
        for rank in ranks:
            assert rank["table"] == alone["table"]
            assert rank["progress"] == alone["progress"]
        assert ranks[0]["lanes"] == alone["lanes"]


SUMMED = [name for name in FUSIONS if FUSIONS[name].merge is None and name != "max"]


@pytest.mark.parametrize("fusion", SUMMED)
@pytest.mark.parametrize("hosts", [[0, 0], [0, 0, 0, 0], [0, 0, 1, 1], [0, 1, 1, 0, 0, 1]])
def test_memory_of_a_host_does_not_matter(
    fusion: str, hosts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distq_mpi.architectures.allreduce.WHOLE_BYTES", 0)
    monkeypatch.setattr("distq_mpi.architectures.allreduce.TILE", 5)
    work = job(fusion=fusion, dtype="float32", steps_per_round="auto", initial="random")
    for exponent in (None, -6):  # once with rounds that overflow
        alone = work.run(Alone(), 8, exponent)
        assert exponent is None or alone["repeated"] >= 1

        def run(transport: Any, exponent: int | None = exponent) -> Any:
            assert transport.host_memory(0, 0) is not None
            return work.run(transport, 8, exponent)

        for rank in together(len(hosts), run, hosts):
            for key in ("table", "progress", "repeated"):
                assert rank[key] == alone[key], key


@pytest.mark.parametrize("fusion", [name for name in UNORDERED if name != "max"])
def test_a_round_that_overflowed_is_run_again(fusion: str) -> None:
    """From a bound far too small: as if it had been large enough, up to the rounding of sums."""
    work = job(fusion=fusion, epsilon=1.0)
    tight, roomy = work.run(Alone(), 6, -6), work.run(Alone(), 6, 10)
    assert tight["repeated"] >= 1 and roomy["repeated"] == 0
    np.testing.assert_allclose(tight["values"], roomy["values"], rtol=0, atol=1e-12)
    assert tight["lanes"] == roomy["lanes"]
    hosted = together(3, lambda transport: work.run(transport, 6, -6))
    assert hosted[0]["table"] == tight["table"]
    assert hosted[0]["progress"] == tight["progress"]
    assert [rank["repeated"] for rank in hosted] == [tight["repeated"]] * 3


def test_a_rollback_leaves_no_trace() -> None:
    work = job()
    plain_run = work.run(Alone(), 4)
    state = Allreduce(work.settings, work.environment, work.kernels, Alone())
    for number in range(4):
        state.learn()
        state.exchange((False, False, False))
        assert state.rollback() == number
        state.learn()
        state.exchange((False, False, False))
        state.commit()
    assert state.base.raw.tobytes() == plain_run["table"]
    assert state.progress == plain_run["progress"]


def test_one_agent_alone_is_the_loop_alone() -> None:
    """No fixed point, no rounding: the table of 3 rounds of 4 steps is that of 12 steps."""
    short, long = (
        job(agents=1, lanes=9, steps_per_round=steps, dtype="float32").run(Alone(), n_rounds)
        for steps, n_rounds in ((4, 3), (12, 1))
    )
    assert short["table"] == long["table"] and short["lanes"] == long["lanes"]


def test_the_last_round_is_shortened_to_the_steps_asked_for() -> None:
    settings = config(agents=2, lanes=4, steps_per_round=10, steps=57)
    environment = one_state()
    state = Allreduce(
        settings, environment, compiled(Allreduce.requests(settings, environment)), Alone()
    )
    for steps in (40, 60):
        state.learn()
        while state.exchange((False, False, False)) is None:  # the first scale is a guess
            state.rollback()
            state.learn()
        state.commit()
        assert state.progress.steps == steps
    assert state.lifetime.tolist() == [60]
