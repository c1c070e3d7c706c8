"""The page on Python prints what it says it does."""

from __future__ import annotations

import re
from pathlib import Path

from tests.launching import ROOT, run

BLOCKS = re.findall(
    r"```python\n(.*?)```\n```text\n(.*?)```", (ROOT / "docs/python.md").read_text(), re.S
)
MPIRUN, SB3 = "# script.py: mpirun -n 3", "# with stable-baselines3\n"


def printed(n_ranks: int, code: str, folder: Path) -> str:
    (folder / "script.py").write_text(code)
    ended = run(n_ranks, ["script.py"], folder, limit_s=240)
    assert ended.code == 0, ended.out + ended.err
    return ended.out


def test_what_the_page_prints_in_one_process(tmp_path: Path) -> None:
    mine = [(code, text) for code, text in BLOCKS if not code.startswith((MPIRUN, SB3))]
    assert len(mine) == 6
    marked = "print('-- next')\n".join(code for code, _ in mine)
    assert printed(0, marked, tmp_path).split("-- next\n") == [text for _, text in mine]


def test_what_the_page_prints_on_three_ranks(tmp_path: Path) -> None:
    ((code, text),) = [block for block in BLOCKS if block[0].startswith(MPIRUN)]
    assert printed(3, code, tmp_path) == text
    assert text.split()[-1] in BLOCKS[0][1]  # the bits of one rank


def test_the_page_shows_the_run_with_stable_baselines3_that_is_tested() -> None:
    ((code, _),) = [block for block in BLOCKS if block[0].startswith(SB3)]
    source = (ROOT / "tests/parallel/test_sb3.py").read_text()
    assert code.removeprefix(SB3) in source
