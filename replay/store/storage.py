"""Item storage: whole segments in arrival order, and one row of small numbers for each item.

An item's key counts up from 0 and is never used again. Its row is ``key % capacity``, which is free because eviction is
first in, first out, by whole segments. Frames stay compressed; a stack of them is one slice of its segment's bytes.
Data that draws do not need is stored too, so that a segment can be read back as it was inserted.
"""

from __future__ import annotations

import sys
from array import array
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from protos.codec import STEP_ARRAYS
from protos.frames import blank_frames
from protos.types import InvalidMessage, PackedSegment
from rl.types import Array, Int64, ObservationSpec, UInt64

SLOT_BYTES = 32  # of memory for a row, whether it is filled or not
STEP_BYTES = sum(dtype.itemsize for dtype in STEP_ARRAYS.values())  # of a step's columns
OFFSET_BYTES = array("I").itemsize  # of a frame's offset in a segment
SEGMENT_BYTES = 512  # of memory besides a segment's frames, ends and steps: Python objects and malloc's overhead


class _RestingSegment(NamedTuple):
    """A stored segment in as few objects as possible; the columns of its items are in the rows."""

    frames: bytes
    ends: array[int]  # [F + 1] byte offsets of the frames
    items: int
    steps: bytes  # the step columns, end to end
    episode_id: int
    first_step: int
    writer: str

    @property
    def resident(self) -> int:
        """Bytes of memory that it takes, not counting its items' rows."""
        return _resident(len(self.frames), len(self.ends) - 2)


def _resident(frame_bytes: int, steps: int) -> int:
    """Bytes of memory that a segment of ``steps`` steps with ``frame_bytes`` bytes of frames takes."""
    return frame_bytes + STEP_BYTES * steps + OFFSET_BYTES * (steps + 2) + SEGMENT_BYTES


class StoredSegment(NamedTuple):
    """A segment read back: as it was inserted, except for priorities updated since."""

    writer: str  # an episode_id is unique within its writer
    first_key: int  # of its first item; the others follow
    segment: PackedSegment

    @property
    def end_key(self) -> int:
        """The key after that of its last item."""
        return self.first_key + self.segment.items


class Inserted(NamedTuple):
    """Rows that an insertion filled, int64 [M], and rows that it emptied, int64 [E]."""

    slots: Int64
    evicted: Int64


def _resting(writer: str, segment: PackedSegment) -> _RestingSegment:
    ends = array("I", [0])
    ends.frombytes(segment.frame_sizes.cumsum(dtype=np.uint32).tobytes())
    return _RestingSegment(
        frames=segment.frames,
        ends=ends,
        items=segment.items,
        steps=b"".join([getattr(segment, name) for name in STEP_ARRAYS]),
        episode_id=segment.episode_id,
        first_step=segment.first_step,
        writer=sys.intern(writer),  # one string for all segments of a writer
    )


class Storage:
    """At most ``capacity`` items, and ``capacity_bytes`` of memory for their segments.

    The oldest segments are evicted first. Raises ValueError unless the capacity is at least 1.
    """

    def __init__(self, capacity: int, spec: ObservationSpec, capacity_bytes: int = sys.maxsize) -> None:
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}: it must be at least 1")
        self.capacity, self.spec, self.capacity_bytes = capacity, spec, capacity_bytes
        self.first_key = 0  # oldest key stored
        self.next_key = 0
        self.bytes = 0  # of frames, compressed
        self.segment_bytes = 0  # of memory for all segments, the rows apart
        self._segments: deque[_RestingSegment] = deque()
        self._segment_of: list[_RestingSegment | None] = [None] * capacity
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

    def check_fits(self, segment: PackedSegment) -> None:
        """Raise InvalidMessage when the segment is larger than the whole capacity, in items or in bytes."""
        if segment.items > self.capacity:
            raise InvalidMessage(f"a segment of {segment.items} items is larger than the capacity of {self.capacity}")
        resident = _resident(len(segment.frames), segment.steps)
        if resident > self.capacity_bytes:
            raise InvalidMessage(
                f"a segment that takes {resident} bytes of memory is larger than the {self.capacity_bytes} bytes "
                "of the shard's capacity that are left for segments"
            )

    def insert(self, writer: str, segment: PackedSegment) -> Inserted:
        """Store a segment that is valid and fits (`check_fits`), evicting the oldest ones until there is room.

        Returns the rows that were filled and emptied.
        """
        resting = _resting(writer, segment)
        evicted_from = self.first_key
        while self.size + resting.items > self.capacity or self.segment_bytes + resting.resident > self.capacity_bytes:
            self._evict()
        evicted = np.arange(evicted_from, self.first_key, dtype=np.int64) % self.capacity
        return Inserted(self._append(resting, segment), evicted)

    def _append(self, resting: _RestingSegment, segment: PackedSegment) -> Int64:
        slots = np.arange(self.next_key, self.next_key + resting.items, dtype=np.int64) % self.capacity
        start = segment.item_step
        self._tm1[slots] = start
        self._t[slots] = start + segment.item_length
        self._columns["a_tm1"][slots] = segment.actions[start]
        for name in ("r_t", "discount_t"):
            self._columns[name][slots] = getattr(segment, name)
        self.td_abs[slots] = segment.td_abs
        for slot in slots.tolist():
            self._segment_of[slot] = resting
        self._segments.append(resting)
        self.next_key += resting.items
        self.bytes += len(resting.frames)
        self.segment_bytes += resting.resident
        return slots

    def _evict(self) -> None:
        oldest = self._segments.popleft()
        for key in range(self.first_key, self.first_key + oldest.items):
            self._segment_of[key % self.capacity] = None
        self.first_key += oldest.items
        self.bytes -= len(oldest.frames)
        self.segment_bytes -= oldest.resident

    def forget(self, below: int) -> Int64:
        """Evict the segments wholly below the key ``below``; returns the slots emptied, int64 [E]."""
        first = self.first_key
        while self._segments and self.first_key + self._segments[0].items <= below:
            self._evict()
        return np.arange(first, self.first_key, dtype=np.int64) % self.capacity

    def keys(self, slots: Int64) -> UInt64:
        """The keys, uint64 [B], of the items stored at ``slots`` [B]."""
        base = self.first_key - self.first_key % self.capacity
        keys = base + slots
        return np.where(keys < self.first_key, keys + self.capacity, keys).astype(np.uint64)

    def live(self, keys: Array) -> Array:
        """Whether each of ``keys`` [B] is still stored, bool [B]."""
        return (keys >= self.first_key) & (keys < self.next_key)

    def gather(self, slots: Int64) -> tuple[dict[str, Array], list[bytes]]:
        """Columns [B] of the items stored at ``slots`` [B], and compressed stacks [2 B].

        The stacks are the frames of s_tm1 and then of s_t of each item.
        """
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
        """Set the key of the next item. Raises AssertionError unless the storage is empty."""
        assert self.size == 0, "only an empty storage starts anew"
        self.first_key = self.next_key = key

    def errors(self, first_key: int, end_key: int) -> Array:
        """A copy of the present |TD error| of stored items, float32 [end_key - first_key]."""
        at, count = first_key % self.capacity, end_key - first_key
        return np.concatenate([self.td_abs[at : at + count], self.td_abs[: max(0, at + count - self.capacity)]])

    def segments(self, first_key: int = 0, end_key: int | None = None) -> Iterator[StoredSegment]:
        """The segments stored, oldest first: those of the items from ``first_key`` to before ``end_key``.

        Segments may be inserted between two steps of the iteration: it leaves them out, and those evicted in the
        meantime.
        """
        key, end = first_key, self.next_key if end_key is None else end_key
        while (key := max(key, self.first_key)) < end:
            resting = self._segment_of[key % self.capacity]
            assert resting is not None, f"key {key} is not stored"
            yield StoredSegment(resting.writer, key, self._given_back(resting, key))
            key += resting.items

    def _given_back(self, resting: _RestingSegment, first_key: int) -> PackedSegment:
        slots = np.arange(first_key, first_key + resting.items) % self.capacity
        ends = np.frombuffer(resting.ends, np.uint32)
        steps, at, columns = len(ends) - 2, 0, {}
        for name, dtype in STEP_ARRAYS.items():
            columns[name] = np.frombuffer(resting.steps, dtype, steps, at)
            at += steps * dtype.itemsize
        step = self._tm1[slots]
        return PackedSegment(
            episode_id=resting.episode_id,
            first_step=resting.first_step,
            frames=resting.frames,
            frame_sizes=ends[1:] - ends[:-1],
            item_step=step,
            item_length=self._t[slots] - step,
            r_t=self._columns["r_t"][slots],
            discount_t=self._columns["discount_t"][slots],
            td_abs=self.td_abs[slots],
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
