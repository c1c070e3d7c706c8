"""Compare what a benchmark measures now with a stored baseline; flag ratios that have fallen.

    python benchmarks/kernels.py --json > new.json
    python benchmarks/compare.py benchmarks/baselines/kernels.json new.json [--least 0.9]

Takes the rows of `kernels.py`, `fusion.py` and `sharded.py`: only ratios are compared, which are
paired in one run, never times. A row is known by its words and whole numbers. Its ratio has fallen
where it is below `--least` times the baseline's; exit code 1 where one has, or a row is missing.
Another machine wants its own baseline: store what it printed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

LEAST = 0.9


def named(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The ratio of each row, by what it is."""
    found = {}
    for row in rows:
        words = [f"{v}" for v in row.values() if isinstance(v, str | int)]
        found[" ".join(words)] = float(row["ratio"])
    return found


def compare(
    before: list[dict[str, Any]], now: list[dict[str, Any]], least: float
) -> tuple[list[str], bool]:
    """Return lines for the terminal, and whether anything has fallen."""
    old, new = named(before), named(now)
    lines, fallen = [], False
    for name, ratio in old.items():
        if name not in new:
            lines.append(f"missing  {name}")
            fallen = True
            continue
        share = new[name] / ratio
        verdict = "fallen" if share < least else "risen" if share > 1 / least else "as before"
        fallen |= share < least
        lines.append(f"{verdict:<9} {name:<60} {ratio:9.3f} -> {new[name]:9.3f}  x {share:.2f}")
    fresh = new.keys() - old.keys()
    lines += [f"new       {name:<60} {new[name]:22.3f}" for name in sorted(fresh)]
    return lines, fallen


def main() -> int:
    """Print the comparison; 1 where a ratio has fallen."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("baseline", type=Path)
    parser.add_argument("now", type=Path)
    parser.add_argument("--least", type=float, default=LEAST)
    asked = parser.parse_args()
    before, now = (json.loads(path.read_text()) for path in (asked.baseline, asked.now))
    lines, fallen = compare(before, now, asked.least)
    print("\n".join(lines))
    return int(fallen)


if __name__ == "__main__":
    sys.exit(main())
