"""Deaths drawn at random over phases and victims, and what must come of them."""

from __future__ import annotations

import json
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.launching import Ended, run, start

DYING = str(Path(__file__).with_name("dying.py"))
N_RANKS, N_ROUNDS, FIRST, LAST = 4, 60, 3, 50
LENGTH = ("--stop.rounds", str(N_ROUNDS), "--checkpoint.every_rounds", "5")
ROUNDS = ("--parallel.agents", "4", *LENGTH)
GARNET = ("--env.id", "garnet", "--env.kwargs.states", "20000", "--env.kwargs.actions", "4",
          "--env.kwargs.branching", "2", "--evaluate.exact", "false")  # fmt: skip
SHARDED = ("--parallel.architecture", "sharded", "--parallel.protect", "partner",
           "--parallel.lanes", "64", "--parallel.steps_per_round", "400", "--env.id", "grid",
           "--env.kwargs.rows", "50", "--env.kwargs.columns", "50", *LENGTH)  # fmt: skip
ENDS = ("share",) * 5
"""More often than other phases: who is next in the chain of a broadcast decides who is behind."""
CELLS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "small": (ROUNDS, ("learn", "move", "fuse", "agree", "commit", "certificate", "checkpoint")),
    "owners": (
        (*ROUNDS, *GARNET, "--parallel.fusion", "mean"),
        ("learn", "move", "fuse", "share", "agree", "commit", "checkpoint"),
    ),
    "one agent": (
        ("--parallel.agents", "1", *LENGTH),
        ("learn", "move", "fuse", *ENDS, "agree", "commit", "certificate"),
    ),
    "few": (
        ("--parallel.agents", "2", *LENGTH, *GARNET),
        ("learn", "move", "fuse", "share", "agree", "commit", "checkpoint"),
    ),
    "median": (
        (*ROUNDS, "--parallel.fusion", "median"),
        ("learn", "move", "fuse", "agree", "commit", "certificate"),
    ),
    "stepped": (
        (*ROUNDS, "--env.id", "CartPole-v1", "--env.bins", "4", "--env.clip", "3",
         "--parallel.lanes", "32", "--parallel.steps_per_round", "20"),
        ("learn", "move", "agree", "commit", "checkpoint"),
    ),
    "sharded": (
        (*SHARDED, "--parallel.reproducible", "true"),
        ("learn", "move", "stage", "agree", "commit", "certificate", "checkpoint"),
    ),
    "in step": (
        (*ROUNDS, "--parallel.architecture", "server", "--parallel.servers", "2"),
        ("learn", "move", "agree", "commit", "checkpoint"),
    ),
    "one worker": (
        ("--parallel.agents", "1", *LENGTH, "--parallel.architecture", "server",
         "--parallel.servers", "3"),
        ("learn", "move", "fuse", *ENDS, "agree", "commit", "checkpoint"),
    ),
    "stale": (
        (*ROUNDS, "--parallel.architecture", "server", "--parallel.staleness", "4"),
        ("learn", "push", "move", "commit", "certificate", "checkpoint"),
    ),
    "guarded": (
        (*ROUNDS, "--parallel.architecture", "server", "--parallel.staleness", "4",
         "--parallel.servers", "2", "--parallel.protect", "partner"),
        ("learn", "push", "move", "commit", "certificate", "checkpoint"),
    ),
}  # fmt: skip
"""Name -> options, and the phases that every round of it, or every fifth, comes through."""
FREE, NOTHING = {"stale": {0}, "guarded": {0, 1}}, "nothing is lost"
"""Cells without the same bits, and their first servers; a server and a worker must be left."""


@dataclass
class Draw:
    """One job: which rank dies in which phase of which round, how long after it came there."""

    cell: str
    deaths: dict[str, list[Any]] = field(default_factory=dict)


def draw(random_: random.Random, cell: str) -> Draw:
    """Two events: a worker, the first rank, or two at once; so that one rank at least is left."""
    found, alive = Draw(cell), list(range(N_RANKS))
    phases, spare = CELLS[cell][1], 2 if cell in FREE else 1
    first = random_.randint(FIRST, LAST // 2)
    for number in (first, random_.randint(first + 8, LAST)):
        kind = random_.choice(["worker", "first", "two"])
        if len(alive) <= spare:
            break
        if kind == "two" and len(alive) - 2 >= spare:
            victims = random_.sample(alive, 2)
        else:
            victims = [alive[0] if kind == "first" else random_.choice(alive[1:])]
        phase = random_.choice(phases)
        if victims == [0] and random_.random() < 0.2:
            phase = "write"
        # A server never pushes, and who takes the place of a lost one has become one.
        if phase == "push" and FREE.get(cell, set()) & {*victims, *map(int, found.deaths)}:
            phase = "move"
        for victim in victims:
            alive.remove(victim)
            found.deaths[str(victim)] = [phase, number, random_.choice([0, random_.random() / 500])]
    return found


def undisturbed(cell: str, path: Path) -> str:
    """The hash that the cell's run must come to, on which nobody dies; "" where it has none."""
    if cell in FREE:
        return ""
    n_ranks = 4 if "server" in CELLS[cell][0] else 1
    ended = run(
        n_ranks, ["-m", "distq_mpi", "train", "--run.dir", str(path), *CELLS[cell][0]], path.parent
    )
    assert ended.code == 0, ended.err
    return str(json.loads((path / "summary.json").read_text())["table_sha256"])


def perform(one: Draw, path: Path, limit_s: float = 90, **extra: str) -> tuple[Ended, float]:
    """Run a job with its deaths; return how it ended, and its seconds."""
    begin = time.monotonic()
    ended = surviving(
        N_RANKS, [DYING, "train", "--run.dir", str(path), *CELLS[one.cell][0]], path.parent,
        limit_s, DIE=json.dumps(one.deaths), **extra,
    )  # fmt: skip
    return ended, time.monotonic() - begin


def surviving(
    n_ranks: int, arguments: list[str], cwd: Path, limit_s: float, **extra: str
) -> Ended:
    """As `launching.run`, by a launcher that lets ranks die."""
    return start(n_ranks, arguments, cwd, ("--with-ft", "ulfm"), **extra).wait(limit_s)


def losses(path: Path) -> list[dict[str, Any]]:
    """What the run says of ranks that were lost."""
    lines = (path / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["kind"] == "ranks_lost"]


def mistakes(one: Draw, ended: Ended, path: Path, wanted: str) -> list[str]:
    """What is not as it must be after a job, in words."""
    if ended.code != 0 or not (path / "summary.json").exists():
        return [f"exit code {ended.code}", ended.out[-4000:], ended.err[-8000:]]
    found: list[str] = []
    summary = json.loads((path / "summary.json").read_text())
    if wanted and summary["table_sha256"] != wanted:
        found.append(f"hash {summary['table_sha256'][:12]}, not {wanted[:12]}")
    if one.cell in FREE and losses(path):
        first = losses(path)[0]
        served = bool(FREE[one.cell] & set(first["ranks"]))
        if not served and NOTHING not in first["message"]:  # rows stay with their servers
            found.append(first["message"])
        if served and one.cell == "guarded" and len(first["ranks"]) == 1:
            found += [first["message"]] * ("pushes since the last pause" not in first["message"])
    gone = sorted(number for event in losses(path) for number in event["ranks"])
    if gone != sorted(map(int, one.deaths)):
        found.append(f"lost are {gone}")
    if list((path / "checkpoints").glob(".*.part")):
        found.append("half a file is left")
    return found
