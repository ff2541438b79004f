"""The sampler: batches drawn from all shards as from one buffer, several of them asked for ahead.

A batch of B is drawn by first drawing how many items come from each shard (multinomial in proportion to the shards'
totals) and then asking each shard for its part. With share_k the proportion used and p_i / T_k as the shard returned
it, P(i) = share_k * p_i / T_k. Small batches share a message: up to half of the batches asked for ahead. Each reply
carries the shard's counts; the ledger judges their sums (`replay/credit.py`), and each request carries the shard's
cumulative insert credit. Shards may join and leave.
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

from protos.codec import priorities_request, unpack_replies
from protos.types import InvalidMessage
from replay.credit import CreditLedger
from replay.importance_weights import BetaConfig, importance_weights
from replay.rate_limiter import LimiterConfig, RateLimiter
from replay.security import UNPROTECTED, Access
from replay.wire.connection import ShardConnection, all_gone
from replay.wire.draws import DrawRequest, DrawStream, ShardRequest
from rl.errors import BadInput, RunFault
from rl.types import Array, Float64, ObservationSpec, SampledBatch

LOOK_EVERY = 0.1  # seconds between requests for the counts of all shards while sampling
POLL_FROM, POLL_TO = 0.001, 0.02  # seconds between requests for the counts while replay may not be sampled, doubling
MAX_UNPACKED_BYTES = 16 * 2**20  # that a message's batches may unpack to, so that the allocator reuses the memory
UPDATES_IN_FLIGHT = 64  # priority updates not yet answered, over all shards


class Sampler:
    """`BatchSource` over gRPC, for one consuming thread. It does not pickle: each learner makes its own.

        sampler = Sampler(addresses, spec, limiter, beta)
        batch = sampler.sample(timeout=1.0)  # None where replay may not be sampled yet
        sampler.update_priorities(batch, td_abs)  # at the end `close`

    ``batches_ahead`` is how many batches are asked for ahead of their use. A process that does little else gains from
    calling `rl.allocator.keep_freed_memory` first. Raises BadInput without an address.
    """

    def __init__(
        self,
        addresses: list[str],
        spec: ObservationSpec,
        limiter: RateLimiter,
        beta: BetaConfig,
        batches_ahead: int = 4,
        give_up_after: float = 60.0,
        seed: int = 0,
        access: Access = UNPROTECTED,
    ) -> None:
        self._spec, self._beta, self._batches_ahead = spec, beta, batches_ahead
        unpacked = 2 * spec.stack * spec.frame_bytes * limiter.batch  # bytes of a batch
        self._message_batches = max(1, min(batches_ahead // 2, MAX_UNPACKED_BYTES // unpacked))
        self._give_up_after, self._access = give_up_after, access
        self._ledger = CreditLedger(limiter)
        self._streams: list[DrawStream] = []  # those that left keep their index, which batches refer to
        self._changes: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()  # for the consuming thread to apply
        self._closed = threading.Event()
        self._setting = threading.Lock()
        self._next_limiter = limiter  # includes changes not yet applied
        self._change_members(_distinct(addresses), limiter)
        self._requests: deque[DrawRequest] = deque()  # not yet unpacked
        self._unpacking: Iterator[SampledBatch] = iter(())  # batches that have arrived, unpacked on demand
        self._packed = 0  # how many
        self._pause = POLL_FROM
        self._looked = 0.0
        self._rng = np.random.default_rng(seed)
        self._updates = threading.BoundedSemaphore(UPDATES_IN_FLIGHT)
        self.drawn = 0  # batches returned, over the run
        self.lost_updates = 0  # priority updates that no shard took

    def sample(self, timeout: float) -> SampledBatch | None:
        """The next batch, decoded; None when replay may not be sampled within ``timeout`` seconds: `blocked_reason`.

        Raises RunFault when no shard is left, one refused a request or sent a malformed reply, or replay evicts items
        before it holds min_size.
        """
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and not self._closed.is_set():
            while not self._changes.empty():
                self._changes.get()()
            self._check()
            self._fill()
            if (batch := next(self._unpacking, None)) is not None:
                self._packed -= 1
                return batch
            if not self._requests:
                self._poll(deadline)
            elif self._requests[0].settled.wait(timeout=max(0.0, deadline - time.monotonic())):
                self._begin_unpacking(self._requests.popleft())
        return None

    def blocked_reason(self) -> str:
        """Which bound of the limiter forbids the next batch, with the counts; empty when none does."""
        return self._ledger.blocked_reason()

    def set_shards(self, addresses: Sequence[str]) -> None:
        """Draw from these shards from the next batch on; for any thread.

        Raises BadInput without an address, or when the limiter's slack is too small for so many shards.
        """
        addresses = _distinct(addresses)
        with self._setting:
            limiter = self._next_limiter = self._next_limiter.over(len(addresses))
            self._changes.put(lambda: self._change_members(addresses, limiter))

    def set_limiter(self, config: LimiterConfig) -> None:
        """Continue under another limiter, which counts from now on; for any thread.

        Raises BadInput when its slack is too small.
        """
        with self._setting:
            was = self._next_limiter
            limiter = self._next_limiter = RateLimiter(config, was.max_insert, was.batch, was.shards)
            self._changes.put(lambda: self._ledger.change_limiter(limiter))

    def _change_members(self, addresses: Sequence[str], limiter: RateLimiter) -> None:
        """Open streams to the shards that are new, and end those to shards that ``addresses`` lacks."""
        self._ledger.limiter = limiter  # the same rule for another number of shards
        members = {s.connection.address for s in self._streams if not s.left}
        for stream in self._streams:
            if not stream.left and stream.connection.address not in addresses:
                stream.leave()
        for address in addresses:
            if address not in members:
                connection = ShardConnection(address, self._give_up_after, self._access)
                self._streams.append(DrawStream(len(self._streams), connection, self._ledger.open_account()))

    def _shard_totals(self) -> Float64:
        """The sum of priorities of each shard that may be drawn from, [shards]; 0 where it may not."""
        return np.asarray(
            [s.counts.total_priority if s.account.reached and s.alive else 0.0 for s in self._streams], np.float64
        )

    def _fill(self) -> None:
        """Ask for batches until ``batches_ahead`` are asked for or have arrived, or the limiter forbids another."""
        size, most = self._ledger.limiter.batch, self._message_batches
        while True:
            asked = sum(request.items for request in self._requests)
            room = self._batches_ahead - self._packed - asked // size
            shard_totals, totals = self._shard_totals(), self._ledger.totals()
            self._ledger.check_min_size_reachable(totals)
            if room < most or shard_totals.sum() <= 0:
                return
            allowed = self._ledger.batches_allowed(totals, asked, most)
            if allowed == 0:
                return
            self._pause = POLL_FROM
            shares = shard_totals / shard_totals.sum()
            draws = self._rng.multinomial(size, shares, size=allowed).T
            request = DrawRequest(
                {k: ShardRequest(n.tolist(), float(shares[k])) for k, n in enumerate(draws) if n.any()}
            )
            self._requests.append(request)
            self._send(request, look=time.monotonic() - self._looked >= LOOK_EVERY)

    def _send(self, request: DrawRequest, look: bool) -> None:
        """Send the request; with ``look`` ask every shard for its counts, grant credit and report the limiter."""
        limiter = None
        if look:
            self._looked = time.monotonic()
            limiter = self._ledger.limiter.state(*self._ledger.totals())
            for stream in self._streams:
                if stream.alive:
                    request.shards.setdefault(stream.index, ShardRequest([], 0.0))
        self._ledger.grant()
        for index, own in list(request.shards.items()):
            self._streams[index].ask(request, own, limiter)

    def _poll(self, deadline: float = math.inf) -> None:
        """Ask all shards for their counts while no batch may be asked for, and wait a moment."""
        request = DrawRequest({})
        self._send(request, look=True)
        request.settled.wait(timeout=max(0.0, min(1.0, deadline - time.monotonic())))
        time.sleep(max(0.0, min(self._pause, deadline - time.monotonic())))
        self._pause = min(self._pause * 2, POLL_TO)

    def _begin_unpacking(self, request: DrawRequest) -> None:
        """Start unpacking the request's batches; if a part of it was lost, drop them, to be drawn again."""
        drawn = {index: own for index, own in request.shards.items() if any(own.counts)}
        if all(own.whole for own in drawn.values()):
            self._unpacking = self._unpack(drawn)
            self._packed = request.items // self._ledger.limiter.batch

    def _unpack(self, drawn: Mapping[int, ShardRequest]) -> Iterator[SampledBatch]:
        """The batches of a request, from its shards' replies."""
        shares = [own.share for own in drawn.values()]
        replies = [(own.reply, own.counts) for own in drawn.values() if own.reply is not None]
        try:
            for i, (transitions, keys, probability) in enumerate(unpack_replies(replies, self._spec)):
                counts = [own.counts[i] for own in drawn.values()]
                probability = np.repeat(shares, counts) * probability
                weights = importance_weights(probability, self._beta.at(self.drawn))
                self.drawn += 1
                yield SampledBatch(transitions, keys, np.repeat(list(drawn), counts), weights)
        except InvalidMessage as error:
            asked = ", ".join(self._streams[index].connection.address for index in drawn)
            raise RunFault(f"a replay shard (one of {asked}) sent a broken reply: {error}") from error

    def update_priorities(self, batch: SampledBatch, td_abs: Array) -> None:
        """Send |TD error| [B] to the shards without waiting for their answers.

        While UPDATES_IN_FLIGHT are unanswered it waits up to 5 seconds. Errors that no shard took are counted in
        ``lost_updates``.
        """
        td = np.asarray(td_abs)
        for index in np.unique(batch.shards).tolist():
            connection, own = self._streams[index].connection, batch.shards == index
            if not self._updates.acquire(timeout=5.0):
                self.lost_updates += int(own.sum())
                continue
            request = priorities_request(batch.keys[own], td[own])
            try:
                future = connection.stub.UpdatePriorities.future(request, timeout=5.0, metadata=connection.metadata)
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
        if all(s.connection.gone for s in members):
            raise all_gone([s.connection for s in members])

    def stats(self) -> Mapping[str, float]:
        """Sums over the shards by their last replies, of items and bytes, and counts of what was lost; by name."""
        alive = [s.counts for s in self._streams if s.alive]
        return {
            "inserted": float(sum(s.counts.inserted for s in self._streams)),
            "sampled": float(sum(s.counts.sampled for s in self._streams)),
            "stored": float(sum(c.stored for c in alive)),
            "bytes": float(sum(c.bytes for c in alive)),
            "dropped_updates": float(sum(s.counts.dropped_updates for s in self._streams)),
            "lost_updates": float(self.lost_updates),
            "shards_gone": float(sum(s.connection.gone for s in self._streams if not s.left)),
        }

    def get_state(self) -> Mapping[str, int]:
        """``drawn``: the batches returned so far, over which beta is annealed."""
        return {"drawn": self.drawn}

    def set_state(self, state: Mapping[str, int]) -> None:
        """Inverse of `get_state`."""
        self.drawn = int(state["drawn"])

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
