"""Models in HDF5 and npz files and as sparse matrices: what goes in comes out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from scipy import sparse

from distq_mpi.config import EnvConfig
from distq_mpi.environments import Environment, make, read_model, sparse_model, write_model
from distq_mpi.environments.explicit import explicit_model
from distq_mpi.errors import FileError, ModelError
from tests.stand_in import random_model

MODEL: dict[str, Any] = {
    "n_states": 2, "n_actions": 1, "indptr": [0, 2, 3], "indices": [0, 1, 0],
    "probability": [0.5, 0.5, 1.0], "reward": [0.0, 1.0, -2.0],
    "terminated": [False, True, False], "start": [1.0, 0.0], "max_episode_steps": 9,
}  # fmt: skip


def made(id: str | Path, **kwargs: Any) -> Environment:
    return make(EnvConfig(id=str(id), kwargs=kwargs))


def same(a: Environment, b: Environment) -> bool:
    arrays = zip(a.params, b.params, strict=True)
    return a.model_id == b.model_id and all(np.array_equal(x, y) for x, y in arrays)


# ---- HDF5 and npz


@pytest.mark.parametrize("suffix", [".npz", ".h5", ".hdf5"])
def test_a_model_comes_back_bit_for_bit(tmp_path: Path, suffix: str) -> None:
    for model in (random_model(40, 3), made("garnet", states=30, actions=2, branching=4),
                  made("FrozenLake-v1")):  # fmt: skip
        path = tmp_path / f"model{suffix}"
        write_model(path, model)
        again = read_model(str(path))
        assert same(model, again) and again.max_episode_steps == model.max_episode_steps
        assert same(made(path), model)
    assert [entry.name for entry in tmp_path.iterdir()] == [f"model{suffix}"]


def hdf5(path: Path, as_attributes: bool = False, **changes: Any) -> Path:
    values = {**MODEL, **changes}
    with h5py.File(path, "w") as file:
        for name, value in values.items():
            if value is None:
                continue
            if as_attributes and np.ndim(value) == 0:
                file.attrs[name] = value
            else:
                file[name] = value
    return path


def expected() -> Environment:
    return explicit_model(
        "m", 2, 1, [0, 2, 3], [0, 1, 0], [0.5, 0.5, 1.0], [0.0, 1.0, -2.0], [0, 1, 0], [1.0, 0.0],
        max_episode_steps=9,
    )  # fmt: skip


@pytest.mark.parametrize("as_attributes", [False, True])
def test_sizes_are_scalars_or_attributes(tmp_path: Path, as_attributes: bool) -> None:
    path = hdf5(tmp_path / "m.h5", as_attributes)
    assert same(made(path), expected())
    assert made(path, max_episode_steps=3).max_episode_steps == 3


def test_compressed_chunked_and_foreign_types_are_read(tmp_path: Path) -> None:
    path = tmp_path / "m.hdf5"
    with h5py.File(path, "w") as file:
        file.attrs["title"] = "attributes that say something else are left alone"
        for name in ("n_states", "n_actions", "max_episode_steps"):
            file.attrs[name] = np.uint16(MODEL[name])
        options: dict[str, Any] = {"chunks": (2,), "shuffle": True, "fletcher32": True}
        file.create_dataset("indptr", data=np.array([0, 2, 3], ">i4"), compression=9, **options)
        file.create_dataset("indices", data=np.array([0, 1, 0], "u1"), compression="lzf", **options)
        for name, dtype in (("probability", "f4"), ("reward", "i2"), ("terminated", "?"),
                            ("start", "<f8")):  # fmt: skip
            file.create_dataset(name, data=np.array(MODEL[name], dtype), **options)
    assert same(made(path), expected())


def test_optional_arrays_may_be_missing(tmp_path: Path) -> None:
    env = made(hdf5(tmp_path / "m.h5", terminated=None, start=None, max_episode_steps=None))
    assert env.n_starts == 2 and env.max_episode_steps == 0
    assert env.outcome(0, 0, 1, env.params) == (0.5, 1, 1.0, False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"indptr": None, "reward": None}, "is not a model: it lacks indptr, reward"),
        ({"rewards": [1.0]}, "an array 'rewards' has no meaning in a model"),
        ({"starts": [1.0]}, "did you mean start?"),
        ({"n_states": [1, 2]}, "n_states must be one integer"),
        ({"n_states": 2.0}, "n_states must be one integer"),
        ({"n_states": "two"}, "n_states holds object, not numbers"),
        ({"reward": ["a", "b", "c"]}, "reward holds object, not numbers"),
        ({"reward": np.array([b"a", b"b", b"c"])}, "reward holds .S1, not numbers"),
        ({"reward": [np.nan, 0.0, 0.0]}, "state 0, action 0: reward nan must be finite"),
        ({"probability": [0.5, 0.4, 1.0]}, "state 0, action 0: the probabilities sum to 0.9"),
        ({"indices": [0, 2, 0]}, r"next state 2 is not in 0\.\.1"),
        ({"indptr": [0, 3]}, "indptr has 2 numbers"),
        ({"start": [0.5, 0.4]}, "start probabilities sum to 0.9"),
        ({"max_episode_steps": -1}, "max_episode_steps must be a whole number"),
    ],
)
def test_hdf5_that_is_no_model_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = hdf5(tmp_path / "m.h5", **changes)
    with pytest.raises(ModelError, match=message):
        made(path)


def test_links_groups_and_foreign_storage_are_refused(tmp_path: Path) -> None:
    secret = hdf5(tmp_path / "other.h5")
    raw = tmp_path / "raw"
    np.array(MODEL["reward"]).tofile(raw)
    layout = h5py.VirtualLayout((3,), "f8")
    layout[:] = h5py.VirtualSource(str(secret), "reward", (3,))
    told = {
        "soft": "reward is a link", "external": "reward is a link", "group": "reward is a group",
        "virtual": "reward is stored in other files", "raw": "reward is stored in other files",
        "filter": "reward is compressed by",
    }  # fmt: skip
    for kind, message in told.items():
        path = hdf5(tmp_path / f"{kind}.h5", reward=None)
        with h5py.File(path, "a") as file:
            if kind == "soft":
                file["reward"] = h5py.SoftLink("/probability")
            elif kind == "external":
                file["reward"] = h5py.ExternalLink(str(secret), "/reward")
            elif kind == "group":
                file.create_group("reward")
            elif kind == "virtual":
                file.create_virtual_dataset("reward", layout)
            elif kind == "raw":
                file.create_dataset("reward", (3,), "f8", external=[(str(raw), 0, 24)])
            else:
                plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
                plist.set_chunk((3,))
                plist.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, (1,))
                space = h5py.h5s.create_simple((3,))
                h5py.h5d.create(file.id, b"reward", h5py.h5t.IEEE_F64LE, space, plist)
        with pytest.raises(ModelError, match=message):
            made(path)


def test_hdf5_files_missing_foreign_and_cut_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"there is no file .*none\.h5"):
        made(tmp_path / "none.h5")
    whole = hdf5(tmp_path / "whole.h5").read_bytes()
    for name, data in (("text", b"hello"), ("empty", b""), ("cut", whole[: len(whole) // 2])):
        path = tmp_path / f"{name}.h5"
        path.write_bytes(data)
        with pytest.raises(ModelError, match=f"{name}.h5 is (neither|truncated|damaged)"):
            made(path)


def test_only_explicit_models_are_written_and_only_under_known_names(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="grid is a law, not a table of transitions"):
        write_model(tmp_path / "m.npz", made("grid", rows=2, columns=2))
    with pytest.raises(ModelError, match=r"must end in \.npz, \.h5, \.hdf5"):
        write_model(tmp_path / "m.mat", expected())
    with pytest.raises(FileError, match="cannot write"):
        write_model(tmp_path / "nowhere" / "m.npz", expected())


# ---- one matrix per action

P0 = np.array([[0.0, 1.0, 0.0], [0.0, 0.3, 0.7], [0.0, 0.0, 1.0]])
P1 = np.array([[1.0, 0.0, 0.0], [0.2, 0.0, 0.8], [0.0, 0.0, 1.0]])
R = np.array([[-1.0, -2.0], [3.0, 4.0], [0.0, 0.0]])


def by_hand(ends: bool = False, start: Any = None) -> Environment:
    """The model of P0, P1 and R, row by row as it is stored."""
    return explicit_model(
        "m", 3, 2, [0, 1, 2, 4, 6, 7, 8], [1, 0, 1, 2, 0, 2, 2, 2],
        [1.0, 1.0, 0.3, 0.7, 0.2, 0.8, 1.0, 1.0], [-1.0, -2.0, 3.0, 3.0, 4.0, 4.0, 0.0, 0.0],
        [0, 0, 0, ends, 0, ends, ends, ends], start,
    )  # fmt: skip


@pytest.mark.parametrize("form", ["csr", "csc", "coo", "lil", "dok", "dia", "bsr", "dense"])
def test_matrices_of_any_format_are_the_model_they_hold(form: str) -> None:
    matrices = [p if form == "dense" else sparse.coo_array(p).asformat(form) for p in (P0, P1)]
    assert same(sparse_model(matrices, R), by_hand())
    assert same(sparse_model(np.array([P0, P1]), R.tolist()), by_hand())


def test_old_matrix_classes_duplicates_and_unsorted_rows() -> None:
    unsorted = sparse.csr_matrix(
        ([1.0, 0.5, 0.3, 0.2, 1.0], [1, 2, 1, 2, 2], [0, 1, 4, 5]), shape=(3, 3)
    )
    before = unsorted.indices.copy(), unsorted.data.copy()
    assert same(sparse_model([unsorted, sparse.csr_matrix(P1)], R), by_hand())
    assert np.array_equal(unsorted.indices, before[0]) and np.array_equal(unsorted.data, before[1])


def test_rewards_per_state_and_per_transition() -> None:
    state_rewards = sparse_model([P0, P1], [5.0, 6.0, 7.0])
    assert same(state_rewards, sparse_model([P0, P1], np.array([[5, 5], [6, 6], [7, 7]])))
    # Reward is given where nothing leads (0, 2), and missing where something does (1, 0).
    paid = np.array([[0.0, 1.0, 9.0], [0.0, 2.0, 3.0], [0.0, 0.0, 4.0]])
    env = sparse_model([P0, P1], [sparse.csr_array(paid), sparse.csc_array(paid)])
    assert [env.outcome(1, a, i, env.params)[:3] for a in (0, 1) for i in (0, 1)] == [
        (0.3, 1, 2.0), (0.7, 2, 3.0), (0.2, 0, 0.0), (0.8, 2, 3.0)
    ]  # fmt: skip
    assert same(sparse_model([P0, P1], np.array([paid, paid])), env)
    same_pattern = [sparse.csr_array((p != 0) * 2.0) for p in (P0, P1)]
    assert same(sparse_model([P0, P1], same_pattern), sparse_model([P0, P1], np.full((3, 2), 2.0)))
    empty = [sparse.csr_array((3, 3))] * 2
    assert same(sparse_model([P0, P1], empty), sparse_model([P0, P1], np.zeros(3)))


def test_flagged_states_end_the_episode_and_begin_none() -> None:
    flagged = sparse_model([P0, P1], R, terminated=[False, False, True])
    assert same(flagged, by_hand(True, [0.5, 0.5, 0.0]))
    assert "absorb" not in flagged.summary
    empty = [sparse.csr_array(np.vstack([p[:2], np.zeros(3)])) for p in (P0, P1)]
    assert same(sparse_model(empty, R, terminated=[0, 0, 1]), flagged)
    start = [1.0, 0.0, 0.0]
    assert same(sparse_model(empty, R, start, [0, 0, 1]), by_hand(True, start))


def test_absorbing_states_without_an_end_are_told_of() -> None:
    assert sparse_model([P0, P1], R).summary.endswith(
        "1 states absorb and end no episode (give terminated or max_episode_steps)"
    )
    assert "absorb" not in sparse_model([P0, P1], R, max_episode_steps=50).summary


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], R), "at least one action"),
        (([P0, P1[:2]], R), r"transitions\[1\] has the shape \(2, 3\), not \(3, 3\)"),
        (([P0[0], P1], R), r"transitions\[0\] must be a matrix"),
        (([P0 * 1j, P1], R), r"transitions\[0\] must hold numbers, not complex"),
        (([P0, P1 * 0.5], R), "state 0, action 1: the probabilities sum to 0.5, not 1 .and so"),
        (([P0, np.eye(3) - P1], R), "state 0, action 1: no transition"),
        (([P0, -P1], R), "state 0, action 1: probability -1.0 must be finite and not negative"),
        (([P0, P1], R.T), r"rewards must be numbers of shape \(3, 2\) or \(3,\), or 2 matrices"),
        (([P0, P1], [P0]), "rewards are 1 matrices for 2 actions"),
        (([P0, P1], [P0, P1[:2]]), r"rewards\[1\] has the shape \(2, 3\)"),
        (([P0, P1], R * np.nan), "state 0, action 0: reward nan must be finite"),
        (([P0, P1], R, [0.5, 0.5]), "start has 2 numbers for 3 states"),
        (([P0, P1], R, None, [True]), "terminated must be 3 booleans, one per state"),
        (([P0, P1], R, None, [0, 2, 0]), "terminated must hold 0 and 1 only"),
        (([P0, P1], R, None, [0, 1, 1]), "state 1 ends the episode, so its reward 3 would never"),
        (([P0, P1], R * 0, None, [1, 1, 1]), "every state is terminated"),
        (([P0, P1], R, [0, 0, 1.0], [0, 0, 1]), "state 2 is terminated, so no episode can start"),
    ],
)
def test_matrices_that_are_no_model_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        sparse_model(*arguments)


def test_many_random_matrices_against_dense_arithmetic() -> None:
    rng = np.random.default_rng(3)
    for n_states, n_actions in ((1, 1), (7, 3), (40, 2)):
        dense = rng.random((n_actions, n_states, n_states))
        dense[dense < 0.6] = 0.0
        dense[:, :, 0] += 0.1
        dense /= dense.sum(axis=2, keepdims=True)
        paid = rng.normal(size=dense.shape)
        env = sparse_model([sparse.csc_array(p) for p in dense], paid)
        value, discount = rng.normal(size=n_states), 0.9
        wanted = np.einsum("asn,asn->sa", dense, paid + discount * value)
        for s in range(n_states):
            for a in range(n_actions):
                found = [
                    env.outcome(s, a, i, env.params) for i in range(env.outcomes(s, a, env.params))
                ]
                assert sum(p * (r + discount * value[new]) for p, new, r, _ in found) == (
                    pytest.approx(wanted[s, a], abs=1e-12)
                )


# ---- one file per action


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for a, p in enumerate((P0, P1)):
        sparse.save_npz(f"P_{a}.npz", sparse.csc_matrix(p))
        sparse.save_npz(f"R_{a}.npz", sparse.coo_array(np.outer(R[:, a], np.ones(3))))
    np.save("R.npy", R)
    np.save("ends.npy", np.array([False, False, True]))
    np.save("start.npy", np.array([1.0, 0.0, 0.0]))
    return tmp_path


def test_files_of_scipy_are_the_model_they_hold(folder: Path) -> None:
    for reward in ("R.npy", "R_{action}.npz"):
        assert same(made("P_{action}.npz", reward=reward), by_hand())
        env = made(
            f"{folder}/P_{{action}}.npz", reward=reward, start="start.npy", terminated="ends.npy"
        )
        assert same(env, by_hand(True, [1.0, 0.0, 0.0]))
    assert made("P_{action}.npz", reward="R.npy", max_episode_steps=7).max_episode_steps == 7


def test_files_that_are_no_model_are_refused(folder: Path) -> None:
    sparse.save_npz("Q_0.npz", sparse.csr_array(P0))
    sparse.save_npz("Q_2.npz", sparse.csr_array(P1))
    sparse.save_npz("W_0.npz", sparse.csr_array(P0))
    np.savez("Z_0.npz", a=1)
    (folder / "Y_0.npz").write_bytes(b"PK nothing")
    bad = sparse.csc_array(P0)
    np.savez("X_0.npz", format=b"csc", shape=(3, 3), data=bad.data, indptr=bad.indptr,
             indices=bad.indices + 1_000_000, _is_array=True)  # fmt: skip
    np.save("pickled.npy", np.array([{}]), allow_pickle=True)
    for id, kwargs, message in (
        ("P_{action}.npz", {}, "missing a required argument: 'reward'"),
        ("P_{action}.npz", {"reward": 1.0}, "env.kwargs.reward must be the name of a file"),
        ("P_{action}.npz", {"reward": "R.npy", "start": 2}, "env.kwargs.start must be the name"),
        ("P_{action}.npz", {"reward": "none.npy"}, r"cannot read none\.npy"),
        ("P_{action}.npz", {"reward": "pickled.npy"}, r"pickled\.npy is not an npy file"),
        ("P_{action}.npz", {"reward": "Q_{action}.npz"}, r"no file Q_1\.npz, though there is Q_2"),
        ("P_{action}.npz", {"reward": "W_{action}.npz"}, "are 1 files, and P_{action}.npz 2"),
        ("N_{action}.npz", {"reward": "R.npy"}, r"there is no file N_0\.npz"),
        ("Z_{action}.npz", {"reward": "R.npy"}, r"Z_0\.npz is not a matrix written by"),
        ("Y_{action}.npz", {"reward": "R.npy"}, r"Y_0\.npz is not a matrix written by"),
        ("X_{action}.npz", {"reward": "R.npy"}, r"X_0\.npz is not a matrix written by"),
        ("P_0.npz", {}, "is one sparse matrix of scipy, not a model"),
    ):  # fmt: skip
        with pytest.raises(ModelError, match=message):
            made(id, **kwargs)


def test_without_scipy_the_extra_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ModelError, match=r"pip install 'distq_mpi\[mdp\]'"):
        made("P_{action}.npz", reward="R.npy")
