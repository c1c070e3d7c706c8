"""`server` from the command line, on real ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.launching import distq, run
from tests.parallel.test_train import CHAIN, summary, train

SERVER = ("--parallel.architecture", "server")
SLOWED = str(Path(__file__).with_name("slowed.py"))
LAKE = ("--stop.policy_gap", "0.004", "--stop.steps", "2e7")
TAXI = ("--env.id", "Taxi-v4", "--stop.policy_loss", "0.1", "--stop.steps", "2e7")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_in_step_it_gives_the_bits_of_allreduce(tmp_path: Path) -> None:
    options = ("--parallel.agents", "4", "--stop.rounds", "60")
    wanted = train(1, tmp_path / "allreduce", *options)
    for n_ranks, servers in ((2, 1), (5, 2), (4, 3)):
        name = tmp_path / f"server{n_ranks}{servers}"
        found = train(n_ranks, name, *SERVER, "--parallel.servers", str(servers), *options)
        for key in ("table_sha256", "steps", "episodes", "certificate", "evaluation"):
            assert found[key] == wanted[key], key
        assert found["reproducible"] and found["agents"] == 4


@pytest.mark.parametrize(
    ("staleness", "workers", "options"),
    [("0", 3, LAKE), ("4", 3, LAKE), ("inf", 8, LAKE), ("4", 8, TAXI), ("inf", 3, TAXI)],
)
def test_it_learns_to_the_optimum(
    staleness: str, workers: int, options: tuple[str, ...], tmp_path: Path
) -> None:
    found = train(
        workers + 1, tmp_path / "run", *SERVER, "--parallel.staleness", staleness, *options
    )
    assert found["status"] == "converged" and found["agents"] == workers
    assert found["reproducible"] == (staleness == "0")
    certificate = found["certificate"]
    value_range = abs(certificate["optimal_value"])
    assert certificate["optimal_value"] - certificate["policy_value"] <= 0.01 * value_range


def test_workers_may_keep_a_few_rows(tmp_path: Path) -> None:
    found = train(
        4, tmp_path / "run", *SERVER, "--parallel.staleness", "4", "--parallel.servers", "2",
        "--parallel.cache_rows", "1000", "--parallel.lanes", "64", *TAXI,
    )  # fmt: skip
    assert found["status"] == "converged"
    last = lines(tmp_path / "run" / "metrics.jsonl")[-1]
    assert last["pulls"] > 2 * last["pushes"]


def test_what_is_seen_of_it(tmp_path: Path) -> None:
    ended = run(
        4, [SLOWED, "train", "--run.dir", "run", *SERVER, "--parallel.staleness", "inf",
            "--parallel.steps_per_round", "400", "--stop.steps", "1e7", "--evaluate.exact",
            "false"],
        tmp_path, SLOW='{"2": 15}',
    )  # fmt: skip
    assert ended.code == 0, ended.err
    events = lines(tmp_path / "run" / "events.jsonl")
    (straggler,) = [event for event in events if event["kind"].startswith("straggler")]
    assert "agent 1 on rank 2" in straggler["message"] and straggler["message"] in ended.out
    rows = lines(tmp_path / "run" / "metrics.jsonl")
    last = rows[-1]
    clocks = last["agent_clocks"]
    assert len(clocks) == 3 and min(clocks) == clocks[1] > 0
    assert 0 <= last["staleness_p50"] <= last["staleness_p99"] <= last["staleness_max"]
    assert last["staleness_max"] > 2 and last["pushes"] == sum(clocks) <= last["pulls"]
    assert last["sent_bytes"] > 0 and last["pushes_dropped"] == 0
    assert last["pushes_per_s"] > 0 and last["pulls_per_s"] > 0
    assert 0 <= last["idle_share_workers"] <= 1 and 0 <= last["idle_share_servers"] <= 1
    assert "stale" in ended.out and "idle" in ended.out


def test_bounded_staleness_holds(tmp_path: Path) -> None:
    ended = run(
        4, [SLOWED, "train", "--run.dir", "run", *SERVER, "--parallel.staleness", "2",
            "--parallel.steps_per_round", "200", "--stop.steps", "2e6", "--evaluate.exact",
            "false"],
        tmp_path, SLOW='{"2": 5}',
    )  # fmt: skip
    assert ended.code == 0, ended.err
    for row in lines(tmp_path / "run" / "metrics.jsonl"):
        clocks = row["agent_clocks"]
        assert max(clocks) - min(clocks) <= 3


def test_resume_on_other_workers_and_servers(tmp_path: Path) -> None:
    options = (*SERVER, "--parallel.staleness", "4", "--parallel.agents", "3")
    first = train(4, tmp_path / "run", *options, "--stop.steps", "1e6")
    for n_ranks, steps, servers in ((3, "2e6", "1"), (6, "3e6", "2")):
        ended = distq(
            n_ranks, "resume", "run", "--stop.steps", steps, "--parallel.servers", servers,
            cwd=tmp_path,
        )  # fmt: skip
        assert ended.code == 0, ended.err
    last = summary(tmp_path / "run")
    assert last["steps"] >= 3e6 > first["steps"]
    assert last["certificate"]["policy_gap"] <= 0.01
    verified = distq(0, "verify", "run", cwd=tmp_path)
    assert verified.code == 0, verified.out + verified.err


def test_a_stepped_environment(tmp_path: Path) -> None:
    options = (*SERVER, "--parallel.staleness", "1", "--env.id", "Blackjack-v1")
    train(3, tmp_path / "run", *options, "--stop.steps", "2e4")
    ended = distq(2, "resume", "run", "--stop.steps", "4e4", cwd=tmp_path)
    assert ended.code == 0, ended.err
    assert "cannot be brought back" not in ended.out + ended.err


@pytest.mark.parametrize("servers", ["1", "2"])
def test_a_mistake_of_an_environment_is_told_and_ends_it(servers: str, tmp_path: Path) -> None:
    ended = distq(
        4, "train", *SERVER, "--parallel.staleness", "1", "--parallel.servers", servers, "--env.id",
        "tests.worlds:Walk-v0", "--env.kwargs.trouble", "raises", cwd=tmp_path, limit_s=60,
    )  # fmt: skip
    assert ended.code != 0 and ended.err.count("the wheel came off") == 1


def test_steps_end_where_they_should(tmp_path: Path) -> None:
    found = train(
        4, tmp_path / "run", *SERVER, "--parallel.staleness", "1", "--parallel.steps_per_round",
        "500", "--stop.steps", "10000", "--evaluate.exact", "false",
    )  # fmt: skip
    assert 10_000 <= found["steps"] <= 3 * 10_000


def test_ranks_that_cannot_be_split_are_told_what_is_possible(tmp_path: Path) -> None:
    ended = distq(0, "train", *SERVER, cwd=tmp_path)
    assert ended.code == 2 and "one rank cannot be both" in ended.err
    ended = distq(3, "train", *SERVER, "--parallel.servers", "3", cwd=tmp_path)
    assert ended.code == 2 and ended.err.count("1 to 2 of 3 ranks can be servers") == 1


def test_more_workers_than_agents_and_servers_than_states(tmp_path: Path) -> None:
    found = train(
        6, tmp_path / "run", *SERVER, "--parallel.servers", "4", "--parallel.staleness", "1",
        "--parallel.agents", "1", *CHAIN, "--env.kwargs.length", "3", "--stop.steps", "20000",
    )  # fmt: skip
    assert found["ranks_finished"] == 6 and found["agents"] == 1
