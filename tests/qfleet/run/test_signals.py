"""Signals during training. tests/integration/test_closed_pipe.py sends them to whole runs."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from qfleet.run.signals import Signals, hangup_blocked


class Interrupted:
    interrupted_by = None


@pytest.fixture
def hangup():
    """``hangup(handler)`` installs a handler of SIGHUP for the test."""
    old = signal.getsignal(signal.SIGHUP)
    yield lambda handler: signal.signal(signal.SIGHUP, handler)
    signal.signal(signal.SIGHUP, old)


@pytest.mark.parametrize(("number", "second"), [(signal.SIGTERM, signal.SIGHUP), (signal.SIGHUP, signal.SIGINT)])
def test_the_first_signal_ends_the_run_and_later_ones_are_ignored(number, second, capfd):
    run = Interrupted()
    signals = Signals()
    before = [signal.getsignal(n) for n in (number, second)]
    signals.catch(run)
    try:
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), second)
    finally:
        signals.release()
    assert run.interrupted_by == number
    assert capfd.readouterr().err == "\nstopping: writing a last checkpoint ...\n"
    assert [signal.getsignal(n) for n in (number, second)] == before


def test_a_run_under_nohup_ignores_that_its_terminal_is_gone(hangup):
    hangup(signal.SIG_IGN)
    run = Interrupted()
    signals = Signals()
    signals.catch(run)
    try:
        os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signals.release()
    assert run.interrupted_by is None
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_a_hangup_waits_while_it_is_blocked(hangup):
    seen = []
    hangup(lambda number, frame: seen.append(number))
    with hangup_blocked():
        # A signal to the process would go to another thread of it, if there is one.
        signal.pthread_kill(threading.main_thread().ident, signal.SIGHUP)
        assert not seen
    assert seen == [signal.SIGHUP]
