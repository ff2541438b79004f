"""One shard of the replay: storage, selector, counts, and the window that keeps inserts exactly once.

A plain object for one thread; `service.py` puts gRPC around it and `local.py` a serial port.
"""

from __future__ import annotations

import itertools
import math
import secrets
import sys
import time
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import numpy as np

from protos import replay_pb2 as pb
from protos.codec import InvalidMessage, array, pack_samples, segment_arrays
from replay.store import selectors, storage
from replay.store.selectors import SelectorConfig, make_selector, stratified
from replay.store.storage import Storage, StoredSegment
from rl.types import Array, ObservationSpec

UNLIMITED = 2**62
MAX_BATCH = 2**16  # items of a sample request
DRAIN_BYTES = 2**23  # of segments handed over in one reply
KEYS = 2**40  # keys of a generation
MAX_WRITER = 200  # bytes of a writer's name
MAX_WRITERS = 10_000  # whose last sequence a shard remembers


def fixed_bytes(capacity: int, selector: SelectorConfig) -> int:
    """Memory that a shard's rows and selector take whatever is stored."""
    return capacity * (storage.SLOT_BYTES + selectors.SLOT_BYTES[selector.kind])


def fresh_generation() -> int:
    """A generation for a shard without snapshots, so that one that is restarted does not use keys again."""
    return secrets.randbelow(2**23)


class OutOfOrder(ValueError):
    """A sequence number that skips one: the writer must resend from the last acknowledged."""


class Shard:
    """Items, their priorities, and who inserted what last."""

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
        self._last: OrderedDict[str, int] = OrderedDict()  # last sequence of each writer, who inserted last at the end
        self.inserted = self.transferred = self.sampled = self.dropped_updates = 0
        self.insert_credit = 0
        self.limiter: pb.Limiter | None = None  # as the sampler last told
        self._told = 0.0  # when
        self.generation = 0  # in the high bits of every key that leaves: a restored shard repeats none of those it lost

    @property
    def credit_left(self) -> int:
        """Items that may be inserted before the next grant."""
        return max(0, self.insert_credit - self.inserted) if self.limited else UNLIMITED

    def grant(self, request: pb.SampleRequest) -> bool:
        """Allow inserts until ``inserted`` reaches the request's credit; returns whether that is more than before."""
        more = request.insert_credit > self.insert_credit
        self.insert_credit = request.insert_credit
        if request.HasField("limiter"):
            self.limiter, self._told = request.limiter, time.monotonic()
        return more

    def has_room(self, request: pb.InsertRequest) -> bool:
        """Whether the credit covers the request's segment, or it needs none."""
        return request.transferred or len(request.segment.item_step) // 4 <= self.credit_left

    def blocked_reason(self) -> str:
        """What keeps a segment waiting, with the counts."""
        held = f"{self.inserted} of {self.insert_credit} items granted are inserted here"
        told = self.limiter
        if told is None:
            return f"{held}; no sampler has granted anything yet"
        return (
            f"{held}; in the whole service d = {told.diff:g} where samples_per_insert {told.samples_per_insert:g} allows up "
            f"to max_diff {told.max_diff:g}, and {told.stored} items are stored (min_size {told.min_size}), as the sampler "
            f"said {time.monotonic() - self._told:.1f} s ago: it grants more as it samples"
        )

    def insert(
        self, writer: str, sequence: int, segment: pb.Segment, origin: str = "", transferred: bool = False
    ) -> int:
        """Store a segment once, as one of ``origin``'s episodes (default: the writer's); returns the writer's last sequence.

        Raises InvalidMessage (nothing is stored) and OutOfOrder. The caller has asked `has_room`.
        """
        last = self._check_order(writer, sequence, origin)
        if sequence <= last:
            return last
        done = self.storage.insert(origin or writer, segment)
        if len(done.evicted):
            self.selector.remove(done.evicted)
        self.selector.put(done.slots, done.td_abs)
        if transferred:
            self.transferred += len(done.slots)
        else:
            self.inserted += len(done.slots)
        self._last[writer] = sequence
        self._last.move_to_end(writer)
        if len(self._last) > MAX_WRITERS:
            self._last.popitem(last=False)
        return sequence

    def _check_order(self, writer: str, sequence: int, origin: str) -> int:
        """The writer's last sequence. Raises InvalidMessage, OutOfOrder."""
        last = self._last.get(writer, 0)
        if not writer or max(len(writer.encode()), len(origin.encode())) > MAX_WRITER or sequence < 1:
            raise InvalidMessage(
                f"an insert needs a writer's name of up to {MAX_WRITER} bytes and a sequence from 1 on"
            )
        if sequence > last + 1:
            raise OutOfOrder(f"writer {writer!r} sent sequence {sequence} after {last}: resend from {last + 1}")
        return last

    def check(self, request: pb.InsertRequest) -> None:
        """Raise what `insert` would, before the request waits for credit."""
        self._check_order(request.writer, request.sequence, request.origin)
        segment_arrays(request.segment, self.spec)

    def check_request(self, request: pb.SampleRequest) -> None:
        """Raise InvalidMessage where a sample request asks for too much, or tells of a limiter that cannot be."""
        if len(request.counts) > MAX_BATCH:
            raise InvalidMessage(f"a request for {len(request.counts)} draws: at most {MAX_BATCH}")
        if not all(math.isfinite(value) for _, value in request.limiter.ListFields()):
            raise InvalidMessage("limiter is not finite")

    def is_duplicate(self, writer: str, sequence: int) -> bool:
        """Whether this insert is already stored."""
        return 1 <= sequence <= self._last.get(writer, 0)

    def sample(self, *counts: int) -> pb.SampleReply:
        """One draw of each of ``counts`` items, end to end; a reply with the totals alone when there are none.

        Raises InvalidMessage above MAX_BATCH items or draws in all.
        """
        count = sum(counts)
        if max(count, len(counts)) > MAX_BATCH:
            raise InvalidMessage(f"a request for {count} items in {len(counts)} draws: at most {MAX_BATCH} of either")
        if count == 0 or self.storage.size == 0:
            return pb.SampleReply(counts=self.counts())
        slots, probability = self.selector.sample(stratified(counts, self._rng))
        columns, stacks = self.storage.gather(slots)
        columns["keys"] += np.uint64(self.generation * KEYS)
        columns["probability"] = probability
        self.sampled += count
        return pack_samples(self.counts(), counts, columns, stacks, self.spec)

    def drain(self, taken: int, segments: int) -> pb.DrainReply:
        """The oldest segments, up to ``segments`` or DRAIN_BYTES, after those with keys below ``taken`` were forgotten.

        Raises InvalidMessage when no reply since the shard's start can have named ``taken``, and it is not 0.
        """
        base = self.generation * KEYS
        if taken and not base <= taken <= base + self.storage.next_key:
            raise InvalidMessage(f"taken is {taken}, which no reply named since this shard's start: drain again from 0")
        gone = self.storage.forget(taken - base)
        if len(gone):
            self.selector.remove(gone)
        reply, size = pb.DrainReply(next=self.storage.first_key), 0
        for kept in itertools.islice(self.storage.segments(), segments):
            size += kept.message.ByteSize()
            if reply.segments and size > DRAIN_BYTES:
                break
            reply.segments.append(pb.InsertRequest(origin=kept.writer, segment=kept.message))
            reply.next = kept.first_key + len(kept.message.item_step) // 4
        reply.left = self.storage.next_key - reply.next
        reply.next += base
        return reply

    def update_priorities(self, request: pb.UpdatePrioritiesRequest) -> int:
        """Set priorities of the items still stored; returns how many were not. Raises InvalidMessage."""
        keys, td = array(request, "keys", "<u8"), array(request, "td_abs", "<f4")
        if len(keys) > MAX_BATCH:
            raise InvalidMessage(f"priorities of {len(keys)} items: at most {MAX_BATCH}")
        if len(keys) != len(td):
            raise InvalidMessage(f"{len(keys)} keys for {len(td)} TD errors")
        if not np.isfinite(td).all() or (td < 0).any():
            raise InvalidMessage("td_abs must be finite and not negative")
        keys = keys - np.uint64(self.generation * KEYS)  # those of an earlier one wrap around to where no key is
        live = self.storage.live(keys)
        if live.any():
            slots = (keys[live] % self.storage.capacity).astype(np.int64)
            self.storage.td_abs[slots] = td[live]
            self.selector.put(slots, td[live])
        dropped = int(len(keys) - live.sum())
        self.dropped_updates += dropped
        return dropped

    def get_state(self) -> dict[str, Any]:
        """What a snapshot holds beside segments and TD errors: the range of keys, the counts, the writers' window."""
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
        """Inverse of `get_state` for a shard that is empty: its segments, known to be good, and their items' |TD error|.

        Older ones than the capacity holds are evicted; insert credit is for the sampler to grant. Raises InvalidMessage.
        """
        storage, first = self.storage, state["first_key"]
        storage.start_at(first)
        for kept in segments:
            if kept.first_key != storage.next_key:
                raise InvalidMessage(
                    f"the segment of item {kept.first_key} stands where {storage.next_key} is expected"
                )
            if kept.first_key < state["end_key"] - storage.capacity:  # newer ones will need its place
                storage.start_at(kept.first_key + len(kept.message.item_step) // 4)
            else:
                storage.insert(kept.writer, kept.message, trusted=True)
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

    def counts(self) -> pb.Counts:
        """The shard's totals."""
        return pb.Counts(
            inserted=self.inserted,
            sampled=self.sampled,
            stored=self.storage.size,
            total_priority=self.selector.total,
            bytes=self.storage.bytes,
            dropped_updates=self.dropped_updates,
            transferred=self.transferred,
            resident_bytes=self._fixed_bytes + self.storage.segment_bytes,
        )

    def info(self) -> pb.InfoReply:
        """Counts and settings."""
        return pb.InfoReply(
            counts=self.counts(),
            capacity=self.storage.capacity,
            insert_credit=self.insert_credit,
            limited=self.limited,
            selector=self._selector_kind,
            frame_shape=self.spec.frame_shape,
            dtype=self.spec.dtype,
            stack=self.spec.stack,
            limiter=self.limiter,
            limiter_age=time.monotonic() - self._told if self.limiter is not None else 0.0,
            capacity_bytes=self.capacity_bytes,
        )

    def check_valid(self) -> None:
        """Raise AssertionError when the parts contradict each other."""
        self.storage.check_valid()
        self.selector.check_valid()
        assert self.inserted + self.transferred == self.storage.next_key, "inserted items and keys differ"
