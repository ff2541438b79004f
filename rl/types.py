"""Data types shared by all components.

Notation (as in DQN Zoo): ``s_tm1`` the observation before the action, ``a_tm1`` the action, ``r_t`` the sum of the n
discounted rewards that followed, ``discount_t`` gamma^n (0 after a termination), ``s_t`` the observation n steps later.
Shapes: B items of a batch, S steps of a segment, S + 1 frames of a segment, M items of a segment, N environments.
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
    """A batch of n-step transitions. ``r_t`` and ``discount_t`` already contain gamma."""

    s_tm1: Array  # [B, *observation]
    a_tm1: Int64  # [B]
    r_t: Float32  # [B]
    discount_t: Float32  # [B], gamma^n, or 0 if the episode terminated within the n steps
    s_t: Array  # [B, *observation]


@dataclass(frozen=True, eq=False)
class SampledBatch:
    """A batch from replay: transitions, the keys for updates of their priorities, and importance weights."""

    transitions: TransitionBatch
    keys: UInt64  # [B], unique within a shard and never used again
    shards: Int64  # [B], index of the shard that each key belongs to
    weights: Float32  # [B], importance weights in (0, 1]


@dataclass(frozen=True)
class ObservationSpec:
    """Shape and dtype of one observation: ``stack`` frames of ``frame_shape``.

    With ``stack`` = 1 the observation is the frame itself. Otherwise it is ``[stack, *frame_shape]``, oldest frame
    first. Frames before the start of the episode are zeros.
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
class RawSegment:
    """A segment before the |TD errors| of its items are computed (`with_td_errors`).

    Step j leads from frame j to frame j + 1. Item m starts at frame ``item_step[m]`` and bootstraps from frame
    ``item_step[m] + item_length[m]``. The frames before the first item are needed for its stack.
    """

    episode_id: int
    first_step: int  # number of this segment's step 0 within the episode
    frames: Array  # [S + 1, *frame]
    actions: npt.NDArray[np.int32]  # [S]
    rewards: Float32  # [S], raw
    terminated: Bool  # [S]
    truncated: Bool  # [S]
    lost_life: Bool  # [S]
    versions: npt.NDArray[np.uint32]  # [S], version of the weights that chose the action
    item_step: npt.NDArray[np.uint32]  # [M]
    item_length: npt.NDArray[np.uint32]  # [M], 1..n
    r_t: Float32  # [M]
    discount_t: Float32  # [M]

    @property
    def items(self) -> int:
        """Number of items, M."""
        return len(self.item_step)

    def with_td_errors(self, td_abs: Float32) -> Segment:
        """The same segment with the |TD errors| ``td_abs`` [M] of its items. The arrays are shared, not copied."""
        return Segment(**{**vars(self), "td_abs": td_abs})


@dataclass(frozen=True, eq=False)
class Segment(RawSegment):
    """Consecutive steps of one episode, each frame stored once; the unit that is inserted into replay."""

    td_abs: Float32  # [M], |TD error|; the shard computes the priorities from it


class EpisodeResult(NamedTuple):
    """One finished episode, as reported in the metrics."""

    episode_return: float  # raw rewards summed, undiscounted
    length: int  # agent steps
    epsilon: float
    truncated: bool


class Step(NamedTuple):
    """The result of one batched step. ``observation`` is the true successor even if the episode ended."""

    observation: Array  # [N, *observation]
    reward: Float32  # [N], raw
    terminated: Bool  # [N]
    truncated: Bool  # [N]
    lost_life: Bool  # [N]

    @property
    def done(self) -> Bool:
        """Whether the episode ended at this step, terminated or truncated; bool [N]."""
        return self.terminated | self.truncated
