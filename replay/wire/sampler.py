"""The sampler: batches out of all shards as out of one buffer, several in hand, and insert credit in return.

A batch of B is drawn by first drawing how many items come from each shard (multinomial in proportion to the shards'
totals) and then asking each shard for its part. With share_k the proportion used and p_i / T_k as the shard returned it,
P(i) = share_k * p_i / T_k. Small batches share a message: up to half of what is in hand. Counts ride on every reply; the
limiter judges their sum, and each request carries the shard's cumulative insert credit. Shards may join and leave; the
counts of those that left stay in the sums.
"""

from __future__ import annotations

import functools
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from protos import replay_pb2 as pb
from protos.codec import InvalidMessage, unpack_samples
from replay.importance_weights import BetaConfig, importance_weights
from replay.rate_limiter import LimiterConfig, RateLimiter
from replay.security import UNPROTECTED, Access
from replay.wire.connection import ShardConnection, all_gone
from replay.wire.draws import DrawStream, Part, Plan
from rl.errors import BadInput, RunFault
from rl.types import Array, Float64, ObservationSpec, SampledBatch

LOOK_EVERY = 0.1  # seconds between looks at all shards' counts while sampling, those that are not drawn from included
POLL_FROM, POLL_TO = 0.001, 0.02  # seconds between looks at the counts while replay may not be sampled, doubling
MAX_UNPACKED_BYTES = (
    16 * 2**20
)  # bytes that the batches of a message may unpack to, so that the allocator reuses the room
UPDATES_IN_FLIGHT = 64  # priority updates not yet answered, over all shards


class Sampler:
    """`BatchSource` over gRPC, for one consuming thread. Pickling is refused: a learner builds its own.

    A process that does little else does well to call `rl.allocator.keep_freed_memory` first.
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
        access: Access = UNPROTECTED,
    ) -> None:
        self._spec, self._limiter, self._beta, self._prefetch = spec, limiter, beta, prefetch
        batch_bytes = 2 * spec.stack * spec.frame_bytes * limiter.batch
        self._together = max(1, min(prefetch // 2, MAX_UNPACKED_BYTES // batch_bytes))  # batches in a message
        self._give_up_after, self._access = give_up_after, access
        self._streams: list[DrawStream] = []  # those that left keep their place, which batches name
        self._changes: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()  # for the consuming thread to make
        self._closed = threading.Event()
        self._setting = threading.Lock()
        self._next_limiter = limiter  # with the changes that are not yet made
        self._met = 0  # items that count as inserted though the shards held them when they were met
        self._become(_distinct(addresses), limiter)
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
        """The next batch, decoded; None when replay may not be sampled within ``timeout`` seconds: `blocked_reason`.

        Raises RunFault when no shard is left, one refused, or replay evicts before it holds enough.
        """
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and not self._closed.is_set():
            while not self._changes.empty():
                self._changes.get()()
            self._check()
            self._fill()
            if (batch := next(self._decoding, None)) is not None:
                self._undecoded -= 1
                return batch
            if not self._plans:
                self._poll(deadline)
            elif self._plans[0].event.wait(timeout=max(0.0, deadline - time.monotonic())):
                self._decode(self._plans.popleft())
        return None

    def blocked_reason(self) -> str:
        """Which bound of the limiter forbids the next batch, with the counts; empty when none does."""
        return self._limiter.holds_batch(*self._sums(), self._limiter.batch)

    def set_shards(self, addresses: Sequence[str]) -> None:
        """Draw from these shards from the next batch on; from any thread. Raises BadInput when the slack is too small."""
        addresses = _distinct(addresses)
        with self._setting:
            limiter = self._next_limiter = self._next_limiter.over(len(addresses))
            self._changes.put(lambda: self._become(addresses, limiter))

    def set_limiter(self, config: LimiterConfig) -> None:
        """Go on by another rule, which counts from here on; from any thread. Raises BadInput when it cannot hold."""
        with self._setting:
            was = self._next_limiter
            limiter = self._next_limiter = RateLimiter(config, was.max_insert, was.batch, was.shards)
            self._changes.put(lambda: self._begin(limiter))

    def _begin(self, limiter: RateLimiter) -> None:
        self._limiter, self._met = limiter, 0
        for stream in self._streams:
            stream.meet()

    def _become(self, addresses: Sequence[str], limiter: RateLimiter) -> None:
        """Open streams to the shards that are new, and end those to shards that are not named."""
        self._limiter = limiter
        members = {s.link.address for s in self._streams if not s.left}
        for stream in self._streams:
            if not stream.left and stream.link.address not in addresses:
                stream.leave()
        for address in addresses:
            if address not in members:
                self._streams.append(
                    DrawStream(len(self._streams), ShardConnection(address, self._give_up_after, self._access))
                )

    def _totals(self) -> Float64:
        reached = [s.counts.total_priority if s.reached and s.alive else 0.0 for s in self._streams]
        return np.asarray(reached, np.float64)

    def _fill(self) -> None:
        """Ask for batches until ``prefetch`` are in hand or the limiter forbids another."""
        size, most = self._limiter.batch, self._together
        while True:
            asked = sum(plan.items for plan in self._plans)
            room = self._prefetch - self._undecoded - asked // size
            totals = self._totals()
            inserted, sampled, stored = self._sums()
            if all(s.reached or not s.alive for s in self._streams):
                self._limiter.check_fills(inserted, stored)
            if room < most or totals.sum() <= 0:
                return
            allowed = 0
            while allowed < most and self._limiter.can_sample(inserted, sampled + asked + allowed * size, stored, size):
                allowed += 1
            if allowed == 0:
                return
            shares = totals / totals.sum()
            self._pause = POLL_FROM
            draws = self._rng.multinomial(size, shares, size=allowed).T
            plan = Plan({k: Part(n.tolist(), float(shares[k])) for k, n in enumerate(draws) if n.any()})
            self._plans.append(plan)
            self._send(plan, look=time.monotonic() - self._looked >= LOOK_EVERY)

    def _send(self, plan: Plan, look: bool) -> None:
        """Ask; with ``look`` every shard for its counts, grant it what may be granted and tell it of the limiter."""
        told = None
        if look:
            self._looked = time.monotonic()
            told = self._limiter_state()
            for stream in self._streams:
                if stream.alive:
                    plan.parts.setdefault(stream.index, Part([], 0.0))
        self._grant()
        for index, part in list(plan.parts.items()):
            self._streams[index].ask(plan, part, told)

    def _poll(self, deadline: float = math.inf) -> None:
        """Look while there is no batch to ask for; waits a moment."""
        plan = Plan({})
        self._send(plan, look=True)
        plan.event.wait(timeout=max(0.0, min(1.0, deadline - time.monotonic())))
        time.sleep(max(0.0, min(self._pause, deadline - time.monotonic())))
        self._pause = min(self._pause * 2, POLL_TO)

    def _sums(self) -> tuple[int, int, int]:
        """Items inserted and sampled since the shards were met, and stored now.

        What a shard held when it was met counts as inserted, until min_size are: the ratio counts from there.
        """
        with self._setting:
            inserted = self._met + sum(s.inserted for s in self._streams)
            for stream in self._streams:
                more = max(0, min(stream.take_met(), self._limiter.config.min_size - inserted))
                self._met, inserted = self._met + more, inserted + more
        stored = sum(s.counts.stored for s in self._streams if s.alive)
        return inserted, sum(s.sampled for s in self._streams), stored

    def _grant(self) -> None:
        """Bring every shard's cumulative credit up to date. What the others hold or held is the allowance's affair."""
        inserted, sampled, stored = self._sums()
        met = [s for s in self._streams if s.alive and s.met]
        if not met:
            return
        elsewhere = inserted - sum(s.inserted for s in met)
        sampled = sampled - round(self._limiter.sigma * elsewhere)
        grants = self._limiter.grants([s.inserted for s in met], [s.granted for s in met], sampled, stored)
        for stream, grant in zip(met, grants, strict=True):
            stream.granted = grant

    def _limiter_state(self) -> pb.Limiter:
        inserted, sampled, stored = self._sums()
        rule = self._limiter
        return pb.Limiter(
            samples_per_insert=rule.sigma,
            min_size=rule.config.min_size,
            min_diff=rule.min_diff,
            max_diff=rule.max_diff,
            diff=rule.diff(inserted, sampled),
            stored=stored,
        )

    def _decode(self, plan: Plan) -> None:
        """Go on to the plan's batches; to none when a part of it was lost: they are drawn afresh."""
        drawn = {index: part for index, part in plan.parts.items() if any(part.counts)}
        if all(part.whole for part in drawn.values()):
            self._decoding = self._unpack(drawn)
            self._undecoded = plan.items // self._limiter.batch

    def _unpack(self, drawn: Mapping[int, Part]) -> Iterator[SampledBatch]:
        """The batches of a plan out of its shards' parts."""
        shares = [part.share for part in drawn.values()]
        replies = [(part.reply, part.counts) for part in drawn.values() if part.reply is not None]
        try:
            for i, (transitions, keys, probability) in enumerate(unpack_samples(replies, self._spec)):
                counts = [part.counts[i] for part in drawn.values()]
                probability = np.repeat(shares, counts) * probability
                weights = importance_weights(probability, self._beta.at(self.drawn))
                self.drawn += 1
                yield SampledBatch(transitions, keys, np.repeat(list(drawn), counts), weights)
        except InvalidMessage as error:
            asked = ", ".join(self._streams[index].link.address for index in drawn)
            raise RunFault(f"a replay shard (one of {asked}) sent a broken reply: {error}") from error

    def update_priorities(self, batch: SampledBatch, td_abs: Array) -> None:
        """Send |TD error| [B] to the shards without waiting for answers; at most UPDATES_IN_FLIGHT are outstanding."""
        td = np.asarray(td_abs, "<f4")
        for index in np.unique(batch.shards).tolist():
            stream, own = self._streams[index], batch.shards == index
            if not self._updates.acquire(timeout=5.0):
                self.lost_updates += int(own.sum())
                continue
            request = pb.UpdatePrioritiesRequest(keys=batch.keys[own].tobytes(), td_abs=td[own].tobytes())
            try:
                future = stream.link.stub.UpdatePriorities.future(request, timeout=5.0, metadata=stream.link.metadata)
            except ValueError:  # the shard has left, and its channel is closed
                self._updates.release()
                self.lost_updates += int(own.sum())
                continue
            future.add_done_callback(functools.partial(self._updated, int(own.sum())))

    def _updated(self, items: int, future: Any) -> None:
        self._updates.release()
        if future.cancelled() or future.exception() is not None:
            self.lost_updates += items

    def _check(self) -> None:
        members = [s for s in self._streams if not s.left]
        for stream in members:
            if stream.failure is not None:
                raise stream.failure
        if all(s.link.gone for s in members):
            raise all_gone([s.link for s in members])

    def stats(self) -> Mapping[str, float]:
        """Sums over the shards as last heard, and what went wrong."""
        alive = [s.counts for s in self._streams if s.alive]
        return {
            "inserted": float(sum(s.counts.inserted for s in self._streams)),
            "sampled": float(sum(s.counts.sampled for s in self._streams)),
            "stored": float(sum(c.stored for c in alive)),
            "bytes": float(sum(c.bytes for c in alive)),
            "dropped_updates": float(sum(s.counts.dropped_updates for s in self._streams)),
            "lost_updates": float(self.lost_updates),
            "shards_gone": float(sum(s.link.gone for s in self._streams if not s.left)),
        }

    def close(self) -> None:
        """Close the streams; a `sample` that waits in another thread returns None."""
        self._closed.set()
        for stream in self._streams:
            stream.leave()
        for stream in self._streams:
            stream.join()


def _distinct(addresses: Sequence[str]) -> list[str]:
    if not addresses:
        raise BadInput("a sampler without a replay shard: write the address of at least one")
    return list(dict.fromkeys(addresses))
