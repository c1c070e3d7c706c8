"""What the page for users shows must work as shown."""

import re
from pathlib import Path
from types import SimpleNamespace

from distq_mpi.environments import make

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs/environments.md").read_text(), re.S)


def test_the_table_shown_is_a_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(BLOCKS[0], {})
    env = make(SimpleNamespace(id="rooms.npz", kwargs={}))
    assert (env.n_states, env.n_actions, env.n_transitions) == (2, 2, 6)
    assert env.outcome(1, 1, 0, env.params) == (0.9, 0, 5.0, True)


def test_the_law_shown_is_the_law_tested():
    _, _, code = (ROOT / "tests/river.py").read_text().partition('"""\n\n\n')
    assert code == BLOCKS[1]
