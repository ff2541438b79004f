"""The sampler: draws batches from all shards as from one buffer, and requests several batches ahead.

To draw a batch of B items, the sampler draws how many come from each shard (multinomial, in proportion to the shards'
total priorities) and then asks each shard for its part. Shard k is chosen with probability share_k and returns p_i /
T_k for item i, so P(i) = share_k * p_i / T_k. Small batches share a message, up to half of ``batches_ahead`` in one.

Each reply carries the shard's counts, from which the `CreditLedger` (`replay/credit.py`) computes the shard's credit.
Each request carries this credit. Shards may join and leave, and one that is gone is drawn from again once it answers.
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

COUNTS_INTERVAL = 0.1  # seconds between requests for the counts of all shards, while batches are drawn
MIN_POLL, MAX_POLL = 0.001, 0.02  # seconds between these requests, doubling, while no batch may be drawn
MAX_UNPACKED_BYTES = 16 * 2**20  # of all batches in a message; a low limit lets the allocator reuse the memory
UPDATES_IN_FLIGHT = 64  # priority updates without an answer, over all shards


class Sampler:
    """`BatchSource` over gRPC, for one consuming thread. Cannot be pickled: create it in the learner's process.

        sampler = Sampler(addresses, spec, limiter, beta)
        batch = sampler.sample(timeout=1.0)  # None if the limiter does not allow a batch in time
        sampler.update_priorities(batch, td_abs)
        sampler.close()

    ``batches_ahead`` batches are requested before they are needed. In a process that mainly samples, call
    `rl.allocator.keep_freed_memory` first: it is faster. With ``patient``, it waits for shards that are all gone instead
    of raising RunFault. Raises BadInput if ``addresses`` is empty.
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
        patient: bool = False,
    ) -> None:
        self._patient = patient
        self._spec, self._beta, self._batches_ahead = spec, beta, batches_ahead
        unpacked = 2 * spec.stack * spec.frame_bytes * limiter.batch  # bytes of a batch
        self._message_batches = max(1, min(batches_ahead // 2, MAX_UNPACKED_BYTES // unpacked))
        self._give_up_after, self._access = give_up_after, access
        self._ledger = CreditLedger(limiter)
        self._streams: list[DrawStream] = []  # a batch refers to streams by index, so closed ones stay here
        self._changes: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()  # for the consuming thread to apply
        self._closed = threading.Event()
        self._change_lock = threading.Lock()
        self._next_limiter = limiter  # with the changes that are not yet applied
        self._change_members(_distinct(addresses), limiter)
        self._requests: deque[DrawRequest] = deque()  # sent and not yet unpacked
        self._unpacking: Iterator[SampledBatch] = iter(())  # batches of the last finished request, unpacked on demand
        self._unpacking_left = 0  # batches that `_unpacking` will still yield
        self._poll_pause = MIN_POLL
        self._refreshed = 0.0  # when all shards were last asked for their counts
        self._rng = np.random.default_rng(seed)
        self._updates = threading.BoundedSemaphore(UPDATES_IN_FLIGHT)
        self.drawn = 0  # batches returned since the start of the run
        self.lost_updates = 0  # priority updates (items) that did not reach a shard

    def sample(self, timeout: float) -> SampledBatch | None:
        """Return the next batch, or None if there is none within ``timeout`` seconds (`blocked_reason` says why).

        Raises RunFault if every shard is gone, a shard rejected a request or sent a malformed reply, or replay evicts
        items before it holds min_size.
        """
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and not self._closed.is_set():
            while not self._changes.empty():
                self._changes.get()()
            self._raise_failure()
            self._request_batches()
            if (batch := next(self._unpacking, None)) is not None:
                self._unpacking_left -= 1
                return batch
            if not self._requests:
                self._poll_counts(deadline)
            elif self._requests[0].done.wait(timeout=max(0.0, deadline - time.monotonic())):
                self._begin_unpacking(self._requests.popleft())
        return None

    def blocked_reason(self) -> str:
        """Return which bound of the limiter forbids the next batch, with the counts; "" if none does."""
        if not any(stream.account.has_baseline for stream in self._streams):
            return "no shard has answered yet"
        return self._ledger.blocked_reason()

    def set_shards(self, addresses: Sequence[str]) -> None:
        """Replace the set of shards; takes effect at the next `sample`. Safe to call from any thread.

        Shards in ``addresses`` that were counted as gone are tried again at once. Raises BadInput if ``addresses`` is
        empty or the limiter's slack is too small for that many shards.
        """
        addresses = _distinct(addresses)
        with self._change_lock:
            limiter = self._next_limiter = self._next_limiter.for_shards(len(addresses))
            self._changes.put(lambda: self._change_members(addresses, limiter))

    def set_limiter(self, config: LimiterConfig) -> None:
        """Replace the limiter; it counts from new baselines. Safe to call from any thread.

        Raises BadInput if its slack is too small.
        """
        with self._change_lock:
            current = self._next_limiter
            limiter = self._next_limiter = RateLimiter(config, current.max_insert, current.batch, current.shards)
            self._changes.put(lambda: self._ledger.change_limiter(limiter))

    def _change_members(self, addresses: Sequence[str], limiter: RateLimiter) -> None:
        """Open streams to new shards, try those that are gone, and close streams to shards not in ``addresses``."""
        self._ledger.limiter = limiter  # the same limiter for another number of shards
        for stream in self._streams:
            if not stream.has_left and (stream.failure is not None or stream.connection.address not in addresses):
                stream.leave()
            stream.take_back()
        members = {s.connection.address for s in self._streams if not s.has_left}
        for address in addresses:
            if address not in members:
                connection = ShardConnection(address, self._give_up_after, self._access)
                self._streams.append(DrawStream(len(self._streams), connection, self._ledger.open_account()))

    def _shard_totals(self) -> Float64:
        """Return each shard's total priority, float64 [streams]; 0 for a shard that cannot be drawn from."""
        return np.asarray(
            [s.counts.total_priority if s.account.is_reachable and s.is_alive else 0.0 for s in self._streams],
            np.float64,
        )

    def _request_batches(self) -> None:
        """Request batches until ``batches_ahead`` are requested or waiting, or the limiter forbids another."""
        size, max_batches = self._ledger.limiter.batch, self._message_batches
        while True:
            requested = sum(request.items for request in self._requests)
            room = self._batches_ahead - self._unpacking_left - requested // size
            shard_totals, totals = self._shard_totals(), self._ledger.totals()
            self._ledger.check_min_size_reachable(totals)
            if room < max_batches or shard_totals.sum() <= 0:
                return
            allowed = self._ledger.batches_allowed(totals, requested, max_batches)
            if allowed == 0:
                return
            self._poll_pause = MIN_POLL
            shares = shard_totals / shard_totals.sum()
            draws = self._rng.multinomial(size, shares, size=allowed).T
            request = DrawRequest(
                {k: ShardRequest(n.tolist(), float(shares[k])) for k, n in enumerate(draws) if n.any()}
            )
            self._requests.append(request)
            self._send(request, refresh=time.monotonic() - self._refreshed >= COUNTS_INTERVAL)

    def _send(self, request: DrawRequest, refresh: bool) -> None:
        """Grant credit and send the request; with ``refresh``, to all shards, with the limiter's state.

        The replies to a ``refresh`` update the counts of all shards.
        """
        limiter = None
        if refresh:
            self._refreshed = time.monotonic()
            limiter = self._ledger.limiter.state(*self._ledger.totals())
            for stream in self._streams:
                if stream.is_alive:
                    request.shards.setdefault(stream.index, ShardRequest([], 0.0))
        self._ledger.grant()
        for index, part in list(request.shards.items()):
            self._streams[index].send(request, part, limiter)

    def _poll_counts(self, deadline: float = math.inf) -> None:
        """Ask all shards for their counts and wait; called while the limiter allows no batch."""
        request = DrawRequest({})
        self._send(request, refresh=True)
        request.done.wait(timeout=max(0.0, min(1.0, deadline - time.monotonic())))
        time.sleep(max(0.0, min(self._poll_pause, deadline - time.monotonic())))
        self._poll_pause = min(self._poll_pause * 2, MAX_POLL)

    def _begin_unpacking(self, request: DrawRequest) -> None:
        """Start unpacking the request's batches. If a shard's part is missing, drop them: they will be drawn again."""
        drawn = {index: part for index, part in request.shards.items() if any(part.counts)}
        if all(part.is_complete for part in drawn.values()):
            self._unpacking = self._unpack(drawn)
            self._unpacking_left = request.items // self._ledger.limiter.batch

    def _unpack(self, drawn: Mapping[int, ShardRequest]) -> Iterator[SampledBatch]:
        """Yield the request's batches, each merged from the shards' replies."""
        shares = [part.share for part in drawn.values()]
        replies = [(part.reply, part.counts) for part in drawn.values() if part.reply is not None]
        try:
            for i, (transitions, keys, probability) in enumerate(unpack_replies(replies, self._spec)):
                counts = [part.counts[i] for part in drawn.values()]
                probability = np.repeat(shares, counts) * probability
                weights = importance_weights(probability, self._beta.at(self.drawn))
                self.drawn += 1
                yield SampledBatch(transitions, keys, np.repeat(list(drawn), counts), weights)
        except InvalidMessage as error:
            addresses = ", ".join(self._streams[index].connection.address for index in drawn)
            raise RunFault(f"a replay shard (one of {addresses}) sent a malformed reply: {error}") from error

    def update_priorities(self, batch: SampledBatch, td_abs: Array) -> None:
        """Send |TD error| [B] of the batch's items to their shards, without waiting for the answers.

        If UPDATES_IN_FLIGHT updates are unanswered, waits up to 5 seconds for one of them. Updates that do not reach a
        shard are counted in ``lost_updates``. Raises ValueError if a value is negative or not finite.
        """
        td = np.asarray(td_abs)
        if not np.isfinite(td).all() or (td < 0).any():
            raise ValueError("td_abs must hold finite numbers that are not negative: pass absolute TD errors")
        for index in np.unique(batch.shards).tolist():
            connection, in_shard = self._streams[index].connection, batch.shards == index
            if not self._updates.acquire(timeout=5.0):
                self.lost_updates += int(in_shard.sum())
                continue
            request = priorities_request(batch.keys[in_shard], td[in_shard])
            try:
                future = connection.stub.UpdatePriorities.future(request, timeout=5.0, metadata=connection.metadata)
            except ValueError:  # the shard has left, and its channel is closed
                self._updates.release()
                self.lost_updates += int(in_shard.sum())
                continue
            future.add_done_callback(functools.partial(self._on_update_done, int(in_shard.sum())))

    def _on_update_done(self, items: int, future: Any) -> None:
        self._updates.release()
        if future.cancelled() or future.exception() is not None:
            self.lost_updates += items

    def _raise_failure(self) -> None:
        members = [s for s in self._streams if not s.has_left]
        for stream in members:
            if stream.failure is not None:
                raise stream.failure
        if not self._patient and all(s.connection.is_gone for s in members):
            raise all_gone([s.connection for s in members])

    def stats(self) -> Mapping[str, float]:
        """Return the sums of the shards' last counts, the numbers of lost updates and gone shards, and what was received.

        ``items_received`` and ``bytes_received`` are of all replies on the Sample streams, in bytes of messages
        (`Traffic`). A reply may carry only counts, and items may be received that are never used.
        """
        alive = [s.counts for s in self._streams if s.is_alive]
        return {
            "inserted": float(sum(s.counts.inserted for s in self._streams)),
            "sampled": float(sum(s.counts.sampled for s in self._streams)),
            "stored": float(sum(c.stored for c in alive)),
            "bytes": float(sum(c.bytes for c in alive)),
            "dropped_updates": float(sum(s.counts.dropped_updates for s in self._streams)),
            "lost_updates": float(self.lost_updates),
            "shards_gone": float(sum(s.connection.is_gone for s in self._streams if not s.has_left)),
            "items_received": float(sum(s.received.items for s in self._streams)),
            "bytes_received": float(sum(s.received.bytes for s in self._streams)),
        }

    def get_state(self) -> Mapping[str, int]:
        """Return ``drawn``, the number of batches returned so far, over which beta is annealed."""
        return {"drawn": self.drawn}

    def set_state(self, state: Mapping[str, int]) -> None:
        """Inverse of `get_state`."""
        self.drawn = int(state["drawn"])

    def close(self) -> None:
        """Close the streams. A `sample` call that waits in another thread returns None."""
        self._closed.set()
        for stream in self._streams:
            stream.leave()
        for stream in self._streams:
            stream.join()


def _distinct(addresses: Sequence[str]) -> list[str]:
    if not addresses:
        raise BadInput("a sampler needs at least one replay shard: write its address")
    return list(dict.fromkeys(addresses))
