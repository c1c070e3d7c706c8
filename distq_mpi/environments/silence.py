"""Run code of users: keep what it prints and warns of off the terminal (a line a step is a line per
lane), and tell an interrupt from a KeyboardInterrupt that it raises."""

from __future__ import annotations

import contextlib
import io
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

from distq_mpi.errors import Interrupted


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


class _Marking:
    """A handler of interrupts whose KeyboardInterrupt is `Interrupted`."""

    def __init__(self, handler: Any) -> None:
        self.handler = handler

    def __call__(self, number: int, frame: Any) -> None:
        try:
            self.handler(number, frame)
        except KeyboardInterrupt:
            raise Interrupted from None


@contextlib.contextmanager
def marked_interrupts() -> Iterator[None]:
    """Run a block in which signals raise `Interrupted`; nests. Local, free outside the main thread.
    """
    old: Any = None
    if threading.current_thread() is threading.main_thread():
        old = signal.getsignal(signal.SIGINT)
    if not callable(old) or isinstance(old, _Marking):
        yield
        return
    marking = _Marking(old)
    signal.signal(signal.SIGINT, marking)
    try:
        yield
    finally:
        # A handler that was set meanwhile stays: after an interrupt the next one ends the process.
        if signal.getsignal(signal.SIGINT) is marking:
            signal.signal(signal.SIGINT, old)


@contextlib.contextmanager
def errors_ignored() -> Iterator[None]:
    """Run a block of a user's code on whose exceptions nothing depends. Local."""
    try:
        yield
    except Interrupted:
        raise
    except BaseException:  # whatever it raises, SystemExit included
        return


def shut(world: Any) -> None:
    """Close an environment; no result depends on how it takes that. Local."""
    with silence(), errors_ignored():
        world.close()


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Run code of users: show nothing of what it prints or warns of (what it writes to stderr,
    yes), and raise an interrupt as `Interrupted`. Local."""
    sys.stdout.flush()
    _SILENCE.begin()
    try:
        with marked_interrupts():
            yield
    finally:
        _SILENCE.end()
