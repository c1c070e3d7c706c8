"""Signals ask; they end nothing by themselves."""

import os
import signal
import threading

import pytest

from distq_mpi import signals
from distq_mpi.signals import Signals, uninterrupted


@pytest.fixture
def received():
    with Signals() as entered:
        yield entered


@pytest.mark.parametrize(
    ("number", "answer"),
    [
        (signal.SIGUSR1, (True, False)),
        (signal.SIGUSR2, (True, True)),
        (signal.SIGTERM, (True, True)),
        (signal.SIGINT, (True, True)),
    ],
)
def test_each_signal_asks_once(received, number, answer):
    assert received.take() == (False, False)
    os.kill(os.getpid(), number)
    assert received.take() == answer
    assert received.take() == (False, False)
    assert received.last == signal.Signals(number).name


def test_a_second_interrupt_aborts_but_an_echo_does_not(received, monkeypatch):
    now = 100.0
    monkeypatch.setattr(signals.time, "monotonic", lambda: now)
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)
    assert received.take() == (True, True)
    now += 2 * signals.REPEAT_S
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL


def test_old_handlers_come_back():
    numbers = (signal.SIGUSR1, *signals.STOP_SIGNALS, signal.SIGXFSZ)
    before = [signal.getsignal(number) for number in numbers]
    with Signals():
        assert signal.getsignal(signal.SIGUSR2) != before[1]
        assert signal.getsignal(signal.SIGXFSZ) is signal.SIG_IGN
    assert [signal.getsignal(number) for number in numbers] == before


def test_outside_the_main_thread_nothing_is_set():
    before = signal.getsignal(signal.SIGUSR1)
    seen = []

    def run():
        with Signals() as entered:
            seen.append((signal.getsignal(signal.SIGUSR1), entered.take()))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [(before, (False, False))]


def test_an_interrupt_waits_for_what_must_not_be_cut() -> None:
    done = []
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        os.kill(os.getpid(), signal.SIGINT)
        done.append("whole")
    assert done == ["whole"]
    assert signal.getsignal(signal.SIGINT) == before
    with Signals() as signals:
        with uninterrupted():
            os.kill(os.getpid(), signal.SIGINT)
            assert signals.last == ""
        assert signals.take() == (True, True)


def test_a_second_interrupt_waits_for_what_must_not_be_cut(
    received: Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(signals.time, "monotonic", lambda: now)
    with received.uninterrupted():
        os.kill(os.getpid(), signal.SIGINT)
    assert received.take() == (True, True)
    now += 2 * signals.REPEAT_S
    done = []
    with pytest.raises(KeyboardInterrupt), received.uninterrupted():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # delivered by terminal and launcher
        done.append("whole")
    assert done == ["whole"]
    with received.uninterrupted():
        done.append("another")  # what came before is not told twice


def test_where_nobody_has_entered_an_interrupt_waits_too() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), Signals().uninterrupted():
        os.kill(os.getpid(), signal.SIGINT)
        done.append("whole")
    assert done == ["whole"]
