"""Imports go down only, each heavy dependency has one door, and importing the package is free."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import distq_mpi

PACKAGE = Path(distq_mpi.__file__).parent

FLOORS = [
    {"errors", "finite", "launcher", "commands", "probabilities", "__init__"},
    {"config", "partition", "files", "kernels"},
    {"bounds", "environments", "table", "lanes", "transport"},
    {"budget", "compact", "values"},
    {"factorisation", "krylov"},
    {"fusion", "planning", "checkpoint", "holding"},
    {"policy_evaluation"},
    {"policy_iteration"},
    {"certificate", "fresh", "sampling"},
    {"certificate_file"},
    {"architectures", "stopping", "monitor"},
    {"memory"},
    {"bottleneck", "probe"},
    {"signals", "saving", "prediction", "preparation", "recovery", "summary"},
    {"comparison", "operands"},
    {"watchdog"},
    {"description", "doctor", "dry_run", "judging", "supervision", "trainer", "upgrading",
     "verification"},
    {"certificate_check"},
    {"keys"},
    {"cli"},
    {"usage"},
    {"evaluation"},
    {"callbacks"},
    {"api"},
    {"study"},
    {"validation"},
    {"__main__"},
]
DOORS = {
    "mpi4py": {f"transport/{name}.py" for name in ("collectives", "mail", "memory", "ranks",
               "survival")},
    "numba": {"kernels/compiler.py"},
    "llvmlite": {"kernels/compiler.py", "kernels/objects.py"},
    "h5py": {"files/hdf5.py", "files/foreign.py"},
    "scipy": {"files/foreign.py", "factorisation.py"},
    "gymnasium": {
        "environments/copies.py", "environments/gymnasium_ids.py",
        "environments/gymnasium_models.py", "environments/registry.py", "environments/spaces.py",
        "environments/stepped.py", "environments/vector.py",
    },
    "matplotlib": {"study/figures.py"},
    "rich": {"monitor/console.py"},
    "cyclopts": {"usage.py"},
    "pydantic": {"keys.py"},
}
# A user's law, and Gymnasium's makers of environments, may raise anything.
BLANKET = {
    "environments/laws.py", "environments/gymnasium_models.py", "environments/arguments.py",
    "environments/stepped.py", "environments/worlds.py", "environments/vector.py",
    "environments/contents.py", "environments/copies.py", "environments/table_check.py",
    "environments/calls.py", "environments/silence.py",
}


def sources() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).as_posix(), ast.parse(path.read_text())


def floor_of(module: str) -> int:
    name = module.split("/")[0].removesuffix(".py")
    (found,) = [k for k, floor in enumerate(FLOORS) if name in floor]
    return found


def imports(tree: ast.Module) -> Iterator[tuple[str, bool]]:
    """Modules imported, and whether only for type checking."""
    typing_only: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            typing_only.update(child for statement in node.body for child in ast.walk(statement))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node in typing_only
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "distq_mpi":
                for alias in node.names:
                    yield f"distq_mpi.{alias.name}", node in typing_only
            else:
                yield node.module, node in typing_only


def test_imports_go_down_only() -> None:
    for module, tree in sources():
        for name, typing_only in imports(tree):
            parts = name.split(".")
            if parts[0] != "distq_mpi" or len(parts) == 1 or parts[1] == "__version__":
                continue
            same_room = parts[1] == module.split("/")[0].removesuffix(".py")
            if not typing_only and not same_room:
                assert floor_of(parts[1]) < floor_of(module), f"{module} imports {name}"


def test_one_door_per_heavy_dependency() -> None:
    for module, tree in sources():
        for name, _ in imports(tree):
            doors = DOORS.get(name.split(".")[0])
            assert doors is None or module in doors, f"{module} imports {name}"


def test_no_star_imports_and_no_blanket_excepts() -> None:
    for module, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                assert all(alias.name != "*" for alias in node.names), module
            if isinstance(node, ast.ExceptHandler):
                caught = ast.unparse(node.type) if node.type else "everything"
                broad = re.search(r"(?<!MPI\.)\b(everything|Exception|BaseException)\b", caught)
                if isinstance(node.body[-1], ast.Raise):
                    continue  # it cleans up, or says it in other words, and lets go
                assert not broad or module in BLANKET, f"{module} catches {caught}"


def test_no_room_for_everything() -> None:
    names = {path.stem for path in PACKAGE.rglob("*")}
    assert not names & {"utils", "util", "helpers", "common", "misc"}


def test_importing_the_package_starts_nothing() -> None:
    code = "import sys, distq_mpi; print(sorted({m.split('.')[0] for m in sys.modules}))"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60,
        cwd=PACKAGE.parent,
    ).stdout  # fmt: skip
    for name in (*DOORS, "numpy"):
        assert f"'{name}'" not in found, name


def test_loading_kernels_and_learning_needs_no_numba() -> None:
    code = (
        "import sys, distq_mpi.trainer; "
        "print([m for m in ('numba', 'h5py', 'gymnasium', 'rich', 'cyclopts', 'pydantic', 'scipy')"
        " if m in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60,
        cwd=PACKAGE.parent,
    ).stdout  # fmt: skip
    assert found.strip() == "[]"


def test_reading_the_command_line_needs_no_printer_of_help() -> None:
    code = (
        "import sys, distq_mpi.cli; distq_mpi.cli.parse([]); "
        "print([m for m in ('cyclopts', 'rich', 'mpi4py', 'numpy', 'numba') if m in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60,
        cwd=PACKAGE.parent,
    ).stdout  # fmt: skip
    assert found.strip() == "[]"
