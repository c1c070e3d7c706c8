"""Compiled kernels in files: loaded without numba, never stale, refused where they cannot stand."""

from __future__ import annotations

import json
import linecache
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from distq_mpi.architectures import Allreduce
from distq_mpi.config import EnvConfig
from distq_mpi.errors import DistqError, FileError, ModelError
from distq_mpi.kernels import Kernel, describe, objects
from distq_mpi.kernels.checking import checking_kernel
from distq_mpi.kernels.objects import cache_folder, load
from distq_mpi.kernels.sweeps import planning_kernels
from distq_mpi.preparation import build
from tests.stand_in import Alone, config

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of its own."""
    monkeypatch.setenv("DISTQ_CACHE_DIR", str(tmp_path / "cache"))
    yield tmp_path / "cache"


class Follower:
    """A rank that does not lead its node; hears what the leader said."""

    leads_node = False

    def __init__(self, said: Any) -> None:
        self.said = said

    def broadcast_on_node(self, value: Any) -> Any:
        assert value == ({}, None)
        return self.said


class Leader(Alone):
    """A rank that leads its node and remembers what it said."""

    said: Any = None

    def broadcast_on_node(self, value: Any) -> Any:
        self.said = value
        return value


def scale(x, factor, out):  # type: ignore[no-untyped-def]
    for i in range(x.size):
        out[i] = helper(x[i]) * factor


def helper(x):  # type: ignore[no-untyped-def]
    return x + SHIFT


SHIFT = 1.5
EXAMPLE = (np.zeros(1), 2.0, np.zeros(1))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def define(folder: Path, name: str, text: str, **space: Any) -> Any:
    """A function from source text that can be read back, as an imported one can."""
    path = str(folder / f"{name}.py")
    linecache.cache[path] = (len(text), None, text.splitlines(True), path)
    exec(compile(text, path, "exec"), space)
    return space[name]


def test_a_kernel_computes_and_leaves_two_files(folder: Path) -> None:
    kernel = load({"scale": Kernel(scale, {}, EXAMPLE)}, Alone())["scale"]
    x, out = np.arange(5.0), np.zeros(5)
    kernel(x, 3.0, out)
    assert out.tolist() == [(i + 1.5) * 3 for i in range(5)]
    assert {Path(name).suffix for name in names(folder)} == {".o", ".json"}
    assert len(names(folder)) == 2


def test_a_bound_kernel_reads_its_arrays_anew_and_keeps_its_scalars(folder: Path) -> None:
    kernel = load({"scale": Kernel(scale, {}, EXAMPLE)}, Alone())["scale"]
    x, out = np.zeros(3), np.zeros(3)
    call = kernel.bind(x, 2.0, out)
    x[:] = 1.0
    call()
    assert out.tolist() == [5.0] * 3


SECOND_PROCESS = """
import sys
import numpy as np
from distq_mpi.kernels.objects import load
from tests.stand_in import Alone
from distq_mpi.kernels import Kernel
from tests.unit.test_objects import EXAMPLE, scale
out = np.zeros(2)
load({"scale": Kernel(scale, {}, EXAMPLE)}, Alone())["scale"](np.ones(2), 2.0, out)
print(out.tolist(), "numba" in sys.modules, "distq_mpi.kernels.compiler" in sys.modules)
"""


def second_process() -> str:
    return subprocess.run(
        [sys.executable, "-c", SECOND_PROCESS], cwd=ROOT, env={**os.environ}, text=True,
        capture_output=True, check=True, timeout=120,
    ).stdout.strip()  # fmt: skip


def test_a_second_process_loads_without_numba(folder: Path) -> None:
    assert second_process() == "[5.0, 5.0] True True"  # the cache is empty: it must compile
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert second_process() == "[5.0, 5.0] False False"
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_an_edit_anywhere_gives_another_key(folder: Path) -> None:
    outer = "def outer(x, out):\n    for i in range(x.size):\n        out[i] = inner(x[i])\n"
    variants = [
        (outer, "def inner(x):\n    return x + K\n", 1.0),
        (outer, "def inner(x):\n    return x + K\n", 2.0),
        (outer, "def inner(x):\n    return x - K\n", 1.0),
        (outer.replace("out[i] =", "out[i] +="), "def inner(x):\n    return x + K\n", 1.0),
    ]
    results, counts = [], []
    for number, (template, inner, constant) in enumerate(variants):
        (tmp := folder.parent / str(number)).mkdir()
        called = define(tmp, "inner", inner, K=constant)
        function = define(tmp, "outer", template, inner=called)
        x, out = np.full(1, 10.0), np.full(1, 100.0)
        load({"k": Kernel(function, {}, (x, out))}, Alone())["k"](x, out)
        results.append(out[0])
        counts.append(len(names(folder)))
    assert results == [11.0, 12.0, 9.0, 111.0]
    assert counts == [2, 4, 6, 8]


def test_comments_and_layout_do_not_compile_again(folder: Path) -> None:
    for number, text in enumerate(
        ("def f(x):\n    x[0] = 1.0\n", "def f(x):\n    # why\n    x[0] = (1.0)\n")
    ):
        (tmp := folder.parent / str(number)).mkdir()
        load({"f": Kernel(define(tmp, "f", text), {}, (np.zeros(1),))}, Alone())
    assert len(names(folder)) == 2


def test_the_compiler_is_in_the_key(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load({"scale": Kernel(scale, {}, EXAMPLE)}, Alone())
    monkeypatch.setattr(objects, "_compiler", lambda: "another")
    load({"scale": Kernel(scale, {}, EXAMPLE)}, Alone())
    assert len(names(folder)) == 4


def test_parts_and_types_are_in_the_key(folder: Path) -> None:
    x = np.ones(1)
    for parts, arguments in (
        ({}, EXAMPLE),
        ({"helper": double}, EXAMPLE),
        ({}, (np.zeros(1, np.float32), 2.0, np.zeros(1))),
    ):
        load({"scale": Kernel(scale, parts, arguments)}, Alone())
    assert len(names(folder)) == 6
    out = np.zeros(1)
    load({"scale": Kernel(scale, {"helper": double}, EXAMPLE)}, Alone())["scale"](x, 3.0, out)
    assert out[0] == 6.0


def test_a_part_that_a_kernel_does_not_name_compiles_nothing(folder: Path) -> None:
    load({"scale": Kernel(scale, {"SHIFT": 1.0}, EXAMPLE)}, Alone())
    before = names(folder)
    load({"scale": Kernel(scale, {"SHIFT": 1.0, "UNUSED": 7}, EXAMPLE)}, Alone())
    assert names(folder) == before


@pytest.mark.parametrize("exploring", [False, True])
@pytest.mark.parametrize("id", ["grid", "garnet"])
def test_what_is_compiled_serves_every_size(folder: Path, exploring: bool, id: str) -> None:
    """Also where every state is a start state."""
    settings = config(exploring_starts=exploring)
    found = []
    for n in (3, 5):
        sizes = {"states": n, "actions": 4, "branching": 2}
        if id == "grid":
            sizes = {"rows": n, "columns": 4}
        environment = build(EnvConfig(id, sizes), exploring)
        load(
            {**Allreduce.requests(settings, environment),
             **planning_kernels(environment, np.dtype(np.float64)),
             **checking_kernel(environment)},
            Alone(),
        )  # fmt: skip
        found.append(names(folder))
    assert found[0] == found[1]


def double(x):  # type: ignore[no-untyped-def]
    return x * 2


def shifted(amount, table):  # type: ignore[no-untyped-def]
    """A law that closes over a number, an array and another function."""

    def law(x):  # type: ignore[no-untyped-def]
        return helper(x) + amount + table[0]

    return law


def test_functions_that_kernels_share_are_what_they_are_made_of(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distq_mpi.kernels.compiler import compiled

    def result(law: Any) -> float:
        out = np.zeros(1)
        load({"scale": Kernel(scale, {"helper": law}, EXAMPLE)}, Alone())["scale"](
            np.zeros(1), 1.0, out
        )
        return float(out[0])

    table, other = np.array([10.0]), np.array([10.0])
    law = compiled(shifted(1, table))
    assert compiled(shifted(1, table)) is law
    assert compiled(shifted(1.0, table)) is not law  # equal, and another type
    assert compiled(shifted(1, other)) is not law  # equal, until one of them is changed
    assert result(shifted(1, table)) == 12.5
    assert result(shifted(2, table)) == 13.5
    table[0] = 20.0
    assert compiled(shifted(1, table)) is not law
    assert result(shifted(1, table)) == 22.5
    monkeypatch.setattr(sys.modules[__name__], "SHIFT", 2.5)
    assert result(shifted(1, table)) == 23.5
    ahead, behind = NamedTuple("Pair", a=float, b=float), NamedTuple("Pair", b=float, a=float)
    assert [result(first_of(kind(a=1.0, b=2.0))) for kind in (ahead, behind)] == [1.0, 1.0]


def first_of(pair):  # type: ignore[no-untyped-def]
    def law(x):  # type: ignore[no-untyped-def]
        return x + pair.a

    return law


def test_a_law_that_calls_itself_is_refused(folder: Path) -> None:
    def endless(x):  # type: ignore[no-untyped-def]
        return endless(x)

    with pytest.raises(ModelError, match="endless calls itself"):
        load({"scale": Kernel(scale, {"helper": endless}, EXAMPLE)}, Alone())


def test_the_template_itself_is_left_alone(folder: Path) -> None:
    load({"scale": Kernel(scale, {"helper": double}, EXAMPLE)}, Alone())
    out = np.zeros(1)
    scale(np.ones(1), 1.0, out)
    assert out[0] == 2.5


def allocates(x):  # type: ignore[no-untyped-def]
    x[0] = np.zeros(int(x[0]) + 3).sum()


def raises(x):  # type: ignore[no-untyped-def]
    if x[0] > 0:
        raise ValueError("no")
    x[0] = 1.0


def asserts(x):  # type: ignore[no-untyped-def]
    assert x[0] < 1.0


def calls_one_that_raises(x):  # type: ignore[no-untyped-def]
    raises(x)


def raises_a_computed_message(x):  # type: ignore[no-untyped-def]
    if x[0] > 0:
        raise ValueError(x[0])


def builds_a_dictionary(x):  # type: ignore[no-untyped-def]
    seen = {1.0: 2.0}
    seen[x[0]] = 3.0
    x[0] = seen[1.0]


def does_not_compile(x):  # type: ignore[no-untyped-def]
    x[0] = x.no_such_thing


@pytest.mark.parametrize(
    "law",
    [allocates, raises, asserts, calls_one_that_raises, raises_a_computed_message,
     builds_a_dictionary, does_not_compile],
)  # fmt: skip
def test_a_law_that_cannot_stand_alone_is_refused(law: Any, folder: Path) -> None:
    with pytest.raises(ModelError, match=law.__name__):
        load({"law": Kernel(law, {}, (np.zeros(1),))}, Alone())
    assert not names(folder)


def test_a_refusal_reaches_the_whole_node(folder: Path) -> None:
    leader = Leader()
    with pytest.raises(ModelError):
        load({"law": Kernel(raises, {}, (np.zeros(1),))}, leader)
    with pytest.raises(ModelError, match="raises"):
        load(None, Follower(leader.said))


def test_a_follower_loads_what_the_leader_compiled(folder: Path) -> None:
    leader, out = Leader(), np.zeros(1)
    load({"scale": Kernel(scale, {}, EXAMPLE)}, leader)
    load(None, Follower(leader.said))["scale"](np.ones(1), 2.0, out)
    assert out[0] == 5.0


@pytest.mark.parametrize(
    "arguments",
    [
        (np.zeros(1, np.float32), 2.0, np.zeros(1)),
        (np.zeros((1, 1)), 2.0, np.zeros(1)),
        (np.zeros(1), 2, np.zeros(1)),
        (np.zeros(1), np.float32(2.0), np.zeros(1)),
        (np.zeros(4)[::2], 2.0, np.zeros(2)),
        (np.zeros(1), 2.0, [0.0]),
    ],
)
def test_other_types_are_refused_at_every_call(arguments: tuple[Any, ...], folder: Path) -> None:
    kernel = load({"scale": Kernel(scale, {}, EXAMPLE)}, Alone())["scale"]
    with pytest.raises(TypeError):
        kernel(*arguments)
    with pytest.raises(ValueError):
        kernel(np.zeros(1), 2.0)


def mixed(pair, flag, small, out):  # type: ignore[no-untyped-def]
    numbers, (factor, table) = pair
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            out[i, j] = table[i, j] * factor + numbers[j] + small if flag else -1.0


def test_tuples_scalars_and_matrices_pass_through(folder: Path) -> None:
    numbers, table = np.array([10, 20, 30]), np.arange(6.0).reshape(2, 3)
    out = np.zeros((2, 3))
    arguments = ((numbers, (0.5, table)), True, np.uint32(7), out)
    kernel = load({"mixed": Kernel(mixed, {}, arguments)}, Alone())["mixed"]
    kernel(*arguments)
    assert out.tolist() == (table * 0.5 + numbers + 7).tolist()
    kernel(arguments[0], False, np.uint32(7), out)
    assert np.all(out == -1.0)


def test_descriptions() -> None:
    described = describe(((np.zeros((2, 2), np.uint32), 1), 2.0, True, np.uint64(3)))
    array, number = ["array", "uint32", 2], ["scalar", "int64"]
    assert described == [
        "tuple",
        [["tuple", [array, number]], ["scalar", "float64"], ["scalar", "bool"],
         ["scalar", "uint64"]],
    ]  # fmt: skip
    assert json.loads(json.dumps(described)) == described
    for wrong in ("text", None, [1.0], {}):
        with pytest.raises(TypeError):
            describe(wrong)


def deny(monkeypatch: pytest.MonkeyPatch, denied: list[str]) -> None:
    """Make folders under any of `denied` read-only, for root too."""
    access = os.access

    def checked(path: Any, mode: int) -> bool:
        under = any(str(path).startswith(start) for start in denied)
        return access(path, mode) and not (under and mode & os.W_OK)

    monkeypatch.setattr(objects.os, "access", checked)


def test_the_cache_falls_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, home, temporary = (str(tmp_path / name) for name in ("asked", "home", "temporary"))
    monkeypatch.setenv("DISTQ_CACHE_DIR", asked)
    monkeypatch.setenv("XDG_CACHE_HOME", home)
    monkeypatch.setattr(objects.tempfile, "gettempdir", lambda: temporary)
    assert cache_folder() == asked
    with monkeypatch.context() as patch:
        deny(patch, [asked])
        assert cache_folder() == os.path.join(home, "distq_mpi")
    with monkeypatch.context() as patch:
        deny(patch, [asked, home])
        assert cache_folder() == os.path.join(temporary, f"distq_mpi-{os.getuid()}")
    with monkeypatch.context() as patch:
        deny(patch, [asked, home, temporary])
        with pytest.raises(FileError, match=temporary):
            cache_folder()
    monkeypatch.delenv("DISTQ_CACHE_DIR")
    assert cache_folder() == os.path.join(home, "distq_mpi")


def test_a_cache_folder_that_is_a_file_falls_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DISTQ_CACHE_DIR", str(tmp_path / "file" / "cache"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kernel = load({"scale": Kernel(scale, {}, EXAMPLE)}, Alone())["scale"]
    out = np.zeros(1)
    kernel(np.ones(1), 1.0, out)
    assert out[0] == 2.5
    assert len(list((tmp_path / "distq_mpi").iterdir())) == 2


def test_a_full_disk_is_a_file_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("distq_mpi.kernels.compiler.os.replace", full)
    with pytest.raises(DistqError, match="No space left"):
        load({"scale": Kernel(scale, {}, EXAMPLE)}, Alone())
