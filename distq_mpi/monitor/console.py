"""What the user sees: plain lines everywhere, colours on a terminal."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TextIO

HEADER_EVERY = 20
# title, key of the report, width
COLUMNS = (
    ("wall", "wall_time_s", 8),
    ("steps", "steps", 8),
    ("steps/s", "steps_per_s", 8),
    ("round", "round", 8),
    ("episodes", "episodes", 8),
    ("return", "mean_return", 10),
    ("td rms", "td_rms", 9),
    ("gap", "policy_gap", 9),
    ("period", "steps_per_round", 6),
)
EXTRA_COLUMNS = (("stale p99", "staleness_p99", 9), ("idle", "idle_share_workers", 6))
"""Those that only some architectures have something for."""
STATUS_STYLES = {"converged": "bold green", "finished": "bold green", "interrupted": "bold yellow"}


class Console:
    """Writes to one stream; a stream that goes away (a closed pipe) stops no run."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._n_reports = 0
        self._rich: Any = None
        if stream.isatty():
            from rich.console import Console as RichConsole

            self._rich = RichConsole(file=stream, highlight=False, soft_wrap=True)

    def banner(self, lines: Sequence[str]) -> None:
        """Say what is about to run."""
        for number, line in enumerate(lines):
            self._say(line, "bold" if number == 0 else "")

    def report(self, row: dict[str, Any]) -> None:
        """Print one line of numbers, under a header that comes back every 20 lines."""
        columns = COLUMNS + tuple(column for column in EXTRA_COLUMNS if column[1] in row)
        if self._n_reports % HEADER_EVERY == 0:
            self._say("  ".join(f"{title:>{width}}" for title, _, width in columns), "dim")
        self._n_reports += 1
        cells = {key: number(row.get(key), 2 if "idle" in key else 4) for _, key, _ in columns}
        cells["wall_time_s"] = duration(row.get("wall_time_s"))
        for key in ("steps", "steps_per_s", "round", "episodes"):
            cells[key] = count(row.get(key))
        self._say("  ".join(f"{cells[key]:>{width}}" for _, key, width in columns))

    def event(self, kind: str, message: str) -> None:
        """Print one line about something that happened."""
        self._say(f"{kind}: {message}", "yellow" if kind == "warning" else "cyan")

    def finish(self, summary: dict[str, Any], next_commands: Sequence[str], drawing: str) -> None:
        """Print the summary, the greedy policy, and what can be typed next."""
        status = str(summary.get("status"))
        reason = summary.get("stop_reason")
        self._say("")
        self._say(
            f"{status}: {reason}" if reason else status, STATUS_STYLES.get(status, "bold red")
        )
        for title, value in summary_lines(summary):
            self._say(f"  {title:<20} {value}")
        if drawing:
            self._say("\ngreedy policy", "bold")
            for line in drawing.splitlines():
                self._say(f"  {line}")
        if next_commands:
            self._say("\nwhat to type next", "bold")
            for line in next_commands:
                self._say(f"  {line}")

    def _say(self, text: str, style: str = "") -> None:
        encoding = self._stream.encoding or "utf-8"
        text = text.encode(encoding, "replace").decode(encoding)
        with suppress(OSError, ValueError):
            if self._rich is not None:
                self._rich.print(text, style=style or None, markup=False, emoji=False)
            else:
                self._stream.write(text + "\n")
                self._stream.flush()


@contextmanager
def progress_bar(done: int, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show steps done of `total` (None: nobody knows) until the end; yields what takes new ones."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), "steps", TimeRemainingColumn())
    with Progress(*columns) as shown:
        task = shown.add_task("", total=total, completed=done)
        yield lambda n_steps: shown.update(task, completed=n_steps)


def _learners(summary: dict[str, Any]) -> str:
    lanes = f"{count(summary.get('lanes'))} lanes"
    if summary.get("architecture") != "sharded":
        agents = summary.get("agents")
        return f"{count(agents)} agent{'s' * (agents != 1)}, {lanes}"
    return f"{lanes}, imbalance {number(summary.get('imbalance'))}"


def _sampled(evaluation: dict[str, Any]) -> str:
    if not evaluation.get("episodes"):
        return number(None)
    mean, deviation = (number(evaluation.get(key)) for key in ("mean_return", "std_return"))
    return f"{mean} +- {deviation} over {count(evaluation.get('episodes'))} episodes"


def summary_lines(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """Pairs (title, text) of the closing table; what is unknown reads "-"."""
    certificate = summary.get("certificate") or {}
    evaluation = summary.get("evaluation") or {}

    times = " + ".join(
        f"{part} {duration(summary.get(f'{part}_time_s'))}"
        for part in ("startup", "learn", "exchange", "certify", "io")
    )
    best = certificate.get("best_return")
    best = "" if best is None else f", best within the time limit {number(best, 10)}"
    lines = [
        (
            "steps",
            f"{count(summary.get('steps'))} in {count(summary.get('rounds'))} rounds, "
            f"{count(summary.get('episodes'))} episodes, "
            f"{count(summary.get('steps_per_s'))} steps/s",
        ),
        ("time", f"{duration(summary.get('wall_time_s'))} = {times}"),
        ("bound by", str(summary.get("bound_by_told") or "-")),
        (
            "policy value",
            f"{number(certificate.get('policy_value'), 10)}  (optimal "
            f"{number(certificate.get('optimal_value'), 10)}, worst "
            f"{number(certificate.get('worst_value'), 10)})",
        ),
        (
            "policy return",
            f"{number(certificate.get('policy_return'), 10)}  (optimal policy "
            f"{number(certificate.get('optimal_policy_return'), 10)}{best})",
        ),
        (
            "policy gap, loss",
            f"{number(certificate.get('policy_gap'))}, {number(certificate.get('policy_loss'))}  "
            f"(certificate {certificate.get('kind') or '-'}, "
            f"loss bound {number(certificate.get('policy_loss_bound'))})",
        ),
        ("sampled return", _sampled(evaluation)),
        (
            "ranks",
            f"{count(summary.get('ranks_finished'))} of {count(summary.get('ranks_started'))}, "
            f"{_learners(summary)}, seed {summary.get('seed', '-')}",
        ),
        ("table sha256", (summary.get("table_sha256") or "-")[:16]),
        ("checkpoint", str(summary.get("checkpoint") or "-")),
    ]
    if certificate.get("unknown"):
        lines.insert(6, ("unknown", str(certificate["unknown"])))
    return lines


def number(value: Any, digits: int = 4) -> str:
    """Text of a number to so many digits; "-" if it is None or not finite."""
    if value is None or not math.isfinite(value):
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.{digits}g}"


def count(value: Any) -> str:
    """Text of a count, with a letter from ten thousand on: 9876, 12.3k, 4.5M."""
    if value is None or not math.isfinite(value):
        return "-"
    if abs(value) < 10_000:
        return f"{value:.0f}"
    for letter in "kMGT":
        value /= 1000
        if abs(value) < 999.95 or letter == "T":
            break
    return f"{value:.1f}{letter}"


def duration(seconds: Any) -> str:
    """Text of a time: 0.35 s, 12.3 s, 4m05s, 2h10m."""
    if seconds is None or not math.isfinite(seconds):
        return "-"
    if seconds < 59.95:
        return f"{seconds:.2f}s" if seconds < 9.995 else f"{seconds:.1f}s"
    minutes = round(seconds) // 60
    return (
        f"{minutes}m{round(seconds) % 60:02d}s"
        if minutes < 60
        else f"{minutes // 60}h{minutes % 60:02d}m"
    )

