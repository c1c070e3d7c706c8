"""The commands: operands and options of each, and whether it starts MPI."""

from __future__ import annotations

from dataclasses import dataclass

FREE_ON_RESUME = (
    "stop.", "checkpoint.", "run.report_every_s", "evaluate.episodes", "parallel.rebalance",
    "parallel.on_loss", "parallel.protect", "parallel.hang_s", "parallel.servers",
    "parallel.cache_rows",
)  # fmt: skip


@dataclass(frozen=True)
class Takes:
    """What may stand behind a command.

    Parameters
    ----------
    operands : in words; least, most : how many.
    options : those that are no configuration keys.
    keys : configuration keys; `train` and `resume` see to theirs themselves.
    mpi : whether every rank works, over MPI.
    """

    operands: str
    least: int = 1
    most: int = 1
    options: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    mpi: bool = False


COMMANDS = {
    "train": Takes("no operand", 0, 0, ("config", "dry-run", "ranks"), mpi=True),
    "resume": Takes("one run directory", mpi=True),
    "evaluate": Takes(
        "one run directory or checkpoint",
        options=("json", "certificate", "samples", "delta", "check", "steps", "rewards"),
        keys=("evaluate.episodes", "evaluate.exact", "run.seed"),
        mpi=True,
    ),
    "info": Takes("one file or run directory"),
    "verify": Takes("one or two run directories or files", 1, 2, ("json", "certificate")),
    "upgrade": Takes("one run directory or file", options=("output",)),
    "doctor": Takes("no operand", 0, 0, ("json",)),
    "probe": Takes("no operand", 0, 0, ("json",), mpi=True),
    "supervise": Takes(
        "-- and a launcher's command line", 1, 10**6,
        ("tries", "silent-s", "stuck-s", "hosts-from"),
    ),
    "study": Takes(
        "one of speedup, fusion, staleness, horizon, communication, heterogeneity",
        options=("json", "runs", "figures"),
        mpi=True,
    ),
    "validate": Takes("no operand", 0, 0, ("json", "full", "figures"), mpi=True),
}
VALUED = {"output", "certificate", "rewards", "figures"}
"""Options of tools whose value may be any text but none."""
SWITCHES = {"dry-run", "json", "full"}
"""Options without a value."""
TOOLS = set(COMMANDS) - {"train", "resume"}


def starts_mpi(argv: list[str]) -> bool:
    """Whether this command line is one that every rank works on. Local."""
    name = argv[0] if argv else "train"
    if name == "verify":  # a file says what it holds by itself; what it is worth is much work
        return any(word.split("=")[0] == "--certificate" for word in argv)
    return COMMANDS.get(name, COMMANDS["train"]).mpi
