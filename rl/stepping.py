"""Stepping a batch of environments under a policy: the one loop of training, evaluation and the classic family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rl.types import Int64


class SeedSequence:
    """A stream of episode seeds of one environment batch, so that any episode can be replayed from its seed."""

    def __init__(self, seed: int, stream: int, start: int = 0) -> None:
        self._rng = np.random.default_rng([seed, stream, start])

    def draw(self, count: int) -> Int64:
        """``[count]`` seeds in [0, 2^31 - 1)."""
        return self._rng.integers(0, 2**31 - 1, size=count, dtype=np.int64)

    def get_state(self) -> Mapping[str, Any]:
        return dict(self._rng.bit_generator.state)

    def set_state(self, state: Mapping[str, Any]) -> None:
        self._rng.bit_generator.state = state
