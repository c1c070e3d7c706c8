"""Checkpoints beside a raw write of the same bytes with fsync, in changing order. No other work.

    python benchmarks/checkpoint.py [--states 4000000] [--repeats 9]
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from distq_mpi import checkpoint  # noqa: E402
from distq_mpi.config import Config, to_toml  # noqa: E402
from distq_mpi.files import SLICE_ROWS  # noqa: E402
from distq_mpi.lanes import LANE_DTYPE  # noqa: E402


def ours(path: Path, q: np.ndarray, clock: np.ndarray, visits: np.ndarray) -> float:
    """Seconds of a checkpoint, until it is safe on the disk."""
    begin = time.perf_counter()
    rows = ((s, q[s : s + SLICE_ROWS], clock[s : s + SLICE_ROWS], visits[s : s + SLICE_ROWS])
            for s in range(0, len(q), SLICE_ROWS))  # fmt: skip
    checkpoint.write(
        path, rows=rows, n_states=len(q), n_actions=q.shape[1], dtype=q.dtype,
        lanes=np.zeros(64, LANE_DTYPE), config_toml=to_toml(Config()),
        attributes={"round": 1, "model_id": "ab" * 32, "state": "{}"},
    )  # fmt: skip
    return time.perf_counter() - begin


def raw(path: Path, n_bytes: int) -> float:
    """Seconds of a plain write of so many bytes, and fsync."""
    block = np.random.default_rng(1).integers(0, 256, 1 << 22, np.uint8).data
    begin = time.perf_counter()
    with open(path, "wb", buffering=0) as file:
        for _ in range(n_bytes // len(block)):
            file.write(block)
        file.write(block[: n_bytes % len(block)])
        os.fsync(file.fileno())
    return time.perf_counter() - begin


def main() -> None:
    """Run pairs, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--states", type=int, default=4_000_000)
    parser.add_argument("--repeats", type=int, default=9)
    asked = parser.parse_args()
    shape, rng = (asked.states, 4), np.random.default_rng(0)
    q = rng.normal(size=shape).astype(np.float32)
    clock = rng.integers(0, 2**20, shape, np.uint32)
    visits = clock.astype(np.uint64)
    folder = Path(tempfile.mkdtemp(prefix="checkpoint-", dir="."))
    ratios, sizes = [], []
    for _ in range(asked.repeats):
        seconds = {}
        for name in rng.permutation(["ours", "raw"]):
            path = folder / name
            if name == "ours":
                seconds[name] = ours(path, q, clock, visits)
                sizes.append(path.stat().st_size)
            else:
                seconds[name] = raw(path, sizes[-1] if sizes else q.nbytes * 4)
        if len(sizes) > 1:  # the first raw write may not have known its size
            ratios.append(seconds["raw"] / seconds["ours"])
    low, middle, high = statistics.quantiles(ratios, n=4)
    megabytes = sizes[-1] / 1e6
    print(f"{megabytes:.0f} MB: {middle:.2f} x the rate of a raw write ({low:.2f}-{high:.2f})")
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


if __name__ == "__main__":
    main()
