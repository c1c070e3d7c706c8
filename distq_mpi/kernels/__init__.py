"""Kernels: the laws of learning for one transition and the loops that run them, in plain Python.

Nothing here imports numba. `objects.load` hands out the compiled form; one process per node
compiles (`compiler.export`), the others load its object file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Kernel:
    """A request for a compiled loop: a template, the parts its free names stand for, and types.

    Parameters
    ----------
    template : plain Python function; takes arrays, scalars and tuples of these; returns None.
    parts : name -> plain Python function or constant; replaces the template's global of that name.
    arguments : an example of the arguments. Arrays must be C-contiguous. int means int64, float
        float64, numpy scalars their own type. Only the types matter.
    """

    template: Callable[..., None]
    parts: dict[str, Any]
    arguments: tuple[Any, ...]


def describe(argument: Any) -> list[Any]:
    """Return the type of a kernel argument in a form that JSON keeps.

    Raises TypeError for anything that is not an array, a scalar or a tuple of these.
    """
    if isinstance(argument, np.ndarray):
        if not argument.flags.c_contiguous:
            raise TypeError("a kernel takes C-contiguous arrays only")
        return ["array", argument.dtype.name, argument.ndim]
    if isinstance(argument, tuple):
        return ["tuple", [describe(item) for item in argument]]
    if isinstance(argument, bool | np.bool_):
        return ["scalar", "bool"]
    if isinstance(argument, int):
        return ["scalar", "int64"]
    if isinstance(argument, float):
        return ["scalar", "float64"]
    if isinstance(argument, np.generic):
        return ["scalar", argument.dtype.name]
    raise TypeError(f"a kernel takes arrays, scalars and tuples of these, not {type(argument)}")
