"""Explicit models: alias tables, sampling, merging, identity, files, garnet, refusals."""


import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distq_mpi.config import EnvConfig
from distq_mpi.environments import explicit_model, make, starts
from distq_mpi.environments.alias import alias_tables
from distq_mpi.errors import ModelError

u8 = np.uint64


def model(**changes):
    """Two states, two actions; (1, 1) ends; (0, 0) has a duplicate and an impossible entry."""
    arrays = {
        "indptr": [0, 4, 5, 6, 7],
        "indices": [1, 0, 1, 0, 0, 1, 0],
        "probability": [0.25, 0.5, 0.25, 0.0, 1.0, 1.0, 1.0],
        "reward": [2.0, -1.0, 2.0, 9.0, 0.5, 0.0, 3.0],
        "terminated": [False, False, False, True, False, False, True],
        "start_distribution": [0.75, 0.25],
        **changes,
    }
    sizes = {"n_states": arrays.pop("n_states", 2), "n_actions": arrays.pop("n_actions", 2)}
    return explicit_model("small", **sizes, **arrays)


def probabilities(tables, indptr):
    """Invert alias tables: what each entry is drawn with."""
    result = np.zeros(indptr[-1])
    for low, high in zip(indptr[:-1], indptr[1:], strict=True):
        n = high - low
        for i in range(n):
            own = int(tables[low + i]) >> 32
            other = int(tables[low + i]) & 0xFFFFFFFF
            assert other < n
            result[low + i] += own / 2**32 / n
            result[low + other] += (1 - own / 2**32) / n
    return result


@given(st.lists(st.lists(st.floats(1e-12, 1.0), min_size=1, max_size=40), min_size=1, max_size=8))
def test_alias_tables_reproduce_every_row(rows):
    rows = [np.array(row) / np.sum(row) for row in rows]
    indptr = np.cumsum([0, *map(len, rows)])
    drawn = probabilities(alias_tables(indptr, np.concatenate(rows)), indptr)
    np.testing.assert_allclose(drawn, np.concatenate(rows), rtol=0, atol=2.0**-31)


def test_alias_of_certain_and_uniform_entries_never_leaves_the_slot():
    tables = alias_tables(np.array([0, 1, 6]), np.array([1.0, *[0.2] * 5]))
    assert [int(t) & 0xFFFFFFFF for t in tables] == [0, 0, 1, 2, 3, 4]


def test_duplicates_merge_and_impossible_entries_go():
    env = model()
    assert env.n_transitions == 5
    assert [int(env.outcomes(s, a, env.params)) for s in (0, 1) for a in (0, 1)] == [2, 1, 1, 1]
    assert env.outcome(0, 0, 0, env.params) == (0.5, 0, -1.0, False)
    assert env.outcome(0, 0, 1, env.params) == (0.5, 1, 2.0, False)
    assert env.outcome(1, 1, 0, env.params) == (1.0, 0, 3.0, True)
    assert [env.start(i, env.params) for i in range(env.n_starts)] == [(0.75, 0), (0.25, 1)]


def test_equal_next_states_with_other_rewards_or_ends_stay_apart():
    env = explicit_model("one", 1, 1, [0, 3], [0, 0, 0], [0.2, 0.3, 0.5], [1, 1, 2], [0, 1, 0])
    kept = {env.outcome(0, 0, i, env.params) for i in range(3)}
    assert kept == {(0.2, 0, 1.0, False), (0.3, 0, 1.0, True), (0.5, 0, 2.0, False)}


def test_params_are_the_promised_arrays():
    env = model()
    assert [(p.dtype.str, p.shape) for p in env.params] == [
        ("<i8", (5,)), ("<u8", (10,)), ("<f8", (5,)), ("<f8", (5,)),
        ("<u8", (2,)), ("<u8", (2,)), ("<f8", (2,)), ("<i8", (3,)),
    ]
    assert all(p.flags.c_contiguous for p in env.params)


def test_steps_are_drawn_with_the_probabilities_of_the_table():
    chances = np.array([0.4, 0.05, 0.3, 0.2, 0.05])
    env = explicit_model(
        "wide", 5, 1, np.arange(6) * 5, np.tile(np.arange(5), 5), np.tile(chances, 5),
        np.arange(25.0), np.tile([False, True], 13)[:25],
    )
    n = 2000
    for state in range(5):
        counts = np.zeros(5)
        for k in range(n):
            # Equidistant draws: each slot and each side of its threshold is one interval of them.
            bits = u8(((2 * k + 1) * 2**31 // n) << 32 | k)
            new, reward, terminated = env.law_step(u8(state), u8(0), bits, env.params)
            assert type(new) is np.uint64
            assert reward == 5 * state + int(new)
            assert terminated == ((5 * state + int(new)) % 2 == 1)
            counts[int(new)] += 1
        np.testing.assert_allclose(counts, n * chances, atol=10)


def test_step_ignores_the_low_bits():
    env = model()
    for high in (0, 2**31 - 1, 2**31, 2**32 - 1):
        low, full = u8(high << 32), u8(high << 32 | 0xFFFFFFFF)
        assert env.law_step(u8(0), u8(0), low, env.params) == env.law_step(
            u8(0), u8(0), full, env.params
        )


def test_starts_are_drawn_with_the_start_distribution():
    expected = np.array([0.1, 0.0, 0.4, 0.2, 0.3])
    env = explicit_model("still", 5, 1, range(6), range(5), [1.0] * 5, [0.0] * 5, None, expected)
    n = 20_000
    draws = np.random.Philox(5).random_raw(n)
    counts = np.bincount([int(env.law_start(bits, env.params)) for bits in draws], minlength=5)
    assert counts[1] == 0
    seen = expected > 0
    chi_square = np.sum((counts[seen] - n * expected[seen]) ** 2 / (n * expected[seen]))
    assert chi_square < 16.27  # the 0.999 quantile at 3 degrees of freedom


def test_all_of_many_states_begin_as_often():
    """Of 5e7 states 32 bits would begin in some 1.2 % more often than in others."""
    n = 50_000_000
    params = (*(np.zeros(0),) * 7, np.array([n, 1, 0]))
    for state in (1, 12_345_678, n - 1):
        border = -(-(state << 64) // n)  # the first word that begins there
        with np.errstate(over="ignore"):
            found = [int(starts.law_start_uniform(u8(border + k), params)) for k in (-1, 0)]
        assert found == [state - 1, state]


def test_many_starts_and_many_outcomes_are_chosen_by_all_bits():
    n, chances = 70_000, np.tile([1.0, 3.0], 35_000) / 140_000
    env = explicit_model(
        "jump", n, 1, [0, *np.arange(n, 2 * n)], [*range(n), *range(n - 1)],
        [*chances, *[1.0] * (n - 1)], np.zeros(2 * n - 1), None, chances,
    )  # fmt: skip
    for word in np.random.default_rng(3).integers(0, 2**64, 200, dtype=u8):
        slot, rest = divmod(int(word) * n, 2**64)
        with np.errstate(over="ignore"):
            begun = int(env.law_start(word, env.params))
            led = int(env.law_step(u8(0), u8(0), word, env.params)[0])
        for alias, found in ((env.params[5][slot], begun), (env.params[1][2 * slot], led)):
            threshold, other = divmod(int(alias), 2**32)
            assert found == (slot if rest >> 32 < threshold else other)


def test_one_start_needs_no_draw():
    env = model(start_distribution=[0.0, 1.0])
    assert env.n_starts == 1
    assert {int(env.law_start(u8(b), env.params)) for b in (0, 2**63, 2**64 - 1)} == {1}


def test_no_start_distribution_means_uniform():
    env = model(start_distribution=None)
    assert [env.start(i, env.params) for i in range(env.n_starts)] == [(0.5, 0), (0.5, 1)]


def test_return_bound_only_where_positive_rewards_end_the_episode():
    assert model().return_bound is None
    assert model(reward=[-2.0, -1.0, -2.0, 9.0, 0.0, 0.0, 3.0]).return_bound == 3.0
    assert model(reward=[-2.0, -1.0, -2.0, 9.0, 0.0, 0.0, -3.0]).return_bound == 0.0


def test_deterministic_is_read_off_the_table():
    assert not model().deterministic
    assert model(probability=[0.5, 0.0, 0.5, 0.0, 1.0, 1.0, 1.0]).deterministic


def test_model_id_depends_on_the_model_not_on_how_it_was_written():
    same = model(
        indptr=[0, 2, 3, 4, 5], indices=[1, 0, 0, 1, 0], probability=[0.5, 0.5, 1, 1, 1],
        reward=[2.0, -1.0, 0.5, 0, 3], terminated=[0, 0, 0, 0, 1],
    )
    assert same.model_id == model().model_id
    others = [
        model(probability=[0.25, 0.5 + 1e-12, 0.25, 0.0, 1.0, 1.0, 1.0]),
        model(reward=[2.0, -1.0, 2.0, 9.0, 0.5, 0.0, 3.5]),
        model(terminated=None),
        model(start_distribution=[0.5, 0.5]),
        model(max_episode_steps=7),
        model(n_states=1, n_actions=4, indices=[0] * 7, start_distribution=[1.0]),
    ]
    assert len({same.model_id, *(other.model_id for other in others)}) == 7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"probability": [0.25, 0.5, 0.2, 0, 1, 1, 1]},
         "small: state 0, action 0: the probabilities sum to 0.95, not 1"),
        ({"probability": [0.25, 0.5, 0.25, 0, 1, 1, 1 + 2e-9]}, "state 1, action 1: .* sum to"),
        ({"probability": [0.5, 0.75, -0.25, 0, 1, 1, 1]},
         "state 0, action 0: probability -0.25 must be finite and not negative"),
        ({"probability": [0.25, 0.5, 0.25, 0, np.nan, 1, 1]}, "state 0, action 1: probability nan"),
        ({"reward": [2, -1, 2, 9, 0.5, np.nan, 3]}, "state 1, action 0: reward nan must be finite"),
        ({"reward": [2, -1, 2, 9, 0.5, 0, np.inf]}, "state 1, action 1: reward inf"),
        ({"indices": [1, 0, 1, 0, 0, 2, 0]}, "state 1, action 0: next state 2 is not in 0..1"),
        ({"indices": [-1, 0, 1, 0, 0, 1, 0]}, "state 0, action 0: next state -1"),
        ({"indices": [1.0] * 7}, "indices must be a one-dimensional array of integers"),
        ({"indptr": [0, 4, 5, 7]}, "indptr has 4 numbers; 2 states x 2 actions need 5"),
        ({"indptr": [0, 4, 3, 6, 7]}, "state 0, action 1: indptr decreases"),
        ({"indptr": [0, 4, 5, 5, 7]}, "state 1, action 0: no transition"),
        ({"indptr": [0, 4, 5, 6, 8]}, "indptr must run from 0 to the 7 entries"),
        ({"reward": [1.0]}, "reward has 1 numbers and indices has 7"),
        ({"terminated": [2] * 7}, "terminated must hold 0 and 1 only"),
        ({"start_distribution": [0.5, 0.4]}, "start probabilities sum to 0.9, not 1"),
        ({"start_distribution": [1.5, -0.5]}, "start probability -0.5 of state 1"),
        ({"start_distribution": [1.0]}, "start has 1 numbers for 2 states"),
        ({"n_states": 0}, "at least one state"),
    ],
)
def test_what_is_no_decision_process_is_refused(changes, message):
    with pytest.raises(ModelError, match=message):
        model(**changes)


def npz(path, **changes):
    arrays = {
        "n_states": 2, "n_actions": 1, "indptr": [0, 2, 3], "indices": [0, 1, 0],
        "probability": [0.5, 0.5, 1.0], "reward": [0.0, 1.0, 0.0], **changes,
    }
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return str(path)


def test_file_gives_the_model_it_holds(tmp_path):
    path = npz(tmp_path / "m.npz", terminated=[False, True, False], start=[1.0, 0.0])
    env = make(EnvConfig(id=path, kwargs={"max_episode_steps": 9}))
    assert (env.n_states, env.n_actions, env.n_transitions) == (2, 1, 3)
    assert env.max_episode_steps == 9
    assert env.outcome(0, 0, 1, env.params) == (0.5, 1, 1.0, True)
    assert env.n_starts == 1
    assert env.return_bound == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"indptr": None, "reward": None}, "is not a model: it lacks indptr, reward"),
        ({"rewards": [1.0]}, "'rewards' has no meaning"),
        ({"n_states": [1, 2]}, "n_states must be one integer"),
        ({"indices": np.array([0, 1, None])}, "indices cannot be read: Object arrays"),
        ({"reward": [np.nan, 0, 0]}, "reward nan must be finite"),
        ({"start": [0.5, 0.4]}, "start probabilities sum to 0.9"),
    ],
)
def test_file_that_is_no_model_is_refused(tmp_path, changes, message):
    path = npz(tmp_path / "m.npz", **changes)
    with pytest.raises(ModelError, match=message):
        make(EnvConfig(id=path, kwargs={}))


def test_files_missing_foreign_and_cut_are_refused(tmp_path):
    missing = str(tmp_path / "none.npz")
    with pytest.raises(ModelError, match=r"there is no file .*none\.npz"):
        make(EnvConfig(id=missing, kwargs={}))
    text = tmp_path / "text.npz"
    text.write_text("hello")
    whole = npz(tmp_path / "whole.npz")
    cut = tmp_path / "cut.npz"
    with open(whole, "rb") as file:
        cut.write_bytes(file.read()[:200])
    single = tmp_path / "single.npz"
    with open(single, "wb") as file:
        np.save(file, np.zeros(3))
    for path in (text, cut, single):
        with pytest.raises(ModelError, match="is neither an npz nor an HDF5 file, or only"):
            make(EnvConfig(id=str(path), kwargs={}))


def garnet(**kwargs):
    return make(EnvConfig(id="garnet", kwargs={
        "states": 30, "actions": 3, "branching": 4, "seed": 1, **kwargs,
    }))


def test_garnet_has_its_shape():
    env = garnet()
    indptr, alias, reward, probability = env.params[:4]
    assert env.n_transitions == 30 * 3 * 4
    assert np.all(np.diff(indptr) == 4)
    following = (alias[1::2] >> u8(1)).astype(int).reshape(90, 4)
    assert np.all(np.diff(following, axis=1) > 0)
    assert not np.any(alias[1::2] & u8(1))
    by_pair = reward.reshape(90, 4)
    assert np.all(by_pair == by_pair[:, :1])
    assert np.unique(by_pair).size == 90
    assert np.all(reward == reward.astype(np.float32))
    np.testing.assert_allclose(probability.reshape(90, 4).sum(axis=1), 1.0, atol=1e-12)
    assert env.n_starts == 30
    assert env.return_bound is None


def test_garnet_next_states_are_uniform_sets():
    env = garnet(states=6, actions=2000, branching=3)
    following = (env.params[1][1::2] >> u8(1)).astype(int).reshape(-1, 3)
    sets, counts = np.unique(following @ [36, 6, 1], return_counts=True)
    assert sets.size == 20
    chi_square = np.sum((counts - 600.0) ** 2 / 600.0)
    assert chi_square < 43.8  # the 0.999 quantile at 19 degrees of freedom
    assert abs(env.params[3].mean() - 1 / 3) < 1e-9
    # The gaps of two uniform cuts have variance 1/18.
    assert abs(env.params[3].var() - 1 / 18) < 0.001


def test_garnet_is_its_seed():
    assert garnet().model_id == garnet().model_id
    assert garnet().model_id != garnet(seed=2).model_id
    dense = garnet(branching=30)
    assert dense.n_transitions == 90 * 30
    assert garnet(branching=1).deterministic


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"branching": 31}, "branching must be a whole number from 1 to 30, not 31"),
        ({"states": 2.5}, "states must be a whole number"),
        ({"actions": 0}, "actions must be a whole number from 1"),
        ({"seeds": 1}, "garnet takes no 'seeds'; did you mean seed?"),
        ({"states": 10**6, "branching": 10**5}, "300000000000 transitions; the limit is"),
    ],
)
def test_garnet_refuses(kwargs, message):
    with pytest.raises(ModelError, match=message):
        garnet(**kwargs)
