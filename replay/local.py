"""Replay in the learner's process, for serial mode: the same shard, codec and limiter as the service, without gRPC."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from protos.codec import pack_segment, unpack_draw
from protos.frames import check_unpacked
from replay.importance_weights import BetaConfig, importance_weights
from replay.rate_limiter import RateLimiter
from replay.store.shard import Shard
from rl.types import Array, SampledBatch, Segment


class LocalReplay:
    """`SegmentSink` and `BatchSource` for one shard in this process.

    if replay.may_insert():
        replay.write(segment)
    batch = replay.sample(timeout=0.0)  # None if the limiter does not allow a batch
    replay.update_priorities(batch, td_abs)
    """

    def __init__(self, shard: Shard, limiter: RateLimiter, beta: BetaConfig) -> None:
        self.shard, self._limiter, self._beta = shard, limiter, beta
        self._sequence = 0
        self.drawn = 0  # batches

    def may_insert(self) -> bool:
        """Return whether the limiter allows inserting a segment of the largest size now."""
        s = self.shard
        return self._limiter.can_insert(s.inserted, s.sampled, s.storage.size, self._limiter.max_insert)

    def write(self, segment: Segment) -> None:
        """Store a segment, whatever the limiter allows. Raises InvalidMessage if it violates the specification."""
        check_unpacked(segment.frames, len(segment.actions), self.shard.spec)
        packed = pack_segment(segment)
        self.shard.check(packed, trusted=True)  # frames were packed just now
        self._sequence += 1
        self.shard.insert("local", self._sequence, packed)

    def flush(self, timeout: float) -> None:
        """Do nothing: `write` stores each segment before it returns."""

    def sample(self, timeout: float) -> SampledBatch | None:
        """Return the next batch, or None if the limiter forbids it; never waits.

        Raises RunFault if replay evicts items before it holds min_size.
        """
        shard, batch = self.shard, self._limiter.batch
        self._limiter.check_min_size_reachable(shard.inserted, shard.storage.size)
        if not self._limiter.can_sample(shard.inserted, shard.sampled, shard.storage.size, batch):
            return None
        transitions, keys, probability = unpack_draw(shard.sample([batch]), shard.spec)
        beta = self._beta.at(self.drawn)
        self.drawn += 1
        weights = importance_weights(probability, beta)
        return SampledBatch(transitions, keys, np.zeros(batch, np.int64), weights)

    def update_priorities(self, batch: SampledBatch, td_abs: Array) -> None:
        """Set |TD error| [B] of the batch's items that are still stored.

        Raises InvalidMessage if a value is negative or not finite.
        """
        self.shard.update_priorities(batch.keys, np.asarray(td_abs, np.float32))

    def stats(self) -> Mapping[str, float]:
        """Return the shard's ``inserted``, ``sampled`` and ``stored`` items, and ``bytes`` of compressed frames."""
        counts = self.shard.counts()
        return {name: float(getattr(counts, name)) for name in ("inserted", "sampled", "stored", "bytes")}

    def get_state(self) -> Mapping[str, int]:
        """Return ``drawn``, the number of batches returned so far, over which beta is annealed."""
        return {"drawn": self.drawn}

    def set_state(self, state: Mapping[str, int]) -> None:
        """Inverse of `get_state`."""
        self.drawn = int(state["drawn"])

    def close(self) -> None:
        """Do nothing: there is nothing to release."""
