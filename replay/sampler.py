"""The sampler: batches out of all shards as out of one buffer, several in hand, and insert credit in return.

A batch of B is drawn by first drawing how many items come from each shard (multinomial in proportion to the shards'
totals) and then asking each shard for its part. With share_k the proportion used and p_i / T_k as the shard returned it,
P(i) = share_k * p_i / T_k. Counts ride on every reply; the limiter judges their sum, and each request carries the
shard's cumulative insert credit.
"""

from __future__ import annotations

import functools
import queue
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np

from protos import replay_pb2 as pb
from protos.codec import unpack_samples
from replay.links import Link, all_gone
from replay.rate_limiter import RateLimiter
from replay.weights import BetaConfig, importance_weights
from rl.errors import RunFault
from rl.types import Array, Float64, ObservationSpec, SampledBatch, Transition

LOOK_EVERY = 0.1  # seconds between looks at all shards' counts while sampling, those that are not drawn from included
POLL_FROM, POLL_TO = 0.001, 0.02  # seconds between looks at the counts while replay may not be sampled, doubling
UPDATES_IN_FLIGHT = 64  # priority updates not yet answered, over all shards


@dataclass
class _Part:
    """One shard's part of a batch in hand."""

    count: int
    share: float
    reply: pb.SampleReply | None = None
    lost: bool = False


@dataclass
class _Plan:
    """A batch in hand: its parts by shard."""

    parts: dict[int, _Part]
    event: threading.Event = field(default_factory=threading.Event)

    def settle(self) -> None:
        if all(part.reply is not None or part.lost for part in self.parts.values()):
            self.event.set()


class _Stream:
    """The Sample stream to one shard, reopened when it breaks."""

    def __init__(self, index: int, link: Link) -> None:
        self.index, self.link = index, link
        self.counts = pb.Counts()
        self.granted = 0
        self.reached = False
        self.failure: RunFault | None = None
        self._lock = threading.Lock()
        self._waiting: deque[tuple[_Plan, _Part]] = deque()  # in the order of the requests sent
        self._requests: queue.SimpleQueue[pb.SampleRequest | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=f"sampler-{link.address}", daemon=True)
        self._thread.start()

    def ask(self, plan: _Plan, part: _Part, credit: int) -> None:
        """Send a request; its reply will settle ``part``."""
        with self._lock:
            if self.link.gone or self._closed:
                part.lost = True
                plan.settle()
                return
            self._waiting.append((plan, part))
            self._requests.put(pb.SampleRequest(count=part.count, insert_credit=credit))

    def _run(self) -> None:
        while not self._closed and not self.link.gone:
            requests = self._requests
            try:
                for reply in self.link.stub.Sample(iter(requests.get, None)):
                    self.link.answered()
                    self._settle(reply)
            except grpc.RpcError as error:
                self._broken(error, requests)
            except ValueError:  # the channel was closed under us
                return

    def _settle(self, reply: pb.SampleReply) -> None:
        with self._lock:
            plan, part = self._waiting.popleft()
            self.counts = reply.counts
            self.reached = True
        part.reply = reply
        plan.settle()

    def _broken(self, error: grpc.RpcError, requests: queue.SimpleQueue[pb.SampleRequest | None]) -> None:
        if self._closed:
            return
        pause = 0.0
        try:
            pause = self.link.failed(error)
        except RunFault as fault:
            self.failure = fault
            self.link.gone = True
        with self._lock:
            self._requests = queue.SimpleQueue()
            requests.put(None)  # ends the old stream's sender
            lost, self._waiting = list(self._waiting), deque()
            self.reached = False
        for plan, part in lost:
            part.lost = True
            plan.settle()
        time.sleep(pause)

    def close(self) -> None:
        self._closed = True
        self._requests.put(None)
        self.link.channel.close()
        self._thread.join(timeout=5.0)


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
        self._streams = [_Stream(i, Link(a, give_up_after)) for i, a in enumerate(addresses)]
        self._plans: deque[_Plan] = deque()
        self._pause = POLL_FROM
        self._looked = 0.0
        self._in_hand = 0  # items of the batches in hand
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
            if not self._plans:
                self._poll()
                continue
            plan = self._plans[0]
            if not plan.event.wait(timeout=max(0.0, deadline - time.monotonic())):
                continue
            self._plans.popleft()
            self._in_hand -= sum(part.count for part in plan.parts.values())
            batch = self._decode(plan)
            if batch is not None:
                return batch
        return None

    def _totals(self) -> Float64:
        reached = [s.counts.total_priority if s.reached and not s.link.gone else 0.0 for s in self._streams]
        return np.asarray(reached, np.float64)

    def _fill(self) -> None:
        """Ask for batches until ``prefetch`` are in hand or the limiter forbids another."""
        batch = self._limiter.batch
        while len(self._plans) < self._prefetch:
            inserted, sampled, stored = self._sums()
            if all(s.reached or s.link.gone for s in self._streams):
                self._limiter.check_fills(inserted, stored)
            totals = self._totals()
            if totals.sum() <= 0 or not self._limiter.can_sample(inserted, sampled + self._in_hand, stored, batch):
                return
            shares = totals / totals.sum()
            self._pause = POLL_FROM
            draws = self._rng.multinomial(batch, shares)
            self._send(_Plan({k: _Part(int(n), float(shares[k])) for k, n in enumerate(draws) if n}))
            self._in_hand += batch

    def _send(self, plan: _Plan) -> None:
        self._plans.append(plan)
        if time.monotonic() - self._looked >= LOOK_EVERY:  # news of every shard, and credit for it
            self._looked = time.monotonic()
            for stream in self._streams:
                if not stream.link.gone:
                    plan.parts.setdefault(stream.index, _Part(0, 0.0))
        credits = self._credits()
        for index, part in list(plan.parts.items()):
            self._streams[index].ask(plan, part, credits[index])

    def _poll(self) -> None:
        """Ask every shard for its counts and grant what may be granted; waits a moment."""
        credits = self._credits()
        plan = _Plan({s.index: _Part(0, 0.0) for s in self._streams if not s.link.gone})
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

    def _decode(self, plan: _Plan) -> SampledBatch | None:
        transitions, keys, probabilities, shards = [], [], [], []
        for index, part in plan.parts.items():
            if part.reply is None or not part.reply.keys:
                continue  # only asked for its counts, or broke meanwhile
            transition, key, probability = unpack_samples(part.reply, self._spec)
            transitions.append(transition)
            keys.append(key)
            probabilities.append(part.share * probability)
            shards.append(np.full(len(key), index, np.int64))
        if sum(len(key) for key in keys) < self._limiter.batch:
            return None  # draw a whole batch afresh
        merged = (
            transitions[0]
            if len(transitions) == 1
            else Transition(*map(np.concatenate, zip(*transitions, strict=True)))
        )
        weights = importance_weights(np.concatenate(probabilities), self._sums()[2], self._beta.at(self.drawn))
        self.drawn += 1
        return SampledBatch(merged, np.concatenate(keys), np.concatenate(shards), weights)

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
