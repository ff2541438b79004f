"""A sum tree over slots, vectorised over the batch (Schaul et al. 2016, appendix B.2.1, with a fan-out of FANOUT).

Each level holds the sums of groups of FANOUT entries of the level below. A wide fan-out keeps the tree shallow, so that
an operation is a few numpy calls a level whatever the batch. Parents are recomputed from their children, never adjusted
by differences, so rounding errors do not accumulate.
"""

from __future__ import annotations

import numpy as np

from rl.types import Array, Float64, Int64

FANOUT = 32


class SumTree:
    """Non-negative values at slots 0..capacity-1, drawn in proportion to their values in O(log capacity).

    Raises ValueError unless the capacity is at least 1.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}: it must be at least 1")
        self.capacity = capacity
        self._levels: list[Float64] = []  # [0] the leaves, [-1] one group of FANOUT sums
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
        """Values, float64 [B], at ``slots`` [B]."""
        return np.asarray(self._levels[0][slots])

    def set(self, slots: Array, values: Array) -> None:
        """Set ``values`` [B] at ``slots`` [B]; the last one counts where a slot occurs twice.

        Raises ValueError on a value that is negative or not finite, IndexError on a slot outside the tree.
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
        """The slot, int64 [B], where the running sum of values first exceeds each of ``targets`` [B] in [0, total)."""
        remaining = np.array(targets, dtype=np.float64)
        group = np.zeros(len(remaining), dtype=np.int64)
        for level in reversed(self._levels):
            children = level.reshape(-1, FANOUT)[group]  # [B, FANOUT]
            sums = children.cumsum(axis=1)
            child = (remaining[:, None] >= sums).sum(axis=1)
            # rounding may push a target past the last non-empty child: step back onto it
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
