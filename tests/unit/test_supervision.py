"""What `supervise` makes of jobs, with small programs in the place of launchers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from distq_mpi.cli import parse
from distq_mpi.config import Config, to_toml
from distq_mpi.errors import ConfigError
from distq_mpi.monitor import RunDirectory
from distq_mpi.supervision import Limits, Supervisor, _place_of_command
from tests.launching import ROOT

JOB = """
import json, os, sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from distq_mpi.config import Config, to_toml
from distq_mpi.monitor import Monitor, RunDirectory
words = sys.argv[1:]
path = Path(words[words.index("--run.dir") + 1] if words[0] == "train" else words[1])
log = path.parent / "starts"
number = len(log.read_text().splitlines()) if log.exists() else 0
with log.open("a") as file:
    file.write(" ".join(words) + chr(10))
def begin():
    if (path / "config.toml").exists():
        run = RunDirectory.open(path)
    else:
        run = RunDirectory.create(to_toml(Config()), "X", path, True)
    monitor = Monitor(run, quiet=True)
    monitor.start([], {{}})
    monitor.enter("learn")
    return monitor
{body}
"""


def job(tmp_path: Path, body: str) -> list[str]:
    script = tmp_path / "job.py"
    script.write_text(JOB.format(root=str(ROOT), body=textwrap.dedent(body)))
    return [sys.executable, str(script), "train", "--run.dir", str(tmp_path / "run")]


def supervised(words: list[str], monkeypatch: pytest.MonkeyPatch, **limits: float) -> int:
    monkeypatch.setattr("distq_mpi.supervision.PAUSE_S", 0.0)
    monkeypatch.setattr("distq_mpi.supervision.LOOK_S", 0.01)
    monkeypatch.setattr("distq_mpi.supervision.GRACE_S", 0.5)
    monkeypatch.setattr(signal, "signal", lambda *a: None)
    return Supervisor(words, Limits(**limits)).run()  # type: ignore[arg-type]


def starts(tmp_path: Path) -> list[str]:
    return (tmp_path / "starts").read_text().splitlines()


def test_a_verdict_is_passed_on_whatever_the_launcher_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = job(tmp_path, 'begin().finish({"status": "finished", "exit_code": 3}); sys.exit(9)')
    assert supervised(words, monkeypatch) == 3 and len(starts(tmp_path)) == 1


def test_a_job_without_a_verdict_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = job(
        tmp_path,
        """
        monitor = begin()
        if number == 0:
            os._exit(0)  # a launcher that calls a lost host a success
        if number == 1:
            monitor.fail("a rank was lost"); sys.exit(1)
        monitor.finish({"status": "converged", "exit_code": 0})
        """,
    )
    monkeypatch.setattr(
        Supervisor, "_newest", lambda self: f"round-{len(starts(tmp_path))}.h5"
        if (tmp_path / "starts").exists() else None,
    )  # fmt: skip
    assert supervised(words, monkeypatch) == 0
    first, *others = starts(tmp_path)
    assert first.startswith("train") and others == [f"resume {tmp_path / 'run'}"] * 2
    told = (tmp_path / "run" / "supervision.jsonl").read_text().splitlines()
    assert [json.loads(line)["kind"] for line in told] == ["failed", "start", "failed", "start"]


def test_an_interruption_that_nobody_asked_for_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = """
        begin().finish({"status": "interrupted", "exit_code": 75})
        sys.exit(75 if number else 143)  # what asked the ranks to stop has ended the launcher, too
    """
    assert supervised(job(tmp_path, body), monkeypatch) == 75
    assert len(starts(tmp_path)) == 2


def test_tries_are_bounded_and_stop_where_nothing_comes_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert supervised(job(tmp_path, "begin(); os._exit(7)"), monkeypatch, tries=5) == 7
    assert len(starts(tmp_path)) == 2
    assert "--run.overwrite" in starts(tmp_path)[1]


def test_a_mistake_in_the_command_is_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert supervised(job(tmp_path, "sys.exit(2)"), monkeypatch) == 2
    assert len(starts(tmp_path)) == 1


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("begin(); os.kill(os.getpid(), 19)", "no heartbeat for 1.5 s"),
        ("begin(); time.sleep(600)", "in learn for 2 s"),
    ],
)
def test_a_job_that_hangs_is_ended_with_all_its_processes(
    body: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = "import subprocess; subprocess.Popen(['sleep', '600'], start_new_session=True)\n" + body
    words = job(tmp_path, body)
    assert supervised(words, monkeypatch, tries=1, silent_s=1.5, stuck_s=2.0) != 0
    told = (tmp_path / "run" / "supervision.jsonl").read_text()
    assert why in told
    left = subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, text=True)
    assert not left.stdout


def test_a_stop_that_was_asked_for_ends_it(tmp_path: Path) -> None:
    words = job(
        tmp_path,
        """
        monitor = begin()
        while not monitor.directory.requests()[1]:
            time.sleep(0.01)
        monitor.finish({"status": "interrupted", "exit_code": 75})
        """,
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "distq_mpi", "supervise", "--", *words], cwd=ROOT,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        while not (tmp_path / "run" / "run.json").exists():
            time.sleep(0.01)
        time.sleep(0.2)
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(30) == 75
    finally:
        process.kill()
        process.communicate()


def test_where_the_command_stands() -> None:
    words = ["mpirun", "-n", "2", "python", "-m", "distq_mpi", "--env.id", "Taxi-v4"]
    assert _place_of_command(words) == 6 and words[6] == "train"
    with pytest.raises(ConfigError, match="must start"):
        _place_of_command(["mpirun", "hostname"])


def test_a_run_directory_is_found_or_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    program = ["python", "-m", "distq_mpi"]
    for words, wanted in (
        ([*program, "train", "--run.dir", "a"], "a"),
        ([*program, "--run.dir=b"], "b"),
        ([*program, "resume", "c"], "c"),
        (program, "runs/supervised-0001"),
    ):
        found = Supervisor(words, Limits())
        assert found.directory == Path(wanted)
        assert wanted in " ".join(found._words_now())


def test_hosts_are_asked_for_before_every_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["mpirun", "--host", "{hosts}", "-n", "{ranks}", "python", "-m", "distq_mpi"]
    limits = Limits(hosts_from="echo node1:4; echo node3:2")
    now = Supervisor(words, limits)._words_now()
    assert now[:5] == ["mpirun", "--host", "node1:4,node3:2", "-n", "6"]


def test_the_command_line_is_split_at_two_dashes() -> None:
    command = parse(["supervise", "--tries", "3", "--", "mpirun", "-n", "2", "--", "x", "--help"])
    assert command.operands == ("mpirun", "-n", "2", "--", "x", "--help")
    assert Limits.of(command.options) == Limits(tries=3)
    for bad in (["--tries", "0"], ["--tries", "x"], ["--retries", "3"]):
        with pytest.raises(ConfigError):
            parse(["supervise", *bad, "--", "mpirun"])


def test_an_earlier_run_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDirectory.create(to_toml(Config()), "X", tmp_path / "run")
    monkeypatch.setattr(Supervisor, "_newest", lambda self: "round-1.h5")
    words = Supervisor(["python", "-m", "distq_mpi", "--run.dir", str(run.path)], Limits())
    assert words._words_now() == ["python", "-m", "distq_mpi", "resume", str(run.path)]
