"""Signals as requests: a handler sets a flag, the run reads it where all ranks agree."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

STOP_SIGNALS = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
REPEAT_S = 0.5


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """A few statements that an interrupt does not cut in two; it comes right after. Local."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[tuple[int, FrameType | None]] = []
    old: Any = signal.signal(signal.SIGINT, lambda number, frame: came.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if old is None else old)
    for number, frame in came[-1:]:
        if callable(old):
            old(number, frame)
        elif old != signal.SIG_IGN:
            raise KeyboardInterrupt


class _Held(contextlib.AbstractContextManager[None]):
    """Statements that an interrupt, of which its handler tells, is not to cut in two."""

    def __init__(self) -> None:
        self._entered = self._came = False

    def __enter__(self) -> None:
        self._entered, self._came = True, False

    def __exit__(self, *_: object) -> None:
        self._entered = False
        if self._came:
            self.interrupt()

    def interrupt(self) -> None:
        """Raise KeyboardInterrupt, now or at the end of the statements; another interrupt then ends
        the process."""
        if self._entered:
            self._came = True
            return
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        raise KeyboardInterrupt


class Signals:
    """Collects the signals of this rank while it is entered as a context; local.

    USR1 asks for a checkpoint; USR2, TERM and INT ask for a checkpoint and the end; a second INT
    raises KeyboardInterrupt. Outside the main thread Python allows no handlers, and none are set.
    Only `signal.signal` is used: masking signals after MPI has started its threads kills the rank.
    Where nobody enters it, it sees no signal.

    Attributes
    ----------
    last : str
        Name of the last signal received, "" if none.
    """

    def __init__(self) -> None:
        self.last = ""
        self._checkpoint = False
        self._stop = False
        self._interrupted_at: float | None = None
        self._held = _Held()
        self._old: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        self.last, self._checkpoint, self._stop = "", False, False
        self._interrupted_at = None
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGUSR1, *STOP_SIGNALS):
                self._old[number] = signal.signal(number, self._receive)
            # A file size limit then arrives as an OSError that names the file.
            self._old[signal.SIGXFSZ] = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._old.items():
            # None stands for a handler that was not set from Python and cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._old.clear()
        self._checkpoint = self._stop = False

    def uninterrupted(self) -> contextlib.AbstractContextManager[None]:
        """As the function `uninterrupted`, but where these handlers are set without changing any:
        one that somebody else has set in their place since is not held back."""
        return self._held if self._old else uninterrupted()

    def asked_to_stop(self) -> bool:
        """Whether the end was asked for and not taken yet; it is not forgotten. Local."""
        return self._stop

    def take(self) -> tuple[bool, bool]:
        """Return (checkpoint asked for, stop asked for) since the last call, and forget both."""
        # A flag is only cleared when it was seen set, so a signal between the lines is not lost.
        checkpoint, stop = self._checkpoint, self._stop
        if checkpoint:
            self._checkpoint = False
        if stop:
            self._stop = False
        return checkpoint or stop, stop

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.last = signal.Signals(number).name
        if number == signal.SIGUSR1:
            self._checkpoint = True
            return
        if number == signal.SIGINT:
            now = time.monotonic()
            first, self._interrupted_at = self._interrupted_at, now
            # One Ctrl-C arrives twice when both the terminal and the launcher deliver it.
            if first is not None and now - first > REPEAT_S:
                self._held.interrupt()
            self._interrupted_at = now if first is None else first
        self._stop = True
