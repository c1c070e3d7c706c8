"""Keep what environments print and warn of off the terminal: a line a step is a line per lane."""

from __future__ import annotations

import contextlib
import io
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any


class _Nowhere(io.TextIOBase):
    def write(self, text: str) -> int:
        return len(text)


class _Silence:
    """Counts who wants silence, for threads share one standard output."""

    def __init__(self) -> None:
        self._lock, self._wanted = threading.Lock(), 0
        self._undo = contextlib.ExitStack()

    def begin(self) -> None:
        with self._lock:
            self._wanted += 1
            if self._wanted == 1:
                self._undo.enter_context(contextlib.redirect_stdout(_Nowhere()))
                self._undo.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore")

    def end(self) -> None:
        with self._lock:
            self._wanted -= 1
            if self._wanted == 0:
                self._undo.close()


_SILENCE = _Silence()


def shut(world: Any) -> None:
    """Close an environment; no result depends on how it takes that. Local."""
    with silence(), contextlib.suppress(Exception):
        world.close()


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Show nothing of what Python code prints or warns of; what it writes to stderr, yes. Local."""
    sys.stdout.flush()
    _SILENCE.begin()
    try:
        yield
    finally:
        _SILENCE.end()
