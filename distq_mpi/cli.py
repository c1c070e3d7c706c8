"""The command line, read by rank 0 for all.

What the user wrote, in a file and on the line, is merged first and checked as one, so that all
mistakes are told at once, each with its key, its value, its limit and where it stands. 
`keys.py` knows the limits; `usage.py` prints them as help.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distq_mpi.commands import COMMANDS, FREE_ON_RESUME, SWITCHES, TOOLS, VALUED
from distq_mpi.config import SECTIONS, Config, check, from_dict, to_dict, toml_value
from distq_mpi.errors import ConfigError
from distq_mpi.keys import (
    MAPPINGS,
    OPTIONS,
    SCHEMAS,
    can_be_written,
    choices,
    closest,
    did_you_mean,
    is_argument,
    keyword_names,
    kinds,
    limits,
    validate,
    words,
)

NUMBERS = {"tries", "silent-s", "stuck-s", "runs", "samples", "delta", "check", "steps"}
"""Options of tools that are numbers."""


@dataclass(frozen=True)
class Command:
    """What the user asked for.

    Parameters
    ----------
    name : one of `COMMANDS`.
    config : checked `Config` of `train`.
    directory : operand of `resume`; operands : of the tools.
    overrides : dotted key -> text, of `resume` and `evaluate`.
    dry_run, ranks : of `train`; json : of the tools; output : of `upgrade`; options : text of all
    options of a tool.
    """

    name: str
    config: Config = field(default_factory=Config)
    directory: str = ""
    operands: tuple[str, ...] = ()
    overrides: dict[str, str] = field(default_factory=dict)
    dry_run: bool = False
    ranks: int | None = None
    json: bool = False
    output: str = ""
    options: dict[str, str] = field(default_factory=dict)

    def override(self, stored: str, origin: str = "") -> Config:
        """The configuration of an earlier run, TOML text, with this command's overrides.

        origin : where the text stands, for messages; else config.toml of the directory.
        """
        merged = _Merged()
        merged.add_toml(stored, origin or str(Path(self.directory, "config.toml")))
        merged.add_line(self.overrides)
        return merged.checked()


def parse(argv: list[str]) -> Command:
    """Return the checked command. Local.

    Raises ConfigError with one line per mistake. Help and version are `usage.show`'s.
    """
    rest = list(argv)
    name = rest.pop(0) if rest and not rest[0].startswith("-") else "train"
    if name not in COMMANDS:
        raise ConfigError(f"unknown command {name!r}{did_you_mean(closest(name, COMMANDS))}")
    takes = COMMANDS[name]
    merged = _Merged()
    behind: list[str] = []
    if name == "supervise" and "--" in rest:  # what stands behind is another command's
        place = rest.index("--")
        rest, behind = rest[:place], rest[place + 1 :]
    operands, options = _split(rest, merged.mistakes)
    operands += behind
    if not takes.least <= len(operands) <= takes.most:
        found = " ".join(operands) or "none"
        merged.mistakes.append(f"{name} takes {takes.operands}, not {found}")
    if name in TOOLS:
        return _tool(name, operands, options, merged)
    if name == "resume":
        _refuse_what_changes_bits(options, merged)
        merged.add_line(options)
        merged.checked(whole=False)
        return Command(name, directory=operands[0], overrides=options)
    dry_run = options.pop("dry-run", None) is not None
    ranks = options.pop("ranks", None)
    if ranks is not None and not (dry_run and ranks.isdecimal() and int(ranks) > 0):
        merged.mistakes.append(f"--ranks: {ranks} must be an integer >= 1, beside --dry-run")
    path = options.pop("config", None)
    if path is not None:
        merged.add_file(path)
    merged.add_line(options)
    config = merged.checked()
    return Command(name, config, dry_run=dry_run, ranks=None if ranks is None else int(ranks))


def from_keywords(
    keywords: Mapping[str, Any], source: Config | Mapping[str, Any] | str | os.PathLike[str] = ""
) -> Config:
    """Return the configuration that keyword arguments mean, over that of `source`. Local.

    keywords : key -> value. A key is the last word of a configuration key, or `section_word`;
        `env_kwargs` takes a mapping. `learning_rate` is `alpha` of a constant step size.
    source : a configuration, its sections, or the path of a TOML file; "" for none.

    Raises ConfigError with one line per mistake.
    """
    merged, called = _Merged(), keyword_names()
    if isinstance(source, Config):
        merged.add_sections(to_dict(source), "config")
    elif isinstance(source, Mapping):
        merged.add_sections(source, "config")
    elif os.fspath(source):
        merged.add_file(os.fspath(source))
    given: dict[str, str] = {}
    for name, value in keywords.items():
        key = called.get(name)
        if key is None:
            hint = did_you_mean(closest(name, called))
            merged.mistakes.append(f"{name}: unknown keyword{hint}")
            continue
        if key in given:
            merged.mistakes.append(f"{name}: {given[key]} says the same already")
            continue
        given[key] = name
        merged.put(key, _escaped(value), name)
    if "learning_rate" in keywords and "learn.step_size" not in given:
        merged.put("learn.step_size", "constant", "learning_rate")
    return merged.checked()


def _tool(
    name: str, operands: list[str], options: dict[str, str], merged: _Merged
) -> Command:
    known = (*COMMANDS[name].options, *COMMANDS[name].keys)
    told = ", ".join(f"--{key}" for key in known) or "no option"
    for key in [key for key in options if key not in known]:
        hint = did_you_mean(closest(key, known))
        merged.mistakes.append(f"--{key}: {name} takes {told}{hint}")
    keys = {key: options[key] for key in COMMANDS[name].keys if key in options}
    for key in sorted(options.keys() & NUMBERS):
        if not _positive(options[key]):
            merged.mistakes.append(f"--{key}: {options[key]} must be a number > 0")
    merged.add_line(keys)
    merged.checked()
    return Command(
        name, operands=tuple(operands), overrides=keys, json="json" in options,
        output=options.get("output", ""), options=options,
    )  # fmt: skip


def _refuse_what_changes_bits(options: dict[str, str], merged: _Merged) -> None:
    for key in list(options):
        if key in OPTIONS:
            why = "resume has none; it reads config.toml of the run"
        elif key == "run.dir":
            why = "cannot change on resume, it is the directory given"
        elif key.startswith(FREE_ON_RESUME):
            continue
        elif key in SCHEMAS or is_argument(key):
            why = (
                "cannot change on resume, it would change the bits; "
                "free are stop.*, checkpoint.*, run.report_every_s, evaluate.episodes, "
                "parallel.on_loss, parallel.protect, parallel.hang_s, parallel.servers and "
                "parallel.cache_rows"
            )
        else:
            continue
        merged.mistakes.append(f"--{key}: {why}")
        del options[key]


def _split(rest: list[str], mistakes: list[str]) -> tuple[list[str], dict[str, str]]:
    """Operands, and option -> text; a key that is true or false may stand without a value."""
    operands: list[str] = []
    options: dict[str, str] = {}
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            operands.append(word)
            continue
        key, equals, text = word[2:].partition("=")
        if key in SWITCHES:
            if equals:
                mistakes.append(f"--{key} takes no value, not {text}")
        elif not equals:
            switch = "boolean" in kinds(key)
            if rest and (rest[0] in ("true", "false") or not switch) and rest[0][:2] != "--":
                text = rest.pop(0)
            elif switch:
                text = "true"
            elif key in (*OPTIONS, *VALUED, *SCHEMAS) or is_argument(key):
                mistakes.append(f"--{key}: needs a value")
                continue
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
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            self.mistakes.append(f"--config {path}: cannot be read: {reason}")
            return
        self.add_toml(text, path)

    def add_toml(self, text: str, path: str) -> None:
        try:
            sections = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            self.mistakes.append(f"{path}: not TOML: {error}")
            return
        self.add_sections(sections, path)

    def add_sections(self, sections: Mapping[str, Any], path: str) -> None:
        for section, keys in sections.items():
            if section not in SECTIONS:
                known = words() | {name: f"[{name}]" for name in SECTIONS}
                hint = did_you_mean(known.get(section) or known.get(closest(section, known)))
                self.mistakes.append(f"{section} in {path}: unknown section{hint}")
            elif not isinstance(keys, Mapping):
                self.mistakes.append(f"{section} in {path}: must be a section, [{section}]")
            else:
                for key, value in keys.items():
                    self.put(f"{section}.{key}", value, f"{section}.{key} in {path}")

    def add_line(self, options: dict[str, str]) -> None:
        for key, text in options.items():
            self.put(key, _value(key, text), f"--{key}")

    def put(self, key: str, value: Any, origin: str) -> None:
        section, _, name = key.partition(".")
        if key in MAPPINGS and isinstance(value, Mapping):
            called = key if key in origin else key.replace(".", "_")
            for argument, item in value.items():
                place = origin.replace(called, f"{called}.{argument}", 1)
                self.put(f"{key}.{argument}", item, place)
        elif key in MAPPINGS:
            self.mistakes.append(f"{origin}: one value each: {key}.NAME")
        elif is_argument(key):
            self.put_argument(key, toml_value(value), origin)
        elif key not in SCHEMAS:
            known = words()
            leaf = name.rpartition(".")[2] or section
            hint = did_you_mean(known.get(leaf) or known.get(closest(key, known)))
            self.mistakes.append(f"{origin}: unknown key{hint}")
        else:
            self.origin[key] = origin
            if isinstance(value, float) and value.is_integer() and "integer" in kinds(key):
                value = int(value)
            if isinstance(value, str) and kinds(key) == {"array"}:
                value = [value]
            self.values.setdefault(section, {})[name] = value

    def put_argument(self, key: str, value: Any, origin: str) -> None:
        """Take one value of a mapping, which must be of a kind that a file can hold."""
        section, mapping, name = key.split(".", 2)
        if can_be_written(value):
            self.values.setdefault(section, {}).setdefault(mapping, {})[name] = value
            return
        kind, hint = type(value), ""
        shown = json.dumps(value, default=repr)
        if kind.__module__ != "builtins" or callable(value):
            shown = f"an object of {kind.__module__}.{kind.__qualname__}"
            hint = "; register an environment with it, or give the object"
        self.mistakes.append(f"{origin}: {shown} must be {limits(key)}{hint}")

    def checked(self, whole: bool = True) -> Config:
        """The configuration, or ConfigError with all mistakes.

        whole : whether keys are checked against each other; part of one says little.
        """
        config, bad = validate(self.values)
        if config is None:
            config = from_dict(self._without(bad))
        for key, value in bad.items():
            shown = json.dumps(value, default=str)
            hint = did_you_mean(closest(str(value), choices(key)))
            self.mistakes.append(f"{self.origin[key]}: {shown} must be {limits(key)}{hint}")
        # What a default in the place of a bad value would be blamed for is no mistake.
        told = check(config) if whole else []
        crossed = [m for m in told if bad.keys().isdisjoint(re.findall(r"[\w.]+", m))]
        if self.mistakes or crossed:
            raise ConfigError("\n".join(dict.fromkeys(self.mistakes + crossed)))
        return config

    def _without(self, bad: dict[str, Any]) -> dict[str, dict[str, Any]]:
        return {
            section: {key: value for key, value in keys.items() if f"{section}.{key}" not in bad}
            for section, keys in self.values.items()
        }


def _escaped(value: Any) -> Any:
    """A value of Python as a configuration holds it: numbers of NumPy as Python's, and a text that
    would stand for None as one that does not."""
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        return value.item()
    if isinstance(value, str) and value.lstrip("\\") == "None":
        return f"\\{value}"
    if isinstance(value, list | tuple):
        return [_escaped(item) for item in value]
    if isinstance(value, Mapping):
        return {name: _escaped(item) for name, item in value.items()}
    return value


def _positive(text: str) -> bool:
    try:
        return 0 < float(text) < float("inf")
    except ValueError:
        return False


POINTED = re.compile(r"[+-]?(\d+\.|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
"""Numbers as people write them that are none in TOML: .2, 1."""


def _value(key: str, text: str) -> Any:
    """The value that a text from the line means for a key; a wrong one stays text."""
    if is_argument(key):
        try:
            value = tomllib.loads(f"x = {text}")["x"]
        except tomllib.TOMLDecodeError:
            return float(text) if POINTED.fullmatch(text) else text
        return value if isinstance(value, bool | int | float | str | list | dict) else text
    taken = kinds(key)
    if taken == {"array"}:
        return [part.strip() for part in text.strip("[] ").split(",") if part.strip()]
    if "null" in taken and text == "none":
        return None
    if "boolean" in taken and text in ("true", "false"):
        return text == "true"
    if not taken & {"integer", "number"}:
        return text
    if "array" in taken and "," in text:
        return [_value(key, part.strip()) for part in text.strip("[] ").split(",") if part.strip()]
    for number in (int, float) if text != "inf" or "number" in taken else ():
        try:
            return number(text)
        except ValueError:
            continue
    return text


