"""Protocols between the components. Actors and learner depend on these and not on each other.

"Replay has failed" means that retrying is useless: for example, every shard is gone, or one rejected a request.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from rl.types import Array, Bool, Int64, ObservationSpec, SampledBatch, Segment, Step

Weights = Mapping[str, Array]


@dataclass(frozen=True, eq=False)
class Publication:
    """One broadcast of the learner: the weights to act with, and the target network's weights if they changed."""

    version: int  # counts publications, from 1
    updates: int  # learner updates made before this publication
    weights: Weights
    target_version: int  # version of the first publication with these target weights
    target_weights: Weights | None  # None if the reader already has the weights of this target_version


class SegmentSink(Protocol):
    """Where an actor writes its experience."""

    def write(self, segment: Segment) -> None:
        """Write a segment. Blocks while replay may not accept it. Raises RunFault if replay has failed."""

    def flush(self, timeout: float) -> None:
        """Wait up to ``timeout`` seconds until every written segment is acknowledged.

        Raises TimeoutError with what is still in flight, and RunFault if replay has failed.
        """

    def close(self) -> None:
        """Release connections and threads. Segments that are still in flight may be lost; call `flush` first."""


class BatchSource(Protocol):
    """Where the learner gets its batches."""

    def sample(self, timeout: float) -> SampledBatch | None:
        """The next batch, or None if none may be sampled within ``timeout`` seconds.

        Raises RunFault if replay has failed.
        """

    def update_priorities(self, batch: SampledBatch, td_abs: Array) -> None:
        """Report |TD error| [B] of the items of a batch. Items evicted in the meantime are skipped and counted."""

    def stats(self) -> Mapping[str, float]:
        """The newest known counts of the replay by name: stored, inserted and sampled items, ..."""

    def get_state(self) -> Mapping[str, int]:
        """The source's state for a checkpoint: ``drawn``, the number of batches returned so far."""

    def set_state(self, state: Mapping[str, int]) -> None:
        """Restore a state from `get_state`."""

    def close(self) -> None:
        """Release connections and threads."""


class WeightSource(Protocol):
    """Where actors get newer weights."""

    def poll(self) -> Publication | None:
        """A publication newer than the last one returned, or None if there is none yet. Never blocks."""


class WeightSink(Protocol):
    """Where the learner publishes its weights."""

    def publish(self, publication: Publication) -> None:
        """Publish without waiting for the readers."""


class MetricSink(Protocol):
    """Where a component reports its metrics."""

    def report(self, metrics: Mapping[str, Any]) -> None:
        """Report the newest values of metrics, by name."""


class Environments(Protocol):
    """N environments that are stepped together.

        observation = environments.reset(seeds)
        step = environments.step(actions)
        if step.done.any():
            observation = environments.restart(step.done, new_seeds)

    A method never writes to an array that it returned before.
    """

    count: int  # N
    actions: int  # number of actions, or dimensions of an action if actions are continuous
    spec: ObservationSpec

    def reset(self, seeds: Int64) -> Array:
        """Start an episode in every environment with ``seeds`` [N]; returns observations [N, *observation]."""

    def step(self, actions: Array) -> Step:
        """Take ``actions`` [N], or [N, D] if they are continuous; returns the results of the step, arrays [N, ...].

        An environment whose episode is done must be restarted before the next step.
        """

    def restart(self, mask: Bool, seeds: Int64) -> Array:
        """Start a new episode where ``mask`` [N] is True, with ``seeds`` [sum(mask)].

        Returns the current observations of all environments, [N, *observation].
        """

    def close(self) -> None:
        """Close the environments."""
