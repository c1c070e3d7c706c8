"""Help and version. The only door to cyclopts; read by the rank that prints."""

from __future__ import annotations

import inspect
import json
from typing import Annotated, Any

from cyclopts import App, Group, Parameter

from distq_mpi import __version__
from distq_mpi.commands import COMMANDS
from distq_mpi.config import SECTIONS
from distq_mpi.keys import SCHEMAS, kinds, limits

TYPES = {"boolean": bool, "integer": int, "number": float}


def _named(name: str, text: str) -> Any:
    return Parameter(name=name, help=text, negative=(), show_default=False)


AsJson = Annotated[bool, _named("--json", "Print JSON.")]
Figures = Annotated[str, _named("--figures", "Folder for a figure of every curve.")]


def show(argv: list[str]) -> None:
    """Print the version, or the help of the command that the first word names. Local."""
    if "--version" in argv:
        print(__version__)
        return
    app = App(
        name="python -m distq_mpi",
        help="Learn one Q-table with as many MPI ranks as there are: "
        "mpirun -n 64 python -m distq_mpi --env.id Taxi-v4",
        help_format="plaintext",
    )
    app.default(train)
    tools = evaluate, info, verify, upgrade, doctor, probe, supervise, study, validate
    for command in (train, resume, *tools):
        app.command(command)
    names = [word for word in argv[:1] if word in COMMANDS]
    app([*names, "--help"], exit_on_error=False, result_action="return_value")


def train(**_: Any) -> None:
    """Learn a Q-table (the default command)."""


def resume(directory: str, /) -> None:
    """Go on with a run from its newest good checkpoint, on any number of ranks.

    Takes stop.*, checkpoint.*, run.report_every_s and evaluate.episodes; all else is as it was,
    so that the bits are those of a run that was never interrupted.
    """


def info(path: str, /) -> None:
    """Show how a run stands, or what a file holds and whether it is whole."""


def evaluate(
    path: str,
    /,
    *,
    episodes: Annotated[int | None, _named("--evaluate.episodes", "Greedy episodes.")] = None,
    exact: Annotated[bool | None, _named("--evaluate.exact", "Exact values, too.")] = None,
    seed: Annotated[int | None, _named("--run.seed", "Another one: other episodes.")] = None,
    samples: Annotated[int, _named("--samples", "Fresh samples of a pair, for bounds.")] = 0,
    delta: Annotated[float, _named("--delta", "Chance that those are wrong.")] = 0.05,
    check: Annotated[int, _named("--check", "Number of this look at one run.")] = 1,
    steps: Annotated[int, _named("--steps", "Most, where stepped in Python.")] = 1_000_000,
    rewards: Annotated[str, _named("--rewards", "LEAST,MOST, where stepped.")] = "",
    certificate: Annotated[str, _named("--certificate", "File to write the bounds to.")] = "",
    json: AsJson = False,
) -> None:
    """Judge the table of a run, or of one checkpoint: sampled returns, exact values and bounds.

    The numbers are the same on any number of ranks.
    """


def supervise(
    *command: str,
    tries: Annotated[int, _named("--tries", "Starts in all.")] = 5,
    silent: Annotated[float, _named("--silent-s", "Seconds without a heartbeat.")] = 60.0,
    stuck: Annotated[float, _named("--stuck-s", "Seconds in one phase of a round.")] = 1800.0,
    hosts: Annotated[str, _named("--hosts-from", "Prints hosts for {hosts}, {ranks}.")] = "",
) -> None:
    """Start a job, watch what its run directory says, and start it again where it must be.

    supervise [options] -- mpirun -n 8 python -m distq_mpi train --run.dir runs/a

    Ends with the run's own exit code. Resumes from the newest good checkpoint.
    """


def verify(
    first: str,
    second: str = "",
    /,
    *,
    certificate: Annotated[str, _named("--certificate", "Find its numbers again.")] = "",
    json: AsJson = False,
) -> None:
    """Check all checksums of a run's newest table or of a file; of two, compare the tables.

    With a certificate, under mpirun on all ranks, what it claims of the one table.
    Exit code 0: whole, and the same table; 1: damaged; 3: the tables, or the claims, differ.
    """


def upgrade(
    path: str,
    /,
    *,
    output: Annotated[str, _named("--output", "File to write; else in place, old one kept.")] = "",
) -> None:
    """Bring a checkpoint, a result or all of a run to the newest file format."""


def doctor(*, json: AsJson = False) -> None:
    """Check what is installed here and how many ranks it is good for; under mpirun, all ranks.

    Exit code 0: nothing is wrong; 1: something is.
    """


def probe(*, json: AsJson = False) -> None:
    """Measure what this machine can do at best: memory, messages; under mpirun with all ranks.

    The rates of runs are read beside these. They are kept for --dry-run.
    """


def study(
    name: str,
    /,
    *,
    runs: Annotated[int, _named("--runs", "Runs of a number, where its title has no others.")] = 20,
    figures: Figures = "",
    json: AsJson = False,
) -> None:
    """Study how the error falls: speedup, fusion, staleness, horizon, communication or
    heterogeneity.

    Under mpirun, on all ranks.

    Exit code 0: it is as theory says; 1: it is not.
    """


def validate(
    *,
    full: Annotated[bool, _named("--full", "All rows, not the quick set.")] = False,
    figures: Figures = "",
    json: AsJson = False,
) -> None:
    """Compute the published and exact numbers of docs/validation.md; under mpirun, on all ranks.

    Exit code 0: every number that was computed is right; 1: one is not.
    """


def _option(name: str, kind: type, text: str, panel: Group, default: Any = None) -> Any:
    shown = (lambda _: json.dumps(default)) if default not in (None, "", {}) else False
    how = Parameter(name=f"--{name}", help=text, group=panel, negative=(), show_default=shown)
    return inspect.Parameter(
        name.replace(".", "_").replace("-", "_"),
        inspect.Parameter.KEYWORD_ONLY,
        annotation=Annotated[kind, how],
        default=default,
    )


def _signature() -> inspect.Signature:
    """What cyclopts reads the options of `train` from: one parameter per key."""
    panel = Group("Options", sort_key=0)
    options = [
        _option("config", str, "TOML file with the keys below; the line wins.", panel),
        _option("dry-run", bool, "Print the resolved configuration and the memory.", panel),
        _option("ranks", int, "Ranks a dry run speaks of.", panel),
    ]
    for place, (section, owner) in enumerate(SECTIONS.items(), 1):
        about = str(inspect.getdoc(owner)).splitlines()[0]
        panel = Group(f"{section}: {about}", sort_key=place)
        for key, schema in SCHEMAS.items():
            if key.startswith(f"{section}."):
                text = f"{schema['description']} [{limits(key)}]"
                kind = next((t for name, t in TYPES.items() if name in kinds(key)), str)
                options.append(_option(key, kind, text, panel, schema.get("default")))
    return inspect.Signature(options)


train.__signature__ = _signature()  # type: ignore[attr-defined]
