"""Explicit models cut among real ranks, from memory and from files (`cutting.py` compares)."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.launching import run


@pytest.mark.parametrize("n_ranks", [1, 2, 3, 5])
def test_ranks_hold_their_rows_alone_and_all_is_as_in_the_whole_model(
    n_ranks: int, tmp_path: Path
) -> None:
    ended = run(n_ranks, ["-m", "tests.parallel.cutting", str(tmp_path)], tmp_path)
    assert ended.code == 0, (ended.code, ended.out, ended.err)
    told = json.loads(ended.out)
    assert len(told) == n_ranks
    # Four cuts of five models: the rows of each, balanced, and twice on one rank alone.
    n_rows = 211 * 3 + 97 * 2 + 50 * 3 + 64 * 4 + 1
    assert sum(found["arrays"] for found in told) > 3 * n_rows
    assert sum(found["files"] for found in told) > 3 * (n_rows - 50 * 3)
    for rank, found in enumerate(told):
        memory = found["memory"]
        assert memory["arrays kept over own"] < 1.1 and memory["file kept over own"] < 1.1
        assert memory["file peak over own"] < 1.2
        limit = 1 / n_ranks + 0.05 + (n_ranks > 1 and rank == 0)
        assert memory["arrays peak over whole"] < limit
        # The same message everywhere, whoever met it, and whether rank 0 read for others or not.
        assert found["changed"] == told[0]["changed"] and len(found["changed"]) == 8
        for text in found["changed"]:
            assert re.search(r"changed-\w+\.h5: state 3[0-9], action 0 or one soon after", text)
        assert found["noted"] == (
            "ring: outcome(state=3, action=1, i=0): next_state 99 is not in 0..4"
            + (f" on rank {n_ranks - 1}" if n_ranks > 1 else "")
        )
