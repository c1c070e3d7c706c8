"""Give every rank the environment that rank 0 made."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from distq_mpi.environments.base import Environment
from distq_mpi.errors import ModelError

if TYPE_CHECKING:
    from distq_mpi.transport import Transport

FUNCTIONS = ("law_step", "law_start", "outcomes", "outcome", "start")


def share(environment: Environment | None, make: Any, transport: Transport) -> Environment:
    """Return the environment on every rank. COLLECTIVE.

    An explicit model's arrays are stored once per host. A law's functions exist only on the ranks
    that compile (the leader of each host), where `make` builds them again; elsewhere they are None.
    """
    bare: Any = None
    if environment is not None:
        unset = dict.fromkeys(FUNCTIONS)
        bare = replace(environment, params=(), **unset)  # type: ignore[arg-type]
        bare = (bare, environment.params if environment.kind == "law" else None)
    shared, scalars = transport.broadcast(bare)
    with transport.same_outcome():
        if environment is None and transport.leads_node:
            environment = make()
            if environment.model_id != shared.model_id:
                raise ModelError(
                    f"{shared.id}: host {transport.hosts[transport.rank]} makes another model "
                    f"({environment.model_id[:12]}) than {transport.hosts[0]} "
                    f"({shared.model_id[:12]}): install the same versions and files everywhere"
                )
    if shared.kind == "law":
        return environment or replace(shared, params=scalars)
    told = environment.params if transport.rank == 0 and environment is not None else None
    return replace(environment or shared, params=transport.share_on_node(told))
