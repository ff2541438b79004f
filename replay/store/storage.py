"""Where items rest: whole segments in arrival order, and one row of small numbers an item.

An item's key counts up from 0 and is never used again; its row is ``key % capacity``, which is free because eviction is
first in, first out, by whole segments. Frames stay compressed; a stack of them is one slice of its segment's bytes.
What drawing does not ask for is kept too, so that a segment can be given back as it came.
"""

from __future__ import annotations

import sys
from array import array
from collections import deque
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from protos import replay_pb2 as pb
from protos.codec import STEP_ARRAYS, InvalidMessage, blank_frames, segment_arrays
from rl.types import Array, Int64, ObservationSpec, UInt64

SLOT_BYTES = 32  # of memory for a row, whether it is filled or not
SEGMENT_BYTES = 512  # of memory around a segment's frames, ends and steps: their objects, and what malloc loses to them


class _Stored(NamedTuple):
    """A segment at rest."""

    frames: bytes
    ends: array[int]  # [F + 1] byte offsets of the frames
    items: int
    steps: bytes  # the step columns of the message, end to end
    episode_id: int
    first_step: int
    writer: str

    @property
    def resident(self) -> int:
        """Bytes of memory that it takes, its items' rows apart."""
        return len(self.frames) + len(self.steps) + self.ends.itemsize * len(self.ends) + SEGMENT_BYTES


class StoredSegment(NamedTuple):
    """A segment given back: as it was inserted, but for priorities that were updated since."""

    writer: str  # an episode_id is unique within its writer
    first_key: int  # of its first item; the others follow
    message: pb.Segment


class Inserted(NamedTuple):
    """Rows that an insertion filled and those that it emptied."""

    slots: Int64
    evicted: Int64
    td_abs: Array  # [M], |TD error| as the writer gave it


def _stored(writer: str, message: pb.Segment, arrays: Mapping[str, Array]) -> _Stored:
    ends = array("I", [0])
    ends.frombytes(arrays["frame_sizes"].cumsum(dtype=np.uint32).tobytes())
    return _Stored(
        frames=message.frames,
        ends=ends,
        items=len(arrays["item_step"]),
        steps=b"".join([getattr(message, name) for name in STEP_ARRAYS]),
        episode_id=message.episode_id,
        first_step=message.first_step,
        writer=sys.intern(writer),  # one string for all segments of a writer
    )


class Storage:
    """At most ``capacity`` items in segments of at most ``capacity_bytes`` of memory; the oldest segments go first."""

    def __init__(self, capacity: int, spec: ObservationSpec, capacity_bytes: int = sys.maxsize) -> None:
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}: it must be at least 1")
        self.capacity, self.spec, self.capacity_bytes = capacity, spec, capacity_bytes
        self.first_key = 0  # oldest key stored
        self.next_key = 0
        self.bytes = 0  # of frames, compressed
        self.segment_bytes = 0  # of memory for all segments, the rows apart
        self._segments: deque[_Stored] = deque()
        self._segment_of: list[_Stored | None] = [None] * capacity
        self._columns: dict[str, Array] = {
            "a_tm1": np.zeros(capacity, np.int32),
            "r_t": np.zeros(capacity, np.float32),
            "discount_t": np.zeros(capacity, np.float32),
        }
        self._tm1 = np.zeros(capacity, np.uint32)  # newest frame of s_tm1 within the item's segment
        self._t = np.zeros(capacity, np.uint32)  # newest frame of s_t
        self.td_abs = np.zeros(capacity, np.float32)  # |TD error| as last given, from which any selector can be built
        self._blank = [blank_frames(spec, count) for count in range(spec.stack)]

    @property
    def size(self) -> int:
        """Items stored."""
        return self.next_key - self.first_key

    def insert(self, writer: str, message: pb.Segment, trusted: bool = False) -> Inserted:
        """Store a segment, evicting the oldest ones until it fits; ``trusted``: its frames were checked before.

        Raises InvalidMessage, and changes nothing, when it contradicts the specification or could never fit.
        """
        arrays = segment_arrays(message, self.spec, trusted)
        stored = _stored(writer, message, arrays)
        if stored.items > self.capacity:
            raise InvalidMessage(f"a segment of {stored.items} items is larger than the capacity of {self.capacity}")
        if stored.resident > self.capacity_bytes:
            raise InvalidMessage(
                f"a segment that takes {stored.resident} bytes of memory is larger than the {self.capacity_bytes} bytes "
                "of the shard's capacity that are left for segments"
            )
        evicted_from = self.first_key
        while self.size + stored.items > self.capacity or self.segment_bytes + stored.resident > self.capacity_bytes:
            self._evict()
        evicted = np.arange(evicted_from, self.first_key, dtype=np.int64) % self.capacity
        return Inserted(self._append(stored, arrays), evicted, arrays["td_abs"])

    def _append(self, stored: _Stored, arrays: Mapping[str, Array]) -> Int64:
        slots = np.arange(self.next_key, self.next_key + stored.items, dtype=np.int64) % self.capacity
        start = arrays["item_step"]
        self._tm1[slots] = start
        self._t[slots] = start + arrays["item_length"]
        self._columns["a_tm1"][slots] = arrays["actions"][start]
        for name in ("r_t", "discount_t"):
            self._columns[name][slots] = arrays[name]
        self.td_abs[slots] = arrays["td_abs"]
        for slot in slots.tolist():
            self._segment_of[slot] = stored
        self._segments.append(stored)
        self.next_key += stored.items
        self.bytes += len(stored.frames)
        self.segment_bytes += stored.resident
        return slots

    def _evict(self) -> None:
        oldest = self._segments.popleft()
        for key in range(self.first_key, self.first_key + oldest.items):
            self._segment_of[key % self.capacity] = None
        self.first_key += oldest.items
        self.bytes -= len(oldest.frames)
        self.segment_bytes -= oldest.resident

    def forget(self, below: int) -> Int64:
        """Evict the segments that lie wholly below the key ``below``; returns the slots emptied."""
        first = self.first_key
        while self._segments and self.first_key + self._segments[0].items <= below:
            self._evict()
        return np.arange(first, self.first_key, dtype=np.int64) % self.capacity

    def keys(self, slots: Int64) -> UInt64:
        """The keys now resting at live ``slots``."""
        base = self.first_key - self.first_key % self.capacity
        keys = base + slots
        return np.where(keys < self.first_key, keys + self.capacity, keys).astype(np.uint64)

    def live(self, keys: Array) -> Array:
        """Which ``keys`` are still stored, bool [B]."""
        return (keys >= self.first_key) & (keys < self.next_key)

    def gather(self, slots: Int64) -> tuple[dict[str, Array], list[bytes]]:
        """Columns of the items at live ``slots`` and their stacks of frames, as `codec.pack_samples` takes them."""
        stacks: list[bytes] = []
        back = self.spec.stack - 1
        for slot, *both in zip(slots.tolist(), self._tm1[slots].tolist(), self._t[slots].tolist(), strict=True):
            segment = self._segment_of[slot]
            assert segment is not None, f"slot {slot} is not live"
            ends = segment.ends
            for newest in both:
                oldest = newest - back
                if oldest < 0:  # before the episode's first frame
                    stacks.append(self._blank[-oldest] + segment.frames[: ends[newest + 1]])
                else:
                    stacks.append(segment.frames[ends[oldest] : ends[newest + 1]])
        columns: dict[str, Array] = {name: column[slots] for name, column in self._columns.items()}
        columns["keys"] = self.keys(slots)
        return columns, stacks

    def start_at(self, key: int) -> None:
        """Give an empty storage's next item this key."""
        assert self.size == 0, "only an empty storage starts anew"
        self.first_key = self.next_key = key

    def errors(self, first_key: int, end_key: int) -> Array:
        """A copy of the present |TD error| of stored items, float32 [end_key - first_key]."""
        at, count = first_key % self.capacity, end_key - first_key
        return np.concatenate([self.td_abs[at : at + count], self.td_abs[: max(0, at + count - self.capacity)]])

    def segments(self, first_key: int = 0, end_key: int | None = None) -> Iterator[StoredSegment]:
        """The segments stored, oldest first: those of the items from ``first_key`` to before ``end_key``.

        Others may be inserted between two steps of the iteration: they are not in it, nor are those evicted meanwhile.
        """
        key, end = first_key, self.next_key if end_key is None else end_key
        while (key := max(key, self.first_key)) < end:
            stored = self._segment_of[key % self.capacity]
            assert stored is not None, f"key {key} is not stored"
            yield StoredSegment(stored.writer, key, self._message(stored, key))
            key += stored.items

    def _message(self, stored: _Stored, first_key: int) -> pb.Segment:
        slots = np.arange(first_key, first_key + stored.items) % self.capacity
        steps, at, columns = len(stored.ends) - 2, 0, {}
        for name, dtype in STEP_ARRAYS.items():
            size = steps * np.dtype(dtype).itemsize
            columns[name] = stored.steps[at : at + size]
            at += size
        return pb.Segment(
            episode_id=stored.episode_id,
            first_step=stored.first_step,
            frames=stored.frames,
            frame_sizes=np.diff(np.frombuffer(stored.ends, np.uint32)).tobytes(),
            item_step=self._tm1[slots].tobytes(),
            item_length=(self._t[slots] - self._tm1[slots]).tobytes(),
            r_t=self._columns["r_t"][slots].tobytes(),
            discount_t=self._columns["discount_t"][slots].tobytes(),
            td_abs=self.td_abs[slots].tobytes(),
            **columns,
        )

    def check_valid(self) -> None:
        """Raise AssertionError when the structure is inconsistent."""
        assert self.size == sum(s.items for s in self._segments) <= self.capacity, "items do not add up"
        assert self.bytes == sum(len(s.frames) for s in self._segments), "bytes do not add up"
        assert self.segment_bytes == sum(s.resident for s in self._segments) <= self.capacity_bytes
        key = self.first_key
        for segment in self._segments:
            for k in range(key, key + segment.items):
                assert self._segment_of[k % self.capacity] is segment, f"key {k} rests elsewhere"
                assert self._tm1[k % self.capacity] < self._t[k % self.capacity] < len(segment.ends) - 1
            key += segment.items
        live = sum(s is not None for s in self._segment_of)
        assert live == self.size, f"{live} rows are live for {self.size} items"
