"""Writes scalars for TensorBoard, without the thread of tensorboardX's own writer, which ends when a disk is full."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2
from tensorboardX.summary import scalar

_NUMBERS = itertools.count()  # of the files that this process has written


class BoardFile:
    """A file of events in ``folder``.

        board = BoardFile(folder)
        board.add({"train/loss": 0.1}, 100)
        board.close()

    TensorBoard hides the points of earlier files in the folder from ``purge_step`` on.
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._writer: EventsWriter | None = None  # None before the first event, and after a failure
        self._purge_step = purge_step

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Add a point at ``step`` to each curve in ``values``. Raises OSError; what has failed is not written later."""
        try:
            if self._writer is None:
                suffix = f".{os.getpid()}-{next(_NUMBERS)}"  # two in one second must not share a file
                self._writer = EventsWriter(str(self._folder / "events"), suffix)
            if self._purge_step is not None:
                start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
                self._write(event_pb2.Event(session_log=start, step=self._purge_step))
            for name, value in values.items():
                self._write(event_pb2.Event(summary=scalar(name, value), step=step))
            self._writer.flush()
            self._purge_step = None
        except OSError:
            self.close()  # its file may end with a part of an event, so another one follows
            raise

    def _write(self, event: event_pb2.Event) -> None:
        assert self._writer is not None
        event.wall_time = time.time()
        self._writer.write_event(event)

    def close(self) -> None:
        """Close the file. Never raises: each `add` has flushed it."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with contextlib.suppress(OSError):
                writer.close()
