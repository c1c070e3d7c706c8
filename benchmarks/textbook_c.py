"""The same algorithm in C: compile `kernels.c` for an environment and run slices of it."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
import time
from typing import Any

import numpy as np

from distq_mpi.environments.alias import alias_tables

SOURCE = os.path.join(os.path.dirname(__file__), "kernels.c")
FLAGS = ("-O3", "-march=native", "-std=c11", "-shared", "-fPIC")
LANE_BYTES = 48


class Task(ctypes.Structure):
    """`struct task` of kernels.c."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("model", "rewards", "starts")),
        *((name, ctypes.c_uint64) for name in ("n_starts", "limit", "epsilon")),
        *((name, ctypes.c_double) for name in ("discount", "alpha")),
        *((name, ctypes.c_int64) for name in ("rows", "columns")),
        *((name, ctypes.c_double) for name in ("slip", "step_reward", "goal_reward")),
    ]


def missing() -> str | None:
    """Why there is no C to compare with, None where there is. Local."""
    return None if shutil.which("gcc") else "gcc is not installed: no ratio against C"


def padded_model(environment: Any) -> tuple[np.ndarray, np.ndarray, int]:
    """Return (slots uint32 (S * A * width, 4), distinct rewards, width) of an explicit model.

    Every pair gets alias tables of one width, the widest pair's, by splitting a pair's last
    outcome: fewer loads and one multiplication less than tables of varying length.
    """
    indptr, alias, reward, probability = environment.params[:4]
    lengths = np.diff(indptr)
    width = int(lengths.max())
    position = np.minimum(np.arange(width), lengths[:, None] - 1)
    source = (indptr[:-1, None] + position).ravel()
    copies = np.where(position == lengths[:, None] - 1, width - lengths[:, None] + 1, 1).ravel()
    starts = np.arange(lengths.size + 1) * width
    packed = alias_tables(starts, probability[source] / copies)
    rewards, which = np.unique(reward, return_inverse=True)
    if rewards.size > 128 or environment.n_states >= 1 << 24:
        raise ValueError(f"kernels.c packs 128 rewards and 2^24 states, {environment.id} has more")
    codes = alias[1::2]
    code = ((codes >> np.uint64(1)) << np.uint64(8)) | (codes & np.uint64(1))
    code = (code | (which.astype(np.uint64) << np.uint64(1)))[source]
    slots = np.zeros((source.size, 4), np.uint32)
    slots[:, 0] = packed >> np.uint64(32)
    slots[:, 1] = code
    slots[:, 2] = code[np.repeat(starts[:-1], width) + (packed & np.uint64(0xFFFFFFFF)).astype(int)]
    return slots, rewards, width


class TextbookC:
    """A C learner of one environment: 1 lane or `n_lanes`, its own table. `run` times a slice."""

    def __init__(self, environment: Any, values: np.ndarray, learn: Any, n_lanes: int) -> None:
        self.n_lanes = n_lanes
        n_states, n_actions = values.shape
        defines = [f"-DN_ACTIONS={n_actions}"]
        self._task = Task(
            limit=environment.max_episode_steps or 2**32 - 1,
            epsilon=round(learn.epsilon * 2**24), discount=learn.discount, alpha=learn.alpha,
        )  # fmt: skip
        if learn.step_size == "constant":
            defines.append("-DCONSTANT")
        elif learn.step_size != "rescaled_linear":
            raise ValueError(f"kernels.c has no step size {learn.step_size}")
        starts = np.zeros(1, np.uint64)
        if environment.kind == "explicit":
            slots, rewards, width = padded_model(environment)
            defines.append(f"-DWIDTH={width}")
            starts = np.ascontiguousarray(environment.params[4])
            if np.ptp(environment.params[6]) > 0:
                raise ValueError("kernels.c draws start states uniformly")
            self._task.model, self._task.rewards = slots.ctypes.data, rewards.ctypes.data
            self._keep: tuple[Any, ...] = (slots, rewards, starts)
        else:
            for name, value in zip(
                ("rows", "columns", "slip", "step_reward", "goal_reward"), environment.params,
                strict=True,
            ):  # fmt: skip
                setattr(self._task, name, value)
            self._keep = (starts,)
        self._task.starts, self._task.n_starts = starts.ctypes.data, starts.size
        row = np.dtype([("q", np.float64, n_actions), ("visits", np.uint32, n_actions)], align=True)
        self.table = np.zeros(n_states, row)
        self.table["q"] = values
        self._lanes = np.zeros(n_lanes * LANE_BYTES, np.uint8)
        self.totals = np.zeros(3)
        library = compile_c(defines)
        self._learn = library.learn_one if n_lanes == 1 else library.learn_lanes
        self._counter = 1
        library.begin(
            ctypes.byref(self._task), ctypes.c_void_p(self._lanes.ctypes.data),
            ctypes.c_uint64(n_lanes), ctypes.c_uint64(0),
        )  # fmt: skip

    def run(self, n_steps: int) -> float:
        """Make at least `n_steps` steps over all lanes; return steps per second."""
        each = -(-n_steps // self.n_lanes)
        arguments = (
            ctypes.byref(self._task), ctypes.c_void_p(self.table.ctypes.data),
            ctypes.c_void_p(self._lanes.ctypes.data), ctypes.c_uint64(self.n_lanes),
            ctypes.c_uint64(each), ctypes.c_uint64(self._counter + self.n_lanes),
            ctypes.c_void_p(self.totals.ctypes.data),
        )  # fmt: skip
        begin = time.perf_counter()
        self._learn(*arguments)
        seconds = time.perf_counter() - begin
        self._counter += each * self.n_lanes
        return each * self.n_lanes / seconds


def compile_c(defines: list[str], source: str = SOURCE) -> ctypes.CDLL:
    """Compile with gcc -O3 -march=native and load it. Raises CalledProcessError."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "kernels.so")
        subprocess.run(["gcc", *FLAGS, *defines, source, "-o", path], check=True)
        return ctypes.CDLL(path)
