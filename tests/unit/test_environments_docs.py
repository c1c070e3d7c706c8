"""What the page for users shows must work as shown."""

import re
from pathlib import Path

from distq_mpi.config import EnvConfig
from distq_mpi.environments import make
from tests.driving import Learner
from tests.stand_in import config

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs/environments.md").read_text(), re.S)


def test_the_table_shown_is_a_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(BLOCKS[0], {})
    env = make(EnvConfig(id="rooms.npz", kwargs={}))
    assert (env.n_states, env.n_actions, env.n_transitions) == (2, 2, 6)
    assert env.outcome(1, 1, 0, env.params) == (0.9, 0, 5.0, True)


def test_the_matrices_shown_are_a_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    space = {}
    exec(BLOCKS[1], space)
    kwargs = {"reward": "R.npy", "terminated": "ends.npy"}
    env = make(EnvConfig(id="P_{action}.npz", kwargs=kwargs))
    assert (env.n_states, env.n_actions, env.n_starts) == (50, 2, 49)
    assert env.outcome(48, 1, 1, env.params) == (0.9, 49, -1.0, True)
    exec(BLOCKS[2], space)
    again = make(EnvConfig(id="corridor.h5", kwargs={}))
    assert again.model_id == space["model"].model_id == env.model_id


def test_the_log_shown_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(BLOCKS[3], {})
    env = make(EnvConfig(id="log:log.npz", kwargs={}))
    assert (env.n_states, env.n_actions, env.outcomes(1, 1, env.params)) == (2, 2, 1)
    assert env.outcome(1, 0, 0, env.params) == (1.0, 0, 4.0, True)


def test_the_law_shown_is_the_law_tested():
    _, _, code = (ROOT / "tests/river.py").read_text().partition('"""\n\n\n')
    assert code == BLOCKS[4]


def test_the_law_shown_is_learned_on():
    environment = make(EnvConfig("tests.river:River", {"length": 6}))
    learner = Learner(environment, config().learn, 8, use_compiled=True)
    learner.begin()
    learner.learn(2000)
    assert learner.rows.values.argmax(axis=1)[4] == 1
