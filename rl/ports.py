"""The Protocols between the parts; actors and learner know these and never each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from rl.types import Array, Bool, Int64, ObservationSpec, SampledBatch, Segment, Step

Weights = Mapping[str, Array]


@dataclass(frozen=True, eq=False)
class Publication:
    """One broadcast of the learner: its weights, and the target's when they changed since the reader's version."""

    version: int  # counts publications, from 1
    updates: int  # learner updates behind these weights
    weights: Weights
    target_version: int  # counts target syncs
    target_weights: Weights | None


class SegmentSink(Protocol):
    """Where an actor writes its experience."""

    def write(self, segment: Segment) -> None:
        """Take the segment; blocks while replay has no room for it. Raises RunFault when replay is gone."""

    def flush(self, timeout: float) -> None:
        """Wait up to ``timeout`` seconds until everything written is acknowledged.

        Raises TimeoutError, saying what is still in flight, and RunFault when replay is gone.
        """

    def close(self) -> None:
        """Release connections and threads; what is still in flight may be lost."""


class BatchSource(Protocol):
    """Where the learner gets its batches."""

    def sample(self, timeout: float) -> SampledBatch | None:
        """The next batch, or None when replay may not be sampled within ``timeout`` seconds.

        Raises RunFault when replay is gone.
        """

    def update_priorities(self, batch: SampledBatch, td_abs: Array) -> None:
        """Report |TD error| [B] of a batch's items. Errors of items evicted in the meantime are dropped and counted."""

    def stats(self) -> Mapping[str, float]:
        """Counts of the replay as last seen, by name: stored, inserted and sampled items, ..."""

    def get_state(self) -> Mapping[str, int]:
        """The source's part of a checkpoint: ``drawn``, the batches returned so far."""

    def set_state(self, state: Mapping[str, int]) -> None:
        """Inverse of `get_state`: continue from there."""

    def close(self) -> None:
        """Release connections and threads."""


class WeightSource(Protocol):
    """Where actors find newer weights."""

    def poll(self) -> Publication | None:
        """A publication newer than the last one returned, or None; never blocks."""


class WeightSink(Protocol):
    """Where the learner publishes its weights."""

    def publish(self, publication: Publication) -> None:
        """Hand ``publication`` over without waiting for its readers."""


class MetricSink(Protocol):
    """Where a component reports its metrics."""

    def report(self, metrics: Mapping[str, Any]) -> None:
        """Take the newest value of each named metric."""


class Environments(Protocol):
    """N environments that step together; ``actions`` is the number of actions, or of their dimensions where continuous.

    Arrays that a method returned belong to the caller: they are never written again.
    """

    count: int
    actions: int
    spec: ObservationSpec

    def reset(self, seeds: Int64) -> Array:
        """Begin an episode in every environment from seeds [N]; returns observations [N, *observation]."""

    def step(self, actions: Array) -> Step:
        """Act with actions [N], or [N, D] where they are continuous; returns what followed, arrays [N, ...].

        An environment that is done must be restarted before it steps again.
        """

    def restart(self, mask: Bool, seeds: Int64) -> Array:
        """Begin a new episode where ``mask`` [N], from seeds [sum(mask)]; returns all current observations [N, ...]."""

    def close(self) -> None:
        """Release the emulators."""
