"""Ctrl-C and SIGTERM while a run trains."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from types import FrameType
from typing import Any

from qfleet.run.run import Run


class Signals:
    """Makes Ctrl-C and SIGTERM end the run in order: the first one asks for the end, further ones change nothing.

    Use:

        signals = Signals(run)
        signals.catch()
        signals.release()  # after training, whatever ended it
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._old: dict[int, Any] = {}

    def catch(self) -> None:
        """Handle the signals from now on (again after Ray has set its own handlers); only in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            return  # the caller handles signals
        for number in (signal.SIGINT, signal.SIGTERM):
            previous = signal.signal(number, self._handle)
            self._old.setdefault(number, previous)

    def release(self) -> None:
        """Restore the handlers of before."""
        for number, previous in self._old.items():
            signal.signal(number, previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self._run.interrupted_by is None:
            self._run.interrupted_by = number
            with contextlib.suppress(OSError):  # the reader of standard error is gone
                os.write(2, b"\nstopping: writing a last checkpoint ...\n")
