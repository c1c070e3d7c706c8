"""How long from launch to the first learning step, beside what bare mpi4py takes. No other work.

    python benchmarks/startup.py [--ranks 1,2,64] [--repeats 5]

In pairs of jobs: the program, until the first round has begun (`startup_time_s` of the summary is
from each process's own start; here the whole launch counts), warm: kernels are compiled; and a job
that imports numpy and mpi4py and meets in a barrier. Prints medians, their ratio and difference.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.launching import distq, run  # noqa: E402

BARE = "import numpy; from mpi4py import MPI; MPI.COMM_WORLD.Barrier()"


def program(n_ranks: int, folder: Path) -> float:
    """Seconds from launch to the first round."""
    begin = time.time()
    ended = distq(
        n_ranks, "train", "--run.dir", "run", "--run.overwrite", "--stop.rounds", "1",
        "--evaluate.episodes", "0", "--evaluate.exact", "false", cwd=folder, limit_s=300,
    )  # fmt: skip
    assert ended.code == 0, ended.err
    told = json.loads((folder / "run" / "summary.json").read_text())
    written = (folder / "run" / "summary.json").stat().st_mtime
    return written - begin - (told["wall_time_s"] - told["startup_time_s"])


def bare(n_ranks: int, folder: Path) -> float:
    """Seconds from launch to the end of a job that does nothing but meet."""
    begin = time.time()
    ended = run(n_ranks, ["-c", BARE], folder, 300)
    assert ended.code == 0, ended.err
    return time.time() - begin


def main() -> None:
    """Run pairs in changing order, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", default="1,2,64")
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="startup-"))
    for n_ranks in map(int, asked.ranks.split(",")):
        program(n_ranks, folder)
        pairs = []
        for k in range(asked.repeats):
            one = [program, bare] if k % 2 else [bare, program]
            seconds = {work.__name__: work(n_ranks, folder) for work in one}
            pairs.append((seconds["program"], seconds["bare"]))
        ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratio = statistics.median(a / b for a, b in pairs)
        print(f"{n_ranks:3d} ranks: {ours:.2f} s to the first round, bare mpi4py {theirs:.2f} s: "
              f"{ratio:.2f} x, + {ours - theirs:.2f} s", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
