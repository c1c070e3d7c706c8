"""The end of a run: last checkpoint, last certificate, sampled evaluation, summary."""

from __future__ import annotations

import resource
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distq_mpi.environments.guard import refuse_noted
from distq_mpi.environments.worlds import play
from distq_mpi.files import publish
from distq_mpi.monitor.drawing import draw_policy
from distq_mpi.partition import Partition
from distq_mpi.stopping import TARGETS, Verdict
from distq_mpi.table import record_of

if TYPE_CHECKING:
    from distq_mpi.config import Config
    from distq_mpi.environments.base import Environment
    from distq_mpi.kernels.objects import LoadedKernel
    from distq_mpi.trainer import Run
    from distq_mpi.transport import Transport

NO_LIMIT_STEPS = 100_000
STEPPED_LIMIT_STEPS = 10_000
DRAWN_CELLS = 2048


def finish(run: Run, ended: Verdict) -> int:
    """Write what a run leaves behind; return its exit code. COLLECTIVE."""
    run.checkpoint("end")
    certificate, evaluation = run.certificate, None
    if ended.status != "interrupted":  # whoever interrupts gives little time
        certificate = run.certify(tight=True)
        evaluation = sample(
            run.config, run.environment, run.prepared.kernels, run.architecture.base.q,
            run.transport,
        )  # fmt: skip
    peak = np.array([peak_bytes()], np.int64)
    run.transport.max_int(peak)
    reproducible = run.architecture.reproducible()
    with run.transport.same_outcome():
        if run.monitor is not None:
            if not reproducible:
                run.monitor.event(
                    "not_reproducible",
                    "this run is not reproducible: its environments cannot be brought back to what "
                    "they had shown",
                )
            summary = _summary(
                run, ended, certificate, evaluation, int(peak[0]), reproducible
            )
            if ended.status in ("converged", "finished"):
                with publish(run.monitor.directory.result) as temporary:
                    shutil.copyfile(str(run.saver.newest), temporary)
            run.monitor.finish(
                summary, _next_commands(run, ended, run.monitor.directory.path), _drawing(run)
            )
    return ended.exit_code


def sample(
    config: Config,
    environment: Environment,
    kernels: dict[str, LoadedKernel],
    q: np.ndarray,
    transport: Transport,
) -> dict[str, Any] | None:
    """Returns of `evaluate.episodes` greedy episodes, spread over the ranks; COLLECTIVE.

    Every episode is a function of (seed, its number). None on ranks other than 0.

    q : flat values in the layout of `table.record_of`. kernels : `evaluate` among them.
    """
    n_episodes = config.evaluate.episodes
    if n_episodes == 0:
        return None
    episodes = Partition.balanced(n_episodes, transport.size)
    first, stop = episodes.block(transport.rank)
    longest = environment.max_episode_steps or NO_LIMIT_STEPS
    returns = np.zeros(stop - first)
    if environment.kind == "stepped":
        rows, n_actions = q.reshape(environment.n_states, -1), environment.n_actions
        values = rows[:, :n_actions]
        if record_of(config.learn, n_actions).n_parts == 2:
            values = values + rows[:, n_actions : 2 * n_actions]
        greedy = values.argmax(axis=1).tolist()
        longest = environment.max_episode_steps or STEPPED_LIMIT_STEPS
        with transport.same_outcome():
            play(environment.worlds, greedy, config.run.seed, first, returns, longest)
    else:
        control = np.array([first, config.run.seed, longest], np.uint64)
        kernels["evaluate"](q, returns, environment.params, control)
    refuse_noted(environment, transport, config.run.seed, 0, range(0))
    gathered = transport.gather_rows(returns, episodes)
    if gathered is None:
        return None
    return {
        "mean_return": float(gathered.mean()),
        "std_return": float(gathered.std()),
        "episodes": n_episodes,
    }


def peak_bytes() -> int:
    """Most memory this rank has held at once, its part only of what ranks share. Local."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    try:
        with open("/proc/self/smaps_rollup", encoding="ascii") as file:
            kilobytes = {line.split(":")[0]: line.split()[1] for line in file if "kB" in line}
    except OSError:
        return peak
    return peak - 1024 * (int(kilobytes["Rss"]) - int(kilobytes["Pss"]))


def _summary(
    run: Run, ended: Verdict, certificate: Any, evaluation: Any, peak: int, reproducible: bool
) -> dict[str, Any]:
    progress, times, size = run.architecture.progress, run.times, run.transport.size
    busy = times.learn_s + times.exchange_s
    steps = progress.steps - run.saver.restored_steps
    return {
        "status": ended.status,
        "stop_reason": ended.reason,
        "exit_code": ended.exit_code,
        "architecture": run.config.parallel.architecture,
        "reproducible": reproducible,
        "agents_from_ranks": run.prepared.agents_from_ranks,
        "ranks_started": size,
        "ranks_finished": size,
        "agents": run.config.parallel.agents,
        "lanes": run.config.parallel.lanes,
        "seed": run.config.run.seed,
        "env": run.environment.id,
        "states": run.environment.n_states,
        "states_reachable": run.solver.n_reachable if run.solver else None,
        "actions": run.environment.n_actions,
        "dtype": run.config.learn.dtype,
        "steps": progress.steps,
        "rounds": progress.round,
        "episodes": progress.episodes,
        "wall_time_s": times.wall_s,
        "startup_time_s": times.startup_s,
        "learn_time_s": times.learn_s,
        "exchange_time_s": times.exchange_s,
        "certify_time_s": times.certify_s,
        "io_time_s": times.io_s,
        "steps_per_s": steps / busy if busy else None,
        "peak_rss_bytes": peak,
        "table_sha256": run.saver.sha256(),
        "certificate": asdict(certificate) if certificate else {"kind": "none"},
        "evaluation": evaluation,
        "recoveries": 0,
        "checkpoint": str(run.saver.newest) if run.saver.newest else None,
    }


def _next_commands(run: Run, ended: Verdict, path: Path) -> list[str]:
    resume = f"python -m distq_mpi resume {path}"
    limit = getattr(run.config.stop, ended.rule) if ended.rule else None
    if ended.status == "diverged":
        resume = f"python -m distq_mpi train --config {path}/config.toml"
        resume += " --learn.step_size constant --learn.alpha 0.01"
    elif limit is not None and ended.rule in TARGETS:
        further = limit + abs(limit) / 10 if ended.rule == "mean_return" else limit / 10
        resume += f" --stop.{ended.rule} {further:g}"
    elif limit is not None and ended.rule != "wall_time_s":
        resume += f" --stop.{ended.rule} {2 * limit}"
    commands = [resume]
    if run.saver.newest is not None:
        commands.append(f"python -m distq_mpi info {run.saver.newest}")
    return commands


def _drawing(run: Run) -> str:
    environment = run.environment
    if environment.grid is None or environment.n_states > DRAWN_CELLS:
        return ""
    greedy = run.architecture.base.policy_values().argmax(axis=1)
    greedy[~run.architecture.visited().any(axis=1)] = -1
    return draw_policy(greedy.tolist(), environment.grid, environment.arrows, environment.marks)
