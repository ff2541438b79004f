"""One shard of the replay: storage, selector, counters, and sequence numbers, which make inserts exactly-once.

A plain object for one thread. `wire/service.py` serves it over gRPC, `local.py` uses it in the learner's process.
"""

from __future__ import annotations

import itertools
import secrets
import sys
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from protos.codec import check_segment
from protos.types import (
    UNLIMITED_CREDIT,
    Counts,
    Drained,
    InvalidMessage,
    LimiterState,
    PackedSegment,
    Sampled,
    ShardInfo,
)
from replay.store import selectors, storage
from replay.store.selectors import SelectorConfig, make_selector, stratified_quantiles
from replay.store.storage import Storage, StoredSegment
from rl.errors import BadInput
from rl.types import Array, Float32, ObservationSpec, UInt64

MAX_BATCH = 2**16  # items, draws or priorities in one request
DRAIN_BYTES = 2**23  # of segments in one reply of `drain`
KEYS_PER_GENERATION = 2**40
MAX_NAME_BYTES = 200  # of a writer's or an origin's name, in UTF-8
MAX_WRITERS = 10_000  # number of writers whose last sequence number a shard remembers


def fixed_bytes(capacity: int, selector: SelectorConfig) -> int:
    """Return the bytes of memory that a shard's rows and selector take, independent of its content."""
    return capacity * (storage.SLOT_BYTES + selectors.SLOT_BYTES[selector.kind])


def random_generation() -> int:
    """Return a random `Shard.generation`, for a shard without snapshots: after a restart it must not reuse keys."""
    return secrets.randbelow(2**23)


class OutOfOrder(ValueError):
    """A sequence number was skipped: the shard lacks the writer's segments before it (`Insert` in `replay.proto`)."""


class Shard:
    """Stores items with priorities, and the last sequence number of each writer.

        shard.check(segment)
        shard.insert(writer, sequence, segment)  # sequence: 1, 2, ... for each writer
        sampled = shard.sample([32])
        shard.update_priorities(sampled.keys, td_abs)

    If ``limited``, inserts need credit (`grant`). ``capacity`` is in items; ``capacity_bytes`` of 0 means unlimited.
    """

    def __init__(
        self,
        capacity: int,
        spec: ObservationSpec,
        selector: SelectorConfig,
        limited: bool,
        seed: int = 0,
        capacity_bytes: int = 0,
    ) -> None:
        self.spec, self.limited, self.capacity_bytes = spec, limited, capacity_bytes
        self._fixed_bytes = fixed_bytes(capacity, selector)
        self.storage = Storage(capacity, spec, capacity_bytes - self._fixed_bytes if capacity_bytes else sys.maxsize)
        self.selector = make_selector(selector, capacity)
        self._selector_kind = selector.kind
        self._rng = np.random.default_rng(seed)
        self._last_sequence: OrderedDict[str, int] = OrderedDict()  # by writer, in the order of the last inserts
        self.inserted = self.transferred = self.sampled = self.dropped_updates = 0
        self.insert_credit = 0  # the credit
        self.limiter: LimiterState | None = None  # last state from the sampler
        self._limiter_received = 0.0  # time of the last state
        self.generation = 0  # high bits of every key that leaves the shard, so that a restored shard reuses no key

    @property
    def credit_left(self) -> int:
        """Unused credit: items that may be inserted before the next grant; UNLIMITED_CREDIT if not ``limited``."""
        return max(0, self.insert_credit - self.inserted) if self.limited else UNLIMITED_CREDIT

    def grant(self, insert_credit: int, limiter: LimiterState | None = None) -> bool:
        """Set the credit: inserts are allowed until ``inserted`` reaches it. Returns whether the credit has grown.

        ``limiter`` is the state of the limiter, if the sampler sent it.
        """
        more = insert_credit > self.insert_credit
        self.insert_credit = insert_credit
        if limiter is not None:
            self.limiter, self._limiter_received = limiter, time.monotonic()
        return more

    def blocked_reason(self) -> str:
        """Return why a segment waits for credit, with the counts; for error messages."""
        used = f"{self.inserted} of {self.insert_credit} granted items are inserted in this shard"
        limiter = self.limiter
        if limiter is None:
            return f"{used}; no sampler has granted credit yet: start one, or run `qfleet replay limit ADDRESS --no-limited`"
        return (
            f"{used}; over all shards d = {limiter.diff:g} (max_diff {limiter.max_diff:g}, samples_per_insert "
            f"{limiter.samples_per_insert:g}) and {limiter.stored} items are stored (min_size {limiter.min_size}), as "
            f"of {time.monotonic() - self._limiter_received:.1f} s ago; the sampler grants more credit when it samples"
        )

    def last_sequence(self, writer: str) -> int:
        """The sequence number of the last segment that ``writer`` has stored; 0 if there is none."""
        return self._last_sequence.get(writer, 0)

    def check_order(self, writer: str, sequence: int, origin: str = "") -> int:
        """Check an insert's names and sequence number; returns the writer's last stored one, 0 if there is none.

        If ``sequence`` is at or below it, the segment is a duplicate. Raises InvalidMessage if a name or the sequence
        number is invalid, OutOfOrder if a sequence number was skipped.
        """
        last = self.last_sequence(writer)
        if not writer or max(len(writer.encode()), len(origin.encode())) > MAX_NAME_BYTES or sequence < 1:
            raise InvalidMessage(
                f"writer must have 1 to {MAX_NAME_BYTES} bytes (it has {len(writer.encode())}), origin at most "
                f"{MAX_NAME_BYTES} (it has {len(origin.encode())}), and sequence be at least 1 (it is {sequence})"
            )
        if sequence > last + 1:
            raise OutOfOrder(
                f"writer {writer!r} sent sequence {sequence} after {last}: continue under a new name, from 1"
            )
        return last

    def check(self, segment: PackedSegment, trusted: bool = False) -> None:
        """Raise InvalidMessage unless the segment is valid and fits; ``trusted``: as for `check_segment`."""
        check_segment(segment, self.spec, trusted)
        self.storage.check_fits(segment)

    def insert(
        self, writer: str, sequence: int, segment: PackedSegment, origin: str = "", transferred: bool = False
    ) -> int:
        """Store a segment, unless it is a duplicate; returns the writer's last sequence number.

        The caller has called `check`, and has made sure that there is credit, unless the segment is ``transferred``.
        ``origin`` is the writer that played the episode, by default ``writer``. Calls `check_order` again, because
        other segments may have arrived while this one waited for credit; if that raises, nothing is stored.
        """
        last = self.check_order(writer, sequence, origin)
        if sequence <= last:
            return last
        done = self.storage.insert(origin or writer, segment)
        if len(done.evicted):
            self.selector.remove(done.evicted)
        self.selector.put(done.slots, segment.td_abs)
        if transferred:
            self.transferred += segment.items
        else:
            self.inserted += segment.items
        self._last_sequence[writer] = sequence
        self._last_sequence.move_to_end(writer)
        if len(self._last_sequence) > MAX_WRITERS:
            self._last_sequence.popitem(last=False)
        return sequence

    def sample(self, counts: Sequence[int]) -> Sampled:
        """Draw ``counts[k]`` items for each k; returns all of them, draw by draw.

        If no items are requested or stored, the result has only the shard's counts. Raises InvalidMessage if more than
        MAX_BATCH items or draws are requested.
        """
        count = sum(counts)
        if max(count, len(counts)) > MAX_BATCH:
            raise InvalidMessage(
                f"a request for {count} items in {len(counts)} draws is too large: request at most {MAX_BATCH} of each"
            )
        if count == 0 or self.storage.size == 0:
            return Sampled(self.counts())
        slots, probability = self.selector.sample(stratified_quantiles(counts, self._rng))
        columns, stacks = self.storage.gather(slots)
        columns["keys"] += np.uint64(self.generation * KEYS_PER_GENERATION)
        self.sampled += count
        return Sampled(self.counts(), counts, probability=probability, stacks=stacks, **columns)

    def drain(self, taken: int, segments: int) -> Drained:
        """Remove the segments with keys below ``taken``; returns the next ones, up to ``segments`` or DRAIN_BYTES.

        Raises InvalidMessage if ``taken`` is neither 0 nor a possible `Drained.next` since the shard was started.
        """
        base = self.generation * KEYS_PER_GENERATION
        if taken and not base <= taken <= base + self.storage.next_key:
            raise InvalidMessage(
                f"taken is {taken}, which is not from a reply since this shard was started: start again with taken = 0"
            )
        evicted = self.storage.evict_below(taken - base)
        if len(evicted):
            self.selector.remove(evicted)
        returned: list[tuple[str, PackedSegment]] = []
        end, size = self.storage.first_key, 0
        for stored in itertools.islice(self.storage.segments(), segments):
            size += stored.segment.nbytes
            if returned and size > DRAIN_BYTES:
                break
            returned.append((stored.writer, stored.segment))
            end = stored.end_key
        return Drained(returned, next=base + end, left=self.storage.next_key - end)

    def update_priorities(self, keys: UInt64, td_abs: Float32) -> int:
        """Set |TD error| [B] of the items with ``keys`` [B]; returns how many of them are no longer stored.

        Raises InvalidMessage if the lengths differ or exceed MAX_BATCH, or a value is negative or not finite.
        """
        if len(keys) > MAX_BATCH:
            raise InvalidMessage(f"keys has {len(keys)} elements: update at most {MAX_BATCH} items in a request")
        if len(keys) != len(td_abs):
            raise InvalidMessage(
                f"keys has {len(keys)} elements, td_abs has {len(td_abs)}: they must have the same length"
            )
        if not np.isfinite(td_abs).all() or (td_abs < 0).any():
            raise InvalidMessage("td_abs must hold finite numbers that are not negative")
        # keys of an earlier generation wrap around, to numbers above all stored keys
        keys = keys - np.uint64(self.generation * KEYS_PER_GENERATION)
        stored = self.storage.is_stored(keys)
        if stored.any():
            slots = (keys[stored] % self.storage.capacity).astype(np.int64)
            self.storage.td_abs[slots] = td_abs[stored]
            self.selector.put(slots, td_abs[stored])
        dropped = int(len(keys) - stored.sum())
        self.dropped_updates += dropped
        return dropped

    def get_state(self) -> dict[str, Any]:
        """Return the state for a snapshot, without segments and TD errors: key range, counters, sequence numbers."""
        return {
            "first_key": self.storage.first_key,
            "end_key": self.storage.next_key,
            "inserted": self.inserted,
            "transferred": self.transferred,
            "sampled": self.sampled,
            "dropped_updates": self.dropped_updates,
            "writers": dict(self._last_sequence),
        }

    def set_state(self, state: dict[str, Any], segments: Iterable[StoredSegment], td: Array | None) -> None:
        """Inverse of `get_state` for an empty shard, with the snapshot's ``segments`` and |TD error| ``td`` [M].

        Without ``td``, items get the |TD error| with which they were inserted. Segments beyond the capacity are evicted,
        the oldest first. The credit stays 0 until the sampler grants some. Raises InvalidMessage if keys, segments and TD
        errors do not match, BadInput if a segment does not fit, and what ``segments`` raises; then the shard is empty.
        """
        try:
            self._restore_segments(state, segments, td)
        except BaseException:
            self.storage.evict_below(self.storage.next_key)
            self.storage.set_next_key(0)
            raise
        slots = np.arange(self.storage.first_key, self.storage.next_key) % self.storage.capacity
        self.selector.put(slots, self.storage.td_abs[slots])
        for name in ("inserted", "transferred", "sampled", "dropped_updates"):
            setattr(self, name, state[name])
        self._last_sequence = OrderedDict(state["writers"])

    def _restore_segments(self, state: dict[str, Any], segments: Iterable[StoredSegment], td: Array | None) -> None:
        storage, first = self.storage, state["first_key"]
        storage.set_next_key(first)
        for stored in segments:
            if stored.first_key != storage.next_key:
                raise InvalidMessage(
                    f"a segment starts at key {stored.first_key}, expected key {storage.next_key}: a segment is missing"
                )
            if stored.first_key < state["end_key"] - storage.capacity:  # newer segments will need its rows
                storage.set_next_key(stored.end_key)
                continue
            try:
                storage.check_fits(stored.segment)
            except InvalidMessage as error:
                raise BadInput(str(error)) from error
            self.check(stored.segment, trusted=True)
            storage.insert(stored.writer, stored.segment)
        if storage.next_key != state["end_key"] or (td is not None and len(td) != state["end_key"] - first):
            raise InvalidMessage(
                f"the snapshot has keys {first} to {storage.next_key} and {'no' if td is None else len(td)} TD errors, "
                f"expected keys up to {state['end_key']} and one TD error for each"
            )
        if not storage.size and state["end_key"] > first:
            raise BadInput(
                f"none of the snapshot's segments fits into the capacity of {storage.capacity}: write a larger capacity"
            )
        if td is not None:
            slots = np.arange(storage.first_key, storage.next_key) % storage.capacity
            storage.td_abs[slots] = td[storage.first_key - first :]

    def counts(self) -> Counts:
        """Return the shard's counters, in items and bytes."""
        return Counts(
            inserted=self.inserted,
            sampled=self.sampled,
            stored=self.storage.size,
            total_priority=self.selector.total,
            bytes=self.storage.bytes,
            dropped_updates=self.dropped_updates,
            transferred=self.transferred,
            resident_bytes=self._fixed_bytes + self.storage.segment_bytes,
        )

    def info(self) -> ShardInfo:
        """Return the shard's counts and settings."""
        return ShardInfo(
            counts=self.counts(),
            capacity=self.storage.capacity,
            insert_credit=self.insert_credit,
            limited=self.limited,
            selector=self._selector_kind,
            spec=self.spec,
            limiter=self.limiter,
            limiter_age=time.monotonic() - self._limiter_received if self.limiter is not None else 0.0,
            capacity_bytes=self.capacity_bytes,
        )

    def check_valid(self) -> None:
        """Raise AssertionError if the shard's data structures are inconsistent."""
        self.storage.check_valid()
        self.selector.check_valid()
        assert self.inserted + self.transferred == self.storage.next_key, "counters and keys differ"
