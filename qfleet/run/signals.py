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
    """While open, Ctrl-C and SIGTERM end the run in order: the first one asks, further ones change nothing."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._old: dict[int, Any] = {}

    def catch(self) -> None:
        """Take the signals over (again after Ray, which sets handlers of its own)."""
        if threading.current_thread() is not threading.main_thread():
            return  # the caller handles signals
        for number in (signal.SIGINT, signal.SIGTERM):
            previous = signal.signal(number, self._handle)
            self._old.setdefault(number, previous)

    def release(self) -> None:
        """Put the old handlers back."""
        for number, previous in self._old.items():
            signal.signal(number, previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self._run.interrupted_by is None:
            self._run.interrupted_by = number
            with contextlib.suppress(OSError):  # nobody reads standard error any more
                os.write(2, b"\nstopping: writing a last checkpoint ...\n")
