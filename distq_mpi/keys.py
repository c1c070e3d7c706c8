"""What is known of each configuration key: its type, limits and likely misspellings.

The only door to pydantic; all of it is read from the types and docstrings of `config.py`.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable
from typing import Any

from pydantic import TypeAdapter, ValidationError

from distq_mpi.config import SECTIONS, Config

OPTIONS = ("config", "dry-run", "ranks")
SYNONYMS = {
    "gamma": "learn.discount",
    "lr": "learn.alpha",
    "learning_rate": "learn.alpha",
    "name": "env.id",
    "total_timesteps": "stop.steps",
}

ADAPTER = TypeAdapter(Config)


def _schemas() -> dict[str, dict[str, Any]]:
    """Dotted key -> JSON schema of its value: type, limits, default, description."""
    sections = ADAPTER.json_schema()["$defs"]
    return {
        f"{name}.{key}": schema
        for name, kind in SECTIONS.items()
        for key, schema in sections[kind.__name__]["properties"].items()
    }


SCHEMAS = _schemas()


def validate(values: dict[str, dict[str, Any]]) -> tuple[Config | None, dict[str, Any]]:
    """Return the configuration, or None and what is wrong: dotted key -> value. Local.

    values : section -> key -> value, known keys only.
    """
    bad: dict[str, Any] = {}
    try:
        # As JSON: strict types take a section for a table there only.
        return ADAPTER.validate_json(json.dumps(values, default=str)), bad
    except ValidationError as error:
        for found in error.errors():
            section, name = (str(part) for part in found["loc"][:2])
            bad[f"{section}.{name}"] = values[section][name]
        return None, bad


MAPPINGS = ("env.kwargs", "env.reset_options")
"""Keys that hold values by names of the user's."""


def is_argument(key: str) -> bool:
    """Whether the key is one value of a mapping: env.kwargs.NAME, env.reset_options.NAME."""
    return any(key.startswith(f"{name}.") and key != f"{name}." for name in MAPPINGS)


def can_be_written(value: Any) -> bool:
    """Whether a value of a mapping can stand in a configuration file, and be read again. Local."""
    if isinstance(value, list):
        return all(map(can_be_written, value))
    if isinstance(value, dict):
        return all(isinstance(name, str) and can_be_written(x) for name, x in value.items())
    return isinstance(value, bool | int | str) or (
        isinstance(value, float) and math.isfinite(value)
    )


def _parts(key: str) -> list[dict[str, Any]]:
    schema = SCHEMAS[key]
    return list(schema.get("anyOf", [schema]))


def kinds(key: str) -> set[str]:
    """JSON types that a key takes; none for a key that does not exist."""
    return {part["type"] for part in _parts(key)} if key in SCHEMAS else set()


def choices(key: str) -> list[str]:
    """Words that a key takes."""
    return [c for part in _parts(key) for c in part.get("enum", [part.get("const")]) if c]


def _bounded(part: dict[str, Any]) -> str:
    """A type and its bounds in words."""
    names = {"integer": "an integer", "number": "a finite number", "string": "a text",
             "boolean": "true or false", "object": "arguments by name", "null": "none"}  # fmt: skip
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    if part["type"] == "array":
        return f"several with comma between, each {_bounded(part['items'])}"
    bounds = " and ".join(f"{sign} {part[at]}" for at, sign in signs.items() if at in part)
    return f"{names[part['type']]} {bounds}".rstrip()


def limits(key: str) -> str:
    """What a key takes, in words. Local."""
    if is_argument(key):
        return "true or false, an integer, a finite number, a text, None, or lists, tables of these"
    told = choices(key)
    told += [_bounded(part) for part in _parts(key) if "enum" not in part and "const" not in part]
    return " or ".join(filter(None, (", ".join(told[:-1]), told[-1])))


def words() -> dict[str, str]:
    """What a user may call a key -> the key."""
    found = {key: key for key in (*SCHEMAS, *OPTIONS)}
    for key in SCHEMAS:
        found.setdefault(key.partition(".")[2], key)
    for word, key in SYNONYMS.items():
        found |= {word: key, f"{key.partition('.')[0]}.{word}": key}
    return found


def keyword_names() -> dict[str, str]:
    """What a key may be called as a keyword argument of Python -> the key.

    `section_word` of every key; the last word alone where one section has it; synonyms of it.
    """
    found: dict[str, str] = {}
    leaves = [key.partition(".")[2] for key in SCHEMAS]
    for key, leaf in zip(SCHEMAS, leaves, strict=True):
        found[key.replace(".", "_", 1)] = key
        if leaves.count(leaf) == 1:
            found[leaf] = key
    return found | {word: key for word, key in SYNONYMS.items() if word not in OPTIONS}


def closest(word: str, known: Iterable[str]) -> str:
    """The known word most like this one, empty where none is."""
    return next(iter(difflib.get_close_matches(word, list(known), 1)), "")


def did_you_mean(word: str | None) -> str:
    """The end of a message that suggests a word."""
    return f"; did you mean {word}?" if word else ""
