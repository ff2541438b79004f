"""The replay's two ports in process, for serial mode: the same shard, codec and limiter, and no socket."""

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
    """One shard behind `SegmentSink` and `BatchSource`."""

    def __init__(self, shard: Shard, limiter: RateLimiter, beta: BetaConfig) -> None:
        self.shard, self._limiter, self._beta = shard, limiter, beta
        self._sequence = 0
        self.drawn = 0  # batches

    def may_insert(self) -> bool:
        """Whether a whole segment may be inserted now; the serial loop asks before it acts."""
        s = self.shard
        return self._limiter.can_insert(s.inserted, s.sampled, s.storage.size, self._limiter.max_insert)

    def write(self, segment: Segment) -> None:
        """Store a segment. Raises InvalidMessage where it contradicts the specification."""
        check_unpacked(segment.frames, len(segment.actions), self.shard.spec)
        packed = pack_segment(segment)
        self.shard.check(packed, trusted=True)  # its frames were packed just now
        self._sequence += 1
        self.shard.insert("local", self._sequence, packed)

    def flush(self, timeout: float) -> None:
        """Nothing is ever in flight."""

    def sample(self, timeout: float) -> SampledBatch | None:
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
        self.shard.update_priorities(batch.keys, np.asarray(td_abs, np.float32))

    def stats(self) -> Mapping[str, float]:
        counts = self.shard.counts()
        return {name: float(getattr(counts, name)) for name in ("inserted", "sampled", "stored", "bytes")}

    def get_state(self) -> Mapping[str, int]:
        return {"drawn": self.drawn}

    def set_state(self, state: Mapping[str, int]) -> None:
        self.drawn = int(state["drawn"])

    def close(self) -> None:
        """Nothing to release."""
