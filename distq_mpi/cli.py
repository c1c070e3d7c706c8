"""The command line. The only door to cyclopts and pydantic; imported by one rank.

cyclopts prints the help from the signatures below and from the docstrings of `config.py`.
What the user wrote, in a file and on the line, is merged first and checked as one, so that all
mistakes are told at once, each with its key, its value, its limit and where it stands.
"""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from pydantic import TypeAdapter, ValidationError

from distq_mpi import __version__
from distq_mpi.config import SECTIONS, Config, check
from distq_mpi.errors import ConfigError

COMMANDS = ("train", "resume", "info")
RESUMABLE = ("stop.", "checkpoint.", "run.report_every_s", "evaluate.episodes")
SWITCHES = ("--dry-run", "--run.overwrite", "--parallel.force")
SYNONYMS = {"learn.gamma": "learn.discount", "learn.lr": "learn.alpha", "env.name": "env.id"}

app = App(
    name="python -m distq_mpi",
    version=__version__,
    help="Learn one Q-table with as many MPI ranks as there are: "
    "`mpirun -n 64 python -m distq_mpi train --env.id Taxi-v4`. Default command: train.",
    default_parameter=Parameter(name_transform=lambda name: name, negative=()),
)


@app.command
def train(
    *,
    config_file: Annotated[str, Parameter(name="--config")] = "",
    dry_run: Annotated[bool, Parameter(name="--dry-run")] = False,
    ranks: Annotated[int, Parameter(name="--ranks")] = 1,
    config: Annotated[Config, Parameter(name="*")] = Config(),  # noqa: B008
) -> None:
    """Learn a Q-table.

    Parameters
    ----------
    config_file
        TOML file with the same sections and keys; what stands on the line wins.
    dry_run
        Print the resolved configuration and the memory each rank will need, and end.
    ranks
        Number of ranks a dry run speaks of.
    """


@app.command
def resume(directory: str, /) -> None:
    """Go on with a run from its newest good checkpoint, on any number of ranks.

    Takes stop.*, checkpoint.*, run.report_every_s and evaluate.episodes; all else is as it was,
    so that the bits are those of a run that was never interrupted.
    """


@app.command
def info(file: str, /) -> None:
    """Show what a checkpoint or result file holds, and whether it is whole."""


@dataclass(frozen=True)
class Command:
    """What the user asked for.

    Parameters
    ----------
    name : train, resume or info.
    config : checked `Config` of `train`.
    directory : operand of `resume`; file : operand of `info`.
    overrides : dotted key -> text, of `resume`.
    dry_run, ranks : of `train`.
    """

    name: str
    config: Config = field(default_factory=Config)
    directory: str = ""
    file: str = ""
    overrides: dict[str, Any] = field(default_factory=dict)
    dry_run: bool = False
    ranks: int | None = None

    def override(self, stored: str) -> Config:
        """The configuration of an interrupted run, TOML text, with this command's overrides."""
        merged = _Merged()
        merged.add_toml(stored, "config.toml")
        for key, text in self.overrides.items():
            merged.put(key, text)
        return merged.checked()


def parse(argv: list[str]) -> Command:
    """Return the checked command. Local.

    Raises ConfigError with one line per mistake. Help and version are `show_help`'s.
    """
    words = list(argv)
    name = words.pop(0) if words and not words[0].startswith("-") else "train"
    if name not in COMMANDS:
        raise ConfigError(f"unknown command {name!r}{_suggest(name, COMMANDS)}")
    operands, options = _split(words)
    wanted = {"train": 0, "resume": 1, "info": 1}[name]
    if len(operands) != wanted:
        what = {"train": "no operand", "resume": "one run directory", "info": "one file"}[name]
        raise ConfigError(f"{name} takes {what}, not {' '.join(operands) or 'none'}")
    if name == "info":
        if options:
            raise ConfigError(f"info takes no option, not --{next(iter(options))}")
        return Command(name, file=operands[0])
    if name == "resume":
        return _parse_resume(operands[0], options)
    merged = _Merged()
    dry_run = options.pop("dry-run", "false") == "true"
    ranks = options.pop("ranks", None)
    if ranks is not None and not (ranks.isdigit() and int(ranks) > 0):
        merged.mistakes.append(f"--ranks: {ranks!r} must be a number from 1")
        ranks = None
    path = options.pop("config", None)
    if path is not None:
        merged.add_file(path)
    for key, text in options.items():
        merged.put(key, text)
    return Command(
        name, merged.checked(), dry_run=dry_run, ranks=None if ranks is None else int(ranks)
    )


def show_help(argv: list[str]) -> None:
    """Print help or version. Local."""
    if "--version" in argv:
        print(__version__)
        return
    names = [word for word in argv if word in COMMANDS]
    app([*names[:1], "--help"], exit_on_error=False, result_action="return_value")


def _parse_resume(directory: str, options: dict[str, str]) -> Command:
    refused = [key for key in options if not key.startswith(RESUMABLE)]
    mistakes = [
        f"--{key}: cannot change on resume, it would change the bits; "
        "free are stop.*, checkpoint.*, run.report_every_s and evaluate.episodes"
        for key in refused
    ]
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return Command("resume", directory=directory, overrides=options)


def _split(words: list[str]) -> tuple[list[str], dict[str, str]]:
    """Operands, and option -> text; an option without a value is a switch."""
    operands: list[str] = []
    options: dict[str, str] = {}
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            operands.append(word)
            continue
        key, equals, text = word[2:].partition("=")
        if not equals:
            switch = word in SWITCHES and words[:1] not in (["true"], ["false"])
            follows = bool(words) and not words[0].startswith("--") and not switch
            text = words.pop(0) if follows else "true"
        options[key] = text
    return operands, options


class _Merged:
    """What file and line say together; collects mistakes."""

    def __init__(self) -> None:
        self.values: dict[str, dict[str, Any]] = {}
        self.origin: dict[str, str] = {}
        self.mistakes: list[str] = []

    def add_file(self, path: str) -> None:
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise ConfigError(f"--config {path}: cannot be read: {reason}") from None
        self.add_toml(text, path)

    def add_toml(self, text: str, path: str) -> None:
        try:
            sections = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{path}: not TOML: {error}") from None
        for section, keys in sections.items():
            if not isinstance(keys, dict):
                self._unknown(section, f" in {path}", section, SECTIONS)
                continue
            for key, value in keys.items():
                if section == "env" and key == "kwargs" and isinstance(value, dict):
                    for name, item in value.items():
                        self.put(f"env.kwargs.{name}", item, f" in {path}")
                else:
                    self.put(f"{section}.{key}", value, f" in {path}")

    def put(self, dotted: str, value: Any, origin: str = "") -> None:
        section, _, key = dotted.partition(".")
        shown = f"{dotted}{origin}" if origin else f"--{dotted}"
        if section not in SECTIONS or not key:
            self._unknown(dotted, origin, dotted, _known())
            return
        self.origin[dotted] = shown
        if section == "env" and key.startswith("kwargs."):
            name = key.removeprefix("kwargs.")
            kwargs = self.values.setdefault("env", {}).setdefault("kwargs", {})
            kwargs[name] = value if origin else _literal(value)
            return
        if key not in {f.name for f in fields(SECTIONS[section])}:
            self._unknown(dotted, origin, dotted, _known())
            return
        self.values.setdefault(section, {})[key] = value if origin else _number(value)

    def checked(self) -> Config:
        config = Config()
        try:
            config = TypeAdapter(Config).validate_python(self.values)
        except ValidationError as error:
            told = {".".join(str(part) for part in e["loc"][:2]): e for e in error.errors()}
            self.mistakes += [self._line(key, e) for key, e in told.items()]
        else:
            self.mistakes += check(config)
        if self.mistakes:
            raise ConfigError("\n".join(dict.fromkeys(self.mistakes)))
        return config

    def _line(self, key: str, error: Any) -> str:
        message = str(error["msg"]).replace("Input should", "must")
        value = error["input"]
        choices = str(error.get("ctx", {}).get("expected", "")).replace(" or ", ",")
        hint = _suggest(str(value), [choice.strip("' ") for choice in choices.split(",")])
        return f"{self.origin.get(key, key)}: {value!r} {message[0].lower()}{message[1:]}{hint}"

    def _unknown(self, dotted: str, origin: str, word: str, known: Any) -> None:
        shown = f"{dotted}{origin}" if origin else f"--{dotted}"
        hint = _suggest(word, [*SYNONYMS, *known])
        for other, ours in SYNONYMS.items():
            hint = hint.replace(other, ours)
        self.mistakes.append(f"{shown}: unknown key{hint}")


def _known() -> list[str]:
    return [f"{name}.{f.name}" for name, kind in SECTIONS.items() for f in fields(kind)]


def _suggest(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, list(known), 1, 0.6)
    return f"; did you mean {close[0]}?" if close else ""


def _literal(text: str) -> Any:
    """The TOML value that the text is, else the text itself."""
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        return text


def _number(text: str) -> Any:
    """Text from the line as pydantic takes it; 1e6 is a whole number."""
    try:
        number = float(text)
    except ValueError:
        return text
    return int(number) if number.is_integer() and abs(number) < 2**53 and "e" in text else text

