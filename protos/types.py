"""Plain types of what a shard takes and returns; `codec.py` converts them to messages and back.

S steps and F = S + 1 frames of a segment, M items of a segment, B items that were drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rl.types import Array, Float32, Float64, ObservationSpec, UInt64

TERMINATED, TRUNCATED, LOST_LIFE = 1, 2, 4  # bits of a step's flags
NONE: Array = np.zeros(0)


class InvalidMessage(ValueError):
    """A message whose content contradicts the specification; the text says what and where."""


class PackedSegment(NamedTuple):
    """A `rl.types.Segment` with its frames still compressed, as it is sent and stored. Columns may be read-only."""

    episode_id: int
    first_step: int
    frames: bytes  # F frames end to end, as `frames.py` packs them
    frame_sizes: Array  # uint32 [F], bytes of each
    actions: Array  # int32 [S]
    rewards: Float32  # [S]
    flags: Array  # uint8 [S], TERMINATED | TRUNCATED | LOST_LIFE
    versions: Array  # uint32 [S]
    item_step: Array  # uint32 [M]
    item_length: Array  # uint32 [M]
    r_t: Float32  # [M]
    discount_t: Float32  # [M]
    td_abs: Float32  # [M]

    @property
    def steps(self) -> int:
        """Number of steps, S."""
        return len(self.actions)

    @property
    def items(self) -> int:
        """Number of items, M."""
        return len(self.item_step)

    @property
    def nbytes(self) -> int:
        """Bytes of its frames and columns."""
        of_frames = len(self.frames) + self.frame_sizes.nbytes
        of_steps = self.actions.nbytes + self.rewards.nbytes + self.flags.nbytes + self.versions.nbytes
        of_items = self.item_step.nbytes + self.item_length.nbytes + self.r_t.nbytes + self.discount_t.nbytes
        return of_frames + of_steps + of_items + self.td_abs.nbytes

    @property
    def end_step(self) -> int:
        """The episode's step number after the last step."""
        return self.first_step + len(self.actions)


class Counts(NamedTuple):
    """Totals of one shard; `replay.proto` says what each one counts."""

    inserted: int = 0
    sampled: int = 0
    stored: int = 0
    total_priority: float = 0.0
    bytes: int = 0
    dropped_updates: int = 0
    transferred: int = 0
    resident_bytes: int = 0


class LimiterState(NamedTuple):
    """The samples-per-insert limiter as the sampler sees it, over all shards; as in `replay.proto`."""

    samples_per_insert: float = 0.0  # sigma; 0: only min_size applies
    min_size: int = 0  # items
    min_diff: float = 0.0  # samples, as the next two
    max_diff: float = 0.0
    diff: float = 0.0
    stored: int = 0  # items


class ShardInfo(NamedTuple):
    """Counts and settings of one shard."""

    counts: Counts
    capacity: int  # items
    insert_credit: int  # items that may be inserted in all
    limited: bool  # whether insert credit is asked for
    selector: str
    spec: ObservationSpec
    limiter: LimiterState | None  # as the sampler last reported it
    limiter_age: float  # seconds since then
    capacity_bytes: int  # 0: no bound


class Sampled(NamedTuple):
    """Items drawn from one shard, draw by draw, their frames still compressed."""

    counts: Counts  # after these draws
    draws: Sequence[int] = ()  # items of each
    keys: UInt64 = NONE  # [B]
    probability: Float64 = NONE  # [B], of each item at its draw
    a_tm1: Array = NONE  # int32 [B]
    r_t: Float32 = NONE  # [B]
    discount_t: Float32 = NONE  # [B]
    stacks: Sequence[bytes] = ()  # [2 B], compressed frames: s_tm1 and then s_t of each item


class Drained(NamedTuple):
    """Segments handed over by a shard, oldest first."""

    segments: Sequence[tuple[str, PackedSegment]]  # each with its origin
    next: int  # send it as `taken` once they are stored elsewhere
    left: int  # items stored that are not among them


class SnapshotWritten(NamedTuple):
    """A snapshot that a shard has on disk."""

    items: int
    bytes: int  # of the files that were new
    seconds: float  # from when it began to be written to its last byte
