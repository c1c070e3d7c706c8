"""Learn a few rounds of every combination on the ranks of this job; print two hashes of each.

`mpirun -n P python combinations.py [--mutate scale|seed|sampler]`: a mutation lets the number of
ranks into the fixed-point scale, or the rank into the seed; the hashes must then depend on P. Or it
tampers with the sampler of transitions; the hashes must then be others.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np

from distq_mpi.architectures import Allreduce, architecture_of
from distq_mpi.checkpoint import file_name
from distq_mpi.config import Config, from_dict
from distq_mpi.environments import explicit
from distq_mpi.environments.sharing import share
from distq_mpi.fusion import FixedPoint
from distq_mpi.kernels.objects import load
from distq_mpi.preparation import build, settle
from distq_mpi.saving import Saver
from distq_mpi.table import table_sha256
from distq_mpi.transport import Transport

ENVIRONMENTS: dict[str, dict[str, Any]] = {
    "chain7": {"id": "tests.contract.chain:Chain", "kwargs": {"length": 7}},
    "lake": {"id": "FrozenLake8x8-v1"},
    "taxi": {"id": "Taxi-v4"},
}
AGENTS, ROUNDS = 6, 25


def combinations() -> dict[str, dict[str, Any]]:
    """Name -> configuration sections."""
    found = {}
    for env, rule, fusion in itertools.product(
        ENVIRONMENTS, ("q_learning", "sarsa"), ("pooled", "count", "mean", "max")
    ):
        found[f"{env} {rule} {fusion}"] = {
            "env": ENVIRONMENTS[env],
            "learn": {"rule": rule},
            "parallel": {"fusion": fusion},
        }
    lake = ENVIRONMENTS["lake"]
    found["lake constant float32 random"] = {
        "env": lake,
        "learn": {"step_size": "constant", "dtype": "float32", "initial": "random"},
        "parallel": {"steps_per_round": 3},
    }
    # Taxi, where every step costs: zeros on the lake stay zeros until somebody reaches the goal.
    found["taxi schedule zeros, lanes not divisible"] = {
        "env": ENVIRONMENTS["taxi"],
        "learn": {"initial": "zeros", "epsilon_schedule": "linear", "epsilon_steps": 20000},
        "parallel": {"lanes": 200, "fusion": "count"},
    }
    # Every fusion under a clock of visits and under one of signs; every rule with either.
    signed = {"step_size": "sign_change"}
    for fusion in ("pooled", "count", "mean", "max"):
        found[f"taxi signs {fusion}"] = {
            "env": ENVIRONMENTS["taxi"], "learn": signed, "parallel": {"fusion": fusion},
        }  # fmt: skip
    for fusion in ("importance", "delta", "delta_capped", "median", "trimmed_mean"):
        for learn in ({}, signed):
            found[f"lake {fusion} {'signs' if learn else ''}"] = {
                "env": lake, "learn": learn, "parallel": {"fusion": fusion},
            }  # fmt: skip
    found["taxi expected_sarsa softmax polynomial"] = {
        "env": ENVIRONMENTS["taxi"],
        "learn": {"rule": "expected_sarsa", "exploration": "softmax", "step_size": "polynomial",
                  "temperature_schedule": "linear", "temperature_steps": 50_000},
    }  # fmt: skip
    for fusion in ("pooled", "median"):
        found[f"lake double_q {fusion} float32"] = {
            "env": lake,
            "learn": {"rule": "double_q", "dtype": "float32", "initial": "random"},
            "parallel": {"fusion": fusion},
        }
    found["taxi double_q signs exploring starts"] = {
        "env": ENVIRONMENTS["taxi"],
        "learn": {"rule": "double_q", "exploring_starts": True, **signed},
    }
    found["chain7 sarsa softmax linear"] = {
        "env": ENVIRONMENTS["chain7"],
        "learn": {"rule": "sarsa", "exploration": "softmax", "step_size": "linear"},
    }
    # Stepped in Python: a tuple space; no table told; an offset and two digits; truncations.
    for id, learn in (
        ("Blackjack-v1", {"step_size": "polynomial"}),
        ("tests.worlds:HiddenLake-v0", {"rule": "double_q", **signed}),
        ("tests.worlds:Walk-v0", {"rule": "sarsa"}),
    ):
        found[f"stepped {id}"] = {
            "env": {"id": id}, "learn": learn, "parallel": {"lanes": 20, "steps_per_round": 4},
        }  # fmt: skip
    # Beyond the size that is reduced whole: contributions go to the owners of the blocks.
    for fusion in ("pooled", "count", "mean", "delta_capped"):
        found[f"garnet owners {fusion}"] = {
            "env": {"id": "garnet", "kwargs": {"states": 17_001, "actions": 3, "branching": 4}},
            "parallel": {"fusion": fusion, "steps_per_round": 20},
        }
    found["garnet owners double_q signs mean"] = {
        "env": {"id": "garnet", "kwargs": {"states": 17_001, "actions": 3, "branching": 4}},
        "learn": {"rule": "double_q", **signed},
        "parallel": {"fusion": "mean", "steps_per_round": 20},
    }
    # The same of tables of which a round touches little: passes leave out the rest.
    for learn in ({}, {"rule": "double_q", "dtype": "float32"}, signed):
        name = f"grid owners {learn.get('rule', '')}{learn.get('step_size', '')}"
        found[name] = {
            "env": {"id": "grid", "kwargs": {"rows": 150, "columns": 150, "slip": 0.2}},
            "learn": learn,
            "parallel": {"fusion": "count", "steps_per_round": 5},
        }
    found["variants mean"] = {
        "env": {"id": "garnet?seed=1,garnet?seed=2,garnet?seed=3",
                "kwargs": {"states": 50, "actions": 3, "branching": 4}},
        "parallel": {"fusion": "mean", "steps_per_round": 1},
    }  # fmt: skip
    # On three ranks and more owners read replicas, on fewer agents are added up.
    found["grid read"] = {
        "env": {"id": "grid", "kwargs": {"rows": 60, "columns": 60, "slip": 0.2}},
        "parallel": {"agents": 3},
    }
    found["grid law float32"] = {
        "env": {"id": "grid", "kwargs": {"rows": 9, "columns": 11, "slip": 0.2}},
        "learn": {"dtype": "float32"},
    }
    found["drawn grid"] = {
        "env": {"id": "grid", "kwargs": {"layout": "tests/contract/maze.txt", "slip": 0.2}}
    }
    return found | family() | sharded() | served()


def family() -> dict[str, dict[str, Any]]:
    """Rules of more than one step, with models, by optimism and in sweeps; frozen targets."""
    lake, taxi = ENVIRONMENTS["lake"], ENVIRONMENTS["taxi"]
    mean = {"fusion": "mean", "lanes": 6}
    found: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
        "taxi three steps": (taxi, {"n_steps": 3, "rule": "sarsa"}, {}),
        "taxi watkins": (taxi, {"rule": "watkins_q_lambda"}, {}),
        "taxi dyna": (taxi, {"rule": "dyna_q", "planning_steps": 2}, {"lanes": 12}),
        "taxi sweeping": (taxi, {"rule": "prioritized_sweeping"}, {"lanes": 12}),
        "lake optimism": (
            lake, {"rule": "ucb_discounted", "initial": "optimistic"}, {"fusion": "count"}
        ),
        "lake frozen": (lake, {"target": "frozen"}, {"steps_per_round": 20}),
        "lake speedy": (lake, {"rule": "speedy_q"}, mean),
        "lake reduced variance": (lake, {"rule": "variance_reduced_q"}, mean),
        "lake generative": (lake, {"sampling": "generative"}, {"lanes": 6}),
        "stepped three steps": (
            {"id": "tests.worlds:Walk-v0"}, {"n_steps": 3}, {"lanes": 20, "steps_per_round": 4}
        ),
    }  # fmt: skip
    return {
        name: {"env": env, "learn": learn, "parallel": parallel}
        for name, (env, learn, parallel) in found.items()
    }


def served() -> dict[str, dict[str, Any]]:
    """Those of servers and workers; of `allreduce` where there are too few ranks for both."""
    lake, taxi, chain = (ENVIRONMENTS[name] for name in ("lake", "taxi", "chain7"))
    garnet = {"id": "garnet", "kwargs": {"states": 17_001, "actions": 3, "branching": 4}}
    found: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "lake pooled": (lake, {}),
        "lake one agent": (lake, {"agents": 1}),
        "taxi median, two servers": (taxi, {"fusion": "median", "servers": 2}),
        "chain7 max": (chain, {"fusion": "max"}),
        "garnet count, two servers": (
            garnet, {"fusion": "count", "servers": 2, "steps_per_round": 20}
        ),
        "stepped Blackjack-v1": ({"id": "Blackjack-v1"}, {"lanes": 20, "steps_per_round": 4}),
    }  # fmt: skip
    return {
        f"served {name}": {"env": env, "parallel": {"architecture": "server", **parallel}}
        for name, (env, parallel) in found.items()
    }


def sharded() -> dict[str, dict[str, Any]]:
    """Those of the architecture in which every row has one owner; borders move meanwhile."""
    found: dict[str, dict[str, Any]] = {}
    lake, taxi = ENVIRONMENTS["lake"], ENVIRONMENTS["taxi"]
    for rule in ("q_learning", "sarsa", "expected_sarsa", "double_q"):
        found[f"sharded lake {rule}"] = {"env": lake, "learn": {"rule": rule}}
    found["sharded chain7 sarsa"] = {"env": ENVIRONMENTS["chain7"], "learn": {"rule": "sarsa"}}
    found["sharded lake float32 random"] = {
        "env": lake, "learn": {"dtype": "float32", "initial": "random"},
    }  # fmt: skip
    found["sharded taxi double_q float32 signs exploring starts"] = {
        "env": taxi,
        "learn": {"rule": "double_q", "dtype": "float32", "step_size": "sign_change",
                  "exploring_starts": True},
    }  # fmt: skip
    found["sharded taxi expected_sarsa softmax polynomial, one lane"] = {
        "env": taxi,
        "learn": {"rule": "expected_sarsa", "exploration": "softmax", "step_size": "polynomial"},
        "parallel": {"lanes": 1, "steps_per_round": 100},
    }
    # Stepped in Python: a tuple space; no table told; an offset and two digits; truncations.
    for id, learn in (
        ("Blackjack-v1", {"step_size": "polynomial", "rule": "expected_sarsa"}),
        ("tests.worlds:HiddenLake-v0", {"rule": "double_q", "dtype": "float32"}),
        ("tests.worlds:Walk-v0", {"rule": "sarsa"}),
    ):
        found[f"sharded stepped {id}"] = {
            "env": {"id": id}, "learn": learn, "parallel": {"lanes": 7, "steps_per_round": 4},
        }  # fmt: skip
    found["sharded grid float32"] = {
        "env": {"id": "grid", "kwargs": {"rows": 9, "columns": 11, "slip": 0.2}},
        "learn": {"dtype": "float32"},
    }
    return {
        name: {**sections, "parallel": {
            "architecture": "sharded", "lanes": 150, "steps_per_round": 4,
            **sections.get("parallel", {}),
        }}
        for name, sections in found.items()
    }  # fmt: skip


real_step = explicit.law_step


def tampered_step(state, action, bits, params):  # type: ignore[no-untyped-def]
    """The transition that another draw would have given."""
    return real_step(state, action, bits ^ (np.uint64(1) << np.uint64(63)), params)


def learn(sections: dict[str, Any], transport: Transport, save: str = "", load_: str = "") -> str:
    """The hash of the table after `ROUNDS` rounds, then that of all the rest. COLLECTIVE.

    Both are whole on rank 0 only, which alone is given all visits and lanes.

    save : write a checkpoint into this folder halfway, and end there. load_ : begin with it.
    """
    parallel = dict(sections.get("parallel", {}))
    if parallel.get("architecture") != "sharded":
        parallel = {"force": True, "agents": AGENTS, **parallel}
    if parallel.get("architecture") == "server" and parallel.get("servers", 1) >= transport.size:
        parallel["architecture"] = "allreduce"
        parallel.pop("servers", None)
    sections = {**sections, "parallel": parallel}
    config, environment = None, None
    if transport.rank == 0:
        config, environment, _ = settle(from_dict(sections), transport.size)
    config = transport.broadcast(config)
    exploring = config.learn.exploring_starts
    environment = share(environment, lambda: build(config.env, exploring), transport)
    kind = architecture_of(config, environment, transport.size)
    requests = kind.requests(config, environment) if transport.leads_node else None
    if requests is not None and issubclass(kind, Allreduce):
        shape = environment.n_states, environment.n_actions
        for one in kind.unneeded(config, *shape, transport.hosts):
            requests.pop(one, None)
    architecture = kind(config, environment, load(requests, transport), transport)
    directory = SimpleNamespace(checkpoints=Path(save)) if transport.rank == 0 else None
    saver = Saver(config, environment, directory, architecture)
    if load_:
        saver.restore(Path(load_) / file_name(ROUNDS // 2), transport)
    while architecture.progress.round < (ROUNDS // 2 if save else ROUNDS):
        architecture.learn()
        if architecture.exchange((False, False, False)) is None:
            architecture.rollback()
        else:
            architecture.commit()
    if save:
        saver.write(transport)
        return ""
    rest = hashlib.sha256(architecture.progress.to_json().encode())
    n_parts = architecture.holding.rows.record.n_parts
    parts: list[list[np.ndarray]] = [[] for _ in range(n_parts)]
    for _, q, clock, visits in architecture.iter_rows():
        for number, part in enumerate(parts):
            start = number * environment.n_actions
            part.append(q[:, start : start + environment.n_actions].copy())
        rest.update(clock.tobytes() + (b"" if visits is None else visits.tobytes()))
    lanes = architecture.gather_lanes()
    for name in () if lanes is None else lanes.dtype.names or ():
        rest.update(lanes[name].tobytes())
    return f"{table_sha256(sum(parts, []))} {rest.hexdigest()}"


def main() -> None:
    """Print {name: hash} as JSON on rank 0."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--mutate", choices=("scale", "seed", "sampler"))
    parser.add_argument("--only", default="")
    parser.add_argument("--save", type=Path, help="write checkpoints halfway, and end")
    parser.add_argument("--load", type=Path, help="begin with these checkpoints")
    options = parser.parse_args()
    transport = Transport.connect()
    hashes = {}
    for name, sections in combinations().items():
        if options.only not in name:
            continue
        if options.mutate == "seed":
            broadcast = Transport.broadcast

            def seeded(self: Transport, value: Any, broadcast: Any = broadcast) -> Any:
                value = broadcast(self, value)
                if isinstance(value, Config):
                    value = replace(value, run=replace(value.run, seed=self.rank))
                return value

            with mock.patch.object(Transport, "broadcast", seeded):
                hashes[name] = learn(sections, transport)
        elif options.mutate == "scale":
            scale = property(lambda self: 2.0 ** (20 - self.exponent - transport.size))
            with mock.patch.object(FixedPoint, "scale", scale):
                hashes[name] = learn(sections, transport)
        elif options.mutate == "sampler":
            with mock.patch.object(explicit, "law_step", tampered_step):
                hashes[name] = learn(sections, transport)
        else:
            number = str(list(combinations()).index(name))
            save, load_ = (str(p / number) if p else "" for p in (options.save, options.load))
            if save and transport.rank == 0:
                Path(save).mkdir()
            hashes[name] = learn(sections, transport, save, load_)
    if transport.rank == 0:
        print(json.dumps(hashes))


if __name__ == "__main__":
    main()
