"""A sum tree over slots, vectorized over the batch (Schaul et al. 2016, appendix B.2.1, with a fan-out of FANOUT).

Each level holds the sums of groups of FANOUT entries of the level below. With a large fan-out the tree has few levels,
and an operation takes a few NumPy calls per level, independent of the batch size. A parent is recomputed from its
children and never updated by a difference, so rounding errors do not accumulate.
"""

from __future__ import annotations

import numpy as np

from rl.types import Array, Float64, Int64

FANOUT = 32


class SumTree:
    """Non-negative values at slots 0..capacity-1, and their sum; finds a slot by its cumulative sum in O(log capacity).

    To draw slots in proportion to their values, call `find` with uniform random numbers in [0, total). Raises
    ValueError if ``capacity`` is below 1.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}: it must be at least 1")
        self.capacity = capacity
        self._levels: list[Float64] = []  # [0]: the leaves; [-1]: one group of FANOUT sums
        size = capacity
        while True:
            size = -(-size // FANOUT)
            self._levels.append(np.zeros(size * FANOUT))
            if size == 1:
                break

    @property
    def total(self) -> float:
        """Sum of all values."""
        return float(self._levels[-1].sum())

    def get(self, slots: Array) -> Float64:
        """Return the values, float64 [B], at ``slots`` [B]."""
        return np.asarray(self._levels[0][slots])

    def set(self, slots: Array, values: Array) -> None:
        """Set the values at ``slots`` [B] to ``values`` [B]. If a slot occurs more than once, its last value is used.

        Raises ValueError if a value is negative or not finite, IndexError if a slot is outside the tree.
        """
        values = np.asarray(values, dtype=np.float64)
        if not np.isfinite(values).all() or (values < 0).any():
            raise ValueError("sum tree values must be finite and not negative")
        if len(slots) == 0:
            return
        if int(slots.min()) < 0 or int(slots.max()) >= self.capacity:
            raise IndexError(f"sum tree slots must be within 0..{self.capacity - 1}")
        self._levels[0][slots] = values
        groups = slots
        for below, above in zip(self._levels, self._levels[1:], strict=False):
            groups = np.unique(groups // FANOUT)
            above[groups] = below.reshape(-1, FANOUT)[groups].sum(axis=1)

    def find(self, targets: Array) -> Int64:
        """Return the slots, int64 [B], where the cumulative sum first exceeds ``targets`` [B], each in [0, total)."""
        remaining = np.array(targets, dtype=np.float64)
        group = np.zeros(len(remaining), dtype=np.int64)
        for level in reversed(self._levels):
            children = level.reshape(-1, FANOUT)[group]  # [B, FANOUT]
            sums = children.cumsum(axis=1)
            child = (remaining[:, None] >= sums).sum(axis=1)
            # rounding may move a target past the last child with a value: step back to that child
            last = FANOUT - 1 - (children[:, ::-1] > 0).argmax(axis=1)
            child = np.minimum(child, last)
            rows = np.arange(len(child))
            remaining = np.maximum(remaining - (sums[rows, child] - children[rows, child]), 0.0)
            group = group * FANOUT + child
        return group

    def check_valid(self) -> None:
        """Raise AssertionError unless every parent is the sum of its children."""
        for below, above in zip(self._levels, self._levels[1:], strict=False):
            sums = below.reshape(-1, FANOUT).sum(axis=1)
            assert np.array_equal(sums, above[: len(sums)]), "a parent is not the sum of its children"
            assert not above[len(sums) :].any(), "a sum without children"
