"""What a check says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

VERDICTS = ("ok", "note", "wrong")
"""From best to worst."""


@dataclass(frozen=True)
class Row:
    """One check: what was found, and what to do about it where there is something to do."""

    name: str
    found: str
    verdict: str = "ok"
    advice: str = ""

    def line(self) -> str:
        """As the terminal shows it."""
        shown = "WRONG" if self.verdict == "wrong" else self.verdict
        return f"{shown:<6}{self.name:<19}{self.found}" + (
            f"\n{'':<25}-> {self.advice}" if self.advice else ""
        )


def over_hosts(rows: Mapping[str, Row]) -> Row:
    """Put one check of several hosts into one row; the worst verdict counts. Local.

    rows : host -> its row, all of one name.
    """
    worst = max(rows.values(), key=lambda row: VERDICTS.index(row.verdict))
    said: dict[str, list[str]] = {}
    for host, row in rows.items():
        said.setdefault(row.found, []).append(host)
    if len(said) == 1:
        return worst
    found = "; ".join(f"{', '.join(hosts[:3])}{' ...' * (len(hosts) > 3)}: {text}"
                      for text, hosts in said.items())  # fmt: skip
    return Row(worst.name, found, worst.verdict, worst.advice)
