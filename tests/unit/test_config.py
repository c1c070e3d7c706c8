"""The configuration and the command line."""

from __future__ import annotations

import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

from distq_mpi.cli import parse, show_help
from distq_mpi.config import SECTIONS, Config, check, from_dict, resolve, to_dict, to_toml
from distq_mpi.errors import ConfigError
from distq_mpi.launcher import RANKS, SIZES, launched_rank, launched_size


def mistakes(*argv: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(list(argv))
    return str(caught.value).splitlines()


def test_defaults_are_fine() -> None:
    assert parse([]).config == parse(["train"]).config == Config()
    assert check(Config()) == []


def test_toml_round_trip() -> None:
    kwargs = {"rows": 3, "slip": 0.2}
    config = from_dict({"env": {"id": "grid", "kwargs": kwargs}, "stop": {"steps": 9}})
    assert from_dict(tomllib.loads(to_toml(config))) == config
    assert "policy_gap" not in to_toml(config)


def test_resolved_configuration_resolves_to_itself() -> None:
    once = resolve(Config(), 64, 4, 3, solvable=True)
    assert (once.parallel.agents, once.parallel.lanes, once.learn.dtype) == (3, 192, "float64")
    assert once.stop.policy_gap == 1e-3
    assert resolve(once, 64, 4, 64, solvable=True) == once
    assert resolve(Config(), 1 << 21, 4, 1, solvable=False).learn.dtype == "float32"
    assert resolve(Config(), 64, 4, 1, solvable=False).stop.steps == 10_000_000


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(
        '[learn]\ndiscount = 0.5\nepsilon = 0.1\n[env]\nid = "grid"\n[env.kwargs]\nrows = 4\n'
    )
    command = parse(["train", "--config", str(file), "--learn.discount", "0.9", "--stop.steps=1e6",
                     "--env.kwargs.columns", "7", "--env.kwargs.map", "8x8"])  # fmt: skip
    config = command.config
    assert (config.learn.discount, config.learn.epsilon, config.stop.steps) == (0.9, 0.1, 10**6)
    assert config.env.kwargs == {"rows": 4, "columns": 7, "map": "8x8"}


def test_switches_take_no_value_or_a_truth() -> None:
    assert parse(["--run.overwrite", "--stop.steps", "5"]).config.run.overwrite
    assert not parse(["--run.overwrite", "false"]).config.run.overwrite
    assert not parse(["--evaluate.exact", "false"]).config.evaluate.exact
    assert parse(["--dry-run", "--ranks", "4"]).ranks == 4


def test_negative_values_are_values() -> None:
    assert parse(["--stop.mean_return", "-110.5"]).config.stop.mean_return == -110.5


def test_all_mistakes_at_once_with_their_place(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("[learn]\nepsilon = 7\n[lern]\nx = 1\n[stop]\nsteps = 2.5\n")
    lines = mistakes("--config", str(file), "--learn.gama", "1", "--parallel.fusion", "poled")
    text = "\n".join(lines)
    assert f"learn.epsilon in {file}: 7" in text and "less than or equal to 1" in text
    assert "lern" in text and "stop.steps" in text
    assert "--learn.gama: unknown key; did you mean learn.discount?" in text
    assert "did you mean pooled?" in text
    assert len(lines) == 5


@pytest.mark.parametrize(
    ("argv", "wanted"),
    [
        (["trian"], "did you mean train?"),
        (["train", "here"], "no operand"),
        (["resume"], "one run directory"),
        (["info"], "one file"),
        (["info", "x.h5", "--learn.alpha", "1"], "no option"),
        (["resume", "x", "--learn.alpha", "1"], "would change the bits"),
        (["--learn.discount", "1"], "polynomial"),
        (["--learn.epsilon_schedule", "linear"], "epsilon_steps"),
        (["--parallel.agents", "8", "--parallel.lanes", "4"], "every agent needs one"),
        (["--learn.discount", "nan"], "learn.discount"),
        (["--stop.mean_return", "inf"], "finite"),
        (["--parallel.steps_per_round", "0"], "steps_per_round"),
        (["--run.seed", "-1"], "run.seed"),
        (["--learn.step_size", "linear"], "learn.step_size"),
        (["--config", "nothing.toml"], "cannot be read"),
    ],
)
def test_mistake(argv: list[str], wanted: str) -> None:
    assert wanted in "\n".join(mistakes(*argv))


def test_broken_toml(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("[learn\n")
    assert "not TOML" in mistakes("--config", str(tmp_path / "c.toml"))[0]


def test_resume_overrides_what_does_not_change_the_bits() -> None:
    stored = to_toml(resolve(Config(), 64, 4, 2, solvable=True))
    config = parse(["resume", "here", "--stop.policy_gap", "1e-5"]).override(stored)
    assert config.stop.policy_gap == 1e-5
    assert to_dict(config)["parallel"] == tomllib.loads(stored)["parallel"]


def test_help_names_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    show_help(["train", "--help"])
    shown = capsys.readouterr().out
    for section, kind in SECTIONS.items():
        for key in fields(kind):
            assert f"--{section}.{key.name}" in shown


def test_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*RANKS, *SIZES, "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)
    assert (launched_rank(), launched_size()) == (0, None)
    monkeypatch.setenv("SLURM_NTASKS", "8")
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert launched_size() is None  # a batch script, not a task
    monkeypatch.setenv("PMI_RANK", "3")
    monkeypatch.setenv("PMI_SIZE", "4")
    assert (launched_rank(), launched_size()) == (3, 4)
