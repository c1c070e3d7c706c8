"""Logs of transitions as environments: against dictionaries, and each kind of bad file."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from distq_mpi import QLearning
from distq_mpi.config import EnvConfig
from distq_mpi.environments import make
from distq_mpi.errors import ModelError
from distq_mpi.preparation import build

N_STATES, N_ACTIONS = 6, 3


def log(n: int = 400, seed: int = 3) -> dict[str, np.ndarray]:
    """Rows of a random world; action 2 is never taken in state 1, state 5 is never acted in."""
    rng = np.random.default_rng(seed)
    state, action = rng.integers(0, 5, n), rng.integers(0, N_ACTIONS, n)
    action[(state == 1) & (action == 2)] = 0
    following = (state + action + rng.integers(0, 3, n)) % N_STATES
    return {
        "state": state, "action": action, "next_state": following,
        "reward": rng.normal(size=n) + action, "terminated": rng.random(n) < 0.1,
    }  # fmt: skip


def written(path: Path, rows: dict[str, Any]) -> str:
    if path.suffix == ".npz":
        np.savez(path, **rows)
    else:
        with h5py.File(path, "w") as file:
            for name, array in rows.items():
                file[name] = array
    return f"log:{path}"


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
def test_it_is_the_empirical_model(suffix: str, tmp_path: Path) -> None:
    rows = log()
    found = make(EnvConfig(id=written(tmp_path / f"log{suffix}", rows), kwargs={"unseen": -7.0}))
    assert (found.n_states, found.n_actions) == (N_STATES, N_ACTIONS)
    seen: dict[tuple[int, int], list[tuple[int, float, bool]]] = defaultdict(list)
    for s, a, r, new, ended in zip(*(rows[k].tolist() for k in (
        "state", "action", "reward", "next_state", "terminated",
    )), strict=True):  # fmt: skip
        seen[s, a].append((new, r, ended or new == 5))
    for s in range(N_STATES):
        for a in range(N_ACTIONS):
            n = int(found.outcomes(s, a, found.params))
            outcomes = [found.outcome(s, a, i, found.params) for i in range(n)]
            if (s, a) not in seen:
                worth = 0.0 if s == 5 else -7.0
                assert outcomes == [(1.0, s, worth, True)]
                continue
            of_pair = seen[s, a]
            assert {(o[1], bool(o[3])) for o in outcomes} == {(new, e) for new, _, e in of_pair}
            for p, new, reward, ended in outcomes:
                same = [r for n2, r, e in of_pair if (n2, e) == (new, bool(ended))]
                assert p == pytest.approx(len(same) / len(of_pair), abs=1e-15)
                assert reward == pytest.approx(np.mean(same), abs=1e-12)
    starts = dict(found.start(i, found.params)[::-1] for i in range(found.n_starts))
    for s in range(5):
        assert starts[s] == pytest.approx(np.mean(rows["state"] == s), abs=1e-12)


def endless() -> dict[str, Any]:
    """Work in two states that goes on at -1 a step, one action tried in each."""
    return {
        "state": [0, 1] * 5, "action": [0, 1] * 5, "reward": [-1.0] * 10,
        "next_state": [0, 1] * 5, "terminated": [False] * 10,
    }  # fmt: skip


@pytest.mark.parametrize("discount", [0.0, 0.9, 0.9999, 0.999999])
def test_what_was_never_tried_is_never_learned(discount: float, tmp_path: Path) -> None:
    id = written(tmp_path / "log.npz", endless())
    model = QLearning(id, seed=0, discount=discount, lanes=8).learn(20_000)
    assert model.q_values.argmax(axis=1).tolist() == [0, 1]


@pytest.mark.parametrize("seed", range(8))
def test_what_was_never_tried_is_worth_less_than_anything_tried(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    rows = log(25, seed)
    low, high = [(-3, -1), (-1, 1), (1, 2), (0, 0)][seed % 4]
    rows["reward"] = rng.uniform(low, high, 25)
    rows["next_state"] = rng.choice(rows["state"], 25)  # nothing is only arrived at
    tried = np.zeros((5, N_ACTIONS), bool)
    tried[rows["state"], rows["action"]] = True
    for discount in (0.0, 0.5, 0.99, 0.99999):
        id = written(tmp_path / "log.npz", rows)
        env = EnvConfig(id=id, kwargs={"n_states": 5, "n_actions": N_ACTIONS})
        values = optimal(build(env, discount=discount), discount)
        for s in np.flatnonzero(tried.any(axis=1)):
            assert tried[s, values[s].argmax()], (seed, discount, s)
    if low < 0:  # another discount, another model
        assert len({build(env, discount=discount).model_id for discount in (0.9, 0.99)}) == 2


def optimal(environment: Any, discount: float) -> np.ndarray:
    """Q* (S, A), by policy iteration with dense solves."""
    n, m, params = environment.n_states, environment.n_actions, environment.params
    moves, pays = np.zeros((n, m, n)), np.zeros((n, m))
    for s in range(n):
        for a in range(m):
            for i in range(environment.outcomes(s, a, params)):
                p, new, reward, ended = environment.outcome(s, a, i, params)
                pays[s, a] += p * reward
                moves[s, a, new] += 0.0 if ended else p
    policy = np.zeros(n, int)
    while True:
        at = np.arange(n), policy
        v = np.linalg.solve(np.eye(n) - discount * moves[at], pays[at])
        q = pays + discount * moves @ v
        better = q.argmax(axis=1)
        if np.all(q[np.arange(n), better] <= q[at] + 1e-9 * np.abs(v).max()):
            return q
        policy = better


def test_where_no_discount_is_known_an_untried_action_is_still_the_worst(tmp_path: Path) -> None:
    found = make(EnvConfig(id=written(tmp_path / "log.npz", log())))
    ((_, _, worst, ended),) = [found.outcome(1, 2, 0, found.params)]
    least, most = log()["reward"].min(), np.abs(log()["reward"]).max()
    assert ended and worst == pytest.approx(1e6 * least - most) and least < 0


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"n_states": "x"}, "n_states must be a whole number from 0 to 2147483647, not 'x'"),
        ({"n_states": 2.5}, "n_states must be a whole number"),
        ({"n_states": -5}, "n_states must be a whole number"),
        ({"n_actions": True}, "n_actions must be a whole number"),
        ({"unseen": "x"}, "unseen must be a finite number, not 'x'"),
        ({"unseen": True}, "unseen must be a finite number"),
        ({"max_episode_steps": False}, "max_episode_steps must be a whole number"),
        ({"n_states": 2**30, "n_actions": 3}, "the limit is 2,147,483,647"),
    ],
)
def test_arguments_that_cannot_be_are_refused(
    kwargs: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError) as told:
        make(EnvConfig(id=written(tmp_path / "log.npz", log()), kwargs=kwargs))
    assert message in str(told.value)


@pytest.mark.parametrize(
    ("states", "n"),
    [([10**12, 5], "1,000,000,000,001"), ([2**62, 5], f"{2**62 + 1:,}"),
     (np.array([2**63 + 5, 0], np.uint64), f"{2**63 + 6:,}")],
)  # fmt: skip
def test_states_far_apart_are_refused_with_their_number(
    states: Any, n: str, tmp_path: Path
) -> None:
    rows = {"state": states, "action": [0, 0], "reward": [0.0, 1.0], "next_state": states[::-1],
            "terminated": [False, True]}  # fmt: skip
    with pytest.raises(ModelError, match=f"{n} states x 1 actions"):
        make(EnvConfig(id=written(tmp_path / "far.npz", rows)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reward": None}, "is no log: it lacks reward"),
        ({"state": np.zeros(3, int)}, "must be an array"),
        ({"action": np.full(400, 0.5)}, "action must be an array (400,) of integers"),
        ({"action": np.r_[np.zeros(399, int), -1]}, "action of row 399 is -1"),
        ({"reward": np.r_[np.nan, np.zeros(399)]}, "reward of row 0 is nan; it must be finite"),
        ({"terminated": np.r_[np.zeros(399, int), 2]}, "terminated of row 399 is 2; it must be 0"),
        ({"terminated": np.r_[-1, np.zeros(399, int)]}, "terminated of row 0 is -1; it must be 0"),
    ],
)
def test_bad_logs_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    rows = {k: v for k, v in {**log(), **change}.items() if v is not None}
    with pytest.raises(ModelError) as told:
        make(EnvConfig(id=written(tmp_path / "log.npz", rows)))
    assert message in str(told.value)


def test_too_few_states_and_no_file_are_refused(tmp_path: Path) -> None:
    id = written(tmp_path / "log.npz", log())
    with pytest.raises(ModelError, match="must be 0 to 3"):
        make(EnvConfig(id=id, kwargs={"n_states": 4}))
    with pytest.raises(ModelError, match="there is no file"):
        make(EnvConfig(id="log:nowhere.npz"))


def test_a_log_beyond_memory_is_refused_with_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = written(tmp_path / "log.npz", log())

    def beyond(*_: Any, **__: Any) -> Any:
        return np.zeros(2**57)

    monkeypatch.setattr(np, "bincount", beyond)
    with pytest.raises(ModelError, match="does not fit into memory: Unable to allocate 1.00 EiB"):
        build(EnvConfig(id=id))
