"""Give every rank the environment that rank 0 made."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from distq_mpi.environments.base import Environment
from distq_mpi.environments.cutting import Cuts, can_be_cut, share_rows
from distq_mpi.environments.guard import guarded
from distq_mpi.environments.model_file import whole
from distq_mpi.errors import ModelError

if TYPE_CHECKING:
    from distq_mpi.transport import Transport

FUNCTIONS = ("law_step", "law_start", "outcomes", "outcome", "start", "worlds")
ARRAY = "array"
"""Stands for an array among `params` while they are told; numbers are all they hold otherwise."""


def share(
    environment: Environment | None, make: Any, transport: Transport, cuts: Cuts | None = None
) -> Environment:
    """Return the environment on every rank. COLLECTIVE.

    The arrays of an explicit model or a law are stored once per host. Functions exist only on the
    ranks that compile (the leader of each host), where `make` builds them again; elsewhere they are
    None. What is stepped in Python every rank makes for itself. A law that could not be looked at
    whole comes under its `guard`.

    cuts : read on rank 0 alone: for each rank the states [low, high) whose rows it needs, [0, 0)
    for none. A table of transitions is then cut (see `cutting.share_rows`), and what rank 0 held of
    it goes with the last reference to `environment`; anything else is shared as ever. None: no cut.
    """
    bare: Any = None
    with transport.same_outcome():
        if environment is not None and (cuts is None or not can_be_cut(environment)):
            environment, cuts = whole(environment), None
    if environment is not None:
        unset = dict.fromkeys(FUNCTIONS)
        bare = replace(environment, params=(), variants=(), **unset)  # type: ignore[arg-type]
        params = tuple(ARRAY if _is_array(p) else p for p in environment.params)
        bare = (bare, params, cuts, len(environment.variants))
    shared, params, cuts, n_variants = transport.broadcast(bare)
    if cuts is not None:
        return share_rows(environment, shared, cuts, transport)
    with transport.same_outcome():
        if environment is None and (transport.leads_node or shared.kind == "stepped"):
            environment = make()
            if environment.model_id != shared.model_id:
                raise ModelError(
                    f"{shared.id}: host {transport.hosts[transport.rank]} makes another model "
                    f"({environment.model_id[:12]}) than {transport.hosts[0]} "
                    f"({shared.model_id[:12]}): install the same versions and files everywhere, "
                        "and give every rank the same object"
                )
    if ARRAY not in params:
        return guarded(environment or replace(shared, params=params))
    told: list[tuple[Any, ...]] | None = None
    if transport.rank == 0 and environment is not None:
        told = [environment.params, *environment.variants]
    mine, *variants = (
        _on_node(told[k] if told else None, params, transport) for k in range(1 + n_variants)
    )
    return guarded(replace(environment or shared, params=mine, variants=tuple(variants)))


def _on_node(
    told: tuple[Any, ...] | None, params: tuple[Any, ...], transport: Transport
) -> tuple[Any, ...]:
    """The params that rank 0 tells, with arrays that a host has once. COLLECTIVE."""
    arrays = iter(transport.share_on_node(told and tuple(filter(_is_array, told))))
    return tuple(next(arrays) if p == ARRAY else p for p in params)


def _is_array(param: Any) -> bool:
    return isinstance(param, np.ndarray)
