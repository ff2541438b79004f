"""The replay's two ports in process, for serial mode: the same shard, codec and limiter, without a socket."""

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
    """One shard behind `SegmentSink` and `BatchSource`.

    if replay.may_insert():
        replay.write(segment)
    batch = replay.sample(timeout=0.0)  # then `update_priorities`; None where replay may not be sampled yet
    """

    def __init__(self, shard: Shard, limiter: RateLimiter, beta: BetaConfig) -> None:
        self.shard, self._limiter, self._beta = shard, limiter, beta
        self._sequence = 0
        self.drawn = 0  # batches

    def may_insert(self) -> bool:
        """Whether a segment of the largest size may be inserted now; the serial loop asks before it acts."""
        s = self.shard
        return self._limiter.can_insert(s.inserted, s.sampled, s.storage.size, self._limiter.max_insert)

    def write(self, segment: Segment) -> None:
        """Store a segment at once. Raises InvalidMessage where it contradicts the specification."""
        check_unpacked(segment.frames, len(segment.actions), self.shard.spec)
        packed = pack_segment(segment)
        self.shard.check(packed, trusted=True)  # its frames were packed just now
        self._sequence += 1
        self.shard.insert("local", self._sequence, packed)

    def flush(self, timeout: float) -> None:
        """Return at once: nothing is ever in flight."""

    def sample(self, timeout: float) -> SampledBatch | None:
        """The next batch, or None at once when the limiter forbids it.

        Raises RunFault when replay evicts items before it holds min_size.
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

        Raises InvalidMessage when one is not finite.
        """
        self.shard.update_priorities(batch.keys, np.asarray(td_abs, np.float32))

    def stats(self) -> Mapping[str, float]:
        """Items inserted, sampled and stored, and bytes of compressed frames, by name."""
        counts = self.shard.counts()
        return {name: float(getattr(counts, name)) for name in ("inserted", "sampled", "stored", "bytes")}

    def get_state(self) -> Mapping[str, int]:
        """``drawn``: the batches returned so far, over which beta is annealed."""
        return {"drawn": self.drawn}

    def set_state(self, state: Mapping[str, int]) -> None:
        """Inverse of `get_state`."""
        self.drawn = int(state["drawn"])

    def close(self) -> None:
        """Do nothing: there is nothing to release."""
