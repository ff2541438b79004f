"""Selectors: they draw slots (numbers of rows in the storage) with a probability that depends on their priority."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import numpy as np

from replay.store.sum_tree import SumTree
from rl.bounds import positive, require
from rl.resuming import Rules, rules
from rl.types import Array, Float64, Int64

SLOT_BYTES = {"prioritized": 9, "rank": 50, "uniform": 16}  # memory for each slot, filled or not; upper bounds
RERANK_FRACTION = 0.1  # all items are ranked again when this fraction of them has changed


@dataclass(frozen=True)
class SelectorConfig:
    """How items are drawn from replay."""

    kind: Literal["prioritized", "rank", "uniform"] = "prioritized"
    """prioritized: in proportion to (|TD error| + epsilon)^alpha; rank: to 1 / rank^alpha, where rank 1 is
    the largest |TD error| of the item's shard (both Schaul et al. 2016); uniform: all items alike."""
    alpha: float | None = None
    """Priority exponent, from 0 (uniform) to 1. None: as in the paper, 0.6 for prioritized and 0.7 for rank."""
    epsilon: float = 1e-3
    """Added to |TD error|, in units of reward, so that every item can be drawn; prioritized only."""

    on_resume: ClassVar[Rules] = rules(may="kind alpha epsilon")

    @property
    def exponent(self) -> float:
        """`alpha`, or the paper's value if `alpha` is None."""
        return self.alpha if self.alpha is not None else 0.7 if self.kind == "rank" else 0.6

    def __post_init__(self) -> None:
        require(0.0 <= self.exponent <= 1.0, self, "alpha", "an exponent from 0 to 1")
        positive(self, "epsilon")


class Selector(Protocol):
    """Draws slots. Only slots that were `put`, and not removed since, are drawn."""

    @property
    def total(self) -> float:
        """Sum of the stored priorities."""

    def put(self, slots: Array, td_abs: Array) -> None:
        """Insert or update ``slots`` [B] with |TD error| [B]."""

    def remove(self, slots: Array) -> None:
        """Remove ``slots`` [B]; they are no longer drawn."""

    def sample(self, quantiles: Float64) -> tuple[Int64, Float64]:
        """Return the slots, int64 [B], at ``quantiles`` [B] in [0, 1) of the distribution, and their p_i / total [B].

        Raises ValueError if no slot is stored.
        """

    def check_valid(self) -> None:
        """Raise AssertionError if the data structure is inconsistent."""


class Prioritized:
    """P(i) = p_i / sum_k p_k with p_i = (|td_i| + eps)^alpha (Schaul et al. 2016, section 3.3, proportional)."""

    def __init__(self, config: SelectorConfig, capacity: int) -> None:
        self._config = config
        self._tree = SumTree(capacity)

    @property
    def total(self) -> float:
        """Sum of the priorities p_i."""
        return self._tree.total

    def put(self, slots: Array, td_abs: Array) -> None:
        """Insert or update ``slots`` [B] with |TD error| [B]."""
        self._tree.set(slots, (np.asarray(td_abs, np.float64) + self._config.epsilon) ** self._config.exponent)

    def remove(self, slots: Array) -> None:
        """Remove ``slots`` [B]: their priority becomes 0."""
        self._tree.set(slots, np.zeros(len(slots)))

    def sample(self, quantiles: Float64) -> tuple[Int64, Float64]:
        """See `Selector.sample`."""
        total = self.total
        if total <= 0.0:
            raise ValueError("an empty selector cannot be sampled")
        slots = self._tree.find(quantiles * total)
        return slots, self._tree.get(slots) / total

    def check_valid(self) -> None:
        """Raise AssertionError if the tree is inconsistent."""
        self._tree.check_valid()


class Ranked(Prioritized):
    """P(i) = p_i / sum_k p_k with p_i = rank(i)^-alpha; rank 1 is the largest |td|.

    The rank-based variant of Schaul et al. 2016, section 3.3, with approximate ranks: all items are ranked again when
    the puts and removals since the last ranking exceed RERANK_FRACTION of the items ranked then. An item that is put in
    between gets its rank among the items of the last ranking and those put since. It can be drawn immediately, and a
    removed item is never drawn. So a rank is wrong by at most the number of changes since the last ranking, a tenth of
    the items. Items with equal |td| share the mean of their ranks.

    The returned probabilities are exact, because items are drawn by their stored p_i, however old its rank is. Ranks
    are computed in each shard separately: in shards of equal size, items of equal rank are drawn equally often,
    whatever their |td|.

    With 1,000,000 items, in one thread, a ranking takes 0.2 s, once in 100,000 changes; the shard answers nothing
    during this time. Averaged over all puts, a put of 32 items takes 0.16 ms instead of 0.08 ms with `Prioritized`. A
    draw takes the same time.
    """

    def __init__(self, config: SelectorConfig, capacity: int) -> None:
        super().__init__(config, capacity)
        self._td = np.full(capacity, -1.0, np.float32)  # -1: nothing stored
        self._ranked = np.zeros(0, np.float32)  # |td| of all items at the last ranking, ascending
        self._put_since = np.zeros(0, np.float32)  # |td| put since the last ranking, ascending
        self._changes = 0  # puts and removals since the last ranking

    def put(self, slots: Array, td_abs: Array) -> None:
        """Insert or update ``slots`` [B] with |TD error| [B]; may rank all items again."""
        td = np.asarray(td_abs, np.float32)
        self._td[slots] = td
        more = np.sort(td)
        self._put_since = np.insert(self._put_since, np.searchsorted(self._put_since, more), more)
        self._tree.set(slots, self._priorities(td))
        self._count_changes(len(slots))

    def remove(self, slots: Array) -> None:
        """Remove ``slots`` [B]."""
        self._td[slots] = -1.0
        super().remove(slots)
        self._count_changes(len(slots))

    def _priorities(self, td_abs: Array) -> Float64:
        """Return rank^-alpha [B] for |td| [B], ranked among the items of the last ranking and those put since."""
        ranks = np.full(len(td_abs), 0.5)
        for among in (self._ranked, self._put_since):
            below, up_to = np.searchsorted(among, td_abs, "left"), np.searchsorted(among, td_abs, "right")
            ranks += len(among) - 0.5 * (below + up_to)
        return np.asarray(ranks**-self._config.exponent)

    def _count_changes(self, count: int) -> None:
        self._changes += count
        if self._changes > RERANK_FRACTION * len(self._ranked):
            self._rank_all()

    def _rank_all(self) -> None:
        stored = np.flatnonzero(self._td >= 0)
        order = np.argsort(self._td[stored])
        self._ranked, self._put_since = self._td[stored[order]], np.zeros(0, np.float32)
        priorities = np.empty(len(stored))
        for at in range(0, len(stored), 2**16):  # in parts, to limit the memory of intermediate arrays
            priorities[order[at : at + 2**16]] = self._priorities(self._ranked[at : at + 2**16])
        del order
        self._tree.set(stored, priorities)
        self._changes = 0

    def check_valid(self) -> None:
        """Raise AssertionError if tree and ranks are inconsistent, or the ranks are too old."""
        super().check_valid()
        stored = self._tree.get(np.arange(len(self._td))) > 0
        assert np.array_equal(stored, self._td >= 0), "the tree and the stored slots differ"
        assert self._changes <= RERANK_FRACTION * len(self._ranked), "the ranks are too old"


class Uniform:
    """P(i) = 1 / (number of stored slots). Stored slots are in a dense array, so a draw is one array access."""

    def __init__(self, capacity: int) -> None:
        self._slots = np.zeros(capacity, dtype=np.int64)  # the first `_size` are the stored slots, in any order
        self._position = np.full(capacity, -1, dtype=np.int64)  # of each slot in `_slots`; -1: not stored
        self._size = 0

    @property
    def total(self) -> float:
        """Number of slots stored: each has priority 1."""
        return float(self._size)

    def put(self, slots: Array, td_abs: Array) -> None:
        """Insert ``slots`` [B]; the |TD error| [B] is ignored."""
        del td_abs  # not used by uniform sampling
        for slot in np.asarray(slots)[self._position[slots] < 0].tolist():
            if self._position[slot] < 0:
                self._slots[self._size] = slot
                self._position[slot] = self._size
                self._size += 1

    def remove(self, slots: Array) -> None:
        """Remove ``slots`` [B]; slots that are not stored are ignored."""
        for slot in np.asarray(slots).tolist():
            position = int(self._position[slot])
            if position >= 0:
                self._size -= 1
                moved = self._slots[self._size]
                self._slots[position], self._position[moved] = moved, position
                self._position[slot] = -1

    def sample(self, quantiles: Float64) -> tuple[Int64, Float64]:
        """See `Selector.sample`; every probability is 1 / (number of stored slots)."""
        if self._size == 0:
            raise ValueError("an empty selector cannot be sampled")
        slots = self._slots[(quantiles * self._size).astype(np.int64)]
        return slots, np.full(len(slots), 1.0 / self._size)

    def check_valid(self) -> None:
        """Raise AssertionError if the data structure is inconsistent."""
        stored = self._slots[: self._size]
        assert len(np.unique(stored)) == self._size, "a slot is stored twice"
        assert np.array_equal(self._position[stored], np.arange(self._size)), "a slot has the wrong position"
        assert int((self._position >= 0).sum()) == self._size, "a slot has a position but is not stored"


def stratified_quantiles(counts: Sequence[int], rng: np.random.Generator) -> Float64:
    """Return random quantiles, float64 [sum(counts)], for draws of ``counts[k]`` items, one draw after the other.

    For each draw, [0, 1) is divided into ``counts[k]`` equal strata, with one quantile in each (Schaul et al. 2016,
    appendix B.2.1).
    """
    sizes = np.repeat(np.asarray(counts, np.float64), counts)
    stratum = np.concatenate([np.arange(n) for n in counts])
    quantiles = (stratum + rng.random(len(sizes))) / sizes
    return np.asarray(np.minimum(quantiles, 1 - 2**-53))  # rounding may give 1


def make_selector(config: SelectorConfig, capacity: int) -> Selector:
    """Create the configured selector for ``capacity`` slots."""
    if config.kind == "uniform":
        return Uniform(capacity)
    return Ranked(config, capacity) if config.kind == "rank" else Prioritized(config, capacity)
