"""A batch in equal parts, each worked on by a thread of its own.

An operation that torch spreads over cores by itself ends at a barrier, and an update has some sixty of them: where the
cores are shared with actors and shards, each waits for a thread that another process holds up. One part a thread meets
once an update instead.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")


class Parts:
    """Up to ``threads`` contiguous parts of a batch; torch's own threads are 1 in each."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._pool: ThreadPoolExecutor | None = None
        if threads > 1:
            self._pool = ThreadPoolExecutor(threads - 1, "part", initializer=lambda: torch.set_num_threads(1))

    def map(self, body: Callable[[slice], T], size: int) -> list[T]:
        """``body`` of each part of 0..size, in order; the caller's thread works on the first."""
        count = max(1, min(self.threads, size))
        edges = [size * i // count for i in range(count + 1)]
        first, *others = (slice(a, b) for a, b in itertools.pairwise(edges))
        if self._pool is None:
            return [body(first)]
        waiting = [self._pool.submit(body, part) for part in others]
        return [body(first), *(future.result() for future in waiting)]
