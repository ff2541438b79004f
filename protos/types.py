"""Arguments and results of a shard as plain types; `codec.py` converts them to messages and back.

Shapes: S steps, F = S + 1 frames and M items of a segment; B items of a reply.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rl.types import Array, Float32, Float64, ObservationSpec, UInt64

TERMINATED, TRUNCATED, LOST_LIFE = 1, 2, 4  # bits of a step's flags
EMPTY: Array = np.zeros(0)
UNLIMITED_CREDIT = 2**62  # items; a credit that nobody uses up, small enough for an int64 field


class InvalidMessage(ValueError):
    """A message that violates the specification in `replay.proto`; the text says which field and how."""


class PackedSegment(NamedTuple):
    """A `rl.types.Segment` with compressed frames, as it is sent and stored. Arrays may be read-only."""

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
        """Total bytes of all frames and arrays."""
        of_frames = len(self.frames) + self.frame_sizes.nbytes
        of_steps = self.actions.nbytes + self.rewards.nbytes + self.flags.nbytes + self.versions.nbytes
        of_items = self.item_step.nbytes + self.item_length.nbytes + self.r_t.nbytes + self.discount_t.nbytes
        return of_frames + of_steps + of_items + self.td_abs.nbytes

    @property
    def end_step(self) -> int:
        """The step number in the episode that follows the last step."""
        return self.first_step + len(self.actions)


class Counts(NamedTuple):
    """Counters of one shard; `replay.proto` documents each one."""

    inserted: int = 0
    sampled: int = 0
    stored: int = 0
    total_priority: float = 0.0
    bytes: int = 0
    dropped_updates: int = 0
    transferred: int = 0
    resident_bytes: int = 0


class LimiterState(NamedTuple):
    """State of the samples-per-insert limiter over all shards, from the sampler; see `Limiter` in `replay.proto`."""

    samples_per_insert: float = 0.0  # sigma; 0: only min_size applies
    min_size: int = 0  # items
    min_diff: float = 0.0  # in samples, like max_diff and diff
    max_diff: float = 0.0
    diff: float = 0.0
    stored: int = 0  # items


class ShardInfo(NamedTuple):
    """Counts and settings of one shard."""

    counts: Counts
    capacity: int  # items
    insert_credit: int  # the credit: `counts.inserted` may grow up to it
    limited: bool  # whether inserts need credit
    selector: str
    spec: ObservationSpec
    limiter: LimiterState | None  # last state sent by the sampler; None before the first
    limiter_age: float  # seconds since `limiter` was received; 0.0 if it is None
    capacity_bytes: int  # 0: unlimited


class Sampled(NamedTuple):
    """Items drawn from one shard, one draw after the other, with compressed frames."""

    counts: Counts  # after these draws
    draws: Sequence[int] = ()  # number of items of each draw
    keys: UInt64 = EMPTY  # [B]
    probability: Float64 = EMPTY  # [B], of each item when it was drawn
    a_tm1: Array = EMPTY  # int32 [B]
    r_t: Float32 = EMPTY  # [B]
    discount_t: Float32 = EMPTY  # [B]
    stacks: Sequence[bytes] = ()  # [2 * B], compressed frames: for each item the stack s_tm1, then the stack s_t


class Drained(NamedTuple):
    """Segments returned by a shard that is being drained, oldest first."""

    segments: Sequence[tuple[str, PackedSegment]]  # each with its origin
    next: int  # pass it as `taken` to the next call, once these segments are stored in other shards
    left: int  # items stored that are not in these segments


class SnapshotResult(NamedTuple):
    """Statistics of a snapshot that a shard has written."""

    items: int
    bytes: int  # of new files; files shared with an earlier snapshot are not counted
    seconds: float  # from the start of writing to the last byte on disk
