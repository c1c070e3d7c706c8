"""Cut models, models in files that nobody holds whole, and uniform starts: the bits of the whole.

Real ranks are in `tests/parallel/test_cutting.py`.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distq_mpi.config import EnvConfig
from distq_mpi.environments import (
    Environment,
    cutting,
    explicit,
    explicit_model,
    exploring_starts,
    make,
    model_file,
    read_model,
    rows,
    starts,
    write_model,
)
from distq_mpi.environments.alias import alias_tables
from distq_mpi.environments.laws import law_environment
from distq_mpi.environments.sharing import share
from distq_mpi.errors import ModelError
from distq_mpi.memory import model_bytes
from distq_mpi.partition import Partition
from distq_mpi.preparation import build
from tests.stand_in import random_model
from tests.unit.test_environments_guard import Alone2

u8 = np.uint64


class One(Alone2):
    """A rank alone that can also be asked for what cut models need."""

    def from_rank_0(self, work: Any) -> Any:
        """What it finds."""
        return work()


def small_runs(entries: int = 5, n_rows: int = 4) -> ExitStack:
    """Let runs be small, so that small models have many."""
    stack = ExitStack()
    for module in (rows, explicit, model_file, starts):
        stack.enter_context(mock.patch.object(module, "RUN_ENTRIES", entries))
    stack.enter_context(mock.patch.object(rows, "RUN_ROWS", n_rows))
    return stack


def cut(environment: Environment, low: int, high: int) -> Environment:
    """What a rank with these states is given."""
    return share(environment, None, One(), [(low, high)])  # type: ignore[arg-type]


def same(a: Environment, b: Environment) -> bool:
    arrays = zip(a.params, b.params, strict=True)
    return a.model_id == b.model_id and all(
        x.dtype == y.dtype and x.tobytes() == y.tobytes() for x, y in arrays
    )


# ---- cut and whole


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 40), st.integers(1, 3), st.integers(0, 99), st.integers(0, 40),
    st.integers(0, 40), st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=5),
)  # fmt: skip
def test_functions_of_cut_models_give_the_bits_of_the_whole(
    n_states: int, n_actions: int, seed: int, one: int, other: int, draws: list[int]
) -> None:
    whole = random_model(n_states, n_actions, seed)
    low, high = sorted((min(one, n_states), min(other, n_states)))
    with small_runs():
        mine = cut(whole, low, high)
    assert mine.rows == (low, high) and mine.source is None
    for state in range(low, high):
        for action in range(n_actions):
            n = whole.outcomes(state, action, whole.params)
            assert mine.outcomes(state, action, mine.params) == n
            for i in range(n):
                told = [e.outcome(state, action, i, e.params) for e in (mine, whole)]
                assert told[0] == told[1]
            for bits in draws:
                stepped = [
                    e.law_step(u8(state), u8(action), u8(bits), e.params) for e in (mine, whole)
                ]
                assert stepped[0] == stepped[1]
    for bits in draws:
        assert mine.law_start(u8(bits), mine.params) == whole.law_start(u8(bits), whole.params)


def test_a_cut_model_is_of_the_types_of_a_whole_one_and_holds_its_rows_alone() -> None:
    whole = random_model(200, 3)
    for low, high in ((0, 200), (50, 90), (7, 7)):
        mine = cut(whole, low, high)
        kinds = [[(p.dtype, p.ndim) for p in e.params] for e in (mine, whole)]
        assert kinds[0] == kinds[1]
        wanted = sum(p.nbytes for p in rows.Packed(*whole.params[:4]).part(3 * low, 3 * high))
        assert sum(p.nbytes for p in mine.params[:4]) <= 1.1 * wanted
        assert mine.model_id == whole.model_id
    assert all(np.shares_memory(a, b) for a, b in zip(
        cut(whole, 0, 200).params[:4], whole.params[:4], strict=True))  # fmt: skip


def test_exploring_starts_and_time_limits_are_those_of_the_whole() -> None:
    whole = exploring_starts(random_model(33, 2))
    mine = cut(whole, 10, 20)
    assert mine.explores_starts and mine.n_starts == 33 and mine.max_episode_steps == 7
    for bits in (0, 2**63, 2**64 - 1, 12345 << 32):
        drawn = [int(e.law_start(u8(bits), e.params)) for e in (mine, whole)]
        assert drawn[0] == drawn[1]
    assert mine.start(5, mine.params) == whole.start(5, whole.params)


def test_laws_are_shared_as_ever_whatever_the_cuts() -> None:
    class Ring:
        n_states, n_actions, n_outcomes, params = 5, 2, 1, ()

        @staticmethod
        def outcome(state, action, i, params):  # type: ignore[no-untyped-def]
            return 1.0, (state + 1) % 5, 0.0, False

        @staticmethod
        def start(i, params):  # type: ignore[no-untyped-def]
            return 1.0, 0

    law = law_environment("ring", Ring, {})
    assert cut(law, 0, 2) is law and law.rows is None
    assert not cutting.can_be_cut(law) and cutting.can_be_cut(random_model(2, 1))


def test_a_cut_model_is_not_written() -> None:
    with pytest.raises(ModelError, match=r"is cut, and its rows \(1, 3\) are no model"):
        write_model("nowhere.h5", cut(random_model(5, 1), 1, 3))


@given(st.integers(0, 30), st.integers(1, 8), st.lists(st.integers(0, 30), max_size=7))
def test_hulls_cover_every_block_and_no_more(n: int, parts: int, cuts: list[int]) -> None:
    borders = sorted(min(k, n) for k in (cuts + [n] * parts)[: parts - 1])
    partitions = Partition.balanced(n, parts), Partition([0, *borders, n])
    for owner, (low, high) in enumerate(cutting.hulls(*partitions)):
        states = {s for p in partitions for s in range(*p.block(owner))}
        assert states <= set(range(low, high))
        assert (low, high) == ((min(states), max(states) + 1) if states else (0, 0))


# ---- runs


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 30), st.integers(0, 99), st.integers(1, 30), st.integers(1, 9))
def test_a_model_does_not_depend_on_the_runs_it_is_made_in(
    n_states: int, seed: int, entries: int, n_rows: int
) -> None:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 9, 2 * n_states)
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    n = int(indptr[-1])
    chances = rng.integers(0, 3, n).astype(float)
    chances[indptr[:-1]] += 1.0
    chances /= np.repeat(np.add.reduceat(chances, indptr[:-1]), lengths)
    start = rng.integers(0, 3, n_states) + 0.0
    start[0] += 1.0
    table = (
        indptr, rng.integers(0, min(n_states, 4), n), chances, rng.integers(0, 2, n),
        rng.random(n) < 0.3, start / start.sum(),
    )  # fmt: skip
    wanted = explicit_model("m", n_states, 2, *table)
    with small_runs(entries, n_rows):
        found = explicit_model("m", n_states, 2, *table)
    assert same(found, wanted)
    assert (found.return_bound, found.n_transitions) == (wanted.return_bound, wanted.n_transitions)
    assert found.least_reward == wanted.least_reward == float(wanted.params[2].min())


# ---- starts


@pytest.mark.parametrize("n", [2, 3, 7, 10, 49, 1000, 12_345, 1_000_003])
def test_uniform_starts_draw_what_their_alias_table_would(n: int) -> None:
    for probability in (1.0 / n, (1.0 / n) * (1 + 3e-10)):
        table = alias_tables(np.array([0, n]), np.full(n, probability))
        assert np.array_equal(table, (u8(2**32 - 1) << u8(32)) | np.arange(n, dtype=u8))
        slots = np.arange(n, dtype=u8), table, np.full(n, probability)
        none = (np.zeros(1),) * 4
        params = (*none, *slots, np.array([n, 1, 0]))
        closed = (*none, *starts.uniform(n, probability).arrays, np.array([n, 1, 0]))
        draws = np.random.Philox(5).random_raw(300)
        for bits in (*draws, u8(0), u8(2**64 - 1), u8(2**32 - 1), *(draws | u8(2**32 - 1))):
            with np.errstate(over="ignore"):
                assert starts.law_start_uniform(bits, closed) == starts.law_start(bits, params)
        assert starts.start(n - 1, closed) == starts.start(n - 1, params)


def test_uniform_starts_need_no_arrays_and_are_written_as_they_were(tmp_path: Path) -> None:
    garnet = make(EnvConfig(id="garnet", kwargs={"states": 30, "actions": 2, "branching": 3}))
    assert [p.size for p in garnet.params[4:7]] == [0, 0, 1] and garnet.n_starts == 30
    assert [garnet.start(i, garnet.params) for i in (0, 29)] == [(1 / 30, 0), (1 / 30, 29)]
    write_model(tmp_path / "m.h5", garnet)
    with h5py.File(tmp_path / "m.h5") as file:
        assert np.array_equal(file["start"][()], np.full(30, 1 / 30))
    assert same(read_model(str(tmp_path / "m.h5")), garnet)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40).filter(any), st.integers(1, 7))
def test_starts_are_told_whole_in_any_parts(weights: list[int], size: int) -> None:
    first = np.array(weights) / np.sum(weights)
    found = starts.checked_starts("m", first.size, first)
    with mock.patch.object(starts, "RUN_ENTRIES", size):
        told = b"".join(part.tobytes() for part in found.parts())
    assert told == np.flatnonzero(first).tobytes() + first.tobytes()


# ---- files that nobody holds whole


def messy(path: Path, seed: int = 0, **changes: Any) -> Path:
    """A file with entries to be merged and dropped, in no order; `changes` to its elements."""
    rng = np.random.default_rng(seed)
    indptr = np.concatenate([[0], np.cumsum(rng.integers(2, 6, 60))])
    n = int(indptr[-1])
    chances = rng.integers(0, 3, n) + 0.0
    chances[indptr[:-1]] = 1.0
    chances /= np.repeat(np.add.reduceat(chances, indptr[:-1]), np.diff(indptr))
    arrays: dict[str, Any] = {
        "n_states": 30, "n_actions": 2, "indptr": indptr, "indices": rng.integers(0, 30, n),
        "probability": chances, "reward": rng.integers(-1, 2, n) * 1.0,
        "terminated": (rng.random(n) < 0.2).astype(np.int8), "max_episode_steps": 9,
    }  # fmt: skip
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            for at, value in changes.get(name, {}).items():
                array[at] = value
            file[name] = array
    return path


@pytest.mark.parametrize("seed", range(4))
def test_looked_over_it_is_the_model_that_reading_gives(tmp_path: Path, seed: int) -> None:
    path = str(messy(tmp_path / "m.h5", seed))
    whole = read_model(path, 5)
    with small_runs():
        found = model_file.look_over(0, path, 5)
        assert found.rows == (0, 0) and sum(p.nbytes for p in found.params[:4]) == 8
        facts = [
            [getattr(e, name) for name in (
                "model_id", "n_transitions", "n_starts", "return_bound", "least_reward",
                "deterministic", "max_episode_steps", "summary", "id", "kind")]
            for e in (found, whole)
        ]  # fmt: skip
        assert facts[0] == facts[1]
        assert same(model_file.whole(found), whole)
        for low, high in ((0, 30), (3, 17), (29, 30), (8, 8)):
            assert same(cut(found, low, high), cut(whole, low, high))
    assert model_file.whole(whole) is whole


def test_only_large_hdf5_files_are_looked_over(tmp_path: Path) -> None:
    path = messy(tmp_path / "m.h5")
    n = h5py.File(path)["indices"].size
    assert model_file.look_over(n + 1, str(path)).source is None
    assert make(EnvConfig(id=str(path)), n).source is not None
    assert make(EnvConfig(id=str(path))).source is None
    environment = build(EnvConfig(id=str(path), max_episode_steps=4), True, None, 1)
    plain = build(EnvConfig(id=str(path), max_episode_steps=4), True)
    assert environment.source is not None and environment.explores_starts
    assert environment.model_id == plain.model_id
    assert same(cut(environment, 4, 9), cut(plain, 4, 9))
    assert same(share(environment, None, One()), plain)  # type: ignore[arg-type]
    write_model(tmp_path / "m.npz", read_model(str(path)))
    assert make(EnvConfig(id=str(tmp_path / "m.npz")), 1).source is None
    with pytest.raises(ModelError, match="takes no 'least'"):
        make(EnvConfig(id=str(path), kwargs={"least": 3}), 1)


DAMAGE: list[dict[str, dict[int, Any]]] = [
    {"probability": {7: -0.5}}, {"probability": {40: np.nan}, "reward": {3: np.inf}},
    {"probability": {12: np.inf}}, {"reward": {100: np.nan}, "indices": {2: 30}},
    {"indices": {9: -1, 90: 31}}, {"indptr": {30: 2}}, {"indptr": {0: 1}}, {"indptr": {60: 10**9}},
    {"terminated": {120: 2}, "reward": {1: np.nan}}, {"probability": {5: 0.9, 60: 0.9, 110: 0.9}},
    {"indptr": {20: 10**6, 50: 3}},
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_no_model_is_refused_in_the_same_words(
    tmp_path: Path, damage: dict[str, dict[int, Any]]
) -> None:
    path = str(messy(tmp_path / "m.h5", 1, **damage))
    with pytest.raises(ModelError) as wanted:
        read_model(path)
    for sizes in ((5, 4), (1, 1), (50, 9)):
        with small_runs(*sizes), pytest.raises(ModelError) as found:
            model_file.look_over(0, path)
        assert str(found.value) == str(wanted.value)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["probability", "reward", "indices", "indptr", "terminated"]),
            st.integers(0, 60), st.sampled_from([-1, 0, 1, 7, 33, 10**9]),
        ),
        min_size=1, max_size=4,
    ),
)  # fmt: skip
def test_any_damage_is_told_alike(
    tmp_path_factory: pytest.TempPathFactory, damage: list[tuple[str, int, int]]
) -> None:
    changes: dict[str, dict[int, int]] = {}
    for name, at, value in damage:
        changes.setdefault(name, {})[at] = min(value, 100) if name == "terminated" else value
    path = str(messy(tmp_path_factory.mktemp("damage") / "m.h5", 2, **changes))
    told = []
    for read in (read_model, lambda p: model_file.look_over(0, p)):
        with small_runs() if told else ExitStack():
            try:
                told.append(read(path).model_id)
            except ModelError as error:
                told.append(str(error))
    assert told[0] == told[1]


@pytest.mark.parametrize("name", ["indptr", "indices", "probability", "reward", "terminated"])
def test_a_file_that_changed_since_is_refused(tmp_path: Path, name: str) -> None:
    path = messy(tmp_path / "m.h5")
    with small_runs():
        found = model_file.look_over(0, str(path))
        for value in (2, -5, 3.5, 10**12):
            messy(path)
            with h5py.File(path, "r+") as file:
                kept = file[name][35]
                file[name][35] = value if name != "terminated" else 1 - kept
                if file[name][35] == kept:
                    continue
            with pytest.raises(ModelError, match="it is another file, or it was changed"):
                cut(found, 0, 30)
        with h5py.File(path, "r+") as file:
            del file[name]
            file[name] = np.zeros(3)
        with pytest.raises(ModelError, match="state 0, action 0 or one soon after"):
            cut(found, 5, 9)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ModelError, match="truncated|damaged"):
        cut(found, 0, 30)


def test_chunked_compressed_files_are_unpacked_once(tmp_path: Path) -> None:
    garnet = make(EnvConfig(id="garnet", kwargs={"states": 9000, "actions": 4, "branching": 8}))
    plain, packed = tmp_path / "plain.h5", tmp_path / "packed.h5"
    write_model(plain, garnet)
    with h5py.File(plain) as source, h5py.File(packed, "w") as file:
        for name in source:
            array = source[name][()]
            options = {"chunks": array.shape, "compression": "gzip"} if array.ndim else {}
            file.create_dataset(name, data=array, **options)
    opened = h5py.File
    with mock.patch("h5py.File", side_effect=opened) as spy:
        found = model_file.look_over(0, str(packed))
    caches = [call.kwargs.get("rdcc_nbytes") for call in spy.call_args_list]
    assert caches == [None, 8 * 9000 * 4 * 8]
    assert found.model_id == garnet.model_id
    assert same(cut(found, 100, 200), cut(garnet, 100, 200))


# ---- memory


def test_bytes_of_models_are_known_before_they_are_shared(tmp_path: Path) -> None:
    model = random_model(100, 2)
    write_model(tmp_path / "m.h5", model)
    looked = model_file.look_over(0, str(tmp_path / "m.h5"))
    whole = sum(p.nbytes for p in model.params[:7])
    for environment in (model, looked):
        assert model_bytes(environment) == whole
        assert model_bytes(environment, None, 4) == -(-whole // 4)
    cuts = [(0, 20), (20, 90), (90, 100)]
    largest = max(sum(p.nbytes for p in cut(model, *c).params[:4]) for c in cuts)
    start = sum(p.nbytes for p in model.params[4:7])
    assert model_bytes(model, cuts, 3) == largest - (-start // 3)
    assert model_bytes(looked, cuts, 3) >= model_bytes(model, cuts, 3)
    grid = make(EnvConfig(id="grid", kwargs={"rows": 9, "columns": 9}))
    assert model_bytes(grid, cuts) == 0
