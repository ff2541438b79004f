"""Segments: consecutive steps of one episode, cut for replay, and the stacks of frames in them.

A segment of M items holds, of its episode, the stack - 1 frames in front of its first item (fewer at the episode's start)
and the n frames behind its last one. So an item's stack and its n-step successor are indices into the segment; segments of
an episode overlap by n + stack - 1 frames; and no item crosses an episode's boundary.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from rl.returns import ReturnConfig, targets
from rl.types import Array, ObservationSpec, UnratedSegment


def newest_frame(observation: Array, spec: ObservationSpec) -> Array:
    """The frame that the last step added: observations [N, stack, *frame] -> frames [N, *frame].

    An unstacked observation is its own frame. Of a stack the frame is copied, so that keeping it does not keep the
    stack.
    """
    return observation if spec.stack == 1 else observation[:, -1].copy()


def stack_frames(frames: Array, newest: Array, stack: int) -> Array:
    """Stacks [B, stack, *frame] of ``frames`` [F, *frame] that end at the indices ``newest`` [B]; zeros before index 0.

    With stack = 1 the frames themselves, [B, *frame].
    """
    if stack == 1:
        return np.asarray(frames[newest])
    index = newest[:, None].astype(np.int64) + np.arange(1 - stack, 1)  # [B, stack]
    stacked = frames[np.maximum(index, 0)]
    stacked[index < 0] = 0
    return np.asarray(stacked)


class _Taken(NamedTuple):
    """A step that was taken."""

    action: int
    reward: float
    terminated: bool
    truncated: bool
    lost_life: bool
    version: int


@dataclass
class _Buffer:
    """The part of the running episode that later segments need. Step k leads from frame k to frame k + 1."""

    first_step: int = 0  # episode step of steps[0]
    next_item: int = 0  # index into steps of the first item that is in no segment yet
    frames: list[Array] = field(default_factory=list)
    steps: list[_Taken] = field(default_factory=list)


class SegmentBuilder:
    """Cuts one environment's episodes into segments of at most ``max_items`` + n - 1 items each.

        builder.begin(first_frame)
        while not done:
            segment = builder.add(action=..., reward=..., ..., frame=next_frame)  # None until one is complete

    The step that terminates or truncates the episode is added too; then `begin` starts the next one. Frames [*frame]
    are kept, not copied. Episodes are numbered from ``first_episode``.
    """

    def __init__(self, config: ReturnConfig, spec: ObservationSpec, max_items: int, first_episode: int = 0) -> None:
        self._config = config
        self._context = spec.stack - 1  # frames in front of an item's own
        self._max_items = max_items
        self._episode = first_episode - 1
        self._buffer = _Buffer()

    def begin(self, frame: Array, first_step: int = 0) -> None:
        """Start an episode at its first frame [*frame]; an unfinished episode is dropped.

        With ``first_step`` > 0 the steps before it are lost. The first stack - 1 steps then serve as context alone: an
        item that started there would need frames that are missing.
        """
        self._episode += 1
        self._buffer = _Buffer(first_step, self._context if first_step else 0, [frame])

    def add(
        self,
        *,
        action: int,
        reward: float,  # raw
        terminated: bool,
        truncated: bool,
        lost_life: bool,
        version: int,  # of the weights acted on
        frame: Array,  # that followed
    ) -> UnratedSegment | None:
        """Take one step and the frame [*frame] after it; returns the segment that the step completes, or None.

        At the episode's end that is the rest of the episode. Otherwise an item waits for its n steps, so that a segment
        is complete n - 1 steps after the step of its last item.
        """
        buffer = self._buffer
        buffer.steps.append(_Taken(action, reward, terminated, truncated, lost_life, version))
        buffer.frames.append(frame)
        pending = len(buffer.steps) - buffer.next_item
        if terminated or truncated:
            return self._cut(pending) if pending > 0 else None
        if pending - (self._config.n_step - 1) < self._max_items:
            return None
        segment = self._cut(self._max_items)
        self._forget(buffer.next_item + self._max_items)
        return segment

    def _cut(self, items: int) -> UnratedSegment:
        """Everything in the buffer, with its next ``items`` items."""
        buffer, first = self._buffer, self._buffer.next_item
        steps = _Taken._make(zip(*buffer.steps, strict=True))  # each field a column [S]
        rewards = np.asarray(steps.reward, np.float32)
        terminated, lost_life = (np.asarray(column, np.bool_) for column in (steps.terminated, steps.lost_life))
        item = targets(self._config, rewards[first:], terminated[first:], lost_life[first:], items)
        return UnratedSegment(
            episode_id=self._episode,
            first_step=buffer.first_step,
            frames=np.stack(buffer.frames),
            actions=np.asarray(steps.action, np.int32),
            rewards=rewards,
            terminated=terminated,
            truncated=np.asarray(steps.truncated, np.bool_),
            lost_life=lost_life,
            versions=np.asarray(steps.version, np.uint32),
            item_step=np.arange(first, first + items, dtype=np.uint32),
            item_length=item.length.astype(np.uint32),
            r_t=item.r_t,
            discount_t=item.discount_t,
        )

    def _forget(self, next_item: int) -> None:
        """Drop what no later item needs: keep stack - 1 frames in front of the next item."""
        buffer = self._buffer
        drop = max(0, next_item - self._context)
        buffer.first_step += drop
        buffer.next_item = next_item - drop
        del buffer.frames[:drop], buffer.steps[:drop]
