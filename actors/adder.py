"""From steps to segments with |TD errors|, from which replay computes the initial priorities (Horgan et al. 2018).

    td = r_t + discount_t * q_target(s_t, argmax_a q(s_t, a)) - q(s_tm1, a_tm1)

This is the TD error of the learner (`rl.td`), with the actor's weights. The actor already computed q(s_tm1) and q(s_t)
to choose its actions, so they need no further forward pass. The last frame of a segment is the exception: the actor has
not acted on it yet.

Shapes: N environments; S steps, S + 1 frames and M items of a segment; A actions.
"""

from __future__ import annotations

import numpy as np
import torch

from rl.networks import QNetwork, q_values
from rl.returns import ReturnConfig
from rl.segments import SegmentBuilder, newest_frame, stack_frames
from rl.stepping import ActorStep
from rl.td import double_q_error
from rl.types import Float32, ObservationSpec, RawSegment, Segment


class _EpisodeValues:
    """The action values of the frames of one episode, as computed by the actor."""

    def __init__(self) -> None:
        self._first_step, self._q = 0, list[Float32]()

    def add(self, q: Float32) -> None:
        """Store the action values of the next frame, [A]."""
        self._q.append(q)

    def take(self, segment: RawSegment) -> Float32:
        """The action values of all frames of ``segment`` except the last one, [S, A].

        Call this before values of later frames are added. Values of frames before the segment are dropped.
        """
        del self._q[: segment.first_step - self._first_step]
        self._first_step = segment.first_step
        return np.stack(self._q)


class Adder:
    """Cuts the steps of N environments into segments and computes the |TD errors| of their items.

        adder = Adder(returns, spec, max_items, first_episodes, (online, target), double)
        for acted in rollout(environments, act, seeds):  # act chooses the actions by the action values q
            segments = adder.add(acted, q, version)

    Args:
        max_items: items per segment.
        first_episodes: for each environment, the id of its first episode.
        networks: (online, target) of the actor. The actor loads newer weights into them.
        double: whether the learner uses Double DQN.
    """

    def __init__(
        self,
        returns: ReturnConfig,
        spec: ObservationSpec,
        max_items: int,
        first_episodes: list[int],
        networks: tuple[QNetwork, QNetwork],
        double: bool,
    ) -> None:
        self._spec, self._double = spec, double
        self._online, self._target = networks
        self._builders = [SegmentBuilder(returns, spec, max_items, first) for first in first_episodes]
        self._values = [_EpisodeValues() for _ in first_episodes]

    def add(self, acted: ActorStep, q: Float32, version: int) -> list[Segment]:
        """Add a batched step. Returns the segments that it completes.

        ``q`` [N, A] are the action values that chose the actions, and ``version`` is the version of their weights.
        """
        step = acted.step
        frames = newest_frame(step.observation, self._spec)
        first_frames = newest_frame(acted.observation, self._spec) if acted.is_first.any() else frames
        action, reward = acted.action.tolist(), step.reward.tolist()  # faster than converting single elements
        terminated, truncated, lost_life = (x.tolist() for x in (step.terminated, step.truncated, step.lost_life))
        segments = []
        for i, builder in enumerate(self._builders):
            if acted.is_first[i]:
                builder.begin(first_frames[i])
                self._values[i] = _EpisodeValues()
            self._values[i].add(q[i])
            segment = builder.add(
                action=action[i],
                reward=reward[i],
                terminated=terminated[i],
                truncated=truncated[i],
                lost_life=lost_life[i],
                version=version,
                frame=frames[i],
            )
            if segment is not None:
                segments.append(segment.with_td_errors(self._td_abs(segment, self._values[i].take(segment))))
        return segments

    def _td_abs(self, segment: RawSegment, q: Float32) -> Float32:
        """|TD error| [M] of the segment's items; ``q`` [S, A] are the online values of all frames except the last."""
        start = segment.item_step.astype(np.int64)
        end = start + segment.item_length
        s_t = stack_frames(segment.frames, end, self._spec.stack)
        q_t_value = q_t_selector = q_values(self._target, s_t)
        if self._double:
            known = end < len(q)  # the other items bootstrap from the last frame
            q_t_selector = np.empty_like(q_t_value)
            q_t_selector[known] = q[end[known]]
            if not known.all():
                q_t_selector[~known] = q_values(self._online, s_t[~known])
        td = double_q_error(
            torch.from_numpy(q[start]),
            torch.from_numpy(segment.actions[start].astype(np.int64)),
            torch.from_numpy(segment.r_t),
            torch.from_numpy(segment.discount_t),
            torch.from_numpy(q_t_value),
            torch.from_numpy(q_t_selector),
        )
        return td.abs().numpy()
