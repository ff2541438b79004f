"""One shard of the replay: storage, selector, counts, and the sequence numbers that keep inserts exactly once.

A plain object for one thread; `service.py` serves it over gRPC, and `local.py` in process.
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
from protos.types import Counts, Drained, InvalidMessage, LimiterState, PackedSegment, Sampled, ShardInfo
from replay.store import selectors, storage
from replay.store.selectors import SelectorConfig, make_selector, stratified
from replay.store.storage import Storage, StoredSegment
from rl.types import Array, Float32, ObservationSpec, UInt64

UNLIMITED = 2**62
MAX_BATCH = 2**16  # items, draws or priorities in one request
DRAIN_BYTES = 2**23  # of segments handed over in one reply
KEYS = 2**40  # keys of a generation
MAX_WRITER = 200  # bytes of a writer's or an origin's name, in UTF-8
MAX_WRITERS = 10_000  # whose last sequence a shard remembers


def fixed_bytes(capacity: int, selector: SelectorConfig) -> int:
    """Bytes of memory that a shard's rows and selector take, whatever is stored."""
    return capacity * (storage.SLOT_BYTES + selectors.SLOT_BYTES[selector.kind])


def fresh_generation() -> int:
    """A random generation for a shard without snapshots, so that a restarted shard does not reuse keys."""
    return secrets.randbelow(2**23)


class OutOfOrder(ValueError):
    """A sequence number that skips one: the writer must resend from the one after the last acknowledged."""


class Shard:
    """Items, their priorities, and the last sequence of each writer.

        shard.check(segment)
        shard.insert(writer, sequence, segment)  # sequences count up from 1
        sampled = shard.sample([32])  # then `update_priorities(sampled.keys, td_abs)`

    ``limited``: inserts need credit (`grant`). ``capacity`` is in items; ``capacity_bytes`` 0 is unlimited.
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
        self._last: OrderedDict[str, int] = OrderedDict()  # last sequence of each writer, latest insert last
        self.inserted = self.transferred = self.sampled = self.dropped_updates = 0
        self.insert_credit = 0
        self.limiter: LimiterState | None = None  # as the sampler last reported it
        self._told = 0.0  # when
        self.generation = 0  # in the high bits of every key sent out: a restored shard reuses none of the keys it lost

    @property
    def credit_left(self) -> int:
        """Items that may be inserted before the next grant."""
        return max(0, self.insert_credit - self.inserted) if self.limited else UNLIMITED

    def grant(self, insert_credit: int, limiter: LimiterState | None = None) -> bool:
        """Allow inserts until ``inserted`` reaches ``insert_credit`` items; returns whether that is more than before.

        ``limiter`` is the sampler's state of the limiter, if it sent one.
        """
        more = insert_credit > self.insert_credit
        self.insert_credit = insert_credit
        if limiter is not None:
            self.limiter, self._told = limiter, time.monotonic()
        return more

    def blocked_reason(self) -> str:
        """Why a segment waits for credit, with the counts; for messages."""
        held = f"{self.inserted} of {self.insert_credit} items granted are inserted here"
        told = self.limiter
        if told is None:
            return f"{held}; no sampler has granted anything yet"
        return (
            f"{held}; in the whole service d = {told.diff:g} where samples_per_insert {told.samples_per_insert:g} allows up "
            f"to max_diff {told.max_diff:g}, and {told.stored} items are stored (min_size {told.min_size}), as the sampler "
            f"said {time.monotonic() - self._told:.1f} s ago: it grants more as it samples"
        )

    def check_order(self, writer: str, sequence: int, origin: str = "") -> int:
        """The last sequence stored of ``writer``: an insert at or below it is stored already.

        Raises InvalidMessage on an invalid name or sequence, OutOfOrder on a sequence that skips one.
        """
        last = self._last.get(writer, 0)
        if not writer or max(len(writer.encode()), len(origin.encode())) > MAX_WRITER or sequence < 1:
            raise InvalidMessage(
                f"an insert needs a writer's name of up to {MAX_WRITER} bytes and a sequence from 1 on"
            )
        if sequence > last + 1:
            raise OutOfOrder(f"writer {writer!r} sent sequence {sequence} after {last}: resend from {last + 1}")
        return last

    def check(self, segment: PackedSegment, trusted: bool = False) -> None:
        """Raise InvalidMessage unless the segment is valid and fits the shard; ``trusted`` frames are not checked."""
        check_segment(segment, self.spec, trusted)
        self.storage.check_fits(segment)

    def insert(
        self, writer: str, sequence: int, segment: PackedSegment, origin: str = "", transferred: bool = False
    ) -> int:
        """Store a segment once, as one of ``origin``'s episodes (default: the writer's); returns the writer's last sequence.

        The segment has passed `check`, and there is credit for it unless it is ``transferred``. Raises InvalidMessage
        and OutOfOrder as `check_order` does, and then stores nothing: its result may have changed while a segment
        waited for credit.
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
        self._last[writer] = sequence
        self._last.move_to_end(writer)
        if len(self._last) > MAX_WRITERS:
            self._last.popitem(last=False)
        return sequence

    def sample(self, counts: Sequence[int]) -> Sampled:
        """One draw of each of ``counts`` items, end to end; only the totals when there are no counts or no items.

        Raises InvalidMessage above MAX_BATCH items or draws in all.
        """
        count = sum(counts)
        if max(count, len(counts)) > MAX_BATCH:
            raise InvalidMessage(f"a request for {count} items in {len(counts)} draws: at most {MAX_BATCH} of either")
        if count == 0 or self.storage.size == 0:
            return Sampled(self.counts())
        slots, probability = self.selector.sample(stratified(counts, self._rng))
        columns, stacks = self.storage.gather(slots)
        columns["keys"] += np.uint64(self.generation * KEYS)
        self.sampled += count
        return Sampled(self.counts(), counts, probability=probability, stacks=stacks, **columns)

    def drain(self, taken: int, segments: int) -> Drained:
        """The oldest segments, up to ``segments`` or DRAIN_BYTES, after those with keys below ``taken`` were removed.

        Raises InvalidMessage when ``taken`` is neither 0 nor a value that a reply since the shard's start can have
        named.
        """
        base = self.generation * KEYS
        if taken and not base <= taken <= base + self.storage.next_key:
            raise InvalidMessage(f"taken is {taken}, which no reply named since this shard's start: drain again from 0")
        gone = self.storage.forget(taken - base)
        if len(gone):
            self.selector.remove(gone)
        handed_over: list[tuple[str, PackedSegment]] = []
        end, size = self.storage.first_key, 0
        for stored in itertools.islice(self.storage.segments(), segments):
            size += stored.segment.nbytes
            if handed_over and size > DRAIN_BYTES:
                break
            handed_over.append((stored.writer, stored.segment))
            end = stored.end_key
        return Drained(handed_over, next=base + end, left=self.storage.next_key - end)

    def update_priorities(self, keys: UInt64, td_abs: Float32) -> int:
        """Set |TD error| [B] of the items with ``keys`` [B] that are still stored; returns how many were not.

        Raises InvalidMessage when lengths differ, there are more than MAX_BATCH, or an error is negative or not finite.
        """
        if len(keys) > MAX_BATCH:
            raise InvalidMessage(f"priorities of {len(keys)} items: at most {MAX_BATCH}")
        if len(keys) != len(td_abs):
            raise InvalidMessage(f"{len(keys)} keys for {len(td_abs)} TD errors")
        if not np.isfinite(td_abs).all() or (td_abs < 0).any():
            raise InvalidMessage("td_abs must be finite and not negative")
        keys = keys - np.uint64(self.generation * KEYS)  # keys of an earlier generation wrap around: never live
        live = self.storage.live(keys)
        if live.any():
            slots = (keys[live] % self.storage.capacity).astype(np.int64)
            self.storage.td_abs[slots] = td_abs[live]
            self.selector.put(slots, td_abs[live])
        dropped = int(len(keys) - live.sum())
        self.dropped_updates += dropped
        return dropped

    def get_state(self) -> dict[str, Any]:
        """A snapshot's content except segments and TD errors: range of keys, counts, last sequence of each writer."""
        return {
            "first_key": self.storage.first_key,
            "end_key": self.storage.next_key,
            "inserted": self.inserted,
            "transferred": self.transferred,
            "sampled": self.sampled,
            "dropped_updates": self.dropped_updates,
            "writers": dict(self._last),
        }

    def set_state(self, state: dict[str, Any], segments: Iterable[StoredSegment], td: Array) -> None:
        """Inverse of `get_state` for an empty shard, with a snapshot's valid ``segments`` and |TD error| ``td`` [M].

        Segments beyond the capacity are evicted, the oldest first; insert credit is left to the sampler. Raises
        InvalidMessage when keys, segments and errors do not match, or no segment fits.
        """
        storage, first = self.storage, state["first_key"]
        storage.start_at(first)
        for stored in segments:
            if stored.first_key != storage.next_key:
                raise InvalidMessage(
                    f"the segment of item {stored.first_key} stands where {storage.next_key} is expected"
                )
            if stored.first_key < state["end_key"] - storage.capacity:  # newer ones will need its place
                storage.start_at(stored.end_key)
            else:
                self.check(stored.segment, trusted=True)
                storage.insert(stored.writer, stored.segment)
        if (storage.next_key, len(td)) != (state["end_key"], state["end_key"] - first):
            raise InvalidMessage(
                f"items {first} to {storage.next_key} and {len(td)} TD errors, not up to {state['end_key']}"
            )
        if not storage.size and len(td):
            raise InvalidMessage(f"none of its segments fits into the capacity of {storage.capacity}")
        slots = np.arange(storage.first_key, storage.next_key) % storage.capacity
        storage.td_abs[slots] = td[storage.first_key - first :]
        self.selector.put(slots, storage.td_abs[slots])
        for name in ("inserted", "transferred", "sampled", "dropped_updates"):
            setattr(self, name, state[name])
        self._last = OrderedDict(state["writers"])

    def counts(self) -> Counts:
        """The shard's totals, in items and bytes."""
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
        """The shard's counts and settings."""
        return ShardInfo(
            counts=self.counts(),
            capacity=self.storage.capacity,
            insert_credit=self.insert_credit,
            limited=self.limited,
            selector=self._selector_kind,
            spec=self.spec,
            limiter=self.limiter,
            limiter_age=time.monotonic() - self._told if self.limiter is not None else 0.0,
            capacity_bytes=self.capacity_bytes,
        )

    def check_valid(self) -> None:
        """Raise AssertionError when its parts contradict each other."""
        self.storage.check_valid()
        self.selector.check_valid()
        assert self.inserted + self.transferred == self.storage.next_key, "inserted items and keys differ"
