"""The sampler: batches out of all shards as out of one buffer, several in hand, and insert credit in return.

A batch of B is drawn by first drawing how many items come from each shard (multinomial in proportion to the shards'
totals) and then asking each shard for its part. With share_k the proportion used and p_i / T_k as the shard returned it,
P(i) = share_k * p_i / T_k. Small batches share a message: up to half of what is in hand. Counts ride on every reply; the
limiter judges their sum, and each request carries the shard's cumulative insert credit.
"""

from __future__ import annotations

import functools
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from protos import replay_pb2 as pb
from protos.codec import InvalidMessage, unpack_samples
from replay.draws import DrawStream, Part, Plan
from replay.links import Link, all_gone
from replay.rate_limiter import RateLimiter
from replay.weights import BetaConfig, importance_weights
from rl.errors import RunFault
from rl.types import Array, Float64, ObservationSpec, SampledBatch, Transition

LOOK_EVERY = 0.1  # seconds between looks at all shards' counts while sampling, those that are not drawn from included
POLL_FROM, POLL_TO = 0.001, 0.02  # seconds between looks at the counts while replay may not be sampled, doubling
TOGETHER = 16 * 2**20  # bytes that the batches of a message may unpack to, so that the allocator reuses the room
UPDATES_IN_FLIGHT = 64  # priority updates not yet answered, over all shards


class Sampler:
    """`BatchSource` over gRPC, for one consuming thread. Pickling is refused: a learner builds its own.

    A process that does little else does well to call `rl.memory.keep_freed_memory` first.
    """

    def __init__(
        self,
        addresses: list[str],
        spec: ObservationSpec,
        limiter: RateLimiter,
        beta: BetaConfig,
        prefetch: int = 4,
        give_up_after: float = 60.0,
        seed: int = 0,
    ) -> None:
        self._spec, self._limiter, self._beta, self._prefetch = spec, limiter, beta, prefetch
        batch_bytes = 2 * spec.stack * spec.frame_bytes * limiter.batch
        self._together = max(1, min(prefetch // 2, TOGETHER // batch_bytes))  # batches in a message
        self._streams = [DrawStream(i, Link(a, give_up_after)) for i, a in enumerate(addresses)]
        self._plans: deque[Plan] = deque()  # asked for
        self._decoding: Iterator[SampledBatch] = iter(())  # batches that are there, each unpacked when it is asked for
        self._undecoded = 0  # how many
        self._pause = POLL_FROM
        self._looked = 0.0
        self._rng = np.random.default_rng(seed)
        self._updates = threading.BoundedSemaphore(UPDATES_IN_FLIGHT)
        self.drawn = 0  # batches returned, over the run
        self.lost_updates = 0  # priority updates that no shard took

    def sample(self, timeout: float) -> SampledBatch | None:
        """The next batch, decoded; None when replay may not be sampled within ``timeout`` seconds. Raises RunFault."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            self._check()
            self._fill()
            if (batch := next(self._decoding, None)) is not None:
                self._undecoded -= 1
                return batch
            if not self._plans:
                self._poll()
            elif self._plans[0].event.wait(timeout=max(0.0, deadline - time.monotonic())):
                self._decode(self._plans.popleft())
        return None

    def _totals(self) -> Float64:
        reached = [s.counts.total_priority if s.reached and not s.link.gone else 0.0 for s in self._streams]
        return np.asarray(reached, np.float64)

    def _fill(self) -> None:
        """Ask for batches until ``prefetch`` are in hand or the limiter forbids another."""
        size, most = self._limiter.batch, self._together
        while True:
            asked = sum(plan.items for plan in self._plans)
            room = self._prefetch - self._undecoded - asked // size
            totals = self._totals()
            if room < most or totals.sum() <= 0:
                return
            inserted, sampled, stored = self._sums()
            allowed = 0
            while allowed < most and self._limiter.can_sample(inserted, sampled + asked + allowed * size, stored, size):
                allowed += 1
            if allowed == 0:
                return
            shares = totals / totals.sum()
            self._pause = POLL_FROM
            draws = self._rng.multinomial(size, shares, size=allowed).T
            self._send(Plan({k: Part(n.tolist(), float(shares[k])) for k, n in enumerate(draws) if n.any()}))

    def _send(self, plan: Plan) -> None:
        self._plans.append(plan)
        if time.monotonic() - self._looked >= LOOK_EVERY:  # news of every shard, and credit for it
            self._looked = time.monotonic()
            for stream in self._streams:
                if not stream.link.gone:
                    plan.parts.setdefault(stream.index, Part([], 0.0))
        credits = self._credits()
        for index, part in list(plan.parts.items()):
            self._streams[index].ask(plan, part, credits[index])

    def _poll(self) -> None:
        """Ask every shard for its counts and grant what may be granted; waits a moment."""
        credits = self._credits()
        plan = Plan({s.index: Part([], 0.0) for s in self._streams if not s.link.gone})
        for index, part in list(plan.parts.items()):
            self._streams[index].ask(plan, part, credits[index])
        plan.event.wait(timeout=1.0)
        time.sleep(self._pause)
        self._pause = min(self._pause * 2, POLL_TO)

    def _sums(self) -> tuple[int, int, int]:
        counts = [s.counts for s in self._streams]
        stored = sum(s.counts.stored for s in self._streams if not s.link.gone)
        return sum(c.inserted for c in counts), sum(c.sampled for c in counts), stored

    def _credits(self) -> list[int]:
        """New cumulative credit by shard. A shard that is gone gets none, its counts stay in the sums."""
        inserted, sampled, stored = self._sums()
        alive = [s for s in self._streams if not s.link.gone]
        if not alive:
            return [0] * len(self._streams)
        gone = inserted - sum(s.counts.inserted for s in alive)
        sampled = sampled - round(self._limiter.sigma * gone)
        grants = self._limiter.grants([s.counts.inserted for s in alive], [s.granted for s in alive], sampled, stored)
        for stream, grant in zip(alive, grants, strict=True):
            stream.granted = grant
        return [s.granted for s in self._streams]

    def _decode(self, plan: Plan) -> None:
        """Go on to the plan's batches; to none when a part of it was lost: they are drawn afresh."""
        drawn = {index: part for index, part in plan.parts.items() if any(part.counts)}
        if all(part.whole for part in drawn.values()):
            self._decoding = map(self._merge, zip(*(self._unpack(k, part) for k, part in drawn.items()), strict=True))
            self._undecoded = plan.items // self._limiter.batch

    def _unpack(self, index: int, part: Part) -> Iterator[tuple[Array, ...]]:
        """A shard's columns for each batch of a plan: the transition's, then keys, shard and probability."""
        assert part.reply is not None
        try:
            for transition, keys, probability in unpack_samples(part.reply, part.counts, self._spec):
                yield *transition, keys, np.full(len(keys), index, np.int64), part.share * probability
        except InvalidMessage as error:
            raise RunFault(f"replay shard {self._streams[index].link.address} sent a broken reply: {error}") from error

    def _merge(self, pieces: Sequence[tuple[Array, ...]]) -> SampledBatch:
        """A batch out of its shards' columns."""
        columns = list(zip(*(piece for piece in pieces if len(piece[-1])), strict=True))
        merged = [column[0] if len(column) == 1 else np.concatenate(column) for column in columns]
        *transition, keys, shards, probability = merged
        weights = importance_weights(probability, self._sums()[2], self._beta.at(self.drawn))
        self.drawn += 1
        return SampledBatch(Transition(*transition), keys, shards, weights)

    def update_priorities(self, batch: SampledBatch, td_abs: Array) -> None:
        """Send |TD error| [B] to the shards without waiting for answers; at most UPDATES_IN_FLIGHT are outstanding."""
        td = np.asarray(td_abs, "<f4")
        for index in np.unique(batch.shards).tolist():
            link, own = self._streams[index].link, batch.shards == index
            if link.gone or not self._updates.acquire(timeout=5.0):
                self.lost_updates += int(own.sum())
                continue
            request = pb.UpdatePrioritiesRequest(keys=batch.keys[own].tobytes(), td=td[own].tobytes())
            future = link.stub.UpdatePriorities.future(request, timeout=5.0)
            future.add_done_callback(functools.partial(self._updated, int(own.sum())))

    def _updated(self, items: int, future: Any) -> None:
        self._updates.release()
        if future.cancelled() or future.exception() is not None:
            self.lost_updates += items

    def _check(self) -> None:
        for stream in self._streams:
            if stream.failure is not None:
                raise stream.failure
        if all(s.link.gone for s in self._streams):
            raise all_gone([s.link for s in self._streams])

    def stats(self) -> Mapping[str, float]:
        """Sums over the shards as last heard, and what went wrong."""
        inserted, sampled, stored = self._sums()
        return {
            "inserted": float(inserted),
            "sampled": float(sampled),
            "stored": float(stored),
            "bytes": float(sum(s.counts.bytes for s in self._streams)),
            "dropped_updates": float(sum(s.counts.dropped_updates for s in self._streams)),
            "lost_updates": float(self.lost_updates),
            "shards_gone": float(sum(s.link.gone for s in self._streams)),
        }

    def close(self) -> None:
        """Close the streams."""
        for stream in self._streams:
            stream.close()
