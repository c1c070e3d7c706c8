"""The command line: what is understood, what is refused and how, and who prints."""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path

import pytest

import distq_mpi
from distq_mpi import __main__ as entry
from distq_mpi.cli import parse
from distq_mpi.config import Config, resolve, to_dict, to_toml
from distq_mpi.errors import ConfigError, DivergedError
from distq_mpi.keys import SCHEMAS
from distq_mpi.launcher import RANKS, SIZES, launched_rank, launched_size
from distq_mpi.usage import show


def mistakes(*argv: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(list(argv))
    return str(caught.value).splitlines()


@pytest.fixture
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in (*RANKS, *SIZES, "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_default_command_and_configuration() -> None:
    assert parse([]).name == "train"
    assert parse([]).config == parse(["train"]).config == Config()


def test_the_line_wins_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(
        '[learn]\ndiscount = 0.5\nepsilon = 0.1\n[env]\nid = "grid"\n[env.kwargs]\nrows = 4\n'
        "[stop]\nsteps = 1e6\npolicy_gap = 0.1\n"
    )
    config = parse(["train", "--config", str(file), "--learn.discount", "0.9",
                    "--env.kwargs.columns=7", "--stop.policy_gap", "none"]).config  # fmt: skip
    assert (config.learn.discount, config.learn.epsilon, config.stop.steps) == (0.9, 0.1, 10**6)
    assert config.env.kwargs == {"rows": 4, "columns": 7}
    assert config.stop.policy_gap is None


@pytest.mark.parametrize("text", ["1e6", "1E6", "1_000_000", "1000000", "1000000.0"])
def test_whole_numbers_in_any_spelling(text: str) -> None:
    steps = parse(["--stop.steps", text]).config.stop.steps
    assert steps == 10**6 and type(steps) is int


def test_the_largest_seed_is_exact() -> None:
    assert parse(["--run.seed", str(2**63 - 1)]).config.run.seed == 2**63 - 1


def test_a_whole_number_for_a_real_key_is_real() -> None:
    assert type(parse(["--parallel.kappa", "2"]).config.parallel.kappa) is float


@pytest.mark.parametrize(
    ("text", "value"),
    [("true", True), ("3", 3), ("1e-3", 0.001), ("8x8", "8x8"), ('"3"', "3"), ("[1]", [1]),
     ('["SFF", "HFG"]', ["SFF", "HFG"]), ("{a = [1, 2.5]}", {"a": [1, 2.5]}), ("[1, 2", "[1, 2"),
     ("2024-01-01", "2024-01-01"), ("-2", -2), ("", ""), (".2", 0.2), ("-1.", -1.0), (".", ".")],
)  # fmt: skip
def test_arguments_of_the_environment(text: str, value: object) -> None:
    kwargs = parse([f"--env.kwargs.x={text}"]).config.env.kwargs
    assert kwargs == {"x": value} and type(kwargs["x"]) is type(value)


def test_texts_stay_texts() -> None:
    assert parse(["--run.dir", "5e3", "--env.id", "7"]).config.run.dir == "5e3"


def test_truths_may_stand_alone() -> None:
    assert parse(["--run.overwrite", "--stop.steps", "5"]).config.run.overwrite
    assert not parse(["--run.overwrite", "false"]).config.run.overwrite
    assert not parse(["--evaluate.exact=false"]).config.evaluate.exact


def test_negative_values_are_values() -> None:
    assert parse(["--stop.mean_return", "-110.5"]).config.stop.mean_return == -110.5


def test_dry_run() -> None:
    command = parse(["--dry-run", "--ranks", "4", "--learn.alpha", "0.5"])
    assert (command.dry_run, command.ranks, command.config.learn.alpha) == (True, 4, 0.5)


def test_all_mistakes_at_once_each_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(
        "learn = 3\n[lern]\nx = 1\n[stop]\nsteps = 2.5\nrounds = true\n"
        "[env.kwargs]\ny = [1, inf]\n"
    )
    lines = mistakes("--config", str(file), "--learn.gama", "1", "--parallel.fusion", "poled",
                     "--learn.discount", "1", "--learn.alpha", "--env.kwargs", "3")  # fmt: skip
    assert sorted(lines) == sorted([
        f"learn in {file}: must be a section, [learn]",
        f"lern in {file}: unknown section; did you mean [learn]?",
        f"stop.steps in {file}: 2.5 must be an integer >= 1 or none",
        f"stop.rounds in {file}: true must be an integer >= 1 or none",
        f"env.kwargs.y in {file}: [1, Infinity] must be true or false, an integer, a finite "
        "number, a text, None, or lists, tables of these",
        "--learn.gama: unknown key; did you mean learn.discount?",
        '--parallel.fusion: "poled" must be pooled, count, mean, importance, delta, delta_capped, '
        "median, trimmed_mean, max or hogwild; did you mean pooled?",
        "--learn.alpha: needs a value",
        "--env.kwargs: one value each: env.kwargs.NAME",
        "learn.discount: 1 must be < 1 with learn.step_size rescaled_linear, which never falls at "
        "1; take learn.step_size polynomial",
    ])  # fmt: skip


def test_a_default_in_the_place_of_a_mistake_is_not_blamed() -> None:
    lines = mistakes("--learn.discount", "1", "--learn.step_size", "constnt")
    assert lines == [
        '--learn.step_size: "constnt" must be rescaled_linear, constant, polynomial, linear, '
        "sign_change or horizon; did you mean constant?"
    ]


@pytest.mark.parametrize(
    ("argv", "wanted"),
    [
        (["trian"], "did you mean train?"),
        (["train", "here"], "no operand"),
        (["resume"], "one run directory"),
        (["info"], "one file"),
        (["info", "x.h5", "--learn.alpha", "1"], "no option"),
        (["--dry-run=yes"], "takes no value"),
        (["--ranks", "4"], "beside --dry-run"),
        (["--dry-run", "--ranks", "0"], ">= 1"),
        (["--config"], "needs a value"),
        (["--env.id", "--run.overwrite"], "--env.id: needs a value"),
        (["--config", "nothing.toml"], "nothing.toml: cannot be read: No such file"),
        (["--config", "."], "cannot be read"),
        (["--seed", "3"], "did you mean run.seed?"),
        (["--learn.learning_rate", "3"], "did you mean learn.alpha?"),
        (["--env.kwargs.", "3"], "unknown key"),
        (["--parallel.agents", "8", "--parallel.lanes", "4"], "every agent needs one"),
        (["--learn.discount", "nan"], "a finite number >= 0 and <= 1"),
        (["--stop.mean_return", "inf"], "finite"),
        (["--env.kwargs.x", "nan"], "finite"),
        (["--parallel.steps_per_round", "0"], "auto or an integer >= 1"),
        (["--learn.alpha", "0"], "> 0 and <= 1"),
        (["--run.seed", "-1"], ">= 0"),
        (["--run.seed", str(2**63)], f"<= {2**63 - 1}"),
        (["--run.overwrite", "maybe"], "no operand, not maybe"),
        (["resume", "x", "--learn.alpha", "1"], "would change the bits"),
        (["resume", "x", "--env.kwargs.rows", "1"], "would change the bits"),
        (["resume", "x", "--run.dir", "y"], "the directory given"),
        (["resume", "x", "--config", "y"], "reads config.toml"),
        (["resume", "x", "--stop.stepz", "1"], "did you mean stop.steps?"),
        (["resume", "x", "--stop.steps", "-1"], ">= 1"),
    ],
)
def test_mistake(argv: list[str], wanted: str) -> None:
    (line,) = mistakes(*argv)
    assert wanted in line


@pytest.mark.parametrize("key", ["learn.alpha", "parallel.agents", "run.seed", "parallel.kappa"])
@pytest.mark.parametrize("value", ["true", '"1"', "[1]", "{ a = 1 }", "2024-01-01"])
def test_files_are_held_to_types(tmp_path: Path, key: str, value: str) -> None:
    section, name = key.split(".")
    (tmp_path / "c.toml").write_text(f"[{section}]\n{name} = {value}\n")
    (line,) = mistakes("--config", str(tmp_path / "c.toml"))
    assert line.startswith(f"{key} in ") and "must be a" in line


@pytest.mark.parametrize("content", [b"[learn\n", b"\xff\xfe"])
def test_broken_files_are_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "c.toml").write_bytes(content)
    (line,) = mistakes("--config", str(tmp_path / "c.toml"))
    assert "c.toml" in line and "not" in line


def test_resume_overrides_what_does_not_change_the_bits() -> None:
    stored = to_toml(resolve(Config(), 64, 4, 2, solvable=True))
    command = parse(["resume", "here", "--stop.steps", "1e9", "--stop.policy_gap", "none",
                     "--run.report_every_s", "5", "--checkpoint.keep", "9"])  # fmt: skip
    config = command.override(stored)
    assert command.directory == "here"
    assert to_dict(config)["stop"] == {"steps": 10**9}
    assert (config.run.report_every_s, config.checkpoint.keep) == (5.0, 9)
    assert to_dict(config)["parallel"] == {
        **to_dict(Config())["parallel"], "agents": 2, "lanes": 128
    }  # fmt: skip


def test_a_damaged_stored_configuration_is_named() -> None:
    with pytest.raises(ConfigError, match=r"learn.alpha in here/config.toml: 7"):
        parse(["resume", "here"]).override("[learn]\nalpha = 7\n")


def test_help_names_every_key_with_its_limits(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    for argv in (["--help"], ["train", "--help"]):
        show(argv)
        shown = capsys.readouterr().out
        for key, schema in SCHEMAS.items():
            assert f"--{key} " in shown and schema["description"] in shown, key
    assert "[a finite number > 0 and <= 1] [default: 0.1]" in shown
    assert "runs/<env>-<NNNN>" in shown
    show(["resume", "--help"])
    assert "DIRECTORY" in capsys.readouterr().out
    show(["--version"])
    assert capsys.readouterr().out == f"{distq_mpi.__version__}\n"


def test_launcher(no_launcher: pytest.MonkeyPatch) -> None:
    assert (launched_rank(), launched_size()) == (0, None)
    no_launcher.setenv("SLURM_NTASKS", "8")
    no_launcher.setenv("SLURM_PROCID", "0")
    assert launched_size() is None  # a batch script, not a task
    no_launcher.setenv("SLURM_STEP_ID", "0")
    assert launched_size() == 8
    no_launcher.setenv("PMI_RANK", "3")
    no_launcher.setenv("PMI_SIZE", "4")
    assert (launched_rank(), launched_size()) == (3, 4)
    no_launcher.setenv("OMPI_COMM_WORLD_RANK", "nonsense")
    assert launched_rank() == 3


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize(
    ("argv", "code"),
    [(["--help"], 0), (["--version"], 0), (["--dry-run", "--learn.alpha", "7"], 2),
     (["info"], 2), (["resume", "x", "--dry-run"], 2)],
)  # fmt: skip
def test_without_mpi_one_rank_prints_and_its_code_is_the_jobs(
    no_launcher: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
    rank: int, argv: list[str], code: int,
) -> None:  # fmt: skip
    no_launcher.setenv("PMI_RANK", str(rank))
    no_launcher.setitem(sys.modules, "distq_mpi.transport", None)  # importing it would fail
    # A launcher ends all ranks at the first bad code, and the first rank has to print.
    assert entry.main(argv) == (code if rank == 0 else 0)
    out, err = capfd.readouterr()
    assert bool(out + err) == (rank == 0)
    assert err.startswith("error: ") == (rank == 0 and code == 2)


def test_dry_run_speaks_of_the_ranks_asked_for_or_launched(
    no_launcher: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = types.SimpleNamespace(dry_run=lambda command, size: f"{size} {command.config.env.id}")
    no_launcher.setitem(sys.modules, "distq_mpi.dry_run", fake)
    no_launcher.setenv("PMI_RANK", "0")
    no_launcher.setenv("PMI_SIZE", "6")
    assert entry.main(["--dry-run", "--env.id", "x"]) == 0
    assert entry.main(["--dry-run", "--env.id", "x", "--ranks", "64"]) == 0
    assert capsys.readouterr().out == "6 x\n64 x\n"


FAKES = """
import contextlib, sys, types
class Transport:
    rank = RANK
    @classmethod
    def connect(cls): return cls()
    @contextlib.contextmanager
    def same_outcome(self): yield
sys.modules["distq_mpi.transport"] = types.SimpleNamespace(
    Transport=Transport, abort_on_exception=sys.excepthook)
def run(command, transport):
    print(command.config.learn.alpha if command else command,
          [m for m in ("cyclopts", "pydantic", "rich", "distq_mpi.cli") if m in sys.modules])
    return 75
sys.modules["distq_mpi.trainer"] = types.SimpleNamespace(run=run)
from distq_mpi.__main__ import main
sys.exit(main(["--learn.alpha", "0.5"]))
"""


@pytest.mark.parametrize(
    ("rank", "wanted"), [(0, "0.5 ['pydantic', 'distq_mpi.cli']"), (1, "None []")]
)
def test_one_rank_alone_imports_the_command_line(rank: int, wanted: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", FAKES.replace("RANK", str(rank))], capture_output=True, text=True,
        timeout=60, cwd=Path(distq_mpi.__file__).parents[1],
    )  # fmt: skip
    assert (ended.stdout.strip(), ended.returncode) == (wanted, 75), ended.stderr


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("agreed", [True, False])
def test_an_agreed_mistake_is_printed_by_the_first_another_ends_the_job(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rank: int, agreed: bool
) -> None:
    aborted: list[int] = []

    def run(command: object, transport: object) -> int:
        mistake = DivergedError("no number left")
        mistake.agreed = agreed
        raise mistake

    connected = types.SimpleNamespace(
        rank=rank, same_outcome=lambda: pytest.MonkeyPatch.context(), abort=aborted.append,
        lost=[],
    )
    fake = types.SimpleNamespace(
        Transport=types.SimpleNamespace(connect=lambda: connected), abort_on_exception=None
    )
    monkeypatch.setitem(sys.modules, "distq_mpi.transport", fake)
    monkeypatch.setitem(sys.modules, "distq_mpi.trainer", types.SimpleNamespace(run=run))
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    assert entry.main([]) == 3
    told = rank == 0 or not agreed
    assert capsys.readouterr().err == ("error: no number left\n" if told else "")
    assert aborted == ([] if agreed else [3])
