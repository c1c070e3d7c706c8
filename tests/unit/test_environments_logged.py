"""Logs of transitions as environments: against dictionaries, and each kind of bad file."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from distq_mpi.config import EnvConfig
from distq_mpi.environments import make
from distq_mpi.errors import ModelError

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


def test_what_was_never_tried_is_worth_less_than_anything_tried(tmp_path: Path) -> None:
    found = make(EnvConfig(id=written(tmp_path / "log.npz", log())))
    ((_, _, worst, ended),) = [found.outcome(1, 2, 0, found.params)]
    assert ended and worst == 1000 * log()["reward"].min() < 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reward": None}, "is no log: it lacks reward"),
        ({"state": np.zeros(3, int)}, "must be an array"),
        ({"action": np.full(400, 0.5)}, "action must be an array (400,) of integers"),
        ({"action": np.r_[np.zeros(399, int), -1]}, "action of row 399 is -1"),
        ({"reward": np.r_[np.nan, np.zeros(399)]}, "reward of row 0 is nan; it must be finite"),
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
