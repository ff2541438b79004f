"""A batch source and sinks that cost nothing, to measure a learner without replay and actors."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from benchmarks.measure import PONG_ACTIONS, PONG_SPEC
from rl.types import SampledBatch, Segment, TransitionBatch


class DiscardingSink:
    """A sink that discards segments, metrics and weights."""

    def write(self, segment: Segment) -> None:
        """Discard the segment."""
        del segment

    def publish(self, publication: object) -> None:
        """Discard the publication."""
        del publication

    def report(self, metrics: object) -> None:
        """Discard the metrics."""
        del metrics

    def flush(self, timeout: float) -> None:
        """Do nothing."""
        del timeout

    def close(self) -> None:
        """Do nothing."""
        pass


class SameBatchSource:
    """A `BatchSource` that always returns the same batch, without waiting: ``size`` transitions of random pixels."""

    def __init__(self, size: int) -> None:
        rng = np.random.default_rng(0)
        pixels = [rng.integers(0, 255, (size, *PONG_SPEC.shape), dtype=np.uint8) for _ in range(2)]
        ones, keys = np.ones(size, np.float32), np.arange(size)
        transition = TransitionBatch(pixels[0], rng.integers(0, PONG_ACTIONS, size), 0 * ones, 0.97 * ones, pixels[1])
        self._batch = SampledBatch(transition, keys.astype(np.uint64), 0 * keys, ones)

    def sample(self, timeout: float) -> SampledBatch:
        """Return the batch."""
        del timeout
        return self._batch

    def update_priorities(self, batch: SampledBatch, td_abs: object) -> None:
        """Ignore the |TD errors| [B]."""
        del batch, td_abs

    def stats(self) -> dict[str, float]:
        """Return {}."""
        return {}

    def get_state(self) -> dict[str, int]:
        """Return {}."""
        return {}

    def set_state(self, state: Mapping[str, int]) -> None:
        """Ignore the state."""
        del state

    def close(self) -> None:
        """Do nothing."""
        pass
