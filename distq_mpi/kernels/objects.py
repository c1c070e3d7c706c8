"""Load compiled kernels from object files, compiling once per node what is missing.

`import numba` on 64 ranks of two cores costs half a minute, so only a process that must compile
imports it; the others need llvmlite's loader alone. The files live in `cache_folder()`, named by
a hash of sources, constants, argument types, versions and processor, so that they are never stale.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import struct
import sys
import tempfile
from collections.abc import Sequence
from importlib.resources import files
from typing import Any, Protocol

import llvmlite.binding as llvm
import numpy as np

from distq_mpi.errors import DistqError, FileError
from distq_mpi.kernels import Kernel, describe
from distq_mpi.kernels.fingerprint import fingerprint

ENTRY = "distq_entry"
"""The symbol of a kernel in its object file: a function of one pointer, to its arguments as words.
"""


class Node(Protocol):
    """The ranks that share a host: what `load` needs of them."""

    @property
    def leads_node(self) -> bool:
        """Whether this rank is the first of its node."""

    def broadcast_on_node(self, value: Any) -> Any:
        """Return the leader's `value` on every rank of the node. COLLECTIVE on the node."""


def target_machine() -> Any:
    """LLVM's description of this processor; always a new one, for an engine owns and frees it."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_triple(llvm.get_process_triple()).create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=3,
        jit=True,
    )


def cache_folder() -> str:
    """Folder of the object files: $DISTQ_CACHE_DIR, else the user's cache, else a temporary one."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    fallback = os.path.join(tempfile.gettempdir(), f"distq_mpi-{os.getuid()}")
    for folder in (os.environ.get("DISTQ_CACHE_DIR"), os.path.join(home, "distq_mpi"), fallback):
        if folder:
            try:
                os.makedirs(folder, mode=0o700, exist_ok=True)
            except OSError:
                continue
            if os.access(folder, os.W_OK):
                return folder
    raise FileError(f"no folder for compiled kernels is writable; tried {fallback} last")


def _compiler() -> str:
    """Hash of the module that compiles: its options and refusals are in every file it writes."""
    source = files("distq_mpi.kernels").joinpath("compiler.py").read_bytes()
    return hashlib.sha256(source).hexdigest()


def _key(kernel: Kernel, described: list[Any]) -> str:
    from importlib.metadata import version  # reads mail headers: not for ranks that only load

    machine = (llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten())
    versions = (sys.version, version("numba"), version("llvmlite"), version("numpy"))
    named = kernel.template.__code__.co_names  # a run has parts that this kernel has no use for
    parts = {name: part for name, part in kernel.parts.items() if name in named}
    sources = fingerprint({**parts, "template": kernel.template}, code=True)
    text = json.dumps([sources, described, machine, versions, _compiler()])
    return f"{kernel.template.__name__}-{hashlib.sha256(text.encode()).hexdigest()[:24]}"


def load(requests: dict[str, Kernel] | None, node: Node) -> dict[str, LoadedKernel]:
    """Return the compiled form of each request. COLLECTIVE on the node.

    Only the node's leader needs `requests`; it compiles what the cache lacks and tells the others
    the files. Raises ModelError on every rank where a kernel cannot be compiled.
    """
    paths: dict[str, str] = {}
    error: DistqError | None = None
    if node.leads_node:
        try:
            paths = _prepare(requests or {})
        except DistqError as mistake:
            error = mistake
        except OSError as mistake:
            error = FileError(f"cannot store a compiled kernel: {mistake}")
    paths, error = node.broadcast_on_node((paths, error))
    if error is not None:
        raise error
    return {name: LoadedKernel(path) for name, path in paths.items()}


def _prepare(requests: dict[str, Kernel]) -> dict[str, str]:
    paths, folder = {}, cache_folder()
    for name, kernel in requests.items():
        described = [describe(argument) for argument in kernel.arguments]
        path = os.path.join(folder, _key(kernel, described))
        if not os.path.exists(path + ".json"):
            from distq_mpi.kernels.compiler import export

            export(kernel, described, path)
        paths[name] = path
    return paths


class BoundKernel:
    """A compiled kernel with its arguments fixed; holds the arrays alive. Call it with nothing."""

    def __init__(
        self, call: Any, entry: int, words: np.ndarray, arguments: tuple[Any, ...]
    ) -> None:
        self._call, self._place = call, ctypes.c_void_p(words.ctypes.data)
        self.entry, self.words = entry, words
        self._keep: Any = arguments

    def keep(self, more: Any) -> None:
        """Hold what the arguments point to alive. Local."""
        self._keep = self._keep, more

    def __call__(self) -> None:
        if self._call(self._place) not in (0, -2):
            raise DistqError("a compiled kernel reported an error")


class LoadedKernel:
    """A compiled kernel, called like its template; types are checked at every call or bind."""

    def __init__(self, path: str) -> None:
        with open(path + ".json", encoding="utf-8") as file:
            about = json.load(file)
        with open(path + ".o", "rb") as file:
            code = llvm.ObjectFileRef.from_data(file.read())
        self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), target_machine())
        self._engine.add_object_file(code)
        self._engine.finalize_object()
        self._types = about["arguments"]
        prototype = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p)
        self._entry = self._engine.get_function_address(about["symbol"])
        self._call = prototype(self._entry)
        self._results = np.zeros(2, np.uint64)
        address = self._results.ctypes.data
        self._result_words = _word(address) + _word(address + 8)
        self._dtypes = [
            (np.dtype(described[1]), described[2]) if described[0] == "array" else None
            for described in self._types
        ]

    def bind(self, *arguments: Any) -> BoundKernel:
        """Return a call over these very arrays (scalars keep their present value). Local.

        Raises TypeError where an argument has another type than the kernel was compiled for.
        """
        # numba's calling convention: where to put the result, where the exception, the arguments.
        words = [self._result_words]
        for described, wanted, argument in zip(self._types, self._dtypes, arguments, strict=True):
            if wanted is not None and isinstance(argument, np.ndarray):
                # As `describe`, which takes as long as a short kernel.
                fits = argument.dtype == wanted[0] and argument.ndim == wanted[1]
                fits = fits and argument.flags.c_contiguous
            else:
                fits = describe(argument) == described
            if not fits:
                raise TypeError(f"a kernel wants {described}, not {describe(argument)}")
            words += _words(argument)
        packed = np.frombuffer(b"".join(words), np.uint64)
        return BoundKernel(self._call, self._entry, packed, (self, *arguments))

    def bind_calls(self, kernels: Sequence[BoundKernel]) -> BoundKernel:
        """Of the kernel `rounds.in_turn`: return a call of bound kernels, one after the other."""
        pairs = [(kernel.entry, kernel.words.ctypes.data) for kernel in kernels]
        bound = self.bind(np.array(pairs, np.uint64).reshape(-1))
        bound.keep(kernels)
        return bound

    def __call__(self, *arguments: Any) -> None:
        self.bind(*arguments)()


def _word(value: Any) -> bytes:
    """A scalar in 8 bytes, its own first."""
    return np.asarray(value).tobytes().ljust(8, b"\0")


def _words(argument: Any) -> list[bytes]:
    if isinstance(argument, np.ndarray):
        numbers = (0, 0, argument.size, argument.itemsize, argument.__array_interface__["data"][0],
                   *argument.shape, *argument.strides)  # fmt: skip
        return [struct.pack(f"={len(numbers)}q", *numbers)]
    if isinstance(argument, tuple):
        return [words for item in argument for words in _words(item)]
    return [_word(argument)]
