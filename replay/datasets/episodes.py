"""Joins the segments of an episode that overlap or touch.

A stored episode may lack its beginning (evicted), its end (still being played) or a part in the middle (its segments
went to several shards, and one shard evicted earlier). So an episode is returned as fragments of consecutive steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from protos.codec import unpack_segment
from protos.types import PackedSegment
from replay.store.storage import StoredSegment
from rl.types import Array, Bool, Float32, ObservationSpec

_STEPS = ("actions", "rewards", "terminated", "truncated", "lost_life", "versions")


@dataclass(frozen=True, eq=False)
class EpisodeFragment:
    """T consecutive steps of one episode and their T + 1 frames. Step j leads from frame j to frame j + 1."""

    first_step: int  # the episode's step number of step 0
    frames: Array  # [T + 1, *frame]
    actions: Array  # [T], from 0
    rewards: Float32  # [T], raw
    terminated: Bool  # [T], true at most at the last step
    truncated: Bool  # [T], true at most at the last step
    lost_life: Bool  # [T]
    versions: Array  # [T], version of the weights that chose the action

    @property
    def steps(self) -> int:
        """Number of steps, T."""
        return len(self.actions)

    @property
    def is_cut(self) -> bool:
        """Whether the episode continued after the last step of this fragment."""
        return not (self.terminated[-1] or self.truncated[-1])


def episode_fragments(stored: Iterable[StoredSegment], spec: ObservationSpec) -> Iterator[EpisodeFragment]:
    """Yield all fragments of consecutive steps in ``stored``, a collection of segments in any order.

    Each step of an episode occurs once. Reads all segments first and keeps them compressed; unpacks one fragment at a
    time. Raises InvalidMessage if a segment is damaged.
    """
    episodes: dict[tuple[str, int], list[PackedSegment]] = {}
    for writer, _, segment in stored:
        episodes.setdefault((writer, segment.episode_id), []).append(segment)
    for episode in list(episodes):
        for chain in _group_consecutive(episodes.pop(episode)):
            yield _join(chain, spec)


def _group_consecutive(segments: list[PackedSegment]) -> Iterator[list[PackedSegment]]:
    """Sort the segments of one episode by step and split them where steps are missing; drop redundant segments."""
    chain: list[PackedSegment] = []
    for segment in sorted(segments, key=lambda s: (s.first_step, -s.end_step)):
        if chain and segment.first_step > chain[-1].end_step:
            yield chain
            chain = []
        if not chain or segment.end_step > chain[-1].end_step:
            chain.append(segment)
    yield chain


def _join(chain: list[PackedSegment], spec: ObservationSpec) -> EpisodeFragment:
    frames: list[Array] = []
    columns: dict[str, list[Array]] = {name: [] for name in _STEPS}
    first = end = chain[0].first_step
    for packed in chain:
        segment: Any = unpack_segment(packed, spec)
        new = end - segment.first_step  # index of the first step that earlier segments do not have
        frames.append(segment.frames[new if not frames else new + 1 :])
        for name, parts in columns.items():
            parts.append(getattr(segment, name)[new:])
        end = packed.end_step
    return EpisodeFragment(first, np.concatenate(frames), **{n: np.concatenate(parts) for n, parts in columns.items()})
