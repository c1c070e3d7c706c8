"""What a round costs beside learning and exchange: verdicts, requests, metrics. No other work.

    python benchmarks/monitor.py [ID ...]

One rank, in this process. Of each round: the time of the trainer's `step`, less that of `learn`,
`exchange` and `commit`, less certificates and checkpoints; the median, and its share of a round.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from typing import Any

from distq_mpi import trainer
from distq_mpi.__main__ import main as program

PHASES = ("learn", "exchange", "commit")
IDS = {
    "FrozenLake8x8-v1": ("--env.id", "FrozenLake8x8-v1", "--stop.steps", "1e8"),
    "grid300": ("--env.id", "grid", "--env.kwargs.rows", "300", "--env.kwargs.columns", "300",
                "--stop.steps", "3e8"),
}  # fmt: skip


class Watched(trainer.Run):
    """A run that notes what its rounds take: seconds in all, and in what is not counted."""

    rounds: list[tuple[float, float]]
    _within = 0.0

    def step(self) -> Any:
        """One round."""
        times = self.times
        before, begin = times.certify_s + times.io_s, time.perf_counter()
        self._within = 0.0
        ended = super().step()
        took = time.perf_counter() - begin
        Watched.rounds.append((took, self._within + times.certify_s + times.io_s - before))
        return ended

    def _architecture(self) -> Any:
        made = super()._architecture()
        for phase in PHASES:
            setattr(made, phase, self._noted(getattr(made, phase)))
        return made

    def _noted(self, call: Any) -> Any:
        def noted(*arguments: Any) -> Any:
            begin = time.perf_counter()
            done = call(*arguments)
            self._within += time.perf_counter() - begin
            return done

        return noted


def main() -> None:
    """Run, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ids", nargs="*", default=list(IDS))
    asked = parser.parse_args()
    trainer.Run = Watched  # type: ignore[misc]
    told = []
    for name in asked.ids:
        Watched.rounds = []
        with tempfile.TemporaryDirectory() as folder:
            program(["train", *IDS[name], "--run.dir", f"{folder}/run", "--evaluate.episodes", "0"])
        beside = statistics.median(took - within for took, within in Watched.rounds)
        whole = statistics.median(took for took, _ in Watched.rounds)
        told.append(
            f"{name}: {beside * 1e6:.1f} us of a round of {whole * 1e3:.2f} ms, "
            f"{100 * beside / whole:.2f} %"
        )
    print("\n".join(told))


if __name__ == "__main__":
    main()
