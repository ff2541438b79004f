"""Segments: consecutive steps of one episode, the unit that is inserted into replay.

A segment of M items also holds the stack - 1 frames before its first item (fewer at the episode's start) and the n
frames after its last item. So the segment contains the stack and the n-step successor of every item. Segments of an
episode overlap by n + stack - 1 frames. No item crosses an episode boundary.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from rl.returns import ReturnConfig, n_step_targets
from rl.types import Array, ObservationSpec, RawSegment


def newest_frame(observation: Array, spec: ObservationSpec) -> Array:
    """The newest frame of each stack: observations [N, stack, *frame] -> frames [N, *frame].

    With stack = 1 the observations themselves are returned. Otherwise the frames are copied, so that storing them does
    not keep the whole stacks in memory.
    """
    return observation if spec.stack == 1 else observation[:, -1].copy()


def stack_frames(frames: Array, newest: Array, stack: int) -> Array:
    """Stacks [B, stack, *frame] whose newest frames are ``frames[newest]``; with stack = 1 [B, *frame].

    ``frames`` is [F, *frame], ``newest`` holds B indices. Frames before index 0 are zeros.
    """
    if stack == 1:
        return np.asarray(frames[newest])
    index = newest[:, None].astype(np.int64) + np.arange(1 - stack, 1)  # [B, stack]
    stacked = frames[np.maximum(index, 0)]
    stacked[index < 0] = 0
    return np.asarray(stacked)


class _BufferedStep(NamedTuple):
    """One step of the episode, without its frames."""

    action: int
    reward: float
    terminated: bool
    truncated: bool
    lost_life: bool
    version: int


@dataclass
class _Buffer:
    """The part of the current episode that later segments need. Step k leads from frame k to frame k + 1."""

    first_step: int = 0  # number of steps[0] within the episode
    next_item: int = 0  # index into steps: the first item that is not in a segment yet
    frames: list[Array] = field(default_factory=list)
    steps: list[_BufferedStep] = field(default_factory=list)


class SegmentBuilder:
    """Cuts the episodes of one environment into segments of ``max_items`` items.

        builder.begin(first_frame)
        while not done:
            segment = builder.add(action=..., reward=..., ..., frame=next_frame)  # None unless one is complete

    Also add the last step of an episode, then call `begin` for the next episode. The last segment of an episode has up
    to ``max_items`` + n - 1 items. The builder stores references to frames, not copies. Episodes are numbered from
    ``first_episode``.
    """

    def __init__(self, config: ReturnConfig, spec: ObservationSpec, max_items: int, first_episode: int = 0) -> None:
        self._config = config
        self._context = spec.stack - 1  # frames needed before an item's own frame
        self._max_items = max_items
        self._episode = first_episode - 1
        self._buffer = _Buffer()

    def begin(self, frame: Array, first_step: int = 0) -> None:
        """Start an episode at its first frame [*frame]. The steps of an unfinished episode are dropped.

        ``first_step`` > 0 means that the beginning of the episode is missing. Items then start stack - 1 steps later,
        because the stacks of earlier items would need missing frames.
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
        version: int,  # of the weights that chose the action
        frame: Array,  # after the step
    ) -> RawSegment | None:
        """Add one step and the frame [*frame] after it. Returns the segment that this step completes, or None.

        The last step of an episode completes a segment with all remaining items. Otherwise a segment is complete n - 1
        steps after the step of its last item, because that item needs n rewards.
        """
        buffer = self._buffer
        buffer.steps.append(_BufferedStep(action, reward, terminated, truncated, lost_life, version))
        buffer.frames.append(frame)
        pending = len(buffer.steps) - buffer.next_item
        if terminated or truncated:
            return self._cut(pending) if pending > 0 else None
        if pending - (self._config.n_step - 1) < self._max_items:
            return None
        segment = self._cut(self._max_items)
        self._drop_before(buffer.next_item + self._max_items)
        return segment

    def _cut(self, items: int) -> RawSegment:
        """A segment of all steps in the buffer, with the next ``items`` items."""
        buffer, first = self._buffer, self._buffer.next_item
        steps = _BufferedStep._make(zip(*buffer.steps, strict=True))  # each field is a column [S]
        rewards = np.asarray(steps.reward, np.float32)
        terminated, lost_life = (np.asarray(column, np.bool_) for column in (steps.terminated, steps.lost_life))
        item = n_step_targets(self._config, rewards[first:], terminated[first:], lost_life[first:], items)
        return RawSegment(
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

    def _drop_before(self, next_item: int) -> None:
        """Drop the steps and frames that the items from ``next_item`` on do not need."""
        buffer = self._buffer
        drop = max(0, next_item - self._context)
        buffer.first_step += drop
        buffer.next_item = next_item - drop
        del buffer.frames[:drop], buffer.steps[:drop]
