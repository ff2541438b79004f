"""A replay buffer in memory: single transitions, sampled uniformly (Lin 1992; Mnih et al. 2015).

Legend: ``s``, ``s_next`` [B, *observation]; ``a`` [B, *action]; ``r`` [B] raw rewards; ``terminated`` [B]. ``s_next``
is the observation that follows, also at the end of an episode, where it is the last observation.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rl.types import Array, Bool, Float32


class Batch(NamedTuple):
    """A batch of transitions. It has no ``truncated``, because a truncated transition bootstraps like any other."""

    s: Array  # [B, *observation]
    a: Array  # [B, *action]
    r: Float32  # [B]
    terminated: Bool  # [B]
    s_next: Array  # [B, *observation]


class ReplayBuffer:
    """A ring buffer of the last ``capacity`` transitions."""

    def __init__(
        self,
        capacity: int,
        observation_shape: tuple[int, ...],
        action_shape: tuple[int, ...],
        observation_dtype: npt.DTypeLike,
        action_dtype: npt.DTypeLike,
    ) -> None:
        self.size, self._next = 0, 0
        self._columns = Batch(
            s=np.zeros((capacity, *observation_shape), observation_dtype),
            a=np.zeros((capacity, *action_shape), action_dtype),
            r=np.zeros(capacity, np.float32),
            terminated=np.zeros(capacity, np.bool_),
            s_next=np.zeros((capacity, *observation_shape), observation_dtype),
        )

    def append(self, s: Array, a: Array, r: float, terminated: bool, s_next: Array) -> None:
        """Copy a transition into the buffer, over the oldest if it is full; s, s_next [*observation], a [*action]."""
        for column, value in zip(self._columns, (s, a, r, terminated, s_next), strict=True):
            column[self._next] = value
        capacity = len(self._columns.r)
        self._next, self.size = (self._next + 1) % capacity, min(self.size + 1, capacity)

    def sample(self, rng: np.random.Generator, batch: int) -> Batch:
        """Sample ``batch`` transitions uniformly, with replacement. Raises ValueError if the buffer is empty."""
        rows = rng.integers(0, self.size, batch)
        return Batch._make(column[rows] for column in self._columns)
