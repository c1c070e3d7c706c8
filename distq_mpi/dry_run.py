"""Show a run before it starts, without MPI."""

from __future__ import annotations

from typing import Any

from distq_mpi.config import to_toml
from distq_mpi.fusion import fusion_of
from distq_mpi.memory import memory_bytes, readable
from distq_mpi.prediction import predict
from distq_mpi.preparation import settle, warnings
from distq_mpi.table import record_of


def dry_run(command: Any, size: int) -> str:
    """Return the resolved configuration and what each of `size` ranks will need. Local.

    Ranks that are only spoken of (`--ranks`) have a host like this one each.
    """
    per_host = 1 if command.ranks else size
    config, environment, reason = settle(command.config, size, per_host)
    need = memory_bytes(config, environment, reason is None, size, per_host)
    lines = [to_toml(config).rstrip(), "", f"# {environment.summary}"]
    lines.append(f"# exact values: {'no, ' + reason if reason else 'yes'}")
    total, where = sum(need.values()), f"for {size} on one host" if per_host == size else "in all"
    lines.append(f"# memory: {readable(total)} per rank, {readable(total * size)} {where}")
    lines += [f"#   {name}: {readable(n)}" for name, n in need.items()]
    if config.parallel.architecture == "sharded":
        lines += [f"# {line}" for line in predict(config, environment, size)]
    elif config.parallel.architecture == "server" and config.parallel.staleness != 0:
        row = 8 + record_of(config.learn, environment.n_actions).row_bytes
        lines.append(f"# a push and a pull send {row} bytes of every row that was learned from")
    else:
        n_pairs = environment.n_states * record_of(config.learn, environment.n_actions).width
        sent = fusion_of(config).sent_bytes(config, n_pairs, size)
        lines.append(f"# a round sends {readable(sent)} of contributions per rank")
    lines += [f"# warning: {warning}" for warning in warnings(config, environment)]
    return "\n".join(lines)
