"""Segments: consecutive steps of one episode, cut for replay, and the stacks of frames in them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from rl.returns import ReturnConfig, n_step_returns
from rl.types import Array, Float32, ObservationSpec, Segment


def newest_frame(observation: Array, spec: ObservationSpec) -> Array:
    """The one frame that the last step added: [N, stack, *frame] -> [N, *frame] (the observation itself if unstacked)."""
    return observation if spec.stack == 1 else observation[:, -1]


class ClosedSegment(NamedTuple):
    """A segment whose priorities are still to be set, with the action values that the actor saw on its way."""

    segment: Segment
    q: Float32  # [S + 1, A] online values of each frame's observation; the last row is NaN if it was never evaluated


@dataclass
class _Buffer:
    """Steps of the running episode that are not yet all in segments."""

    first_step: int = 0  # episode step of steps[0]
    next_item: int = 0  # index into steps of the first item not yet emitted
    frames: list[Array] = field(default_factory=list)
    steps: list[tuple[int, float, bool, bool, bool, int]] = field(default_factory=list)
    q: list[Array] = field(default_factory=list)


class SegmentBuilder:
    """Cuts one environment's episodes into segments of at most ``max_items`` items each.

    Call `begin` with an episode's first frame, then `add` after each step. A segment holds the stack - 1 frames in front
    of its first item (fewer at the episode's start) and the n frames behind its last one, so segments of an episode
    overlap by n + stack - 1 frames, and no item crosses an episode's boundary.
    """

    def __init__(self, config: ReturnConfig, spec: ObservationSpec, max_items: int, first_episode: int = 0) -> None:
        self._config = config
        self._stack = spec.stack
        self._max_items = max_items
        self._episode = first_episode - 1
        self._buffer = _Buffer()

    def begin(self, frame: Array, first_step: int = 0) -> None:
        """Start an episode at its first frame; an unfinished one is dropped.

        With ``first_step`` > 0 what came before that step is lost: the first stack - 1 steps are context alone, since an
        item there would have a stack that never was.
        """
        self._episode += 1
        self._buffer = _Buffer(first_step, self._stack - 1 if first_step else 0, [frame])

    def add(
        self,
        q: Array,
        action: int,
        reward: float,
        terminated: bool,
        truncated: bool,
        lost_life: bool,
        version: int,
        frame: Array,
    ) -> ClosedSegment | None:
        """Take one step: values q [A] of the frame acted on, and the frame that followed. Returns a segment when full."""
        buffer = self._buffer
        buffer.q.append(q)
        buffer.steps.append((action, reward, terminated, truncated, lost_life, version))
        buffer.frames.append(frame)
        pending = len(buffer.steps) - buffer.next_item
        if terminated or truncated:
            return self._close(pending, last=True) if pending > 0 else None
        if pending - (self._config.n_step - 1) >= self._max_items:
            return self._close(self._max_items, last=False)
        return None

    def _close(self, items: int, last: bool) -> ClosedSegment:
        buffer, config = self._buffer, self._config
        columns = list(zip(*buffer.steps, strict=True))
        rewards = np.asarray(columns[1], np.float32)
        terminated, truncated, lost = (np.asarray(c, np.bool_) for c in columns[2:5])
        training = np.clip(rewards, -config.clip_reward, config.clip_reward) if config.clip_reward else rewards
        stops = terminated | (lost & config.life_loss_terminates)
        first = buffer.next_item
        targets = n_step_returns(training[first:], stops[first:], items, config.n_step, config.gamma)
        segment = Segment(
            episode_id=self._episode,
            first_step=buffer.first_step,
            frames=np.stack(buffer.frames),
            actions=np.asarray(columns[0], np.int32),
            rewards=rewards,
            terminated=terminated,
            truncated=truncated,
            lost_life=lost,
            versions=np.asarray(columns[5], np.uint32),
            item_step=np.arange(first, first + items, dtype=np.uint32),
            item_length=targets.length.astype(np.uint32),
            r_t=targets.r_t,
            discount_t=targets.discount_t,
            td_abs=np.ones(items, np.float32),
        )
        unseen = np.full((1, len(buffer.q[0])), np.nan, np.float32)
        closed = ClosedSegment(segment, np.concatenate([np.stack(buffer.q).astype(np.float32), unseen]))
        if not last:
            self._keep_context(first + items)
        return closed

    def _keep_context(self, next_item: int) -> None:
        """Forget what no later item needs: keep stack - 1 frames in front of the next item."""
        buffer = self._buffer
        drop = max(0, next_item - (self._stack - 1))
        buffer.first_step += drop
        buffer.next_item = next_item - drop
        del buffer.frames[:drop], buffer.steps[:drop], buffer.q[:drop]


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
