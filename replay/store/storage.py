"""Storage of items: segments in the order of insertion, and one row of columns for each item.

Keys count up from 0 and are never reused. The item with key k has row (slot) ``k % capacity``. That row is free when
the item is inserted, because whole segments are evicted first in, first out. Frames stay compressed; a stack is one
slice of its segment's bytes. Data that sampling does not need is stored too, so that a segment can be read back as it
was inserted.
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

SLOT_BYTES = 32  # memory for a row, filled or not
STEP_BYTES = sum(dtype.itemsize for dtype in STEP_ARRAYS.values())  # memory for a step's columns
OFFSET_BYTES = array("I").itemsize  # memory for a frame's offset in a segment
SEGMENT_BYTES = 512  # memory for a segment besides frames, ends and steps: Python objects and malloc's overhead


class _CompactSegment(NamedTuple):
    """A stored segment in as few Python objects as possible. The columns of its items are in the storage's rows."""

    frames: bytes
    ends: array[int]  # [F + 1] byte offsets: frame j is frames[ends[j] : ends[j + 1]]
    items: int
    steps: bytes  # the step columns of STEP_ARRAYS, concatenated
    episode_id: int
    first_step: int
    writer: str

    @property
    def resident_bytes(self) -> int:
        """Bytes of memory that the segment takes, without its items' rows."""
        return _segment_memory(len(self.frames), len(self.ends) - 2)


def _segment_memory(frame_bytes: int, steps: int) -> int:
    """Return the bytes of memory for a segment of ``steps`` steps with ``frame_bytes`` bytes of compressed frames."""
    return frame_bytes + STEP_BYTES * steps + OFFSET_BYTES * (steps + 2) + SEGMENT_BYTES


class StoredSegment(NamedTuple):
    """A segment read from storage: as it was inserted, but with the current |TD errors|."""

    writer: str  # an episode_id is unique within its writer
    first_key: int  # key of its first item; the keys of the other items follow
    segment: PackedSegment

    @property
    def end_key(self) -> int:
        """The key after that of the last item."""
        return self.first_key + self.segment.items


class Inserted(NamedTuple):
    """Rows that an insert filled, int64 [M], and rows that it emptied, int64 [E]."""

    slots: Int64
    evicted: Int64


def _compact_segment(writer: str, segment: PackedSegment) -> _CompactSegment:
    ends = array("I", [0])
    ends.frombytes(segment.frame_sizes.cumsum(dtype=np.uint32).tobytes())
    return _CompactSegment(
        frames=segment.frames,
        ends=ends,
        items=segment.items,
        steps=b"".join([getattr(segment, name) for name in STEP_ARRAYS]),
        episode_id=segment.episode_id,
        first_step=segment.first_step,
        writer=sys.intern(writer),  # one string for all segments of a writer
    )


class Storage:
    """Stores at most ``capacity`` items, in at most ``capacity_bytes`` bytes of memory for their segments.

    The oldest segments are evicted first. Raises ValueError if ``capacity`` is below 1.
    """

    def __init__(self, capacity: int, spec: ObservationSpec, capacity_bytes: int = sys.maxsize) -> None:
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}: it must be at least 1")
        self.capacity, self.spec, self.capacity_bytes = capacity, spec, capacity_bytes
        self.first_key = 0  # oldest stored key
        self.next_key = 0  # key of the next item
        self.bytes = 0  # of compressed frames
        self.segment_bytes = 0  # memory for all segments, without the rows
        self._segments: deque[_CompactSegment] = deque()
        self._segment_of: list[_CompactSegment | None] = [None] * capacity
        self._columns: dict[str, Array] = {
            "a_tm1": np.zeros(capacity, np.int32),
            "r_t": np.zeros(capacity, np.float32),
            "discount_t": np.zeros(capacity, np.float32),
        }
        self._tm1 = np.zeros(capacity, np.uint32)  # index of the newest frame of s_tm1 in the item's segment
        self._t = np.zeros(capacity, np.uint32)  # index of the newest frame of s_t
        self.td_abs = np.zeros(capacity, np.float32)  # last |TD error|; a restored selector is built from it
        self._blank = [blank_frames(spec, count) for count in range(spec.stack)]

    @property
    def size(self) -> int:
        """Number of items stored."""
        return self.next_key - self.first_key

    def check_fits(self, segment: PackedSegment) -> None:
        """Raise InvalidMessage if the segment is larger than the whole capacity, in items or in bytes."""
        if segment.items > self.capacity:
            raise InvalidMessage(
                f"a segment of {segment.items} items is larger than the capacity of {self.capacity} items"
            )
        resident = _segment_memory(len(segment.frames), segment.steps)
        if resident > self.capacity_bytes:
            raise InvalidMessage(
                f"a segment that takes {resident} bytes of memory is larger than the {self.capacity_bytes} bytes "
                "that the shard has for segments: start the shard with a larger capacity in bytes"
            )

    def insert(self, writer: str, segment: PackedSegment) -> Inserted:
        """Store a segment, after evicting the oldest ones until there is room; returns the rows filled and emptied.

        The segment must be valid and pass `check_fits`.
        """
        compact = _compact_segment(writer, segment)
        evicted_from = self.first_key
        while (
            self.size + compact.items > self.capacity
            or self.segment_bytes + compact.resident_bytes > self.capacity_bytes
        ):
            self._evict()
        evicted = np.arange(evicted_from, self.first_key, dtype=np.int64) % self.capacity
        return Inserted(self._append(compact, segment), evicted)

    def _append(self, compact: _CompactSegment, segment: PackedSegment) -> Int64:
        slots = np.arange(self.next_key, self.next_key + compact.items, dtype=np.int64) % self.capacity
        start = segment.item_step
        self._tm1[slots] = start
        self._t[slots] = start + segment.item_length
        self._columns["a_tm1"][slots] = segment.actions[start]
        for name in ("r_t", "discount_t"):
            self._columns[name][slots] = getattr(segment, name)
        self.td_abs[slots] = segment.td_abs
        for slot in slots.tolist():
            self._segment_of[slot] = compact
        self._segments.append(compact)
        self.next_key += compact.items
        self.bytes += len(compact.frames)
        self.segment_bytes += compact.resident_bytes
        return slots

    def _evict(self) -> None:
        oldest = self._segments.popleft()
        for key in range(self.first_key, self.first_key + oldest.items):
            self._segment_of[key % self.capacity] = None
        self.first_key += oldest.items
        self.bytes -= len(oldest.frames)
        self.segment_bytes -= oldest.resident_bytes

    def evict_below(self, below: int) -> Int64:
        """Evict the segments whose keys are all below ``below``; returns the emptied rows, int64 [E]."""
        first = self.first_key
        while self._segments and self.first_key + self._segments[0].items <= below:
            self._evict()
        return np.arange(first, self.first_key, dtype=np.int64) % self.capacity

    def keys(self, slots: Int64) -> UInt64:
        """Return the keys, uint64 [B], of the items in the rows ``slots`` [B]."""
        base = self.first_key - self.first_key % self.capacity
        keys = base + slots
        return np.where(keys < self.first_key, keys + self.capacity, keys).astype(np.uint64)

    def is_stored(self, keys: Array) -> Array:
        """Return whether each of ``keys`` [B] is stored, bool [B]."""
        return (keys >= self.first_key) & (keys < self.next_key)

    def gather(self, slots: Int64) -> tuple[dict[str, Array], list[bytes]]:
        """Return the columns and the compressed stacks of the items in the rows ``slots`` [B].

        The columns are a_tm1, r_t, discount_t and keys, each [B], by name. Each item has two stacks in the list
        [2 * B]: s_tm1, then s_t.
        """
        stacks: list[bytes] = []
        back = self.spec.stack - 1
        for slot, *both in zip(slots.tolist(), self._tm1[slots].tolist(), self._t[slots].tolist(), strict=True):
            segment = self._segment_of[slot]
            assert segment is not None, f"row {slot} is empty"
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

    def set_next_key(self, key: int) -> None:
        """Set the key of the next item. Raises AssertionError unless the storage is empty."""
        assert self.size == 0, "the next key can only be set while the storage is empty"
        self.first_key = self.next_key = key

    def td_errors(self, first_key: int, end_key: int) -> Array:
        """Return a copy of the |TD errors| of stored items, float32 [end_key - first_key]."""
        at, count = first_key % self.capacity, end_key - first_key
        return np.concatenate([self.td_abs[at : at + count], self.td_abs[: max(0, at + count - self.capacity)]])

    def segments(self, first_key: int = 0, end_key: int | None = None) -> Iterator[StoredSegment]:
        """Yield the stored segments with keys from ``first_key`` to ``end_key`` (exclusive), oldest first.

        Segments may be inserted during the iteration. It does not yield them, nor segments that they evict before their
        turn.
        """
        key, end = first_key, self.next_key if end_key is None else end_key
        while (key := max(key, self.first_key)) < end:
            compact = self._segment_of[key % self.capacity]
            assert compact is not None, f"key {key} is not stored"
            yield StoredSegment(compact.writer, key, self._rebuild_segment(compact, key))
            key += compact.items

    def _rebuild_segment(self, compact: _CompactSegment, first_key: int) -> PackedSegment:
        """Inverse of `_compact_segment`, with the items' current |TD errors|."""
        slots = np.arange(first_key, first_key + compact.items) % self.capacity
        ends = np.frombuffer(compact.ends, np.uint32)
        steps, at, columns = len(ends) - 2, 0, {}
        for name, dtype in STEP_ARRAYS.items():
            columns[name] = np.frombuffer(compact.steps, dtype, steps, at)
            at += steps * dtype.itemsize
        step = self._tm1[slots]
        return PackedSegment(
            episode_id=compact.episode_id,
            first_step=compact.first_step,
            frames=compact.frames,
            frame_sizes=ends[1:] - ends[:-1],
            item_step=step,
            item_length=self._t[slots] - step,
            r_t=self._columns["r_t"][slots],
            discount_t=self._columns["discount_t"][slots],
            td_abs=self.td_abs[slots],
            **columns,
        )

    def check_valid(self) -> None:
        """Raise AssertionError if the data structure is inconsistent."""
        assert self.size == sum(s.items for s in self._segments) <= self.capacity, "items do not add up"
        assert self.bytes == sum(len(s.frames) for s in self._segments), "bytes do not add up"
        assert self.segment_bytes == sum(s.resident_bytes for s in self._segments) <= self.capacity_bytes
        key = self.first_key
        for segment in self._segments:
            for k in range(key, key + segment.items):
                assert self._segment_of[k % self.capacity] is segment, f"the row of key {k} refers to another segment"
                assert self._tm1[k % self.capacity] < self._t[k % self.capacity] < len(segment.ends) - 1
            key += segment.items
        filled = sum(s is not None for s in self._segment_of)
        assert filled == self.size, f"{filled} rows are filled, but {self.size} items are stored"
