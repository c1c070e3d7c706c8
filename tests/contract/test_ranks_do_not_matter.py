"""The same configuration gives the same bits on any number of ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.launching import ROOT, run

SCRIPT = str(Path(__file__).with_name("combinations.py"))


def hashes(n_ranks: int, *options: str) -> dict[str, str]:
    ended = run(n_ranks, [SCRIPT, *options], ROOT, limit_s=900)
    assert ended.code == 0, ended.err
    found: dict[str, str] = json.loads(ended.out.splitlines()[-1])
    return found


def tables(found: dict[str, str]) -> list[str]:
    """The hashes of the tables alone, without those of clocks, visits, lanes and counters."""
    return [both.split()[0] for both in found.values()]


@pytest.fixture(scope="module")
def alone() -> dict[str, str]:
    return hashes(0)


@pytest.mark.parametrize("n_ranks", [1, 2, 3, 5])
def test_same_bits_on_any_number_of_ranks(alone: dict[str, str], n_ranks: int) -> None:
    assert hashes(n_ranks) == alone


def test_same_bits_where_ranks_have_no_agent(alone: dict[str, str]) -> None:
    found = hashes(8, "--only", "lake")
    assert len(found) > 10 and found == {name: alone[name] for name in found}


def test_same_bits_of_blocks_of_four(alone: dict[str, str]) -> None:
    found = hashes(4, "--only", "sharded")
    assert len(found) > 10 and found == {name: alone[name] for name in found}


@pytest.fixture(scope="module")
def halfway(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Checkpoints of every combination, written by two ranks halfway."""
    folder = str(tmp_path_factory.mktemp("halfway"))
    hashes(2, "--save", folder)
    return folder


@pytest.mark.parametrize("n_ranks", [1, 3])
def test_resumed_halfway_on_other_ranks(
    alone: dict[str, str], halfway: str, n_ranks: int
) -> None:
    assert hashes(n_ranks, "--load", halfway) == alone


def test_combinations_differ(alone: dict[str, str]) -> None:
    # Rules, fusions and environments that gave equal tables would prove nothing above. (`max` on
    # Taxi keeps the optimistic start wherever one agent has not been: whatever the rule. What
    # servers fuse in step is what `allreduce` does.)
    same = ("taxi sarsa max", "taxi signs max", "served ")
    others = tables({name: both for name, both in alone.items() if not name.startswith(same)})
    assert len(set(others)) == len(others)


@pytest.mark.parametrize("mutation", ["scale", "seed"])
def test_a_mutation_is_seen(mutation: str) -> None:
    only = ("--mutate", mutation, "--only", "lake q_learning pooled")
    assert tables(hashes(1, *only)) != tables(hashes(2, *only))


def test_tampering_with_the_sampler_is_seen(alone: dict[str, str]) -> None:
    only = ("--mutate", "sampler", "--only", "lake q_learning pooled")
    assert not set(tables(hashes(2, *only))) & set(tables(alone))
