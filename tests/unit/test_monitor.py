"""The run directory belongs to one run, its files are whole, the terminal gets plain lines."""

import io
import json
import os
import resource
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from distq_mpi.errors import ConfigError, FileError
from distq_mpi.monitor import Monitor, RunDirectory
from distq_mpi.monitor import console as console_module
from distq_mpi.monitor.drawing import draw_policy
from distq_mpi.monitor.metrics import JsonLines
from distq_mpi.monitor.provenance import git_commit, provenance

CONFIG = '[env]\nid = "X"\n'
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path])}


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def finish(run, status="finished"):
    Monitor(run, quiet=True).finish({"status": status})


def test_default_directories_are_numbered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = [RunDirectory.create(CONFIG, env_id).path for env_id in ("A-v1", "A-v1", "m:B/C-v0")]
    assert made[:2] == [Path("runs/A-v1-0001"), Path("runs/A-v1-0002")]
    Path("runs/A-v1-0041").mkdir()
    assert RunDirectory.create(CONFIG, "A-v1").path == Path("runs/A-v1-0042")
    assert RunDirectory.create(CONFIG, "/data/maze.npz").path == Path("runs/maze-0001")
    assert RunDirectory.create(CONFIG, "my.module:Env-v0").path == Path(
        "runs/my.module-Env-v0-0001"
    )
    run = RunDirectory.open("runs/A-v1-0001")
    assert (run.config_toml(), run.state()) == (CONFIG, "created")
    assert run.checkpoints.is_dir() and run.control.is_dir()


RACE = """
    import sys
    from distq_mpi.monitor import RunDirectory
    print("ready", flush=True)
    sys.stdin.readline()
    for _ in range(20):
        run = RunDirectory.create(sys.argv[1], "X")
        print(run.path, flush=True)
        run.release()
"""


def test_two_processes_never_get_one_number(tmp_path):
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(RACE), name], cwd=tmp_path, env=ENVIRONMENT,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for name in ("one", "two")
    ]  # fmt: skip
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        racer.stdin.write("\n")
        racer.stdin.flush()
    made = {racer: racer.communicate(timeout=60)[0].split() for racer in racers}
    paths = [path for mine in made.values() for path in mine]
    assert len(set(paths)) == 40
    for name, mine in zip(("one", "two"), made.values(), strict=True):
        assert all((tmp_path / path / "config.toml").read_text() == name for path in mine)


def test_named_directory_is_never_taken_by_accident(tmp_path):
    run = RunDirectory.create(CONFIG, "X", tmp_path / "deep" / "run")
    Monitor(run, quiet=True).fail("lost")
    with pytest.raises(
        ConfigError, match=r"unfinished run; go on with `python -m distq_mpi resume"
    ):
        RunDirectory.create(CONFIG, "X", run.path)
    finish(RunDirectory.open(run.path))
    with pytest.raises(ConfigError, match=r"finished run; .* --run\.overwrite"):
        RunDirectory.create(CONFIG, "X", run.path)
    foreign = tmp_path / "photos"
    foreign.mkdir()
    (foreign / "a.jpg").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="not empty and not a run directory"):
            RunDirectory.create(CONFIG, "X", foreign, overwrite)
    assert os.listdir(foreign) == ["a.jpg"]


def test_overwrite_deletes_the_run_and_nothing_else(tmp_path):
    run = RunDirectory.create(CONFIG, "X", tmp_path / "run")
    Monitor(run, quiet=True).report({"round": 1})
    for name in ("checkpoints/round-000000000001.h5", "control/stop", "notes.txt", "result.h5"):
        (run.path / name).write_text("x")
    finish(run)
    again = RunDirectory.create("new = 1\n", "X", run.path, overwrite=True)
    files = {str(f.relative_to(run.path)) for f in run.path.rglob("*") if f.is_file()}
    assert files == {".lock", "config.toml", "run.json", "notes.txt"}
    assert again.state() == "created" and again.config_toml() == "new = 1\n"


HOLD = """
    import sys
    from distq_mpi.monitor import Monitor, RunDirectory
    monitor = Monitor(RunDirectory.create("", "X", sys.argv[1]), quiet=True)
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_a_run_that_goes_on_is_left_alone_until_its_process_is_gone(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLD), tmp_path / "run"], env=ENVIRONMENT,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(ConfigError, match=rf"in use by another run \(process {holder.pid} on "):
            Monitor(RunDirectory.open(tmp_path / "run"), quiet=True)
        with pytest.raises(ConfigError, match="in use by another run"):
            RunDirectory.create(CONFIG, "X", tmp_path / "run", overwrite=True)
        assert (tmp_path / "run" / "config.toml").exists()
    finally:
        holder.kill()
        holder.communicate()
    finish(RunDirectory.open(tmp_path / "run"))


def test_what_cannot_be_a_run_directory(tmp_path):
    with pytest.raises(FileError, match="no such run directory"):
        RunDirectory.open(tmp_path / "none")
    with pytest.raises(FileError, match="has no config.toml"):
        RunDirectory.open(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match=r"cannot create .*file/run: Not a directory"):
        RunDirectory.create(CONFIG, "X", tmp_path / "file" / "run")
    with pytest.raises(FileError, match=r"cannot create .*file: File exists"):
        RunDirectory.create(CONFIG, "X", tmp_path / "file")
    with pytest.raises(FileError, match="cannot create /proc/nowhere"):
        RunDirectory.create(CONFIG, "X", "/proc/nowhere/run")


def test_json_lines(tmp_path):
    path = tmp_path / "m.jsonl"
    rows = JsonLines(path)
    rows.append({"a": float("nan"), "b": float("-inf"), "c": 1.5, "d": "é\n"})
    assert path.read_bytes().endswith(b"\n")
    rows.close()
    rows.close()
    with open(path, "ab") as file:
        file.write(b'{"half": "' + b"x" * 10_000)
    rows = JsonLines(path)
    rows.append({"n": 2})
    rows.close()
    assert lines_of(path) == [{"a": None, "b": None, "c": 1.5, "d": "é\n"}, {"n": 2}]


LIMITED = """
    import sys
    from pathlib import Path
    from distq_mpi.errors import FileError
    from distq_mpi.monitor.metrics import JsonLines
    rows = JsonLines(Path(sys.argv[1]))
    try:
        for n in range(1000):
            rows.append({"n": n})
    except FileError as error:
        print(error)
"""


def test_json_lines_on_a_full_disk_are_whole(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(LIMITED), tmp_path / "m.jsonl"], env=ENVIRONMENT,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1001, 1001)),
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert "file size limit reached" in done.stdout and done.stderr == ""
    rows = lines_of(tmp_path / "m.jsonl")
    assert rows == [{"n": n} for n in range(len(rows))]
    assert 1001 - 20 < (tmp_path / "m.jsonl").stat().st_size <= 1001


def test_requests_are_answered_once(tmp_path, monkeypatch):
    run = RunDirectory.create(CONFIG, "X", tmp_path / "run")
    assert run.requests() == (False, False)
    (run.control / "checkpoint").touch()
    (run.control / "readme").touch()
    assert run.requests() == (True, False)
    assert os.listdir(run.control) == ["readme"]
    (run.control / "stop").touch()
    assert run.requests() == (True, True)
    now = 5.0
    monkeypatch.setattr("distq_mpi.monitor.time.monotonic", lambda: now)
    monitor = Monitor(run, quiet=True)
    assert monitor.requests() == (False, False)
    (run.control / "stop").touch()
    assert monitor.requests() == (False, False), "asked again within 0.2 s"
    now += 0.21
    assert monitor.requests() == (True, True)


SUMMARY = {
    "status": "converged", "steps": 1_234_567, "rounds": 321, "episodes": 9_999,
    "steps_per_s": 5.4e7, "wall_time_s": 12.345, "startup_time_s": 1.0, "learn_time_s": 9.5,
    "exchange_time_s": 1.25, "certify_time_s": 0.5, "io_time_s": None, "ranks_started": 2,
    "ranks_finished": 2, "agents": 2, "lanes": 128, "seed": 7,
    "table_sha256": "0123456789abcdef" * 4,
    "certificate": {
        "kind": "exact", "policy_gap": 0.000512, "policy_loss": 0.25,
        "policy_loss_bound": float("inf"),
        "policy_value": 0.41412345678, "optimal_value": 0.4146403618,
        "worst_value": 0.0, "policy_return": None, "optimal_policy_return": -13,
        "best_return": -12.5,
    },
    "evaluation": {"mean_return": 0.75, "std_return": 0.1, "episodes": 1000},
    "checkpoint": "checkpoints/round-000000000321.h5", "stop_reason": "policy_gap <= 0.001",
}  # fmt: skip


def test_the_life_of_a_run(tmp_path):
    out = io.StringIO()
    run = RunDirectory.create(CONFIG, "X", tmp_path / "run")
    monitor = Monitor(run, stream=out)
    monitor.start(["distq_mpi 0.1.0", "64 states"], provenance("MPICH 5\nmore", ["h", "h"]))
    assert run.state() == "running"
    for round in range(25):
        monitor.report({"round": round, "steps": 10**round, "td_rms": float("nan"), "extra": [1]})
    monitor.event("checkpoint", "wrote it", round=3)
    monitor.event("silent", round=4)
    monitor.finish(SUMMARY, ["python -m distq_mpi info x"], "> v\n. G")
    assert run.state() == "finished"
    rows = lines_of(run.metrics)
    assert [row["round"] for row in rows] == list(range(25))
    assert rows[0]["td_rms"] is None and rows[0]["extra"] == [1]
    assert [event["kind"] for event in lines_of(run.events)] == ["checkpoint", "silent"]
    assert json.loads(run.provenance.read_text())["mpi_library"] == "MPICH 5"
    summary = json.loads(run.summary.read_text())
    assert summary["certificate"]["policy_loss_bound"] is None
    assert summary["certificate"]["policy_value"] == 0.41412345678
    text = out.getvalue()
    assert "\x1b" not in text
    assert sum("steps/s  " in line and "episodes" in line for line in text.splitlines()) == 2
    header = next(line for line in text.splitlines() if "td rms" in line)
    first = text.splitlines()[text.splitlines().index(header) + 1]
    assert len(first) == len(header) and first.split()[1] == "1" and "-" in first.split()
    assert "checkpoint: wrote it" in text and "silent" not in text
    assert "converged: policy_gap <= 0.001" in text
    for part in (
        "1.2M in 321 rounds", "54.0M steps/s", "12.3s = startup 1.00s + learn 9.50s", "+ io -",
        "0.4141234568  (optimal 0.4146403618, worst 0)",
        "-  (optimal policy -13, best within the time limit -12.5)", "0.000512, 0.25",
        "loss bound -", "0.75 +- 0.1 over 1000 episodes", "0123456789abcdef\n",
        "checkpoints/round-000000000321.h5", "  > v\n  . G\n", "  python -m distq_mpi info x\n",
    ):  # fmt: skip
        assert part in text


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ("converged", "finished"),
        ("finished", "finished"),
        ("interrupted", "interrupted"),
        ("diverged", "failed"),
        ("failed", "failed"),
    ],
)
def test_state_after_the_end(tmp_path, status, state):
    run = RunDirectory.create(CONFIG, "X", tmp_path / "run")
    out = io.StringIO()
    Monitor(run, stream=out).finish({"status": status})
    assert run.state() == state
    assert status in out.getvalue()
    # What one run let go the next may take, in the same process too.
    Monitor(RunDirectory.open(run.path), quiet=True).fail("again")
    assert json.loads(run.run.read_text())["message"] == "again"


def test_the_heart_beats_in_a_phase_until_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr("distq_mpi.monitor.HEARTBEAT_S", 0.01)
    run = RunDirectory.create(CONFIG, "X", tmp_path / "run")
    monitor = Monitor(run, quiet=True)
    monitor.enter("learn")
    first = read_when(run.run, "phase", "learn")
    monitor.enter("certificate")
    then = read_when(run.run, "phase", "certificate")
    assert then["heartbeat"] > first["heartbeat"] and then["phase_since"] > first["phase_since"]
    while json.loads(run.run.read_text())["heartbeat"] == then["heartbeat"]:
        time.sleep(0.002)
    monitor.finish({"status": "finished"})
    time.sleep(0.05)
    assert json.loads(run.run.read_text())["state"] == "finished"


def read_when(path, key, value):
    while (found := json.loads(path.read_text())).get(key) != value:
        time.sleep(0.002)
    return found


def test_quiet_prints_nothing(tmp_path, capsys):
    monitor = Monitor(RunDirectory.create(CONFIG, "X", tmp_path / "run"), quiet=True)
    monitor.start(["hello"], {})
    monitor.report({"round": 1})
    monitor.event("warning", "look")
    monitor.finish(SUMMARY)
    assert capsys.readouterr() == ("", "")


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


def test_colours_only_on_a_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal, file = Terminal(), io.StringIO()
    for stream in (terminal, file):
        console = console_module.Console(stream)
        console.banner(["distq_mpi [bold]x[/bold] " + "y" * 200])
        console.event("warning", "look :smile:")
    assert "\x1b[" in terminal.getvalue()
    assert file.getvalue().splitlines() == [
        "distq_mpi [bold]x[/bold] " + "y" * 200,
        "warning: look :smile:",
    ]
    assert "[bold]x[/bold] " + "y" * 200 in terminal.getvalue()


def test_a_closed_pipe_or_a_poor_alphabet_stops_nothing():
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    console_module.Console(Closed()).banner(["x"])
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, "ascii")
    console_module.Console(stream).banner(["← x"])
    assert raw.getvalue() == b"? x\n"


@pytest.mark.parametrize(
    ("value", "count", "number", "duration"),
    [
        (None, "-", "-", "-"),
        (float("nan"), "-", "-", "-"),
        (0, "0", "0", "0.00s"),
        (9_999, "9999", "9999", "2h46m"),
        (10_000, "10.0k", "10000", "2h46m"),
        (999_949, "999.9k", "999949", "277h45m"),
        (999_950, "1.0M", "999950", "277h45m"),
        (2.5e15, "2500.0T", "2.5e+15", None),
        (59.96, "60", "59.96", "1m00s"),
        (0.125, "0", "0.125", "0.12s"),
        (245.4, "245", "245.4", "4m05s"),
    ],
)
def test_numbers(value, count, number, duration):
    assert console_module.count(value) == count
    assert console_module.number(value) == number
    if duration is not None:
        assert console_module.duration(value) == duration


def test_drawing():
    marks = "SFFFFHFHFFFHHFFG"
    greedy = [0, 3, 3, 3, 0, 0, 0, 0, 3, 1, 0, 0, 0, 2, -1, 0]
    assert draw_policy(greedy, (4, 4), "<v>^", marks) == "< ^ ^ ^\n< H < H\n^ v < H\nH > . G"
    assert draw_policy([1, -1], (1, 2), "", "") == "1 ."
    assert draw_policy([1, 0], None, "<>", "") == ""
    assert draw_policy([0] * 4096, (64, 64), "<>", "") == ""
    assert draw_policy([0] * 500, (5, 5), "<>", "") == ""


def test_provenance(tmp_path):
    environ = {"SLURM_JOB_ID": "12", "HOME": "/x"}
    about = provenance("MPICH 5.0\nbuilt", ["a", "b"], ["distq_mpi", "train"], environ)
    assert about["slurm"] == {"SLURM_JOB_ID": "12"}
    assert (about["ranks"], about["hosts"], about["argv"]) == (
        2,
        ["a", "b"],
        ["distq_mpi", "train"],
    )
    assert about["packages"]["numpy"].count(".") == 2
    json.dumps(about)
    stray = tmp_path / "package" / "module.py"
    stray.parent.mkdir()
    stray.write_text("")
    assert git_commit(stray) is None
    git = ["git", "-c", "user.name=n", "-c", "user.email=e@x"]
    subprocess.run([*git, "init", "-q", tmp_path], check=True)
    assert git_commit(stray) is None, "below a checkout that does not track it"
    subprocess.run([*git, "add", "."], cwd=tmp_path, check=True)
    subprocess.run([*git, "commit", "-qm", "x"], cwd=tmp_path, check=True)
    clean = git_commit(stray)
    assert clean is not None and len(clean) == 40
    stray.write_text("edited")
    assert git_commit(stray) == f"{clean}-dirty"


def test_one_import_for_all_ranks_stays_light():
    code = "import sys, distq_mpi.monitor, distq_mpi.checkpoint, distq_mpi.signals; " + (
        "print(*{'rich', 'h5py', 'mpi4py', 'numba'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT
    )
    assert (done.stdout.strip(), done.stderr) == ("", "")
