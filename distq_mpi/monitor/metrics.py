"""Rows of JSON, one a line; a full disk or a killed writer leaves no half line behind."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from distq_mpi.files import explain, plain


class JsonLines:
    """One growing JSONL file, owned by one process.

    An incomplete last line, left by a process that was killed, is cut off at opening.

    Raises
    ------
    FileError
        If the file cannot be opened; from `append` if the line cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            self._size = self._whole_lines()
            os.ftruncate(self._descriptor, self._size)
        except OSError as error:
            raise explain(error, path, "write") from error

    def append(self, row: dict[str, Any]) -> None:
        """Append one row; it is with the operating system when this returns."""
        line = json.dumps(plain(row), allow_nan=False).encode() + b"\n"
        left = line
        try:
            while left:
                left = left[os.write(self._descriptor, left) :]
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._descriptor, self._size)
            raise explain(error, self.path, "write", len(line)) from error
        self._size += len(line)

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _whole_lines(self) -> int:
        """Bytes up to and including the last newline."""
        end = os.fstat(self._descriptor).st_size
        while end:
            start = max(0, end - 4096)
            found = os.pread(self._descriptor, end - start, start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            end = start
        return 0
