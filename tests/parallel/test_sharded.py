"""`sharded` from the command line, on real ranks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from distq_mpi.environments.garnet import garnet
from distq_mpi.environments.model_file import write_model
from distq_mpi.memory import CUT_TRANSITIONS
from tests.launching import distq
from tests.parallel.test_train import CHAIN, train

SHARDED = ("--parallel.architecture", "sharded")
GRID = ("--env.id", "grid", "--env.kwargs.rows", "100", "--env.kwargs.columns", "100",
        "--env.kwargs.slip", "0.2")  # fmt: skip


def test_the_same_table_and_certificate_on_any_ranks(tmp_path: Path) -> None:
    found = [
        train(n, tmp_path / f"run{n}", *SHARDED, "--parallel.lanes", "256") for n in (0, 1, 3, 4)
    ]
    first = found[0]
    assert first["status"] == "converged" and first["reproducible"]
    assert first["certificate"]["policy_gap"] <= 1e-3
    assert first["agents"] == 0 and not first["agents_from_ranks"]
    for other in found[1:]:
        for key in ("table_sha256", "certificate", "evaluation", "steps", "episodes"):
            assert other[key] == first[key], key
    assert found[0]["imbalance"] == 1 and found[3]["imbalance"] > 1


def test_the_default_lanes_do_not_depend_on_the_ranks(tmp_path: Path) -> None:
    found = train(2, tmp_path / "run", *SHARDED, "--env.id", "Taxi-v4", "--stop.policy_loss", "0.1")
    assert found["lanes"] == 8192
    assert found["certificate"]["policy_return"] == pytest.approx(7.93, abs=1e-9)


@pytest.mark.parametrize("n_ranks", [5, 16])
def test_more_ranks_than_states(n_ranks: int, tmp_path: Path) -> None:
    found = train(
        n_ranks, tmp_path / "run", *SHARDED, *CHAIN, "--env.kwargs.length", "3", "--stop.steps",
        "3000", "--parallel.lanes", "20",
    )  # fmt: skip
    assert found["ranks_finished"] == n_ranks and found["steps"] >= 3000


def test_resume_verify_and_evaluate(tmp_path: Path) -> None:
    options = (*SHARDED, *GRID, "--parallel.lanes", "300", "--evaluate.episodes", "3")
    whole = train(1, tmp_path / "whole", *options, "--stop.rounds", "60")
    train(3, tmp_path / "cut", *options, "--stop.rounds", "31")
    ended = distq(2, "resume", "cut", "--stop.rounds", "60", cwd=tmp_path)
    assert ended.code == 0, ended.err
    resumed = json.loads((tmp_path / "cut" / "summary.json").read_text())
    for key in ("table_sha256", "certificate", "steps", "episodes"):
        assert resumed[key] == whole[key], key
    verified = distq(0, "verify", "whole", "cut", cwd=tmp_path)
    assert verified.code == 0 and "the same table, bit for bit" in verified.out, verified.err
    judged = distq(2, "evaluate", "cut", "--json", cwd=tmp_path)
    assert judged.code == 0, judged.err
    told = json.loads(judged.out)
    assert told["table_sha256"] == whole["table_sha256"]
    assert told["certificate"] == whole["certificate"]
    assert told["evaluation"] == whole["evaluation"]


@pytest.fixture(scope="module")
def large_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A model in a file, of so many transitions that ranks hold their own rows only."""
    path = tmp_path_factory.mktemp("model") / "large.h5"
    model = garnet(20_000, 4, CUT_TRANSITIONS // 80_000)
    assert model.n_transitions == CUT_TRANSITIONS
    write_model(path, model)
    yield path
    path.unlink()


def test_a_model_that_no_rank_holds_is_learned_on_and_solved(
    large_model: Path, tmp_path: Path
) -> None:
    options = (
        *SHARDED, "--env.id", str(large_model), "--stop.steps", "300000", "--parallel.lanes", "999",
        "--parallel.steps_per_round", "50", "--evaluate.episodes", "2",
        "--env.max_episode_steps", "20", "--learn.discount", "0.9",
    )  # fmt: skip
    first = train(1, tmp_path / "run1", *options)
    assert first["certificate"]["policy_gap"] > 0
    for n_ranks in (2, 3):
        other = train(n_ranks, tmp_path / f"run{n_ranks}", *options)
        for key in ("table_sha256", "certificate", "evaluation", "steps", "episodes"):
            assert other[key] == first[key], key
    judged = distq(2, "evaluate", "run3", "--json", cwd=tmp_path)
    assert judged.code == 0, judged.err
    assert json.loads(judged.out)["certificate"] == first["certificate"]
    ended = distq(0, "--dry-run", "--ranks", "2", *options, cwd=tmp_path)
    assert ended.code == 0, ended.err
    # Half of 4 million transitions of 32 bytes, an eighth of that where borders move, and runs.
    (model,) = re.findall(r"#   model: ([\d.]+) MB", ended.out)
    assert 64 < float(model) < 90
    (share,) = re.findall(r"# ([\d.]+) % of random transitions cross", ended.out)
    assert float(share) == pytest.approx(50, abs=2)


def test_what_training_says_of_its_table_evaluation_says_too(tmp_path: Path) -> None:
    # Under signs the record of a replica would be twice as long as the block's.
    found = train(
        2, tmp_path / "run", *SHARDED, "--learn.step_size", "sign_change", "--learn.dtype",
        "float32", "--parallel.lanes", "64", "--stop.policy_gap", "0.01",
    )  # fmt: skip
    judged = distq(3, "evaluate", "run", "--json", cwd=tmp_path)
    assert judged.code == 0, judged.err
    told = json.loads(judged.out)
    assert told["evaluation"] == found["evaluation"]
    assert told["evaluation"]["mean_return"] > 0.5


def test_a_round_that_diverged_leaves_no_checkpoint(tmp_path: Path) -> None:
    law = "tests.parallel.growing:Growing"
    options = (*SHARDED, "--env.id", law, "--learn.step_size", "constant", "--learn.alpha", "1",
               "--learn.dtype", "float32", "--parallel.lanes", "4", "--stop.steps", "100000",
               "--checkpoint.every_rounds", "2", "--checkpoint.keep", "1")  # fmt: skip
    found = train(2, tmp_path / "run", *options, code=3)
    assert found["status"] == "diverged"
    (kept,) = (tmp_path / "run" / "checkpoints").glob("*.h5")
    told = distq(0, "info", str(kept), cwd=tmp_path)
    assert ", 0 not finite" in told.out and kept.name == f"round-{found['rounds'] // 2 * 2:012d}.h5"
    again = distq(2, "resume", "run", cwd=tmp_path)
    assert again.code == 3 and "Traceback" not in again.err


def test_free_running_learns_and_says_so(tmp_path: Path) -> None:
    found = train(
        2, tmp_path / "run", *SHARDED, "--parallel.reproducible", "false", "--parallel.lanes", "64",
        "--stop.policy_gap", "0.01",
    )  # fmt: skip
    assert found["status"] == "converged" and not found["reproducible"]


def test_auto_is_sharded_where_replicas_do_not_fit(tmp_path: Path) -> None:
    options = ("--parallel.architecture", "auto", "--stop.steps", "1000", *GRID)
    for limit, architecture in (("10000000", "allreduce"), ("5000000", "sharded")):
        ended = distq(
            2, "train", "--run.dir", architecture, *options, "--parallel.memory_bytes", limit,
            "--parallel.lanes", "64", cwd=tmp_path,
        )  # fmt: skip
        assert ended.code == 0, ended.err
        assert f"parallel.architecture auto is {architecture}" in ended.out
        config = (tmp_path / architecture / "config.toml").read_text()
        assert f'architecture = "{architecture}"' in config


def test_no_rank_holds_the_whole_table(tmp_path: Path) -> None:
    # 12.6 million states x 4 actions: 403 MB of rows; a rank may have 1.3 x its share of them, of
    # its lanes and messages, and of 200 MB for the program.
    ranks, rows = 4, 3550
    found = train(
        ranks, tmp_path / "run", *SHARDED, "--env.id", "grid", "--env.kwargs.rows", str(rows),
        "--env.kwargs.columns", str(rows), "--env.kwargs.slip", "0.1", "--learn.exploring_starts",
        "true", "--learn.initial", "random", "--stop.steps", "500000", "--evaluate.episodes", "3",
        limit_s=200,
    )  # fmt: skip
    table, share = rows * rows * 32, 1.25 * rows * rows * 32 / ranks
    lanes = 8192 * 8 * 9 + 3 * 8192 * 48
    assert found["peak_rss_bytes"] <= 1.3 * (share + lanes + 200e6) < table + 60e6
    (file,) = (tmp_path / "run" / "checkpoints").glob("*.h5")
    assert file.stat().st_size >= rows * rows * 4 * 8


def test_a_plan_of_1e12_pairs_on_paper(tmp_path: Path) -> None:
    ended = distq(
        0, "--dry-run", "--ranks", "1024", *SHARDED, "--env.id", "grid", "--env.kwargs.rows",
        "500000", "--env.kwargs.columns", "500000", cwd=tmp_path,
    )  # fmt: skip
    assert ended.code == 0, ended.err
    for told in ("GB per rank", "bytes per step over the network", "predicted rate"):
        assert told in ended.out


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--parallel.agents", "2"), "parallel.agents: 2 must be 0"),
        (("--parallel.fusion", "count"), "parallel.fusion: count has no meaning"),
        (("--parallel.memory_bytes", "1000"), "take more ranks"),
        (("--parallel.kappa", "3"), "parallel.kappa: 3.0 has no meaning"),
        (("--env.id", "Blackjack-v1", "--parallel.reproducible", "false"), "always in lockstep"),
    ],
)
def test_what_makes_no_sense_is_refused(
    options: tuple[str, ...], told: str, tmp_path: Path
) -> None:
    ended = distq(2, "train", *SHARDED, *options, cwd=tmp_path)
    assert ended.code == 2 and told in ended.err
    assert ended.err.count("error:") == 1


def test_stepped_environments_are_asked_about(tmp_path: Path) -> None:
    options = (*SHARDED, "--env.id", "Blackjack-v1", "--stop.steps", "5000")
    found = [train(n, tmp_path / f"run{n}", *options) for n in (0, 3)]
    assert found[0]["lanes"] == 64 and found[0]["reproducible"]
    for key in ("table_sha256", "evaluation", "steps", "episodes"):
        assert found[0][key] == found[1][key], key


def test_one_stepped_lane_learns_as_one_agent_does(tmp_path: Path) -> None:
    # Bins so fine that a pole is never twice in the same one, and rewards that float32 has exactly.
    cart = ("--env.id", "CartPole-v1", "--env.bins", "8,8,24,24", "--env.clip", "2.4,3,0.21,3",
            "--stop.steps", "3000", "--parallel.lanes", "1")  # fmt: skip
    found = train(2, tmp_path / "sharded", *SHARDED, *cart)
    wanted = train(0, tmp_path / "allreduce", "--parallel.agents", "1", *cart)
    assert found["episodes"] > 50
    for key in ("table_sha256", "steps", "episodes", "evaluation"):
        assert found[key] == wanted[key], key


def test_probe_prints_and_keeps_what_it_found(tmp_path: Path) -> None:
    ended = distq(
        2, "probe", "--json", cwd=tmp_path, limit_s=120, DISTQ_CACHE_DIR=str(tmp_path / "cache")
    )
    assert ended.code == 0, ended.err
    told = json.loads(ended.out)
    assert told == json.loads((tmp_path / "cache" / "probe.json").read_text())
    found = {one["name"]: one for one in told["ceilings"]}
    assert {
        "random_rows_64mb", "random_rows_64mb_all", "exchange_8192", "triad", "allreduce_calls",
        "allreduce_2048", "alltoallv", "host_memory", "disk",
    } <= set(found)  # fmt: skip
    assert not list(tmp_path.glob(".distq_mpi-probe-*"))
    assert all(one["per_s"] > 0 for one in found.values())
