"""How a run scales: the same work on more ranks (strong), or work that grows with them (weak).

    python benchmarks/scaling.py strong|weak --ranks 1,2,4 [--env.id Taxi-v4 ... options of train]

Every run is a real job with a run directory of its own under `--dir`; the figures come from its
summary.json. docs/benchmarks.md says how to read them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

DEFAULT_STEPS = 50_000_000
TARGET = "stop.policy_gap"
# A run that is timed should do nothing but learn; whoever wants more says so on the line.
QUIET = {
    "evaluate.episodes": "0", "checkpoint.every_rounds": "0", "run.report_every_s": "0.25",
}  # fmt: skip
GRACE_S = 10.0
REACHED, MISSED = 0, 3


@dataclass(frozen=True)
class Row:
    """Medians over the repeats of one rank count. Times in seconds; shares of 1."""

    ranks: int
    agents: int
    steps: int
    steps_per_s: float
    speedup: float
    efficiency: float
    exchange_share: float
    late_efficiency: float | None
    """Of the rates after the first quarter of the steps, while periods still grow."""
    period: int
    time_to_policy_gap_s: float | None
    table_sha256: list[str]


def default_launcher() -> str:
    """The mpirun of this Python environment, else the one on the path."""
    beside = Path(sys.prefix) / "bin" / "mpirun"
    return str(beside) if beside.exists() else shutil.which("mpirun") or "mpirun"


def n_cores() -> int:
    """Cores that ranks can have to themselves: the job's tasks under SLURM, else this host's."""
    tasks = os.environ.get("SLURM_NTASKS", "") if "SLURM_JOB_ID" in os.environ else ""
    return int(tasks) if tasks.isdigit() else len(os.sched_getaffinity(0))


def product_options(words: list[str]) -> dict[str, str]:
    """Options meant for `train`, as key -> text. Raises ValueError on anything else."""
    options: dict[str, str] = {}
    while words:
        word, *words = words
        key, equals, text = word.removeprefix("--").partition("=")
        if not word.startswith("--") or "." not in key:
            raise ValueError(f"{word!r} is neither an option of this program nor --section.key")
        if not equals:
            follows = bool(words) and not words[0].startswith("--")
            text, words = (words[0], words[1:]) if follows else ("true", words)
        options[key] = text
    return options


def options_of(mode: str, n_ranks: int, largest: int, given: dict[str, str]) -> dict[str, str]:
    """Return the options of a run on `n_ranks` ranks.

    strong: agents, lanes and steps are the same on every rank count, so the answer is, too.
    weak: an agent per rank; `stop.steps` and `parallel.lanes` are given per rank.
    Raises ValueError where the options contradict that.
    """
    options = {**QUIET, "stop.steps": str(DEFAULT_STEPS), **given}
    if TARGET not in given:
        options.setdefault("evaluate.exact", "false")
    if mode == "strong":
        options.setdefault("parallel.agents", str(largest))
        return options
    if "parallel.agents" in given:
        raise ValueError("weak scaling has one agent per rank: leave --parallel.agents out")
    options["parallel.agents"] = str(n_ranks)
    for key in {"stop.steps", "parallel.lanes"} & options.keys():
        options[key] = str(int(float(options[key])) * n_ranks)
    return options


def run(launcher: str, n_ranks: int, folder: Path, options: dict[str, str], limit_s: float) -> Any:
    """Run one job to its end and return its summary.

    Its output goes to `folder`.log. Raises RuntimeError where it fails or exceeds `limit_s`.
    """
    words = [word for key, text in options.items() for word in (f"--{key}", text)]
    command = [
        *shlex.split(launcher), "-n", str(n_ranks), sys.executable, "-m", "distq_mpi", "train",
        *words, "--run.dir", str(folder),
    ]  # fmt: skip
    log = folder.with_suffix(".log")
    with log.open("w", encoding="utf-8") as output:
        output.write(f"$ {shlex.join(command)}\n")
        output.flush()
        job = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True, env={"OMP_NUM_THREADS": "1", **os.environ},
        )  # fmt: skip
        try:
            code = job.wait(limit_s)
        except subprocess.TimeoutExpired:
            told = f"{n_ranks} ranks: not done after {limit_s:g} s; see {log}"
            raise RuntimeError(told) from None
        finally:
            end(job)
    if code not in (REACHED, MISSED):
        raise RuntimeError(f"{n_ranks} ranks: exit code {code}; see {log}")
    # A launcher may say 0 for a job that was lost: only the program's own verdict counts.
    path = folder / "summary.json"
    if not path.exists():
        raise RuntimeError(f"{n_ranks} ranks: exit code {code}, but no {path}; see {log}")
    return json.loads(path.read_text(encoding="utf-8"))


def end(job: subprocess.Popen[bytes]) -> None:
    """End what is left of a job: the launcher first, which ends its ranks, then all it started."""
    with contextlib.suppress(ProcessLookupError):
        if job.poll() is None:
            job.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                job.wait(GRACE_S)
        os.killpg(job.pid, signal.SIGKILL)
    job.wait()


def time_to_gap(summary: Any, options: dict[str, str]) -> float | None:
    """Seconds of learning and exchange until the target held, None where none was set or met."""
    if TARGET not in options or summary["status"] != "converged":
        return None
    return float(summary["learn_time_s"] + summary["exchange_time_s"])


def late(folder: Path, summary: Any) -> tuple[float | None, int]:
    """Steps per second of learning and exchange after the first quarter of the steps, None where
    no report fell there; and the last period."""
    told = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    later = [row for row in told if row["steps"] >= summary["steps"] / 4]
    period = told[-1]["steps_per_round"] if told else 0
    if not later or later[0]["steps"] == summary["steps"]:
        return None, period
    busy_s = summary["learn_time_s"] + summary["exchange_time_s"]
    busy_s -= later[0]["learn_time_s"] + later[0]["exchange_time_s"]
    return (summary["steps"] - later[0]["steps"]) / busy_s, period


def rows(runs: list[dict[str, Any]]) -> list[Row]:
    """Condense the runs; speedup and efficiency are against the fewest ranks measured."""
    found: list[Row] = []
    late_rate = None
    for n_ranks in sorted({run["ranks"] for run in runs}):
        mine = [run for run in runs if run["ranks"] == n_ranks]
        summaries = [run["summary"] for run in mine]
        rate = statistics.median(s["steps_per_s"] for s in summaries)
        speedup = rate / found[0].steps_per_s if found else 1.0
        growth = n_ranks / found[0].ranks if found else 1.0
        shares = [
            s["exchange_time_s"] / (s["learn_time_s"] + s["exchange_time_s"]) for s in summaries
        ]
        rates = [run["late"][0] for run in mine if run["late"][0] is not None]
        median = statistics.median(rates) if rates else None
        late_rate = median if late_rate is None else late_rate
        late_speedup = median / late_rate if median and late_rate else None
        times = [time_to_gap(run["summary"], run["options"]) for run in mine]
        known = [value for value in times if value is not None]
        found.append(
            Row(
                n_ranks, summaries[0]["agents"], summaries[0]["steps"], rate, speedup,
                speedup / growth, statistics.median(shares),
                late_speedup / growth if late_speedup else None,
                int(statistics.median(run["late"][1] for run in mine)),
                statistics.median(known) if known and len(known) == len(times) else None,
                sorted({s["table_sha256"] for s in summaries}),
            )
        )  # fmt: skip
    return found


def table(found: list[Row], with_gap: bool) -> str:
    """Lay the rows out for a terminal; * marks more ranks than cores."""
    gap = "  s to gap" if with_gap else ""
    lines = [
        "ranks  agents         steps  M steps/s  speedup  efficiency  late  period  exchange"
        f"{gap}  table"
    ]
    for row in found:
        mark = "*" if row.ranks > n_cores() else " "
        seconds = row.time_to_policy_gap_s
        shown = "missed" if seconds is None else f"{seconds:.3f}"
        late_shown = "-" if row.late_efficiency is None else f"{row.late_efficiency:.2f}"
        middle = f"  {shown:>8}" if with_gap else ""
        lines.append(
            f"{row.ranks:5}{mark} {row.agents:6} {row.steps:14,} {row.steps_per_s / 1e6:10.2f} "
            f"{row.speedup:8.2f} {row.efficiency:11.2f} {late_shown:>5} {row.period:7} "
            f"{row.exchange_share:9.0%}{middle}  "
            + " ".join(digest[:12] for digest in row.table_sha256)
        )
    if found[-1].ranks > n_cores():
        lines.append(
            f"* more ranks than the {n_cores()} cores here: it shows that it runs, "
            "it is NO SCALING FIGURE"
        )
    return "\n".join(lines)


def bits(mode: str, found: list[Row]) -> tuple[bool, str]:
    """Tell whether equal configurations gave equal tables, and say so."""
    groups = [row.table_sha256 for row in found]
    if mode == "strong":
        groups = [sorted({digest for group in groups for digest in group})]
    same = all(len(group) == 1 for group in groups)
    if not same:
        return False, "table_sha256: DIFFERENT between runs of one configuration"
    if mode == "strong":
        return True, f"table_sha256: the same bits in every run, {groups[0][0]}"
    return True, "table_sha256: the same bits in all repeats of a rank count"


def parse(argv: list[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    """Return this program's options and those for `train`; exits with 2 on a mistake."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog="Any --section.key VALUE goes to train."
    )
    parser.add_argument("mode", choices=("strong", "weak"))
    parser.add_argument("--ranks", required=True, help="rank counts, as 1,2,4")
    parser.add_argument("--repeats", type=int, default=3, help="runs per rank count (default 3)")
    parser.add_argument("--dir", help="new folder for the runs (default runs/scaling-MODE-TIME)")
    parser.add_argument("--launcher", default=default_launcher(), help='as "srun --mpi=pmi2"')
    parser.add_argument(
        "--max-wall", type=float, default=600.0, help="seconds after which a run is ended"
    )
    options, rest = parser.parse_known_args(argv)
    counts = options.ranks.split(",")
    if not all(count.isdigit() and int(count) > 0 for count in counts):
        parser.error(f"--ranks: {options.ranks!r} must be whole numbers from 1, as 1,2,4")
    options.counts = sorted({int(count) for count in counts})
    if options.repeats < 1:
        parser.error(f"--repeats: {options.repeats} must be at least 1")
    folder = options.dir or f"runs/scaling-{options.mode}-{time.strftime('%Y%m%d-%H%M%S')}"
    options.folder = Path(folder)
    try:
        given = product_options(rest)
        for count in options.counts:
            options_of(options.mode, count, options.counts[-1], given)
        if "run.dir" in given:
            raise ValueError("--run.dir: every run has its own; say --dir")
        options.folder.mkdir(parents=True)
    except ValueError as error:
        parser.error(str(error))
    except FileExistsError:
        parser.error(f"--dir: {options.folder} exists; name a new folder")
    return options, given


def main(argv: list[str] | None = None) -> int:
    """Run, print, write scaling.json; 1 where a run failed or equal runs gave different tables."""
    options, given = parse(sys.argv[1:] if argv is None else argv)
    runs: list[dict[str, Any]] = []
    # The repeats outside: a slow minute of the machine then hurts all rank counts alike.
    for repeat in range(options.repeats):
        for n_ranks in options.counts:
            chosen = options_of(options.mode, n_ranks, options.counts[-1], given)
            folder = options.folder / f"{n_ranks}-ranks-{repeat + 1}"
            try:
                summary = run(options.launcher, n_ranks, folder, chosen, options.max_wall)
            except RuntimeError as error:
                print(f"error: {error}", file=sys.stderr)
                return 1
            runs.append({
                "ranks": n_ranks, "options": chosen, "summary": summary,
                "late": late(folder, summary),
            })  # fmt: skip
            rate = summary["steps_per_s"] / 1e6
            print(f"{n_ranks} ranks, repeat {repeat + 1}: {rate:.2f} M steps/s", file=sys.stderr)
    found = rows(runs)
    same, verdict = bits(options.mode, found)
    if given.get("parallel.reproducible") == "false":
        same, verdict = True, "table_sha256: not compared, for parallel.reproducible is false"
    where = f"{platform.node()}, {n_cores()} cores"
    print(f"{options.mode} scaling, medians of {options.repeats}; {where}")
    print(table(found, TARGET in given))
    print(verdict)
    path = options.folder / "scaling.json"
    report = {
        "mode": options.mode, "launcher": options.launcher, "host": platform.node(),
        "cores": n_cores(), "same_bits": same, "rows": [asdict(row) for row in found],
        "runs": runs,
    }  # fmt: skip
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"all runs: {path}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
