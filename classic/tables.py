"""Q(s, a) as a table: a row a state.

Legend: ``s`` a state's row, ``q`` [S, A].
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from rl.types import Array, Float64

UNKNOWN = -1  # the row of a state that was never seen


class States:
    """Observations to rows: a Discrete observation is its row; any other is known by its bytes, in order of appearance."""

    def __init__(self, space: gym.Space[Any]) -> None:
        self._dtype = space.dtype
        self.count = int(space.n) if isinstance(space, gym.spaces.Discrete) else 0
        self.by_bytes: dict[bytes, int] | None = None if isinstance(space, gym.spaces.Discrete) else {}

    def row(self, observation: Any) -> int:
        """The row of a state, a new one where it was never seen."""
        if self.by_bytes is None:
            return int(observation)
        key = np.asarray(observation, self._dtype).tobytes()
        self.count = max(self.count, self.by_bytes.setdefault(key, self.count) + 1)
        return self.by_bytes[key]

    def rows(self, observations: Array) -> Array:
        """The rows of states [N, ...], int64 [N]; `UNKNOWN` where one was never seen."""
        if self.by_bytes is None:
            return observations.astype(np.int64)
        known = (self.by_bytes.get(np.asarray(o, self._dtype).tobytes(), UNKNOWN) for o in observations)
        return np.fromiter(known, np.int64, len(observations))


class QTable:
    """Q(s, a) of every state seen, ``initial`` where nothing was learned; calls as `ActionValues`."""

    def __init__(self, space: gym.Space[Any], actions: int, initial: float = 0.0) -> None:
        self.states = States(space)
        self._initial = initial
        self._q = np.full((max(self.states.count, 64), actions), initial)

    def values(self, observation: Any) -> Float64:
        """q(s, .) of one state, [A], in place; the table grows for a new one."""
        s = self.states.row(observation)
        if s >= len(self._q):
            self._q = np.vstack([self._q, np.full_like(self._q, self._initial)])
        row: Float64 = self._q[s]
        return row

    @property
    def q(self) -> Float64:
        """The values [S, A] of the states known."""
        return self._q[: self.states.count]

    def __call__(self, observations: Array) -> Array:
        rows = self.states.rows(observations)
        return np.where((rows == UNKNOWN)[:, None], self._initial, self._q[rows])
