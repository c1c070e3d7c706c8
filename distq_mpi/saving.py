"""Write the committed state to a checkpoint, and take it back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distq_mpi import checkpoint
from distq_mpi.architectures import Progress
from distq_mpi.config import to_toml
from distq_mpi.files import SLICE_ROWS

if TYPE_CHECKING:
    from distq_mpi.transport import Transport


class Saver:
    """Checkpoints of one run. `directory` is None except on rank 0."""

    def __init__(
        self,
        config: Any,
        environment: Any,
        directory: Any,
        architecture: Any,
        agents_from_ranks: bool = False,
    ) -> None:
        self.config, self.environment = config, environment
        self.agents_from_ranks = agents_from_ranks
        self.directory, self.architecture = directory, architecture
        self.restored_steps = 0
        self.newest: Path | None = None
        self._written_round = -1

    def begin_again(self, directory: Any) -> None:
        """Take nothing for written, for ranks may differ in what they saw of it. Local.

        directory : on rank 0, which may be another one than before; None elsewhere.
        """
        self.directory, self._written_round = directory, -1

    def write(self, transport: Transport) -> Path | None:
        """Write a checkpoint of the last commit and prune old ones; COLLECTIVE.

        Returns its path on rank 0. Raises FileError on every rank where rank 0 could not write;
        the checkpoints before are untouched.
        """
        progress = self.architecture.progress
        if progress.round == self._written_round:
            return self.newest
        folder = None if self.directory is None else self.directory.checkpoints
        path = None if folder is None else folder / checkpoint.file_name(progress.round)
        self.write_to(path, transport)
        with transport.same_outcome():
            if folder is not None:
                checkpoint.prune(folder, self.config.checkpoint.keep)
        self.newest, self._written_round = path, progress.round
        return path

    def write_to(self, path: Path | None, transport: Transport) -> None:
        """Write a checkpoint of the last commit to a file, named on rank 0; COLLECTIVE.

        Raises FileError on every rank where rank 0 could not write; what was there is untouched.
        """
        rows, lanes = self.architecture.iter_rows(), self.architecture.gather_lanes()
        worlds, reproducible = self.architecture.gather_worlds(), self.architecture.reproducible()
        with transport.same_outcome():
            try:
                if path is not None:
                    self._write_rank_0(path, rows, lanes, worlds, reproducible)
            finally:
                for _ in rows:  # the other ranks' part of the slices, and rank 0's after an error
                    pass

    def _write_rank_0(
        self, path: Path, rows: Any, lanes: Any, worlds: Any, reproducible: bool
    ) -> None:
        progress = self.architecture.progress
        checkpoint.write(
            path,
            rows=rows,
            n_states=self.environment.n_states,
            n_actions=self.environment.n_actions,
            dtype=np.dtype(self.config.learn.dtype),
            lanes=lanes,
            worlds=worlds,
            config_toml=to_toml(self.config),
            attributes={
                "round": progress.round,
                "model_id": self.environment.model_id,
                "seed": self.config.run.seed,
                "architecture": self.config.parallel.architecture,
                "agents_from_ranks": self.agents_from_ranks,
                "reproducible": reproducible,
                "state": progress.to_json(),
            },
        )

    def restore(self, path: Path, transport: Transport) -> None:
        """Take table, lanes and counters from a checkpoint; COLLECTIVE. Rank 0 reads.

        Raises FileError on every rank where the file cannot be trusted.
        """
        header: Any = None
        told: Any = None
        with transport.same_outcome():
            if transport.rank == 0:
                header = checkpoint.read_header(path, self.environment.model_id)
                lanes, worlds = checkpoint.read_lanes(header), checkpoint.read_worlds(header)
                followed = bool(header.attributes.get("reproducible", True))
                told = header.attributes["state"], lanes, worlds, followed
        state, lanes, worlds, self.architecture.followed = transport.broadcast(told)
        for start in range(0, self.environment.n_states, SLICE_ROWS):
            stop = min(start + SLICE_ROWS, self.environment.n_states)
            stored: Any = None
            with transport.same_outcome():
                if transport.rank == 0:
                    stored = checkpoint.read_rows(header, start, stop)
            self.architecture.restore_rows(start, stop, stored)
        progress = Progress.from_json(state)
        with transport.same_outcome():
            self.architecture.restore(progress, lanes, worlds)
        self.restored_steps, self.newest, self._written_round = progress.steps, path, progress.round
