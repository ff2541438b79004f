"""A thread that decodes and copies the next batches while the learner trains on the last one."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from learner.update import Batch
from rl.errors import RunFault
from rl.ports import BatchSource
from rl.types import SampledBatch

Prefetched = tuple[SampledBatch, Batch]
Prepare = Callable[[SampledBatch], Batch]


class Prefetcher:
    """Batches of ``source``, each prepared by ``prepare`` in a thread of its own, up to ``depth`` ahead."""

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
                    self._offer((sampled, self._prepare(sampled)))
        except Exception as error:  # handed to the consumer
            self._failure = error

    def _offer(self, item: Prefetched) -> None:
        while not self._stopping.is_set():
            try:
                return self._queue.put(item, timeout=0.5)
            except queue.Full:
                continue

    def get(self, timeout: float) -> Prefetched | None:
        """The next sampled batch and its prepared form, or None after ``timeout`` seconds.

        Raises RunFault when the source or ``prepare`` failed.
        """
        try:
            return self._queue.get(timeout=timeout)
        except queue.Empty:
            if self._failure is not None:
                if isinstance(self._failure, RunFault):
                    raise self._failure from None
                raise RunFault(f"preparing a batch failed: {self._failure!r}") from self._failure
            return None

    def close(self) -> None:
        """Stop the thread; the source stays open."""
        self._stopping.set()
        self._thread.join(timeout=5.0)


class SynchronousBatches:
    """The same interface without a thread, for serial mode: a batch is drawn when it is asked for."""

    def __init__(self, source: BatchSource, prepare: Prepare) -> None:
        self._source, self._prepare = source, prepare

    def get(self, timeout: float) -> Prefetched | None:
        """The next sampled batch and its prepared form, or None when replay may not be sampled (yet).

        ``timeout`` is in seconds. Raises RunFault when the source failed.
        """
        sampled = self._source.sample(timeout)
        return None if sampled is None else (sampled, self._prepare(sampled))

    def close(self) -> None:
        """Do nothing: there is no thread to stop."""
