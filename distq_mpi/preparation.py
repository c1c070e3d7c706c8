"""Everything before the first round: environment, resolved configuration, kernels, directory."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from distq_mpi import __version__, checkpoint, environments
from distq_mpi.architectures import ARCHITECTURES
from distq_mpi.certificate import requests as certificate_requests
from distq_mpi.certificate import solvable
from distq_mpi.config import Config, from_toml, resolve, to_toml
from distq_mpi.environments.base import Environment
from distq_mpi.environments.sharing import share
from distq_mpi.errors import ConfigError, FileError
from distq_mpi.fusion import FUSIONS
from distq_mpi.kernels.evaluation import evaluation_kernel
from distq_mpi.kernels.fusing import CLOCK_LIMIT
from distq_mpi.kernels.objects import LoadedKernel, load
from distq_mpi.memory import check_memory
from distq_mpi.monitor import Monitor, RunDirectory
from distq_mpi.stopping import EXACT_TARGETS
from distq_mpi.table import Record

if TYPE_CHECKING:
    from distq_mpi.transport import Transport


@dataclass
class Prepared:
    """What a run starts from, on one rank. `directory` and `monitor` exist on rank 0 only."""

    config: Config
    environment: Environment
    kernels: dict[str, LoadedKernel]
    exact: bool
    agents_from_ranks: bool
    checkpoint: str | None
    directory: RunDirectory | None
    monitor: Monitor | None
    started: float


def settle(config: Config, size: int) -> tuple[Config, Environment, str | None]:
    """Return the resolved configuration, the environment, and why it cannot be solved (or None).

    Local; reads no MPI. Raises ConfigError and ModelError for whatever cannot run as written.
    """
    environment = environments.make(config.env)
    if environment.params == ():
        raise AssertionError("an environment has params")
    discount = config.learn.discount
    reason = solvable(environment, discount)
    if not config.evaluate.exact:
        reason = "evaluate.exact is false"
    config = resolve(
        config, environment.n_states, environment.n_actions, size, solvable=reason is None
    )
    mistakes = [
        f"stop.{name}: needs exact values, but {reason}; use stop.mean_return, stop.steps or "
        "stop.wall_time_s instead"
        for name in EXACT_TARGETS
        if reason is not None and getattr(config.stop, name) is not None
    ]
    per_agent = -(-config.parallel.lanes // config.parallel.agents)
    period = config.parallel.steps_per_round
    if period != "auto" and int(period) * per_agent > int(CLOCK_LIMIT):
        mistakes.append(
            f"parallel.steps_per_round: {period} steps of {per_agent} lanes per agent are more "
            f"than {int(CLOCK_LIMIT)} in a round"
        )
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    FUSIONS[config.parallel.fusion].check(environment.deterministic, config.parallel.force)
    check_memory(config, environment.n_states, environment.n_actions, size)
    return config, environment, reason


def prepare(command: Any, transport: Transport) -> Prepared:
    """Return what the run starts from, on every rank. COLLECTIVE.

    Rank 0 alone reads files and asks Gymnasium; the other ranks are told. A mistake found there
    is raised on all ranks.
    """
    started = time.perf_counter()
    environment: Environment | None = None
    directory: RunDirectory | None = None
    told: Any = None
    with transport.same_outcome():
        if transport.rank == 0:
            config, environment, reason, directory, path, from_ranks = _open(command, transport)
            told = (config, reason is None, path, from_ranks)
    config, exact, path, from_ranks = transport.broadcast(told)
    make = functools.partial(environments.make, config.env)
    environment = share(environment, make, transport)
    requests = _requests(config, environment, exact) if transport.leads_node else None
    kernels = load(requests, transport)
    # A node leader's mistake must reach the other nodes, too.
    monitor = None
    if directory is not None:
        monitor = Monitor(directory)
        provenance = {
            "mpi_library": transport.library, "hosts": transport.hosts, "ranks": transport.size,
        }  # fmt: skip
        monitor.start(_banner(config, environment, transport, exact, directory), provenance)
    return Prepared(
        config, environment, kernels, exact, from_ranks, path, directory, monitor, started
    )


def _open(command: Any, transport: Transport) -> tuple[Any, ...]:
    if command.name == "resume":
        return _open_resumed(command, transport)
    config, environment, reason = settle(command.config, transport.size)
    directory = RunDirectory.create(
        to_toml(config), config.env.id, config.run.dir, config.run.overwrite
    )
    return config, environment, reason, directory, None, command.config.parallel.agents == 0


def _open_resumed(command: Any, transport: Transport) -> tuple[Any, ...]:
    directory = RunDirectory.open(command.directory)
    stored = from_toml(directory.read_config())
    config, environment, reason = settle(command.override(stored), transport.size)
    path, refusals = checkpoint.newest_good(directory.checkpoints, environment.model_id)
    for refusal in refusals:
        directory.warn(refusal)
    if path is None:
        raise FileError(f"{directory.checkpoints}: no good checkpoint to resume from")
    directory.write_config(to_toml(config))
    return config, environment, reason, directory, path, False


def _requests(config: Config, environment: Environment, exact: bool) -> dict[str, Any]:
    record = Record(environment.n_actions, np.dtype(config.learn.dtype))
    found = ARCHITECTURES[config.parallel.architecture].requests(config, environment)
    found |= evaluation_kernel(environment, record)
    if exact:
        found |= certificate_requests(environment, record.dtype)
    return found


def _banner(
    config: Config, environment: Environment, transport: Transport, exact: bool, directory: Any
) -> list[str]:
    parallel, size = config.parallel, transport.size
    hosts = len(set(transport.hosts))
    truth = "exact optimum available" if exact else "no exact optimum"
    return [
        f"distq_mpi {__version__} - {size} rank{'s' * (size > 1)} on {hosts} host{'s' * (hosts > 1)}"
        f" - {parallel.architecture}, {parallel.agents} agents, {parallel.lanes} lanes,"
        f" {parallel.fusion} - seed {config.run.seed} - {directory.path}",
        f"{environment.summary}; {truth}; {config.learn.dtype}",
    ]
