"""Which items to draw: selectors over slots, behind one interface."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from replay.sum_tree import SumTree
from rl.errors import BadInput
from rl.types import Array, Float64, Int64

SLOT_BYTES = {"prioritized": 9, "uniform": 16}  # of memory for a slot, whether it is filled or not


@dataclass(frozen=True)
class SelectorConfig:
    """How items are drawn from replay."""

    kind: Literal["prioritized", "uniform"] = "prioritized"
    """prioritized: in proportion to (|TD error| + epsilon)^alpha (Schaul et al. 2016); uniform."""
    alpha: float = 0.6
    """Priority exponent; 0 draws uniformly."""
    epsilon: float = 1e-3
    """Added to |TD error|, in units of reward, so that no item is never drawn."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.alpha <= 1.0:
            raise BadInput(f"replay.selector.alpha is {self.alpha}: write an exponent from 0 to 1")
        if self.epsilon <= 0.0:
            raise BadInput(f"replay.selector.epsilon is {self.epsilon}: write a positive number")


class Selector(Protocol):
    """Slots with priorities; a slot that is not `put` is never drawn."""

    @property
    def total(self) -> float:
        """Sum of the stored priorities."""

    def put(self, slots: Array, td_abs: Array) -> None:
        """Insert or update ``slots`` [B] with |TD error| [B]."""

    def remove(self, slots: Array) -> None:
        """Forget ``slots`` [B]."""

    def sample(self, quantiles: Float64) -> tuple[Int64, Float64]:
        """The slots at ``quantiles`` [B], each in [0, 1), of the distribution, and the probability of each, p_i / total.

        Raises ValueError when there are none.
        """

    def check_valid(self) -> None:
        """Raise AssertionError when the structure is inconsistent."""


class Prioritized:
    """P(i) = p_i / sum p, p_i = (|td| + eps)^alpha (Schaul et al. 2016, proportional variant)."""

    def __init__(self, config: SelectorConfig, capacity: int) -> None:
        self._config = config
        self._tree = SumTree(capacity)

    @property
    def total(self) -> float:
        return self._tree.total

    def put(self, slots: Array, td_abs: Array) -> None:
        self._tree.set(slots, (np.asarray(td_abs, np.float64) + self._config.epsilon) ** self._config.alpha)

    def remove(self, slots: Array) -> None:
        self._tree.set(slots, np.zeros(len(slots)))

    def sample(self, quantiles: Float64) -> tuple[Int64, Float64]:
        total = self.total
        if total <= 0.0:
            raise ValueError("an empty selector cannot be sampled")
        slots = self._tree.find(quantiles * total)
        return slots, self._tree.get(slots) / total

    def check_valid(self) -> None:
        self._tree.check_valid()


class Uniform:
    """P(i) = 1 / stored. Live slots are kept dense, so a draw is one index."""

    def __init__(self, capacity: int) -> None:
        self._slots = np.zeros(capacity, dtype=np.int64)
        self._place = np.full(capacity, -1, dtype=np.int64)
        self._size = 0

    @property
    def total(self) -> float:
        return float(self._size)

    def put(self, slots: Array, td_abs: Array) -> None:
        del td_abs  # uniform: the error does not matter
        for slot in np.asarray(slots)[self._place[slots] < 0].tolist():
            if self._place[slot] < 0:
                self._slots[self._size] = slot
                self._place[slot] = self._size
                self._size += 1

    def remove(self, slots: Array) -> None:
        for slot in np.asarray(slots).tolist():
            place = int(self._place[slot])
            if place >= 0:
                self._size -= 1
                moved = self._slots[self._size]
                self._slots[place], self._place[moved] = moved, place
                self._place[slot] = -1

    def sample(self, quantiles: Float64) -> tuple[Int64, Float64]:
        if self._size == 0:
            raise ValueError("an empty selector cannot be sampled")
        slots = self._slots[(quantiles * self._size).astype(np.int64)]
        return slots, np.full(len(slots), 1.0 / self._size)

    def check_valid(self) -> None:
        live = self._slots[: self._size]
        assert len(np.unique(live)) == self._size, "a slot is live twice"
        assert np.array_equal(self._place[live], np.arange(self._size)), "a slot is misplaced"
        assert int((self._place >= 0).sum()) == self._size, "a slot is lost"


def stratified(counts: Sequence[int], rng: np.random.Generator) -> Float64:
    """Quantiles of one draw of ``counts[k]`` items after the other, each with one in each of its equal strata of [0, 1).

    (Schaul et al. 2016, appendix B.2.1.)
    """
    sizes = np.repeat(np.asarray(counts, np.float64), counts)
    stratum = np.concatenate([np.arange(n) for n in counts])
    quantiles = (stratum + rng.random(len(sizes))) / sizes
    return np.asarray(np.minimum(quantiles, 1 - 2**-53))  # rounding may reach 1


def make_selector(config: SelectorConfig, capacity: int) -> Selector:
    """The selector that the config names, over ``capacity`` slots."""
    return Uniform(capacity) if config.kind == "uniform" else Prioritized(config, capacity)
