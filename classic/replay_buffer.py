"""Experience replay in one process: a ring of single transitions, drawn uniformly (Lin 1992; Mnih et al. 2015).

Legend: ``s`` [B, *observation], ``a`` [B, *action], ``r`` [B] raw, ``terminated`` [B], ``s_next`` [B, *observation], the
true successor also where an episode was truncated.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rl.types import Array, Bool, Float32


class Batch(NamedTuple):
    """Transitions; only a termination stops the bootstrap, so a truncation is not kept."""

    s: Array  # [B, *observation]
    a: Array  # [B, *action]
    r: Float32  # [B]
    terminated: Bool  # [B]
    s_next: Array  # [B, *observation]


class ReplayBuffer:
    """The last ``capacity`` transitions."""

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
        """Copy one transition (s, s_next [*observation], a [*action]) over the oldest once the ring is full."""
        for column, value in zip(self._columns, (s, a, r, terminated, s_next), strict=True):
            column[self._next] = value
        capacity = len(self._columns.r)
        self._next, self.size = (self._next + 1) % capacity, min(self.size + 1, capacity)

    def sample(self, rng: np.random.Generator, batch: int) -> Batch:
        """``batch`` transitions, uniformly and with replacement. Raises ValueError while there is none."""
        rows = rng.integers(0, self.size, batch)
        return Batch._make(column[rows] for column in self._columns)
