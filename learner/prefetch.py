"""Sampling and preparing the next batches in a thread while the learner makes updates."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from learner.batch import Batch
from rl.ports import BatchSource
from rl.types import SampledBatch

Prefetched = tuple[SampledBatch, Batch]
Prepare = Callable[[SampledBatch], Batch]


class Prefetcher:
    """Samples batches from ``source`` and prepares them in a background thread.

        batches = Prefetcher(source, updater.prepare)
        prefetched = batches.get(timeout=1.0)  # (sampled, batch), or None
        batches.close()

    The queue holds up to ``depth`` prepared batches; the thread holds one more.
    """

    def __init__(self, source: BatchSource, prepare: Prepare, depth: int = 2) -> None:
        self._source, self._prepare = source, prepare
        self._queue: queue.Queue[Prefetched] = queue.Queue(maxsize=depth)
        self._stopping = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                sampled = self._source.sample(timeout=0.5)
                if sampled is not None:
                    self._enqueue((sampled, self._prepare(sampled)))
        except Exception as error:  # raised by `get`
            self._failure = error

    def _enqueue(self, item: Prefetched) -> None:
        """Put ``item`` into the queue, unless `close` is called before there is room."""
        while not self._stopping.is_set():
            try:
                return self._queue.put(item, timeout=0.5)
            except queue.Full:
                continue

    def get(self, timeout: float) -> Prefetched | None:
        """(sampled batch, prepared batch), or None if there is none within ``timeout`` seconds.

        Raises what the source or ``prepare`` has raised, after all earlier batches were returned.
        """
        try:
            return self._queue.get(timeout=timeout)
        except queue.Empty:
            if self._failure is not None:
                raise self._failure from None
            return None

    def close(self) -> None:
        """Stop the thread. The source stays open."""
        self._stopping.set()
        self._thread.join(timeout=5.0)


class SynchronousBatches:
    """The interface of `Prefetcher` without a thread, for serial mode. `get` samples and prepares a batch."""

    def __init__(self, source: BatchSource, prepare: Prepare) -> None:
        self._source, self._prepare = source, prepare

    def get(self, timeout: float) -> Prefetched | None:
        """(sampled batch, prepared batch), or None if none may be sampled within ``timeout`` seconds.

        Raises RunFault if the source failed.
        """
        sampled = self._source.sample(timeout)
        return None if sampled is None else (sampled, self._prepare(sampled))

    def close(self) -> None:
        """Do nothing: there is no thread to stop."""
