"""One tolerance of probabilities, at every door that lets a model in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np
import pytest
from gymnasium import spaces
from scipy import sparse

from distq_mpi.config import EnvConfig
from distq_mpi.environments import Environment, explicit_model, from_object, make, sparse_model
from distq_mpi.environments.checking import check_all
from distq_mpi.environments.guard import guarded
from distq_mpi.environments.model_file import whole
from distq_mpi.errors import ModelError
from distq_mpi.kernels.checking import checking_kernel
from distq_mpi.probabilities import ROUNDED, TOLERANCE, tolerance_of
from tests.stand_in import compiled

softmax = np.exp(np.random.default_rng(1).normal(0, 2, 40)).astype(np.float32)
softmax /= softmax.sum(dtype=np.float32)
half = np.array([0.1, 0.2, 0.7], np.float16)

GOOD = {
    "exact": np.array([0.25, 0.75]),
    "a negative zero of rounding": np.array([0.5, 0.5, -1.4e-17]),
    "above one by rounding": np.array([1 + 2.3e-16]),
    "both": np.array([1 + 2.3e-16, -2.3e-16]),
    "near one": np.array([0.5, 0.5 + 9e-10]),
    "float32": np.array([0.1, 0.2, 0.3, 0.4], np.float32),
    "float32 of many": softmax,
    "float32, negative": np.array([0.5, 0.5, -3e-8], np.float32),
    "float16": half,
}
BAD = {
    "sum": np.array([0.5, 0.5 - 1e-8]),
    "negative": np.array([1 + 1e-8, -1e-8]),
    "above one": np.array([1 + 1e-8]),
    "float32 sum": np.array([0.5, 0.4999], np.float32),
    "float32 negative": np.array([1.0001, -0.0001], np.float32),
    "nan": np.array([0.5, np.nan]),
}


def arrays(row: np.ndarray, n: int = 2) -> dict[str, Any]:
    """A model of as many states as the row has numbers, all pairs with these probabilities."""
    size = max(row.size, n)
    return {
        "n_states": size, "n_actions": 1, "indptr": np.arange(size + 1) * row.size,
        "indices": np.tile(np.arange(row.size), size), "probability": np.tile(row, size),
        "reward": np.zeros(row.size * size),
    }  # fmt: skip


def by_arrays(row: np.ndarray, path: Path) -> Environment:
    return explicit_model("arrays", *arrays(row).values())


def by_npz(row: np.ndarray, path: Path) -> Environment:
    np.savez(path / "model.npz", **arrays(row))
    return make(EnvConfig(str(path / "model.npz")))


def by_hdf5(row: np.ndarray, path: Path) -> Environment:
    with h5py.File(path / "model.h5", "w") as file:
        for name, array in arrays(row).items():
            file[name] = array
    looked_over = make(EnvConfig(str(path / "model.h5")), 1)
    assert looked_over.rows == (0, 0)
    read = make(EnvConfig(str(path / "model.h5")))
    assert read.model_id == looked_over.model_id and read.summary == looked_over.summary
    found = whole(looked_over)
    assert all(np.array_equal(a, b) for a, b in zip(found.params, read.params, strict=True))
    return found


def by_mean(row: np.ndarray, path: Path) -> Environment:
    np.savez(path / "model.npz", **arrays(row))
    return make(EnvConfig(f"{path / 'model.npz'},{path / 'model.npz'}"))


def matrix(row: np.ndarray) -> np.ndarray:
    size = max(row.size, 2)
    found = np.zeros((size, size), row.dtype)
    found[:, : row.size] = row
    return found


def by_matrices(row: np.ndarray, path: Path) -> Environment:
    dense = matrix(row)
    return sparse_model([dense], np.zeros(len(dense)))


def by_scipy(row: np.ndarray, path: Path) -> Environment:
    if row.dtype == np.float16:
        pytest.skip("scipy has no sparse float16")
    sparse.save_npz(path / "P_0.npz", sparse.csr_array(matrix(row)))
    np.save(path / "R.npy", np.zeros(max(row.size, 2)))
    kwargs = {"reward": str(path / "R.npy")}
    return make(EnvConfig(f"{path}/P_{{action}}.npz", kwargs=kwargs))


class Tabled(gymnasium.Env):
    """One that carries its table, of NumPy's own numbers."""

    def __init__(self, row: np.ndarray) -> None:
        size = max(row.size, 2)
        self.observation_space = spaces.Discrete(size)
        self.action_space = spaces.Discrete(1)
        self.initial_state_distrib = np.eye(size)[0]
        self.P = {s: {0: [(p, k, 0.0, False) for k, p in enumerate(row)]} for s in range(size)}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.s = 0
        return 0, {"prob": 1}

    def step(self, action: int) -> Any:
        chances = np.array([p for p, *_ in self.P[self.s][action]], float).clip(0)
        self.s = int(self.np_random.choice(chances.size, p=chances / chances.sum()))
        return self.s, 0.0, False, False, {}


def by_gymnasium(row: np.ndarray, path: Path) -> Environment:
    found = from_object(Tabled(row), EnvConfig())
    if found.kind != "explicit":  # the table is not taken, and the summary says why
        raise ModelError(found.summary)
    return found


def of_array(state, action, i, params):  # type: ignore[no-untyped-def]
    return params[0][i], i, 0.0, False


def of_first(i, params):  # type: ignore[no-untyped-def]
    return 1.0, 0


def by_law(row: np.ndarray, path: Path) -> Environment:
    if row.dtype == np.float16:
        pytest.skip("laws take no float16")
    return law(n_states=max(row.size, 2), n_outcomes=row.size, params=(row,), outcome=of_array)


def law(**fields: Any) -> Environment:
    fields = {"n_actions": 1, "deterministic": False, "start": of_first, **fields}
    for name in ("outcome", "start"):
        fields[name] = staticmethod(fields[name])
    found = from_object(type("Rowed", (), fields), EnvConfig())
    check_all(found, compiled(checking_kernel(found))["check"])
    return found


DOORS: list[Callable[[np.ndarray, Path], Environment]] = [
    by_arrays, by_npz, by_hdf5, by_mean, by_matrices, by_scipy, by_gymnasium, by_law,
]  # fmt: skip


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", GOOD)
def test_what_is_a_distribution_up_to_rounding_passes_every_door(
    name: str, door: Any, tmp_path: Path
) -> None:
    row = GOOD[name]
    found = door(row, tmp_path)
    for state in (0, found.n_states - 1):
        chances = np.zeros(found.n_states)
        for i in range(int(found.outcomes(state, 0, found.params))):
            probability, new, _, _ = found.outcome(np.int64(state), np.int64(0), i, found.params)
            chances[int(new)] += probability
        plain = row.astype(float)
        tabled = door is not by_law  # a law is compiled as it is written
        if row.dtype != np.float64 or (tabled and abs(plain.sum() - 1) > ROUNDED):
            plain = plain.clip(0) / plain.clip(0).sum()
            assert chances.sum() == pytest.approx(1.0, abs=1e-15)
        assert chances[: row.size] == pytest.approx(plain, abs=1e-15)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", BAD)
def test_what_is_none_passes_no_door(name: str, door: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"probabilit(y|ies) .*(sum to|must be)"):
        door(BAD[name], tmp_path)


def test_rows_that_were_mended_are_counted(tmp_path: Path) -> None:
    for door in (by_arrays, by_npz, by_hdf5):
        found = door(GOOD["float32 of many"], tmp_path)
        told = "40 rows of float32 probabilities divided by their sums"
        assert found.summary.endswith(told)
        assert "divided" not in door(GOOD["exact"], tmp_path).summary


@pytest.mark.parametrize("name", [*GOOD, *BAD])
def test_start_distributions_have_the_same_tolerance(name: str) -> None:
    row = {**GOOD, **BAD}[name]
    size = max(row.size, 2)
    padded = np.zeros(size, row.dtype)
    padded[: row.size] = row
    given = arrays(np.array([1.0]), size)

    def starts() -> Environment:
        return explicit_model("starts", *given.values(), None, padded)

    if name in BAD:
        with pytest.raises(ModelError, match="start probabilit"):
            starts()
        return
    found = starts()
    total = sum(found.start(i, found.params)[0] for i in range(found.n_starts))
    assert total == pytest.approx(1.0, abs=TOLERANCE)


def first_of_array(i, params):  # type: ignore[no-untyped-def]
    return params[0][i], i


def stays(state, action, i, params):  # type: ignore[no-untyped-def]
    return 1.0, state, 0.0, False


@pytest.mark.parametrize("name", [*GOOD, *BAD])
def test_so_have_those_of_laws(name: str) -> None:
    row = {**GOOD, **BAD}[name]
    if row.dtype == np.float16:
        pytest.skip("laws take no float16")
    fields = {"n_states": max(row.size, 2), "n_outcomes": 1, "outcome": stays, "params": (row,)}
    if name in BAD:
        with pytest.raises(ModelError, match="probabilit"):
            law(**fields, n_starts=row.size, start=first_of_array)
        return
    found = law(**fields, n_starts=row.size, start=first_of_array)
    total = sum(found.start(i, found.params)[0] for i in range(found.n_starts))
    assert total == pytest.approx(1.0, abs=TOLERANCE)


@pytest.mark.parametrize("name", ["a negative zero of rounding", "both", "float32 of many"])
def test_the_guard_lets_them_pass_as_well(name: str) -> None:
    from dataclasses import replace

    row = GOOD[name]
    found = guarded(replace(by_law(row, Path()), trusted=False))
    bits = np.random.default_rng(0).integers(0, 2**64, 200, np.uint64)
    with np.errstate(over="ignore"):
        for word in bits:
            found.law_step(np.uint64(0), np.uint64(0), word, found.params)
    assert not found.params[2].any()


def sized(i, params):  # type: ignore[no-untyped-def]
    return params[0], i


def test_uniform_starts_are_looked_at_for_their_sum_however_many_they_are() -> None:
    n = 2 * 10**9
    fields = {"n_states": n, "n_outcomes": 1, "outcome": stays, "start": sized, "n_starts": n,
              "uniform_starts": True}  # fmt: skip
    with pytest.raises(ModelError, match="uniform_starts"):
        from_object(_bare(**fields, params=(1e-9,)), EnvConfig())
    assert from_object(_bare(**fields, params=(1 / n,)), EnvConfig()).n_starts == n


def _bare(**fields: Any) -> type:
    fields = {"n_actions": 1, **fields}
    for name in ("outcome", "start"):
        fields[name] = staticmethod(fields[name])
    return type("Bare", (), fields)


def test_the_tolerance_is_that_of_the_digits() -> None:
    assert tolerance_of(np.float64, 10**6) == tolerance_of(np.int32) == TOLERANCE
    assert 1e-7 < tolerance_of(np.float32) < 1e-5 < tolerance_of(np.float16) < 1e-1
    assert np.all(np.diff(tolerance_of(np.float32, np.array([1, 100, 10000]))) > 0)
