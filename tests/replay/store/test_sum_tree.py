"""The sum tree, compared with a plain list."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay.store.selectors import SelectorConfig, make_selector, stratified_quantiles
from replay.store.sum_tree import FANOUT, SumTree


class NaiveTree:
    """The reference: a plain list."""

    def __init__(self, capacity):
        self.values = [0.0] * capacity

    def set(self, slots, values):
        for slot, value in zip(slots, values, strict=True):
            self.values[slot] = value

    def find(self, target):
        running = 0.0
        for slot, value in enumerate(self.values):
            running += value
            if value > 0 and target < running:
                return slot
        return max(i for i, v in enumerate(self.values) if v > 0)


CAPACITIES = st.sampled_from([1, 2, FANOUT - 1, FANOUT, FANOUT + 1, FANOUT**2, FANOUT**2 + 7])


@settings(max_examples=150, deadline=None)
@given(data=st.data(), capacity=CAPACITIES)
def test_sum_tree_equals_its_reference(data, capacity):
    tree, naive = SumTree(capacity), NaiveTree(capacity)
    for _ in range(data.draw(st.integers(1, 6))):
        slots = data.draw(st.lists(st.integers(0, capacity - 1), min_size=1, max_size=20, unique=True))
        # sums of eighths have no rounding error, so both find the same slot
        values = [data.draw(st.integers(0, 80)) / 8 for _ in slots]
        tree.set(np.array(slots), np.array(values))
        naive.set(slots, values)
        tree.check_valid()
        np.testing.assert_array_equal(tree.get(np.arange(capacity)), naive.values)
        assert tree.total == sum(naive.values)
        if tree.total > 0:
            targets = np.array([data.draw(st.floats(0, 1, exclude_max=True)) for _ in range(8)]) * tree.total
            assert tree.find(targets).tolist() == [naive.find(t) for t in targets]


def test_a_repeated_slot_keeps_its_last_value():
    tree = SumTree(40)
    tree.set(np.array([3, 3, 5]), np.array([1.0, 2.0, 4.0]))
    assert tree.get(np.array([3, 5])).tolist() == [2.0, 4.0]
    assert tree.total == 6.0


def test_draws_follow_the_values():
    rng = np.random.default_rng(0)
    values = rng.random(2000) ** 4
    values[::7] = 0.0
    tree = SumTree(2000)
    tree.set(np.arange(2000), values)
    counts = np.bincount(
        np.concatenate([tree.find(stratified_quantiles([300, 200], rng) * tree.total) for _ in range(800)]),
        minlength=2000,
    )
    assert counts[::7].sum() == 0
    expected = values / values.sum() * counts.sum()
    some = expected > 20
    chi2 = ((counts[some] - expected[some]) ** 2 / expected[some]).sum()
    assert chi2 < some.sum() + 5 * np.sqrt(2 * some.sum())


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_invalid_values_are_rejected_and_change_nothing(bad):
    tree = SumTree(10)
    with pytest.raises(ValueError, match="finite"):
        tree.set(np.array([1, 2]), np.array([1.0, bad]))
    assert tree.total == 0.0


@pytest.mark.parametrize("slot", [-1, 10])
def test_slots_outside_the_tree_are_rejected(slot):
    with pytest.raises(IndexError):
        SumTree(10).set(np.array([slot]), np.array([1.0]))


@pytest.mark.parametrize("kind", ["uniform", "prioritized"])
def test_an_empty_selector_cannot_be_sampled(kind):
    with pytest.raises(ValueError, match="empty"):
        make_selector(SelectorConfig(kind=kind), 10).sample(np.zeros(1))


def test_each_draw_is_stratified_separately():
    quantiles = stratified_quantiles([4, 2], np.random.default_rng(0))
    assert (quantiles[:4] * 4).astype(int).tolist() == [0, 1, 2, 3]
    assert (quantiles[4:] * 2).astype(int).tolist() == [0, 1]
