"""Everything before the first round: environment, resolved configuration, kernels, directory."""

from __future__ import annotations

import functools
import hashlib
import math
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distq_mpi import __version__, checkpoint, environments
from distq_mpi.architectures import Allreduce, Served, Sharded, architecture_of, record_of_run
from distq_mpi.architectures.schedules import LONE_STEPS, MAX_PERIOD
from distq_mpi.architectures.server import check_split
from distq_mpi.certificate import requests as certificate_requests
from distq_mpi.certificate import solvable
from distq_mpi.config import (
    MODEL_RULES,
    OWN_STEP_SIZES,
    Config,
    EnvConfig,
    LearnConfig,
    check,
    from_dict,
    resolve,
    sweeps,
    to_dict,
    to_toml,
)
from distq_mpi.environments import variants
from distq_mpi.environments.base import Environment
from distq_mpi.environments.checking import check_all
from distq_mpi.environments.sharing import share
from distq_mpi.errors import ConfigError, FileError, ModelError
from distq_mpi.files import publish
from distq_mpi.fusion import fusion_of
from distq_mpi.kernels.checking import checking_kernel
from distq_mpi.kernels.evaluation import evaluation_kernel
from distq_mpi.kernels.fusing import SHARED_LIMIT, round_limit
from distq_mpi.kernels.objects import LoadedKernel, load
from distq_mpi.kernels.optimism import OPTIMISTIC
from distq_mpi.launcher import process_age_s, survives_deaths
from distq_mpi.memory import (
    CUT_TRANSITIONS,
    check_memory,
    cuts_of,
    limit_bytes,
    memory_bytes,
    readable,
)
from distq_mpi.monitor import Monitor, RunDirectory
from distq_mpi.monitor.provenance import provenance
from distq_mpi.stopping import EXACT_TARGETS

if TYPE_CHECKING:
    from distq_mpi.transport import Transport

LINEAR_DISCOUNT = 0.5
"""Discount from which on `linear` steps are too short to forget the start."""
ANNOUNCED_BYTES = 1_000_000_000
"""Memory per rank from which on the first lines of a run say how much it will be."""


@dataclass
class Prepared:
    """What a run starts from, on one rank."""

    config: Config
    environment: Environment
    kernels: dict[str, LoadedKernel]
    exact: bool
    agents_from_ranks: bool
    checkpoint: Path | None
    kept: bool
    """Whether there is a run directory; the same on every rank."""
    place: str
    """That directory's absolute path, "" for none; on every rank, for whoever is first one day."""
    directory: RunDirectory | None
    """That directory, on rank 0 only."""
    refusals: tuple[str, ...]
    """Why newer checkpoints were not taken; known to rank 0 only."""
    decision: str
    """What was decided for the user, in words; known to rank 0 only."""
    need: dict[str, int]
    """Bytes of memory per rank, part by part; known to rank 0 only."""
    started: float


@dataclass
class Settled:
    """What rank 0 finds before anybody works; `directory` and `checkpoint` of a resumed run.

    keep : whether to make a run directory where there is none yet.
    """

    config: Config
    environment: Environment
    reason: str | None
    agents_from_ranks: bool
    directory: RunDirectory | None = None
    checkpoint: Path | None = None
    refusals: tuple[str, ...] = ()
    keep: bool = True
    decision: str = ""
    """What was decided for the user, in words; "" = nothing."""


def build(
    env: EnvConfig,
    exploring: bool = False,
    given: Any = None,
    held_below: int | None = None,
    discount: float | None = None,
) -> Environment:
    """Make the environment of an `[env]` configuration, under its time limit. Local.

    exploring : `learn.exploring_starts`. given : an object in place of `env.id`. held_below,
    discount : see `environments.make`.
    """
    try:
        environment = (
            environments.make(env, held_below, discount)
            if given is None
            else environments.from_object(given, env)
        )
    except MemoryError as error:
        id = env.id if given is None else environments.object_id(given)
        raise ModelError(f"{id}: it does not fit into memory: {error or 'no more'}") from error
    if env.max_episode_steps:
        text = f"{environment.model_id} limit {env.max_episode_steps}"
        environment = replace(
            environment,
            max_episode_steps=env.max_episode_steps,
            model_id=hashlib.sha256(text.encode()).hexdigest(),
        )
    if exploring and environment.kind == "stepped":
        raise ConfigError(
            f"learn.exploring_starts: {environment.id} is stepped in Python and decides its own "
            "starts; it must be false"
        )
    environment = environments.exploring_starts(environment) if exploring else environment
    return environments.time_aware(environment) if env.time_aware else environment


def settle(
    config: Config, size: int, per_host: int = 1, given: Any = None
) -> tuple[Config, Environment, str | None]:
    """Return the resolved configuration, the environment, and why it cannot be solved (or None).

    size : ranks of the job; per_host : most ranks on one host, which share its memory; given : an
    object in place of the environment that the configuration names.
    Local; reads no MPI. Raises ConfigError and ModelError for whatever cannot run as written.
    """
    held_below = None
    cuts = config.parallel.architecture in ("sharded", "auto") and not config.env.time_aware
    if size > 1 and cuts:
        held_below = CUT_TRANSITIONS
    discount = config.learn.discount
    environment = build(config.env, config.learn.exploring_starts, given, held_below, discount)
    reason = solvable(environment, discount)
    if not config.evaluate.exact:
        reason = "evaluate.exact is false"
    if sweeps(config.learn) and environment.kind == "stepped":
        raise ConfigError(
            f"learn.sampling: {environment.id} is stepped in Python and cannot be put into any "
            "state; it must be trajectories"
        )
    exact = reason is None
    config = with_architecture(config, environment, exact, size, per_host)
    shape = environment.n_states, environment.n_actions
    stepped = environment.kind == "stepped"
    config = resolve(
        config, *shape, size, solvable=exact, stepped=stepped,
        deterministic=environment.deterministic,
    )  # fmt: skip
    config = replace(config, learn=with_horizon(config.learn, environment))
    mistakes = check(config) + variants.mistakes(environment, config) + [
        f"stop.{name}: needs exact values, but {reason}; use stop.mean_return, stop.steps or "
        "stop.wall_time_s instead"
        for name in EXACT_TARGETS
        if reason is not None and getattr(config.stop, name) is not None
    ]
    sharded = config.parallel.architecture == "sharded"
    per_agent = -(-config.parallel.lanes // (config.parallel.agents or 1))
    if config.learn.rule in MODEL_RULES:
        per_agent *= 1 + config.learn.planning_steps
    period = config.parallel.steps_per_round
    longest = MAX_PERIOD if period == "auto" else int(period)
    most = round_limit(config.parallel.agents)
    if longest * per_agent > most and not sharded:
        mistakes.append(
            f"parallel.steps_per_round: {longest} steps of {per_agent} lanes per agent are more "
            f"than {most} in a round"
        )
    shared = config.parallel.fusion == "hogwild"
    if shared and longest * config.parallel.lanes > SHARED_LIMIT:
        mistakes.append(
            f"parallel.steps_per_round: {longest} steps of {config.parallel.lanes} lanes on one "
            f"table are more than {SHARED_LIMIT} in a round"
        )
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    pessimistic = (
        config.learn.initial == "zeros"
        and environment.least_reward is not None
        and environment.least_reward >= 0
    )
    if config.parallel.architecture == "server":
        check_split(config, size)
    if sharded:
        Sharded.check(config, *shape, size, stepped)
    elif config.parallel.architecture == "server" and config.parallel.staleness != 0:
        Served.check(config, stepped)
    else:
        fusion_of(config).check(environment.deterministic, pessimistic, config)
    need = memory_bytes(config, environment, exact, size, per_host)
    check_memory(config, need, shape, per_host)
    return config, environment, reason


def with_horizon(learn: LearnConfig, environment: Environment) -> LearnConfig:
    """Return `[learn]` with the horizon and the limits of returns that it speaks of. Local.

    Below discount 1 the horizon is ln(2 / ((1 - g) accuracy)) / ln(1 / g), accuracy .1 (Dong et al.
    2019). Raises ConfigError where an optimistic rule knows no limits.
    """
    if learn.step_size != "horizon":
        return learn
    discount, length = learn.discount, learn.horizon
    if not length and discount == 1:
        length = float(environment.max_episode_steps)
    elif not length:
        length = math.log(20 / (1 - discount)) / -math.log(discount) if discount else 1.0
    if learn.rule not in OPTIMISTIC or learn.value_low != learn.value_high:
        return replace(learn, horizon=length)
    least, most = environment.least_reward, environment.return_bound
    if least is None or most is None:
        raise ConfigError(
            f"learn.value_high: {environment.id} declares no limits of its returns, which "
            f"{learn.rule} needs; set learn.value_low and learn.value_high"
        )
    low = min(0.0, least) * (length if discount == 1 else 1 / (1 - discount))
    return replace(learn, horizon=length, value_low=low, value_high=float(most))


def with_architecture(
    config: Config, environment: Environment, exact: bool, size: int, per_host: int
) -> Config:
    """Return the configuration with `parallel.architecture` auto replaced: by `sharded` where a
    replica on every rank would not fit `parallel.memory_bytes`, else by `allreduce`. Local."""
    if config.parallel.architecture != "auto":
        return config
    if environment.variants:
        return replace(config, parallel=replace(config.parallel, architecture="allreduce"))
    shape = environment.n_states, environment.n_actions
    replicas = replace(config, parallel=replace(config.parallel, architecture="allreduce"))
    resolved = resolve(replicas, *shape, size, solvable=False)
    need = memory_bytes(resolved, environment, exact, size, per_host)
    if sum(need.values()) <= limit_bytes(config, per_host):
        return replicas
    return replace(config, parallel=replace(config.parallel, architecture="sharded"))


def warnings(config: Config, environment: Environment) -> list[str]:
    """What the user should know of a resolved configuration that will run all the same. Local."""
    learn, found = config.learn, variants.warnings(environment, config)
    if environment.unidentified:
        found.append(f"this run cannot be resumed: {environment.unidentified}")
    in_step = config.parallel.architecture == "server" and config.parallel.staleness == 0
    if config.parallel.architecture == "allreduce" or in_step:
        period, n_lanes = config.parallel.steps_per_round, config.parallel.lanes
        longest = LONE_STEPS * config.parallel.agents // n_lanes
        if environment.kind == "stepped" or sweeps(learn):
            longest = MAX_PERIOD
        longest = max(1, longest) if period == "auto" else int(period)
        n_pairs = environment.n_states * record_of_run(config, environment.n_actions).width
        found += fusion_of(config).warnings(config, n_pairs, longest, environment.deterministic)
    chosen = learn.step_size == "linear" and learn.rule not in OWN_STEP_SIZES
    if chosen and learn.discount > LINEAR_DISCOUNT:
        left = 1e6 ** (learn.discount - 1)
        found.append(
            f"learn.step_size: linear at learn.discount {learn.discount:g} leaves about "
            f"{100 * left:.0f} % of the first error after a million visits of a pair; "
            "rescaled_linear does not"
        )
    return found


def prepare(
    find: Callable[[int, int], Settled] | None, transport: Transport, given: Any = None
) -> Prepared:
    """Return what the run starts from, on every rank. COLLECTIVE.

    Rank 0 alone reads files and asks Gymnasium; the other ranks are told. A mistake found there
    is raised on all ranks.

    find : called on rank 0 with the ranks of the job and the most on one host: `from_command`,
        `from_config` or `from_checkpoint`. given : the object it makes the environment of, on
        every rank; None where the configuration names it.
    """
    started = time.perf_counter() - process_age_s()
    settled: Settled | None = None
    need: dict[str, int] = {}
    with transport.same_outcome():
        if transport.rank == 0 and find is not None:
            per_host = max(Counter(transport.hosts).values())
            settled = find(transport.size, per_host)
            # Once a model is cut, a rank cannot count the rows that other ranks hold.
            need = memory_bytes(
                settled.config, settled.environment, settled.reason is None, transport.size,
                per_host,
            )  # fmt: skip
    told = settled and (
        settled.config, settled.reason is None, settled.checkpoint, settled.keep,
        settled.agents_from_ranks,
    )  # fmt: skip
    config, exact, path, kept, from_ranks = transport.broadcast(told)
    make = functools.partial(
        build, config.env, config.learn.exploring_starts, given, discount=config.learn.discount
    )
    whole = settled.environment if settled else None
    cuts = cuts_of(config, whole, transport.size) if whole else None
    environment = share(whole, make, transport, cuts)
    del whole
    if settled is not None:
        settled.environment = environment  # else it would keep a model whole that was cut
    with transport.same_outcome():
        leads, hosts = transport.leads_node, transport.hosts
        requests = _requests(config, environment, exact, hosts) if leads else None
        kernels = load(requests, transport)
        if settled is not None and "check" in kernels:
            check_all(environment, kernels["check"])
    directory: RunDirectory | None = None
    with transport.same_outcome():
        if settled is not None and kept:
            # Made last, so that a mistake leaves no directory behind.
            directory = settled.directory or RunDirectory.create(
                to_toml(config), config.env.id, config.run.dir, config.run.overwrite
            )
    where = transport.broadcast(str(directory.path.absolute()) if directory else "")
    refusals, decision = (settled.refusals, settled.decision) if settled else ((), "")
    return Prepared(
        config, environment, kernels, exact, from_ranks, path, kept, where, directory, refusals,
        decision, need, started,
    )  # fmt: skip


def from_command(command: Any, size: int, per_host: int) -> Settled:
    """What `train` or `resume` asks for. Local; takes the directory of a resumed run."""
    if command.name == "train":
        return from_config(command.config, True, None, size, per_host)
    directory = RunDirectory.open(command.directory)
    directory.lock()
    stored = command.override(directory.config_toml())
    config, environment, reason = settle(stored, size, per_host)
    _refuse_unidentified(environment, directory.path)
    path, refusals = checkpoint.newest_good(directory.checkpoints, environment.model_id)
    if path is None:
        told = "".join(f"\n  {refusal}" for refusal in refusals)
        raise FileError(
            f"{directory.checkpoints}: no good checkpoint to resume from; begin again with train "
            f"--run.dir {directory.path} --run.overwrite{told}"
        )
    header = checkpoint.read_header(path)
    _refuse_other_bits(config, header.config_toml, path, "config.toml: ")
    with publish(directory.config) as temporary:
        temporary.write_text(to_toml(config), encoding="utf-8")
    from_ranks = bool(header.attributes.get("agents_from_ranks", False))
    return Settled(config, environment, reason, from_ranks, directory, path, tuple(refusals))


def from_directory(directory: RunDirectory, size: int, per_host: int) -> Settled:
    """A run that goes on from its own directory, which this process has taken already. Local."""
    stored = from_dict(tomllib.loads(directory.config_toml()))
    config, environment, reason = settle(stored, size, per_host)
    path, _ = checkpoint.newest_good(directory.checkpoints, environment.model_id)
    from_ranks = path is not None and bool(
        checkpoint.read_header(path).attributes.get("agents_from_ranks", False)
    )
    return Settled(config, environment, reason, from_ranks, directory, path)


def from_config(config: Config, keep: bool, given: Any, size: int, per_host: int) -> Settled:
    """A run from its beginning, with a run directory if `keep`. Local; `given` as in `settle`."""
    settled = Settled(
        *settle(config, size, per_host, given), agents_from_ranks=False, keep=keep
    )
    sharded = settled.config.parallel.architecture == "sharded"
    settled.agents_from_ranks = config.parallel.agents == 0 and not sharded
    if config.parallel.architecture == "auto":
        settled.decision = (
            f"parallel.architecture auto is {settled.config.parallel.architecture}: a replica of "
            f"the table on every rank {'does not fit' if sharded else 'fits'} "
            f"{readable(limit_bytes(config, per_host))} (parallel.memory_bytes)"
        )
    return settled


def from_checkpoint(path: Path, config: Config, given: Any, size: int, per_host: int) -> Settled:
    """Learning that goes on from one file under its configuration, with what may change. Local.

    A run directory is made where `run.dir` names one. Raises FileError where the file cannot be
    trusted or belongs to another environment, ConfigError where `config` asks for other bits.
    """
    config, environment, reason = settle(config, size, per_host, given)
    _refuse_unidentified(environment, path)
    header = checkpoint.read_header(path, environment.model_id)
    _refuse_other_bits(config, header.config_toml, path, "", given is not None)
    from_ranks = bool(header.attributes.get("agents_from_ranks", False))
    return Settled(
        config, environment, reason, from_ranks, checkpoint=path, keep=bool(config.run.dir)
    )


def _refuse_unidentified(environment: Environment, path: Path) -> None:
    """Raise ConfigError where nothing can say whether an environment is that of a checkpoint."""
    if environment.unidentified:
        raise ConfigError(
            f"{path}: learning cannot go on: whether {environment.id} is the environment that it "
            f"was learned on is unknown: {environment.unidentified}; begin anew"
        )


def _refuse_other_bits(
    config: Config, stored: str, path: Path, where: str, given: bool = False
) -> None:
    """Raise ConfigError where a configuration asks for other bits than its checkpoint holds.

    where : begins each message. given : the environment is an object, whatever it is called.
    """
    wanted, held = to_dict(config), tomllib.loads(stored)
    free = {
        "memory_bytes", "force", "rebalance", "on_loss", "protect", "hang_s", "servers",
        "cache_rows",
    }  # fmt: skip
    sections = ("learn", "parallel") if given else ("env", "learn", "parallel")
    mistakes = [
        f"{where}{section}.{key} is {wanted[section].get(key)!r}, but {path.name} was "
        f"written under {value!r}; it would change the bits"
        for section, keys in (
            *((name, held[name]) for name in sections),
            ("run", {"seed": held["run"]["seed"]}),
        )
        for key, value in keys.items()
        if key not in free and wanted[section].get(key) != value
    ]
    if mistakes:
        raise ConfigError("\n".join(mistakes))


def watch(prepared: Prepared, transport: Transport, quiet: bool = False) -> Monitor | None:
    """Return the monitor of a run with a directory, on rank 0; None elsewhere. COLLECTIVE.

    Says what runs, and what was refused on the way; `quiet`: into the files only.
    """
    monitor: Monitor | None = None
    with transport.same_outcome():
        if prepared.directory is not None:
            monitor = Monitor(prepared.directory, quiet)
            monitor.start(
                banner(
                    prepared.config, prepared.environment, transport, prepared.exact, prepared.need
                ),
                provenance(transport.library, transport.hosts),
            )
            if prepared.decision:
                monitor.event("decision", prepared.decision)
            for warning in warnings(prepared.config, prepared.environment):
                monitor.event("warning", warning)
            for refusal in prepared.refusals:
                monitor.event("refused", refusal)
            if prepared.checkpoint is not None:
                monitor.event("resumed", path=str(prepared.checkpoint))
    return monitor


def _requests(
    config: Config, environment: Environment, exact: bool, hosts: Sequence[str]
) -> dict[str, Any]:
    record = record_of_run(config, environment.n_actions)
    kind = architecture_of(config, environment, len(hosts))
    found = kind.requests(config, environment)
    if issubclass(kind, Allreduce) and not survives_deaths():  # fewer ranks might need others
        shape = environment.n_states, environment.n_actions
        for name in kind.unneeded(config, *shape, hosts):
            found.pop(name, None)
    if environment.kind != "stepped":
        found |= evaluation_kernel(config.learn, environment, record)
    if environment.kind == "law":
        found |= checking_kernel(environment)
    if exact:
        found |= certificate_requests(environment, record.dtype)
    return found


def _learners(parallel: Any) -> str:
    if parallel.architecture == "sharded":
        running = "lockstep" if parallel.reproducible else "free running"
        return f"sharded, {parallel.lanes} lanes, {running}"
    how = parallel.fusion
    if parallel.architecture == "server" and parallel.staleness != 0:
        how = f"staleness {parallel.staleness}"
    agents = f"{parallel.agents} agent{'s' * (parallel.agents > 1)}"
    return f"{parallel.architecture}, {agents}, {parallel.lanes} lanes, {how}"


def banner(
    config: Config, environment: Environment, transport: Transport, exact: bool,
    need: dict[str, int],
) -> list[str]:  # fmt: skip
    """The first lines of a run, with its memory where that is much. Local.

    need : of `memory_bytes`, from before the environment was shared.
    """
    parallel, size = config.parallel, transport.size
    hosts = len(set(transport.hosts))
    truth = "exact optimum available" if exact else "no exact optimum"
    lines = [
        f"distq_mpi {__version__} - {size} rank{'s' * (size > 1)} on {hosts} "
        f"host{'s' * (hosts > 1)} - {_learners(parallel)} - seed {config.run.seed}",
        f"{environment.summary}; {truth}; {config.learn.dtype}",
    ]
    if sum(need.values()) >= ANNOUNCED_BYTES:
        parts = ", ".join(f"{name} {readable(n)}" for name, n in need.items())
        lines.append(f"takes {readable(sum(need.values()))} of memory per rank ({parts})")
    return lines
