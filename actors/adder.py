"""From steps to segments with initial priorities: |TD error| as the learner computes it, with the actor's weights.

    td = r_t + discount_t * q_target(s_t, argmax_a q(s_t, a)) - q(s_tm1, a_tm1)        (`rl.td`; Horgan et al. 2018)

q(s_tm1) was computed to act, and so was q(s_t), except for a segment's last frame: nobody has acted on it yet when the
segment is cut.

Legend: N environments; a segment's S steps, S + 1 frames and M items; A actions.
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


class _SeenValues:
    """Action values [A] of an episode's frames that were acted on, from the first that a later segment can hold."""

    def __init__(self) -> None:
        self._first_step, self._q = 0, list[Float32]()

    def add(self, q: Float32) -> None:
        """Store the values of the next frame, [A]."""
        self._q.append(q)

    def of(self, segment: RawSegment) -> Float32:
        """Values [S, A] of the frames of ``segment`` but its last one; no later frame may have been added.

        Values from before the segment are dropped.
        """
        del self._q[: segment.first_step - self._first_step]
        self._first_step = segment.first_step
        return np.stack(self._q)


class Adder:
    """Cuts the steps of N environments into segments, and computes the |TD error| of their items.

        adder = Adder(returns, spec, max_items, first_episodes, (online, target), double)
        for acted in rollout(environments, act, seeds):  # act chose the actions by q
            segments = adder.add(acted, q, version)

    ``networks`` (online, target) are those of the actor, which loads newer weights into them. ``double``: whether the
    learner uses Double DQN.
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
        self._seen = [_SeenValues() for _ in first_episodes]

    def add(self, acted: ActorStep, q: Float32, version: int) -> list[Segment]:
        """Take a batched step, the values q [N, A] by which its actions were chosen, and the version of the weights.

        Returns the segments that this step completes.
        """
        step = acted.step
        frames = newest_frame(step.observation, self._spec)
        first_frames = newest_frame(acted.observation, self._spec) if acted.is_first.any() else frames
        action, reward = acted.action.tolist(), step.reward.tolist()  # whole columns at once: it is faster
        terminated, truncated, lost_life = (x.tolist() for x in (step.terminated, step.truncated, step.lost_life))
        segments = []
        for i, builder in enumerate(self._builders):
            if acted.is_first[i]:
                builder.begin(first_frames[i])
                self._seen[i] = _SeenValues()
            self._seen[i].add(q[i])
            cut = builder.add(
                action=action[i],
                reward=reward[i],
                terminated=terminated[i],
                truncated=truncated[i],
                lost_life=lost_life[i],
                version=version,
                frame=frames[i],
            )
            if cut is not None:
                segments.append(cut.with_td_errors(self._td_abs(cut, self._seen[i].of(cut))))
        return segments

    def _td_abs(self, segment: RawSegment, q: Float32) -> Float32:
        """|TD error| [M] of the segment's items; q [S, A] are the online values of its frames but the last."""
        start = segment.item_step.astype(np.int64)
        end = start + segment.item_length
        s_t = stack_frames(segment.frames, end, self._spec.stack)
        q_t_value = q_t_selector = q_values(self._target, s_t)
        if self._double:
            seen = end < len(q)  # else the item bootstraps from the last frame
            q_t_selector = np.empty_like(q_t_value)
            q_t_selector[seen] = q[end[seen]]
            if not seen.all():
                q_t_selector[~seen] = q_values(self._online, s_t[~seen])
        td = double_q_error(
            torch.from_numpy(q[start]),
            torch.from_numpy(segment.actions[start].astype(np.int64)),
            torch.from_numpy(segment.r_t),
            torch.from_numpy(segment.discount_t),
            torch.from_numpy(q_t_value),
            torch.from_numpy(q_t_selector),
        )
        return td.abs().numpy()
