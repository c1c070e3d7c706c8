"""The end of a run: last checkpoint, last certificate, sampled evaluation, summary."""

from __future__ import annotations

import resource
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distq_mpi.architectures import record_of_run
from distq_mpi.bottleneck import Bottleneck, bottleneck
from distq_mpi.files import publish
from distq_mpi.monitor.drawing import draw_policy
from distq_mpi.probe import stored
from distq_mpi.sampling import sample
from distq_mpi.stopping import TARGETS, Verdict

if TYPE_CHECKING:
    from distq_mpi.trainer import Run

DRAWN_CELLS = 2048


def finish(run: Run, ended: Verdict) -> int:
    """Write what a run leaves behind; return its exit code. COLLECTIVE."""
    if ended.status != "diverged" or run.architecture.rolls_back:
        run.checkpoint("end")
    certificate, evaluation = run.certificate, None
    # An interrupt leaves little time, and so does one that comes from here on: the table is saved.
    if ended.status != "interrupted" and not run.all_agree_to_stop():
        certificate = run.certify(tight=True)
        evaluation = sample(
            run.config, run.environment, run.prepared.kernels, run.architecture.holding,
            run.asked_to_stop,
        )  # fmt: skip
    spent = run.transport.gather((run.times.learn_s, run.times.exchange_s))
    numbers = np.array([peak_bytes(), run.architecture.learned], np.int64)
    run.transport.max_int(numbers)
    peak, most_learned = numbers.tolist()
    reproducible, table_sha256 = run.architecture.reproducible(), run.architecture.holding.sha256()
    drawing = _drawing(run)
    with run.transport.same_outcome():
        if run.monitor is not None and not run.monitor.finished:
            if not reproducible:
                why = _why_not_reproducible(run.config.parallel, run.architecture.rolls_back)
                run.monitor.event("not_reproducible", f"this run is not reproducible: {why}")
            wanted = ended.status != "interrupted" and run.config.evaluate.episodes > 0
            if wanted and evaluation is None:
                run.monitor.event(
                    "evaluation_left_out",
                    "asked to stop after the last checkpoint: the evaluation is left out",
                )
            slow, caveats = _bottleneck(run), []
            if ended.status == "converged" and run.solver is not None:
                caveats = run.solver.caveats(evaluation)
            summary = _summary(run, ended) | {
                "stop_reason": "; but ".join([ended.reason, *caveats]),
                "bound_by": slow.name,
                "bound_by_share": slow.share,
                "bound_by_of_ceiling": slow.of_ceiling,
                "bound_by_told": slow.sentence,
                "learn_time_s_of_ranks": [learn for learn, _ in spent or ()],
                "exchange_time_s_of_ranks": [exchange for _, exchange in spent or ()],
                "reproducible": reproducible,
                "imbalance": _imbalance(run, most_learned),
                "peak_rss_bytes": peak,
                "table_sha256": table_sha256,
                "certificate": asdict(certificate) if certificate else {"kind": "none"},
                "evaluation": evaluation,
            }
            if ended.status in ("converged", "finished"):
                with publish(run.monitor.directory.result) as temporary:
                    shutil.copyfile(str(run.saver.newest), temporary)
            run.monitor.finish(
                summary, _next_commands(run, ended, run.monitor.directory.path), drawing
            )
    return ended.exit_code


def _why_not_reproducible(parallel: Any, rolls_back: bool) -> str:
    if not parallel.reproducible:
        return "parallel.reproducible is false"
    if parallel.architecture == "server" and parallel.staleness != 0:
        return f"parallel.staleness is {parallel.staleness}: pushes are applied as they come"
    if not rolls_back:
        return "a round that was broken off is in its table, which is changed in place"
    return "its environments cannot be brought back to what they had shown"


def peak_bytes() -> int:
    """Most memory this rank has held at once, its part only of what ranks share. Local."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    try:
        with open("/proc/self/smaps_rollup", encoding="ascii") as file:
            kilobytes = {line.split(":")[0]: line.split()[1] for line in file if "kB" in line}
    except OSError:
        return peak
    return peak - 1024 * (int(kilobytes["Rss"]) - int(kilobytes["Pss"]))


def _imbalance(run: Run, most_learned: int) -> float | None:
    """Largest number of steps that a rank learned from over the mean; None where ranks host agents,
    not lanes."""
    learned = run.architecture.progress.steps - run.saver.restored_steps
    return most_learned * run.transport.size / learned if most_learned and learned else None


def _bottleneck(run: Run) -> Bottleneck:
    """What bound this run, as rank 0 has seen it. Local."""
    times, parallel, size = run.times, run.config.parallel, run.transport.size
    seconds = {
        "startup": times.startup_s, "learn": times.learn_s, "exchange": times.exchange_s,
        "certify": times.certify_s, "io": times.io_s,
    }  # fmt: skip
    sharded = parallel.architecture == "sharded"
    learners = size if sharded else max(1, min(parallel.agents, size))
    n_rows = -(-run.environment.n_states // (size if sharded else 1))
    row_bytes = record_of_run(run.config, run.environment.n_actions).row_bytes
    steps = run.architecture.progress.steps - run.saver.restored_steps
    rate = steps / times.learn_s / learners if times.learn_s else 0.0
    return bottleneck(
        seconds, times.wall_s, n_rows * row_bytes, run.environment.kind == "stepped", rate,
        stored(),
    )  # fmt: skip


def _summary(run: Run, ended: Verdict) -> dict[str, Any]:
    progress, times, size = run.architecture.progress, run.times, run.transport.size
    busy = times.learn_s + times.exchange_s
    steps = progress.steps - run.saver.restored_steps
    return {
        "status": ended.status,
        "stop_reason": ended.reason,
        "exit_code": ended.exit_code,
        "architecture": run.config.parallel.architecture,
        "reproducible": None,
        "agents_from_ranks": run.prepared.agents_from_ranks,
        "ranks_started": size + len(run.transport.lost),
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
        "imbalance": None,
        "peak_rss_bytes": None,
        "table_sha256": None,
        "certificate": None,
        "evaluation": None,
        "recoveries": run.recoveries,
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
    """The policy of a small grid. COLLECTIVE."""
    environment = run.environment
    if environment.grid is None or environment.n_states > DRAWN_CELLS:
        return ""
    values, visited = run.architecture.holding.values_of(np.arange(environment.n_states))
    greedy = values.argmax(axis=1)
    greedy[~visited.any(axis=1)] = -1
    return draw_policy(greedy.tolist(), environment.grid, environment.arrows, environment.marks)
