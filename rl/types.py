"""Data types shared by all parts.

Legend (Rainbow / DQN Zoo notation): ``s_tm1`` the observation acted on, ``a_tm1`` the action, ``r_t`` the n-step
discounted reward that followed, ``discount_t`` gamma^n (0 after a termination), ``s_t`` the observation n steps later.
Shapes are written ``[B, ...]``: B items of a batch, S steps of a segment, F = S + 1 frames, M items of a segment.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
UInt64 = npt.NDArray[np.uint64]
Bool = npt.NDArray[np.bool_]


class TransitionBatch(NamedTuple):
    """A batch of n-step transitions; gamma is already inside ``r_t`` and ``discount_t``."""

    s_tm1: Array  # [B, *observation]
    a_tm1: Int64  # [B]
    r_t: Float32  # [B]
    discount_t: Float32  # [B], gamma^n, or 0 where the episode terminated inside the n steps
    s_t: Array  # [B, *observation]


@dataclass(frozen=True, eq=False)
class SampledBatch:
    """What the learner trains on: transitions with the keys and weights that prioritized replay needs."""

    transitions: TransitionBatch
    keys: UInt64  # [B], never used twice within a shard
    shards: Int64  # [B], index of the shard that each key belongs to
    weights: Float32  # [B], importance weights in (0, 1]


@dataclass(frozen=True)
class ObservationSpec:
    """Shape and type of one observation: ``stack`` frames of ``frame_shape``.

    With ``stack`` = 1 the observation is the frame itself. Otherwise it is ``[stack, *frame_shape]``, oldest frame
    first, and frames before the episode's first are zeros.
    """

    frame_shape: tuple[int, ...]
    dtype: str
    stack: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one observation: ``frame_shape``, or ``(stack, *frame_shape)``."""
        return self.frame_shape if self.stack == 1 else (self.stack, *self.frame_shape)

    @property
    def frame_bytes(self) -> int:
        """Bytes of one uncompressed frame."""
        return math.prod(self.frame_shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, eq=False)
class UnratedSegment:
    """A segment whose items' |TD errors| are not known yet.

    Step j leads from frame j to frame j + 1. Item m starts at frame ``item_step[m]`` and bootstraps from frame
    ``item_step[m] + item_length[m]``. Frames in front of the first item give its stack context.
    """

    episode_id: int
    first_step: int  # the episode's step number of step 0 of this segment
    frames: Array  # [S + 1, *frame]
    actions: npt.NDArray[np.int32]  # [S]
    rewards: Float32  # [S], raw
    terminated: Bool  # [S]
    truncated: Bool  # [S]
    lost_life: Bool  # [S]
    versions: npt.NDArray[np.uint32]  # [S], version of the weights acted on
    item_step: npt.NDArray[np.uint32]  # [M]
    item_length: npt.NDArray[np.uint32]  # [M], 1..n
    r_t: Float32  # [M]
    discount_t: Float32  # [M]

    @property
    def items(self) -> int:
        """Number of items, M."""
        return len(self.item_step)

    def rated(self, td_abs: Float32) -> Segment:
        """The same segment with |TD error| [M] of its items."""
        return Segment(**{**vars(self), "td_abs": td_abs})


@dataclass(frozen=True, eq=False)
class Segment(UnratedSegment):
    """Consecutive steps of one episode, each frame stored once; the unit that is inserted into replay."""

    td_abs: Float32  # [M], |TD error|, from which a shard makes the items' priorities


class EpisodeResult(NamedTuple):
    """One finished episode, as reported in the metrics."""

    episode_return: float  # raw rewards summed, undiscounted
    length: int  # agent steps
    epsilon: float
    truncated: bool


class Step(NamedTuple):
    """What one batched step returned; ``observation`` is the true successor even where the episode ended."""

    observation: Array  # [N, *observation]
    reward: Float32  # [N], raw
    terminated: Bool  # [N]
    truncated: Bool  # [N]
    lost_life: Bool  # [N]

    @property
    def done(self) -> Bool:
        """Whether the episode ended at this step, terminated or truncated; bool [N]."""
        return self.terminated | self.truncated
