"""Writes to a run's directory that may fail, because a disk is full or read-only: the run goes on and tries again."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator

REMIND_AFTER = 300.0  # seconds to the next warning while writes go on failing


class Writes:
    """Keeps account of the files that could not be written.

        writes = Writes("runs/pong", progress.note)
        with writes.attempt("status.json"):  # suppresses OSError; it is written again each time anyway
            directory.write_status(figures)
        writes.failing()  # "status.json (No space left on device)", or "" when the last attempt of each file succeeded

    ``where`` is the directory, for messages. ``note`` gets a line when writes begin to fail, and one when all work again;
    warnings are at least REMIND_AFTER seconds apart.
    """

    def __init__(self, where: str, note: Callable[[str], None]) -> None:
        self._where, self._note = where, note
        self._faults: dict[str, str] = {}  # the reason of each file's last failure
        self._since, self._remind_at = 0.0, -math.inf  # times
        self._is_told = False  # whether the user knows of the present failures

    @contextlib.contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Context manager for a write of the file or folder ``what``, which suppresses OSError."""
        try:
            yield
        except OSError as error:
            self._failed(what, error)
        else:
            self._succeeded(what)

    def _failed(self, what: str, error: OSError) -> None:
        now = time.monotonic()
        if not self._faults:
            self._since = now
        self._faults[what] = error.strerror or " ".join(str(error).split())
        if now >= self._remind_at:
            self._remind_at, self._is_told = now + REMIND_AFTER, True
            self._note(f"warning: {self._where}: {self.failing()} cannot be written; the run goes on, and tries again")

    def _succeeded(self, what: str) -> None:
        if self._faults.pop(what, None) is not None and not self._faults and self._is_told:
            self._is_told = False
            self._note(f"{self._where} is written again, after {time.monotonic() - self._since:.0f} s")

    def failing(self) -> str:
        """The files whose last attempt failed, with the last reason; "" if there are none."""
        if not self._faults:
            return ""
        return f"{', '.join(self._faults)} ({list(self._faults.values())[-1]})"
