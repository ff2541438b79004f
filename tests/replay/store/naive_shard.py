"""A simple shard that keeps its segments in a list: the reference for test_shard_machine.py."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from protos import codec
from protos import replay_pb2 as pb
from replay.store.storage import SEGMENT_BYTES
from rl.segments import stack_frames


@dataclass
class NaiveShard:
    """A list of segments, oldest first; each has its message, its origin, and its items as dictionaries."""

    capacity: int
    room: int  # bytes for segments
    stack: int
    segments: list = field(default_factory=list)
    next_key: int = 0
    last: dict = field(default_factory=dict)  # sequence of each writer
    inserted: int = 0
    transferred: int = 0
    sampled: int = 0
    dropped: int = 0
    generation: int = 0  # of keys: how often the shard was restored

    def insert(self, origin, segment, packed):
        start = segment.item_step.astype(int)
        s_tm1 = stack_frames(segment.frames, start, self.stack)
        s_t = stack_frames(segment.frames, start + segment.item_length, self.stack)
        items = [
            {
                "key": self.next_key + i,
                "s_tm1": s_tm1[i],
                "s_t": s_t[i],
                "a": segment.actions[start[i]],
                "r": segment.r_t[i],
                "discount": segment.discount_t[i],
                "td": float(segment.td_abs[i]),
            }
            for i in range(segment.items)
        ]
        self.next_key += len(items)
        steps = len(segment.actions)
        size = len(packed.frames) + 4 * (steps + 2) + (4 + 4 + 1 + 4) * steps + SEGMENT_BYTES
        self.segments.append(
            {
                "origin": origin,
                "message": serialized(packed),
                "items": items,
                "frames": len(packed.frames),
                "bytes": size,
            }
        )
        while len(self.items) > self.capacity or self.bytes > self.room:
            self.segments.pop(0)

    @property
    def items(self):
        """All stored items, by key."""
        return {item["key"]: item for segment in self.segments for item in segment["items"]}

    @property
    def bytes(self):
        return sum(segment["bytes"] for segment in self.segments)

    @property
    def first_key(self):
        return self.segments[0]["items"][0]["key"] if self.segments else self.next_key

    def expected_segment(self, segment):
        """Return the origin and the serialized segment that a shard should return, with the current TD errors."""
        message = pb.Segment.FromString(segment["message"])
        message.td_abs = np.array([item["td"] for item in segment["items"]], "<f4").tobytes()
        return segment["origin"], serialized(codec.segment_from_message(message))


def serialized(segment):
    return codec.segment_to_message(segment).SerializeToString()
