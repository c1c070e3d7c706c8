"""Compile a kernel and write it as an object file. The only door to numba; imported by one
process per node, and only when the file is missing.

The template and every plain function that it reaches through globals, closures or parts are
compiled by rebinding their code to other globals: no text is generated, and the functions stay
ordinary Python for a reader, a linter and a debugger.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import json
import os
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import llvmlite.binding as llvm
import numba
import numpy as np
from llvmlite import ir
from numba import types as nb
from numba.core import cgutils
from numba.extending import intrinsic

from distq_mpi.errors import ModelError
from distq_mpi.kernels import Kernel, rounds, storing
from distq_mpi.kernels.fingerprint import used_values
from distq_mpi.kernels.objects import ENTRY, target_machine

# No wrapper for Python callers, no reference counts: the object must stand alone.
BARE: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True, "_nrt": False}
WORD_BYTES = 8


def _prefetch(to_write):
    """Emitter of the processor's instruction that asks for a cache line."""

    def emit(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        pointer = builder.bitcast(builder.gep(data, [arguments[1]]), byte)
        builder.call(function, [pointer, word(to_write), word(3), word(1)])
        return context.get_dummy_value()

    return emit


@intrinsic
def prefetch(context, array, index):
    """`storing.prefetch` as the processor's instruction."""
    return nb.void(array, index), _prefetch(1)


@intrinsic
def prefetch_read(context, array, index):
    """`storing.prefetch_read` as the processor's instruction."""
    return nb.void(array, index), _prefetch(0)


@intrinsic
def bits_of(context, x):
    """`storing.bits_of` as a bit cast."""
    return nb.uint64(nb.float64), lambda c, b, s, a: b.bitcast(a[0], c.get_value_type(nb.uint64))


@intrinsic
def float_of(context, x):
    """`storing.float_of` as a bit cast."""
    return nb.float64(nb.uint64), lambda c, b, s, a: b.bitcast(a[0], c.get_value_type(nb.float64))


@intrinsic
def bits_of_single(context, x):
    """`storing.bits_of_single` as a bit cast."""
    return nb.uint32(nb.float32), lambda c, b, s, a: b.bitcast(a[0], c.get_value_type(nb.uint32))


@intrinsic
def single_of(context, x):
    """`storing.single_of` as a bit cast."""
    return nb.float32(nb.uint32), lambda c, b, s, a: b.bitcast(a[0], c.get_value_type(nb.float32))


@intrinsic
def lowest_bit(context, x):
    """`storing.lowest_bit` as the processor's instruction."""
    return nb.uint64(nb.uint64), lambda c, b, s, a: b.cttz(a[0], ir.IntType(1)(1))


def _place(context, builder, signature, arguments):
    """Emit the address of array[index], of 64-bit integers."""
    data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
    return builder.gep(data, [arguments[1]])


@intrinsic
def ordered_load(context, array, index):
    """`rounds.ordered_load` as the processor's instruction."""

    def emit(context, builder, signature, arguments):
        place = _place(context, builder, signature, arguments)
        return builder.load_atomic(place, "acquire", WORD_BYTES)

    return array.dtype(array, index), emit


@intrinsic
def ordered_store(context, array, index, value):
    """`rounds.ordered_store` as the processor's instruction."""

    def emit(context, builder, signature, arguments):
        place = _place(context, builder, signature, arguments)
        builder.store_atomic(arguments[2], place, "release", WORD_BYTES)
        return context.get_dummy_value()

    return nb.void(array, index, array.dtype), emit


@intrinsic
def call(context, entry, words):
    """`rounds.call` as a call."""

    def emit(context, builder, signature, arguments):
        kind = ir.FunctionType(ir.IntType(32), [ir.IntType(64).as_pointer()])
        function = builder.inttoptr(arguments[0], kind.as_pointer())
        builder.call(function, [builder.inttoptr(arguments[1], kind.args[0])])
        return context.get_dummy_value()

    return nb.void(nb.uint64, nb.uint64), emit


INSTRUCTIONS = {
    rounds.ordered_load: ordered_load,
    rounds.ordered_store: ordered_store,
    rounds.give_way: nb.ExternalFunction("sched_yield", nb.int32()),
    rounds.call: call,
    storing.prefetch: prefetch,
    storing.prefetch_read: prefetch_read,
    storing.bits_of: bits_of,
    storing.float_of: float_of,
    storing.bits_of_single: bits_of_single,
    storing.single_of: single_of,
    storing.lowest_bit: lowest_bit,
}


_inner: dict[Any, Any] = {}
"""Dispatchers by what their functions are made of. Most of what one kernel reaches another does,
too, and a kernel takes two thirds of its time for functions that were compiled before."""
MOST_INNER = 512
"""Dispatchers that are kept; with them are what their functions name."""


def compiled(function: Callable[..., Any]) -> Any:
    """Return a dispatcher for a plain function and all plain functions it reaches. Local."""
    if function in INSTRUCTIONS:
        return INSTRUCTIONS[function]
    made_of = _made_of(function, ())
    if made_of not in _inner:
        # Without force LLVM leaves larger laws as calls: 2.5 x slower on a grid with walls.
        options = {"error_model": "numpy", "forceinline": True, **BARE}
        _inner[made_of] = numba.njit(**options)(_rebound(function, {}))
    return _inner[made_of]


def _made_of(value: Any, within: tuple[Any, ...]) -> Any:
    """What tells values apart that functions are compiled with: for functions, their code and what
    it names; within : functions that this one was reached from."""
    if isinstance(value, types.FunctionType):
        if value in within:
            raise ModelError(f"{value.__qualname__} calls itself, which a law must not")
        named = sorted(used_values(value).items())
        inside = (*within, value)
        return (value.__code__, *((name, _made_of(used, inside)) for name, used in named),
                _made_of(value.__defaults__, inside))  # fmt: skip
    if isinstance(value, tuple):
        return (type(value), *(_made_of(item, within) for item in value))
    if isinstance(value, np.generic):
        return type(value), value.tobytes()
    if isinstance(value, np.ndarray):
        # Which one it is counts, too: what it holds may change before it is compiled for the types
        # of other arguments.
        content = hashlib.sha256(value.tobytes()).digest()
        return _Itself(value), value.dtype, value.shape, content
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return type(value), repr(value)
    return _Itself(value)


class _Itself:
    """A value that equals no other: a module, a type, a function of the interpreter."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Itself) and self._value is other._value

    def __hash__(self) -> int:
        return id(self._value)


def _rebound(function: Any, parts: dict[str, Any]) -> types.FunctionType:
    def bind(value: Any) -> Any:
        return compiled(value) if isinstance(value, types.FunctionType) else value

    space = dict(function.__globals__)
    for name in function.__code__.co_names:
        if name in parts:
            space[name] = bind(parts[name])
        elif name in space:
            space[name] = bind(space[name])
    cells = tuple(types.CellType(bind(c.cell_contents)) for c in function.__closure__ or ())
    return types.FunctionType(
        function.__code__, space, function.__name__, function.__defaults__, cells
    )


def _numba_type(described: list[Any]) -> Any:
    kind, *rest = described
    if kind == "array":
        return nb.Array(numba.from_dtype(np.dtype(rest[0])), rest[1], "C")
    if kind == "tuple":
        return nb.Tuple([_numba_type(item) for item in rest[0]])
    return nb.boolean if rest[0] == "bool" else getattr(nb, rest[0])


def export(kernel: Kernel, described: list[Any], path: str) -> None:
    """Compile and write `path`.o, then `path`.json (which says that .o is whole). Local.

    Raises ModelError where the kernel, that is the user's law in it, cannot stand alone: it
    allocates, raises, uses Python objects, or does not compile at all.
    """
    if len(_inner) > MOST_INNER:
        _inner.clear()
    with _no_collection():
        _export(kernel, described, path)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Garbage is not looked for while numba makes a lot of it: a tenth of a kernel's time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _export(kernel: Kernel, described: list[Any], path: str) -> None:
    signature = tuple(_numba_type(item) for item in described)
    dispatcher = numba.njit(error_model="numpy", **BARE)(
        _rebound(kernel.template, kernel.parts)
    )
    try:
        dispatcher.compile(signature)
    except numba.core.errors.NumbaError as error:
        raise ModelError(
            f"kernel {kernel.template.__name__} does not compile: {_reason(str(error))}"
        ) from error
    text = dispatcher.inspect_llvm(signature)
    symbol = dispatcher.overloads[signature].fndesc.llvm_func_name
    module = llvm.parse_assembly(text + _entry(llvm.parse_assembly(text), symbol))
    # numba keeps what a kernel can raise as pickled constants; those never raised are gone by now.
    if any(v.name.startswith(".const.pickle") for v in module.global_variables):
        raise ModelError(
            f"kernel {kernel.template.__name__} can raise an exception: a law must not raise, "
            "assert, index a tuple with a variable or step a range by one"
        )
    missing = _unresolved(module)
    if missing:
        raise ModelError(
            f"kernel {kernel.template.__name__} needs numba's run time ({', '.join(missing)}): "
            "a law must not allocate, raise or use Python objects"
        )
    about = {"symbol": ENTRY, "arguments": described}
    for suffix, data in (
        (".o", target_machine().emit_object(module)),
        (".json", json.dumps(about).encode()),
    ):
        temporary = f"{path}{suffix}.{os.getpid()}"
        with open(temporary, "wb") as file:
            file.write(data)
        os.replace(temporary, path + suffix)


def _entry(module: Any, symbol: str) -> str:
    """LLVM's text of the function `ENTRY`, which takes the arguments of another from words of
    memory: a call from Python with a hundred arguments takes longer than a small table's round.
    """
    kinds = [str(argument.type) for argument in module.get_function(symbol).arguments]
    opaque = "ptr" in kinds  # pointers have no types from LLVM 17 on
    words, lines = ("ptr" if opaque else "i64*"), []
    for k, kind in enumerate(kinds):
        lines.append(f"%p{k} = getelementptr i64, {words} %words, i64 {k}")
        where = f"ptr %p{k}"
        if not opaque:
            lines.append(f"%c{k} = bitcast i64* %p{k} to {kind}*")
            where = f"{kind}* %c{k}"
        lines.append(f"%a{k} = load {kind}, {where}")
    given = ", ".join(f"{kind} %a{k}" for k, kind in enumerate(kinds))
    lines += [f'%status = call i32 @"{symbol}"({given})', "ret i32 %status"]
    return f"\ndefine i32 @{ENTRY}({words} %words) {{\n" + "\n".join(lines) + "\n}\n"


def _reason(text: str) -> str:
    """What numba has to say, in one line and without the stations it passed."""
    stations = ("Failed in", "During: Pass", "During: resolving", "During: typing")
    lines = [line.strip() for line in text.splitlines()]
    said = [line for line in lines if line and not line.startswith(stations)]
    told = " ".join(said).replace("NRT required but not enabled", "a law must not allocate")
    return told[:1000]


def _unresolved(module: Any) -> list[str]:
    """Symbols that a process without numba cannot find; LLVM would end the process on one."""
    process = ctypes.CDLL(None)
    wanted = {
        f.name for f in module.functions if f.is_declaration and not f.name.startswith("llvm.")
    }
    wanted |= {v.name for v in module.global_variables if v.is_declaration}
    return sorted(name for name in wanted if not hasattr(process, name))
