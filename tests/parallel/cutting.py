"""Share models cut among the ranks of a job and compare every rank's rows with the whole model.

Run by `test_cutting.py` as `mpirun -n P python -m tests.parallel.cutting FOLDER`; rank 0 prints
what it found as JSON. Every comparison is made on every rank; any that fails ends the job.
"""

from __future__ import annotations

import json
import sys
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import h5py
import numpy as np

from distq_mpi.config import EnvConfig
from distq_mpi.environments import Environment, cutting, exploring_starts, make, rows, write_model
from distq_mpi.environments.explicit import functions
from distq_mpi.environments.guard import KIND, refuse_noted
from distq_mpi.environments.laws import law_environment
from distq_mpi.environments.model_file import Source, look_over
from distq_mpi.environments.rows import Packed
from distq_mpi.environments.sharing import share
from distq_mpi.errors import DistqError, ModelError
from distq_mpi.kernels import Kernel
from distq_mpi.kernels.checking import NEXT_STATE
from distq_mpi.kernels.objects import load
from distq_mpi.partition import Partition
from distq_mpi.transport import Transport
from tests.stand_in import random_model

u8 = np.uint64


def walk(state, action, bits, params, new, reward, ended, start):  # type: ignore[no-untyped-def]
    """One transition and one start per element."""
    for k in range(state.size):
        new[k], reward[k], ended[k] = law_step(state[k], action[k], bits[k], params)  # noqa: F821
        start[k] = law_start(bits[k], params)  # noqa: F821


def models() -> Iterator[tuple[str, Environment]]:
    """Models with uniform and other starts, ends, merged entries, rows of many lengths."""
    yield "garnet", make(EnvConfig(id="garnet", kwargs={"states": 211, "actions": 3,
                                                        "branching": 4}))  # fmt: skip
    yield "random", random_model(97, 2)
    yield "exploring", exploring_starts(random_model(50, 3, seed=2))
    yield "lake", make(EnvConfig(id="FrozenLake8x8-v1"))
    yield "one", random_model(1, 1)


def cuts(n_states: int, size: int) -> Iterator[list[tuple[int, int]]]:
    """Balanced, overlapping, empty and lopsided cuts."""
    balanced = Partition.balanced(n_states, size)
    yield cutting.hulls(balanced)
    shifted = Partition(np.append(np.minimum(balanced.starts[:-1] // 2, n_states), n_states))
    yield cutting.hulls(balanced, shifted)
    yield [(0, 0)] * (size - 1) + [(0, n_states)]
    yield [(0, n_states)] + [(n_states, n_states)] * (size - 1)


def compare(found: Environment, wanted: Environment, cut: tuple[int, int], node: Any) -> int:
    """Fail unless `found` is `wanted` on the states of the cut; return how many rows that were."""
    low, high = cut
    assert (found.rows, found.source, found.model_id) == (cut, None, wanted.model_id)
    assert found.params[7].tolist() == [wanted.n_states, wanted.n_actions, low]
    whole = Packed(*wanted.params[:4])
    mine = whole.part(low * wanted.n_actions, high * wanted.n_actions)
    for one, other in zip(found.params[:4], mine, strict=True):
        assert one.dtype == other.dtype and one.tobytes() == other.tobytes()
    for one, other in zip(found.params[4:7], wanted.params[4:7], strict=True):
        assert one.tobytes() == other.tobytes()
    held = sum(p.nbytes for p in found.params[:4])
    assert held <= 1.1 * sum(p.nbytes for p in mine)
    assert (found.law_step is None) == (not node.leads_node)
    for k in range(2):  # once with the environment itself, once with the whole one
        environment = replace(wanted, **functions(wanted.n_starts, wanted.params)) if k else found
        if wanted.explores_starts and k:
            environment = wanted
        n = 500 if high > low else 0
        random = np.random.default_rng(9)
        arrays = (
            random.integers(low, max(high, low + 1), n).astype(u8),
            random.integers(0, wanted.n_actions, n).astype(u8),
            random.integers(0, 2**64, n, dtype=u8),
        )
        results = np.zeros(n, u8), np.zeros(n), np.zeros(n, np.bool_), np.zeros(n, u8)
        request = None
        if node.leads_node:
            parts = {"law_step": environment.law_step, "law_start": environment.law_start}
            arguments = (*arrays, environment.params, *results)
            request = {"walk": Kernel(walk, parts, arguments)}
        load(request, node)["walk"](*arrays, environment.params, *results)
        if k == 0:
            first = [array.tobytes() for array in results]
    assert first == [array.tobytes() for array in results]
    if node.leads_node:
        for state in range(low, high):
            for action in range(wanted.n_actions):
                n = wanted.outcomes(state, action, wanted.params)
                assert found.outcomes(state, action, found.params) == n
                for i in range(n):
                    one = found.outcome(state, action, i, found.params)
                    assert one == wanted.outcome(state, action, i, wanted.params)
    return (high - low) * wanted.n_actions


def written(path: Path, model: Environment, messy: bool) -> None:
    """Write a model; messy: with entries of probability 0, and all in descending order."""
    write_model(path, model)
    if not messy:
        return
    with h5py.File(path, "r+") as file:
        arrays = {name: file[name][()] for name in ("indptr", "indices", "probability", "reward",
                                                    "terminated")}  # fmt: skip
        indptr = arrays["indptr"]
        n = indptr.size - 1
        at = np.concatenate([np.arange(high - 1, low - 1, -1)
                             for low, high in zip(indptr, indptr[1:], strict=False)])  # fmt: skip
        places = np.cumsum(np.diff(indptr)) - np.diff(indptr)
        arrays["indptr"] = indptr + np.arange(n + 1)
        for name in ("indices", "probability", "reward", "terminated"):
            arrays[name] = np.insert(arrays[name][at], places, 0)
        for name, array in arrays.items():
            del file[name]
            file[name] = array


def of_arrays(transport: Transport) -> int:
    """Cut models that rank 0 holds."""
    n = 0
    for _, model in models():
        for cut in cuts(model.n_states, transport.size):
            mine = model if transport.rank == 0 else None
            shared = share(mine, None, transport, cut if transport.rank == 0 else None)
            n += compare(shared, model, cut[transport.rank], transport)
    return n


def of_files(transport: Transport, folder: Path) -> int:
    """Cut models in files, some of which some ranks cannot see."""
    n, visible = 0, Source.visible
    hidden = [set(), {1, 2}, set(range(1, transport.size))]
    for number, (name, model) in enumerate(models()):
        if model.explores_starts:
            continue
        path = folder / f"{name}.h5"
        if transport.rank == 0:
            written(path, model, number % 2 == 0)
        transport.broadcast(None)
        environment = look_over(0, str(path)) if transport.rank == 0 else None
        assert environment is None or environment.model_id == model.model_id
        for k, cut in enumerate(cuts(model.n_states, transport.size)):
            blind = transport.rank in hidden[k % 3]
            seen = mock.patch.object(Source, "visible", (lambda self: False) if blind else visible)
            with seen:
                shared = share(environment, None, transport, cut)
            n += compare(shared, model, cut[transport.rank], transport)
        held = share(environment, lambda p=path: make(EnvConfig(id=str(p))), transport)
        assert held.rows is None and held.source is None
        assert all(
            a.tobytes() == b.tobytes() for a, b in zip(held.params, model.params, strict=True)
        )
    return n


def of_changed_files(transport: Transport, folder: Path) -> list[str]:
    """What all ranks are told where a file is not what it was when it was looked over."""
    told = []
    for name, value in (("reward", 77.0), ("indptr", 2**60), ("indptr", -1), ("indices", 0)):
        path = folder / f"changed-{name}.h5"
        environment = None
        if transport.rank == 0:
            write_model(path, random_model(60, 2))
            environment = look_over(0, str(path))
            with h5py.File(path, "r+") as file:
                file[name][200 if name != "indptr" else 70] = value
        for blind in (False, transport.rank > 0):
            transport.broadcast(None)
            cut = cutting.hulls(Partition.balanced(60, transport.size))
            try:
                with mock.patch.object(Source, "visible", lambda self, b=blind: not b):
                    share(environment, None, transport, cut)
            except DistqError as error:
                assert isinstance(error, ModelError) and error.agreed
                told.append(str(error))
            else:
                told.append("nothing")
    return told


def memory(transport: Transport, folder: Path) -> dict[str, float]:
    """Bytes at the peak and after sharing, as shares of the whole model and of this rank's rows."""
    found = {}
    kwargs = {"states": 60_000, "actions": 4, "branching": 8}
    model = make(EnvConfig(id="garnet", kwargs=kwargs)) if transport.rank == 0 else None
    size = transport.broadcast(model and sum(p.nbytes for p in model.params))
    path = folder / "large.h5"
    if model is not None:
        write_model(path, model)
    transport.broadcast(None)
    cut = cutting.hulls(Partition.balanced(60_000, transport.size))
    own = size * (cut[transport.rank][1] - cut[transport.rank][0]) / 60_000
    tracemalloc.start()
    for name in ("arrays", "file"):
        model = None
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        if transport.rank == 0:
            if name == "arrays":
                model = make(EnvConfig(id="garnet", kwargs=kwargs))
                tracemalloc.reset_peak()  # making it is another matter
            else:
                model = look_over(0, str(path))
        shared = share(model, None, transport, cut)
        now, peak = tracemalloc.get_traced_memory()
        found[f"{name} peak over whole"] = (peak - before) / size
        found[f"{name} peak over own"] = (peak - before) / own
        model = None
        now = tracemalloc.get_traced_memory()[0]
        found[f"{name} kept over own"] = (now - before) / own
        del shared
    tracemalloc.stop()
    return found


def noted(transport: Transport) -> str:
    """What all ranks are told of a mistake that the guard of the last rank noted."""
    law = replace(law_environment("ring", Ring, {}), trusted=False)
    environment = share(law, lambda: law, transport)
    if transport.rank == transport.size - 1:
        environment.params[2][:] = [NEXT_STATE, 3, 1, 0, 12345]
        environment.params[3][0] = 99.0
    assert environment.params[2][KIND] == (transport.rank == transport.size - 1) * NEXT_STATE
    try:
        refuse_noted(environment, transport, 1, 4, range(2))
    except ModelError as error:
        return str(error)
    return "nothing"


def outcome(state, action, i, params):  # type: ignore[no-untyped-def]
    """Round and round."""
    return 1.0, (state + 1) % 5, 0.0, False


def start(i, params):  # type: ignore[no-untyped-def]
    """Where it begins."""
    return 1.0, 0


class Ring:
    """Five states in a circle."""

    n_states, n_actions, n_outcomes, params = 5, 2, 1, ()
    outcome, start = staticmethod(outcome), staticmethod(start)


def main() -> None:
    """Print what was found on every rank."""
    folder, transport = Path(sys.argv[1]), Transport.connect()
    with transport.together():
        with mock.patch.object(rows, "RUN_ENTRIES", 4096):
            found: dict[str, Any] = {"memory": memory(transport, folder)}
        with mock.patch.object(rows, "RUN_ENTRIES", 40), mock.patch.object(rows, "RUN_ROWS", 16):
            found["arrays"] = of_arrays(transport)
            found["files"] = of_files(transport, folder)
            found["changed"] = of_changed_files(transport, folder)
        found["noted"] = noted(transport)
        told = transport.gather(found)
    if told is not None:
        print(json.dumps(told))
    transport.close()


if __name__ == "__main__":
    main()
