"""`study`: how the error falls with agents, fusions, periods and the horizon, on published set-ups.

Agents are virtual: so many of them learn on however many ranks there are, with the same numbers.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from distq_mpi.errors import ConfigError
from distq_mpi.files import plain
from distq_mpi.study.arms import STUDIES
from distq_mpi.study.figures import curve_of, draw, require
from distq_mpi.study.judging import Told

if TYPE_CHECKING:
    from distq_mpi.transport import Transport

RUNS = 20


def study(command: Any, transport: Transport) -> int:
    """Run one study and print it; return 0, or 1 where it is not what theory says. COLLECTIVE.

    Raises ConfigError for a study that there is none of.
    """
    told, folder = None, ""
    with transport.same_outcome():
        if command is not None:
            name = command.operands[0]
            if name not in STUDIES:
                raise ConfigError(f"study: {name} is none of {', '.join(STUDIES)}")
            folder = command.options.get("figures", "")
            if folder:
                require(folder)
            told = name, int(float(command.options.get("runs", RUNS))), command.json
    name, n_runs, as_json = transport.broadcast(told)
    found: list[Told] = []
    for arm in STUDIES[name](n_runs):
        found.append(arm(transport))
        if transport.rank == 0 and not as_json:
            print(found[-1].in_words(), flush=True)
    if transport.rank == 0 and as_json:
        print(json.dumps(plain([vars(one) for one in found]), indent=2))
    with transport.same_outcome():
        if folder:
            draw(filter(None, map(curve_of, found)), folder)
    transport.close()
    return int(any(one.verdict == "fail" for one in found))
