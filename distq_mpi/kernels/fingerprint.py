"""A hash of plain functions and all they are made of."""

from __future__ import annotations

import ast
import hashlib
import inspect
import sys
import textwrap
import threading
import types
from collections.abc import Mapping

import numpy as np

from distq_mpi.errors import ModelError

PARSING = threading.Lock()
"""Python 3.11 counts the depth of what it parses in one place for all threads."""


def fingerprint(
    parts: Mapping[str, object], versions: bool = False, code: bool = False
) -> str:
    """Return the SHA-256 (hex) of `parts`, followed through globals, closures and defaults.

    Parameters
    ----------
    parts : name -> function, type, constant, array or tuple of these.
    versions : also cover the versions of Python and NumPy, for what was compiled under them.
    code : also cover the byte code, for the source may have been edited since it was imported.

    Functions count by their source without comments and layout, so the hash is the same in every
    process and changes with every edit that could matter. Attributes of modules are not followed.

    Raises
    ------
    ModelError
        If a function has no source, or a value is of a kind that cannot be hashed.
    """
    digest = hashlib.sha256(f"{sys.version} {np.__version__}".encode() if versions else b"")
    seen: dict[types.FunctionType, int] = {}

    def write(name: str, kind: str, content: bytes) -> None:
        digest.update(f"{name}:{kind}:{len(content)}:".encode() + content)

    def visit(name: str, value: object) -> None:
        # Compiled functions and intrinsics hold the plain function they were made of.
        value = getattr(value, "py_func", getattr(value, "_defn", value))
        if isinstance(value, types.FunctionType):
            if value in seen:
                write(name, "again", str(seen[value]).encode())
                return
            seen[value] = len(seen)
            write(name, "function", source_of(value))
            if code:
                write(name, "code", value.__code__.co_code)
                visit("constants", tuple(c for c in value.__code__.co_consts if _is_plain(c)))
            visit("defaults", value.__defaults__ or ())
            for key, default in sorted((value.__kwdefaults__ or {}).items()):
                visit(key, default)
            for key, used in sorted(used_values(value).items()):
                visit(key, used)
        elif isinstance(value, tuple | list):
            fields = getattr(value, "_fields", "")
            write(name, type(value).__name__, f"{len(value)} {fields}".encode())
            for i, item in enumerate(value):
                visit(str(i), item)
        elif isinstance(value, np.ndarray) and value.dtype != object:
            write(name, f"array {value.dtype.str} {value.shape}", value.tobytes())
        elif isinstance(value, np.generic):
            write(name, value.dtype.str, value.tobytes())
        elif value is None or isinstance(value, bool | int | float | complex | str | bytes):
            write(name, type(value).__name__, repr(value).encode())
        elif isinstance(value, types.ModuleType):
            write(name, "module", value.__name__.encode())
        elif isinstance(value, type | types.BuiltinFunctionType | np.ufunc) or callable(value):
            origin = getattr(value, "__module__", None)
            label = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
            if label is None:
                raise ModelError(f"{name}: an object of {type(value)} cannot be hashed")
            write(name, "name", f"{origin}.{label}".encode())
        else:
            raise ModelError(
                f"{name}: a value of {type(value)} cannot be hashed; "
                "use numbers, strings, arrays and tuples of these"
            )

    for name, value in sorted(parts.items()):
        visit(name, value)
    return digest.hexdigest()


def used_values(function: types.FunctionType) -> dict[str, object]:
    """Return the globals and closure values that a function names, nested code included."""
    values: dict[str, object] = {}
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
        for name in code.co_names:
            if name in function.__globals__:
                values[name] = function.__globals__[name]
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        values[name] = cell.cell_contents
    return values


def _is_plain(constant: object) -> bool:
    return constant is None or isinstance(constant, bool | int | float | complex | str | bytes)


def source_of(function: types.FunctionType) -> bytes:
    """Return a function's source without comments and layout; raises ModelError if it has none."""
    try:
        text = textwrap.dedent(inspect.getsource(function))
    except (OSError, TypeError) as error:
        raise ModelError(
            f"{function.__qualname__} has no source text; write it into a file that can be imported"
        ) from error
    try:
        with PARSING:
            tree = ast.parse(text)
    except SyntaxError:  # a lambda in the middle of an expression
        tree = None
    if tree is None or function.__name__ == "<lambda>":
        return text.encode() + function.__code__.co_code
    return ast.unparse(tree).encode()
