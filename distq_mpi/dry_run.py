"""Show a run before it starts, without MPI."""

from __future__ import annotations

from typing import Any

from distq_mpi.config import to_toml
from distq_mpi.fusion import FUSIONS
from distq_mpi.memory import memory_bytes, readable
from distq_mpi.preparation import settle, warnings
from distq_mpi.table import record_of


def dry_run(command: Any, size: int) -> str:
    """Return the resolved configuration and what each of `size` ranks will need. Local."""
    config, environment, reason = settle(command.config, size, size)
    need = memory_bytes(config, environment.n_states, environment.n_actions, size)
    lines = [to_toml(config).rstrip(), "", f"# {environment.summary}"]
    lines.append(f"# exact values: {'no, ' + reason if reason else 'yes'}")
    total = sum(need.values())
    lines.append(
        f"# memory: {readable(total)} per rank, {readable(total * size)} for {size} on one host"
    )
    lines += [f"#   {name}: {readable(n)}" for name, n in need.items()]
    n_pairs = environment.n_states * record_of(config.learn, environment.n_actions).width
    sent = FUSIONS[config.parallel.fusion].sent_bytes(config, n_pairs, size)
    lines.append(f"# a round sends {readable(sent)} of contributions per rank")
    lines += [f"# warning: {warning}" for warning in warnings(config)]
    return "\n".join(lines)
