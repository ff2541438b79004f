"""Handlers of Ctrl-C, SIGTERM and SIGHUP (the terminal or the ssh session is gone) during training."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from qfleet.run.progress import discard_output
from qfleet.run.run import Run


class Signals:
    """Makes Ctrl-C, SIGTERM and SIGHUP end the run after a last checkpoint; signals after the first are ignored.

    A SIGHUP that was ignored at the start stays ignored: the run was started by nohup, and must go on.

    signals = Signals()
    signals.catch(run)
    signals.release()  # once the run is closed, also after an error
    """

    def __init__(self) -> None:
        self._run: Run | None = None
        self._old: dict[int, Any] = {}
        self._terminals = [stream for stream in (sys.stdout, sys.stderr) if stream is not None and stream.isatty()]

    def catch(self, run: Run) -> None:
        """Install the handlers; call it again after Ray has installed its own. Does nothing outside the main thread."""
        self._run = run
        if threading.current_thread() is not threading.main_thread():
            return  # Python allows handlers in the main thread only
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue
            previous = signal.signal(number, self._handle)
            self._old.setdefault(number, previous)

    def release(self) -> None:
        """Restore the handlers from before the first `catch`."""
        for number, previous in self._old.items():
            signal.signal(number, previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        for stream in self._terminals:
            if not stream.isatty():  # the terminal is gone; a write would now raise OSError
                discard_output(stream)
        if self._run is not None and self._run.interrupted_by is None:
            self._run.interrupted_by = number
            with contextlib.suppress(OSError):  # standard error is closed
                os.write(2, b"\nstopping: writing a last checkpoint ...\n")


@contextlib.contextmanager
def hangup_blocked() -> Iterator[None]:
    """Context manager in which SIGHUP waits. Processes that are started in it never get one.

    A dropped ssh session sends SIGHUP to all processes of the command. A local Ray must survive it, because the run
    needs it for the last checkpoint; it ends with the run.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
