"""Handlers of Ctrl-C and SIGTERM during training."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from types import FrameType
from typing import Any

from qfleet.run.run import Run


class Signals:
    """Makes Ctrl-C and SIGTERM end the run after a last checkpoint; signals after the first are ignored.

    signals = Signals(run)
    signals.catch()
    signals.release()  # after training, also after an error
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._old: dict[int, Any] = {}

    def catch(self) -> None:
        """Install the handlers; call it again after Ray has installed its own. Does nothing outside the main thread."""
        if threading.current_thread() is not threading.main_thread():
            return  # Python allows handlers in the main thread only
        for number in (signal.SIGINT, signal.SIGTERM):
            previous = signal.signal(number, self._handle)
            self._old.setdefault(number, previous)

    def release(self) -> None:
        """Restore the handlers from before the first `catch`."""
        for number, previous in self._old.items():
            signal.signal(number, previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self._run.interrupted_by is None:
            self._run.interrupted_by = number
            with contextlib.suppress(OSError):  # standard error is closed
                os.write(2, b"\nstopping: writing a last checkpoint ...\n")
