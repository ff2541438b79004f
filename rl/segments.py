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
    """The one frame that the last step added: [N, stack, *frame] -> [N, *frame] (the observation itself if unstacked).

    A copy of a stack's frame: whoever keeps it does not keep the stack.
    """
    return observation if spec.stack == 1 else observation[:, -1].copy()


def stack_frames(frames: Array, newest: Array, stack: int) -> Array:
    """Frame stacks that end at indices ``newest`` [B] of frames [F, ...] -> [B, stack, ...]; zeros before index 0.

    With stack = 1 the frames themselves, [B, ...].
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
    """The end of the running episode, as far as segments to come need it: step k leads from frame k to frame k + 1."""

    first_step: int = 0  # episode step of steps[0]
    next_item: int = 0  # index into steps of the first item that is in no segment yet
    frames: list[Array] = field(default_factory=list)
    steps: list[_Taken] = field(default_factory=list)


class SegmentBuilder:
    """Cuts one environment's episodes into segments of at most ``max_items`` + n - 1 items each.

    Call `begin` with an episode's first frame, then `add` after each of its steps, the one that terminates or truncates it
    included, then `begin` again. Frames are kept, not copied. Episodes are numbered from ``first_episode``.
    """

    def __init__(self, config: ReturnConfig, spec: ObservationSpec, max_items: int, first_episode: int = 0) -> None:
        self._config = config
        self._context = spec.stack - 1  # frames in front of an item's own
        self._max_items = max_items
        self._episode = first_episode - 1
        self._buffer = _Buffer()

    def begin(self, frame: Array, first_step: int = 0) -> None:
        """Start an episode at its first frame; an unfinished one is dropped.

        With ``first_step`` > 0 what came before that step is lost: the first stack - 1 steps are context alone, since an
        item there would have a stack that never was.
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
        """Take one step; returns the segment that it fills or, at the episode's end, the rest. None otherwise.

        An item waits for its n steps, so that a segment is full n - 1 steps after its last item's own.
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
