"""Hash what Python objects hold: equal contents have equal hashes in every process."""

from __future__ import annotations

import dis
import hashlib
import types
from collections.abc import Iterator, Mapping

import numpy as np

from distq_mpi.environments.calls import described
from distq_mpi.errors import ModelError
from distq_mpi.kernels.fingerprint import source_of

PLAIN = (type(None), bool, int, float, complex, str, bytes)
BUILT_IN = (types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType,
            np.ufunc)  # fmt: skip


def is_plain(value: object) -> bool:
    """Tell whether `repr` shows all of a value: numbers, texts, and containers of these. Local."""
    if isinstance(value, Mapping):
        return type(value) is dict and all(is_plain(x) for pair in value.items() for x in pair)
    if type(value) in (list, tuple):
        return all(map(is_plain, value))  # type: ignore[call-overload]
    return type(value) in PLAIN


def contents_hash(name: str, value: object) -> str:
    """Return the SHA-256 (hex) of all that a value holds. Local.

    Arrays and numbers count by their bits, functions by their source and the globals, defaults and
    closures they read, classes and modules by their names, any other object by what `pickle` would
    write of it. The order of dictionaries and sets does not count.

    Raises
    ------
    ModelError
        If a part of it cannot be hashed, with the path to it, which begins with `name`.
    """
    return _Hasher().hash(name, value).hex()


class _Hasher:
    """Hashes of objects by their identity: finished ones, and those that are being read."""

    def __init__(self) -> None:
        self._finished: dict[int, bytes] = {}
        self._open: dict[int, int] = {}
        self._alive: list[object] = []
        """What was made for the hash; an identity must not be used again."""

    def hash(self, name: str, value: object) -> bytes:
        """Return the hash of a value, 32 bytes. Raises ModelError as `contents_hash` does."""
        if isinstance(value, PLAIN) and type(value) in PLAIN:
            return _digest(type(value).__name__, repr(value).encode())
        key = id(value)
        if key in self._finished:
            return self._finished[key]
        if key in self._open:  # a circle: by how far up it leads
            return _digest("circle", str(len(self._open) - self._open[key]).encode())
        self._open[key] = len(self._open)
        self._alive.append(value)
        try:
            kind, parts = self._parts(name, value)
            self._finished[key] = _digest(kind, *parts)
        except RecursionError as error:
            raise ModelError(f"{name}: it is nested too deeply to be hashed") from error
        finally:
            del self._open[key]
        return self._finished[key]

    def _parts(self, name: str, value: object) -> tuple[str, Iterator[bytes]]:
        kind = type(value)
        if kind in (list, tuple):
            return kind.__name__, self._sequence(name, value)
        if kind in (set, frozenset):
            return kind.__name__, iter(sorted(self._sequence(name, value)))
        if isinstance(value, dict) and kind is dict:
            return "dict", self._mapping(name, value)
        if isinstance(value, np.ndarray) and kind is np.ndarray and value.dtype != object:
            return f"array {value.dtype!r} {value.shape}", iter([value.tobytes()])
        if isinstance(value, np.generic):
            return f"number {value.dtype!r}", iter([value.tobytes()])
        if isinstance(value, types.FunctionType):
            return "function", self._function(name, value)
        if isinstance(value, types.MethodType):
            return "method", self._sequence(name, (value.__func__, value.__self__))
        if isinstance(value, types.ModuleType):
            return "module", iter([value.__name__.encode()])
        if isinstance(value, type):
            return "class", iter([f"{value.__module__}.{value.__qualname__}".encode()])
        if isinstance(value, types.CodeType):
            return "code", self._code(name, value)
        if isinstance(value, BUILT_IN) and isinstance(
            getattr(value, "__self__", None), types.ModuleType | type | None
        ):
            origin = getattr(value, "__module__", None) or getattr(value, "__objclass__", "")
            return "built-in", iter([f"{origin}.{getattr(value, '__qualname__', value)}".encode()])
        return "object", self._object(name, value)

    def _sequence(self, name: str, items: object) -> Iterator[bytes]:
        for i, item in enumerate(items):  # type: ignore[arg-type, var-annotated]
            yield self.hash(f"{name}[{i}]", item)

    def _mapping(self, name: str, items: Mapping[object, object]) -> Iterator[bytes]:
        yield from sorted(
            self.hash(name, key) + self.hash(f"{name}.{key}", item) for key, item in items.items()
        )

    def _function(self, name: str, function: types.FunctionType) -> Iterator[bytes]:
        try:
            yield source_of(function)
        except ModelError:  # written at a prompt
            yield self.hash(name, function.__code__)
        yield self.hash(name, (function.__defaults__, function.__kwdefaults__))
        for key, value in sorted(_used(function).items()):
            yield key.encode()
            yield self.hash(f"{name}: {key}", value)

    def _code(self, name: str, code: types.CodeType) -> Iterator[bytes]:
        yield code.co_code
        yield repr((code.co_names, code.co_varnames)).encode()
        yield self.hash(name, code.co_consts)

    def _object(self, name: str, value: object) -> Iterator[bytes]:
        try:
            reduced = value.__reduce_ex__(4)
        except BaseException as error:  # whatever the object's own method raises
            kind = f"{type(value).__module__}.{type(value).__qualname__}"
            raise ModelError(
                f"{name}: what an object of {kind} holds cannot be hashed: {described(error)}"
            ) from error
        self._alive.append(reduced)
        if isinstance(reduced, str):
            yield f"{type(value).__module__}.{reduced}".encode()
            return
        make, arguments, *rest = reduced
        state, items, pairs = ([*rest[:3], None, None, None])[:3]
        yield self.hash(name, make)
        yield from self._sequence(name, arguments)
        yield self.hash(name, state)
        yield self.hash(name, None if items is None else list(items))
        yield self.hash(name, None if pairs is None else list(pairs))


def _digest(kind: str, *parts: bytes) -> bytes:
    digest = hashlib.sha256(kind.encode())
    for part in parts:
        digest.update(f":{len(part)}:".encode())
        digest.update(part)
    return digest.digest()


def _used(function: types.FunctionType) -> dict[str, object]:
    """Globals and closure values that a function reads; not what attributes are called."""
    values: dict[str, object] = {}
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
        for step in dis.get_instructions(code):
            if step.opname in ("LOAD_GLOBAL", "LOAD_NAME") and step.argval in function.__globals__:
                values[step.argval] = function.__globals__[step.argval]
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            values[name] = cell.cell_contents
        except ValueError:  # nothing is bound to it yet
            values[name] = None
    return values
