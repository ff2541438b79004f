"""The rank-based selector, compared with exact ranks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from protos.codec import pack_segment
from replay.store.selectors import RERANK_FRACTION, Ranked, SelectorConfig, stratified_quantiles
from replay.store.shard import Shard
from rl.errors import BadInput
from tests.conftest import SMALL, make_segment

CAPACITY = 200
ALPHA = 0.7
FEW = st.lists(st.integers(0, CAPACITY - 1), max_size=12)
TD = st.one_of(st.sampled_from([0.0, 1.0, 2.0]), st.floats(0, 100, width=32))  # with many equal values


def ranks(td):
    """Return the rank of each of ``td``; 1 is the largest, equal values get their mean rank."""
    return np.array([(td > x).sum() + ((td == x).sum() + 1) / 2 for x in td])


class RankedMachine(RuleBasedStateMachine):
    """Puts and removals in any order: the stored slots are drawn, with ranks that are not too old."""

    def __init__(self):
        super().__init__()
        self.selector = Ranked(SelectorConfig(kind="rank"), CAPACITY)
        self.naive = {}
        self.since = 0  # changes since the last ranking
        self.ranked = 0
        self.rng = np.random.default_rng(0)

    def changed(self, count):
        self.since += count
        if self.since > RERANK_FRACTION * self.ranked:
            self.since, self.ranked = 0, len(self.naive)

    @initialize(count=st.sampled_from([0, 150]), seed=st.integers(0, 2**32 - 1))
    def fill(self, count, seed):
        td = np.random.default_rng(seed).exponential(size=count).astype(np.float32)
        self.selector.put(np.arange(count), td)
        self.naive.update(enumerate(td))
        self.changed(count)

    @rule(slots=FEW, data=st.data())
    def put(self, slots, data):
        td = np.array([data.draw(TD) for _ in slots], np.float32)
        self.selector.put(np.array(slots, np.int64), td)
        self.naive.update(zip(slots, td, strict=True))  # the last value of a repeated slot is used
        self.changed(len(slots))

    @precondition(lambda self: self.naive)
    @rule(share=st.floats(0, 0.2), data=st.data())
    def remove(self, share, data):
        slots = data.draw(st.permutations(sorted(self.naive)))[: 1 + int(share * len(self.naive))]
        self.selector.remove(np.array(slots, np.int64))
        for slot in slots:
            del self.naive[slot]
        self.changed(len(slots))

    @precondition(lambda self: self.naive)
    @rule(count=st.integers(1, 40))
    def sample(self, count):
        slots, probability = self.selector.sample(stratified_quantiles([count], self.rng))
        assert set(slots.tolist()) <= set(self.naive)
        expected = [self.priorities()[slot] / self.selector.total for slot in slots.tolist()]
        np.testing.assert_allclose(probability, expected)

    def priorities(self):
        return self.selector._tree.get(np.arange(CAPACITY))

    @invariant()
    def ranks_are_nearly_the_true_ones(self):
        self.selector.check_valid()
        priorities, stored = self.priorities(), sorted(self.naive)
        assert np.flatnonzero(priorities).tolist() == stored
        assert self.selector.total == pytest.approx(priorities.sum())
        true = ranks(np.array([self.naive[slot] for slot in stored]))
        used = priorities[stored] ** (-1 / ALPHA)
        assert (np.abs(used - true) <= self.since + 1e-6 * CAPACITY).all()


TestRankedMachine = RankedMachine.TestCase
TestRankedMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_draws_follow_one_over_rank_to_the_alpha():
    """Chi-square test of 400,000 draws, after half of 2,000 items were removed and others updated or added."""
    rng = np.random.default_rng(0)
    selector, td = Ranked(SelectorConfig(kind="rank"), 3000), np.full(3000, -1.0, np.float32)
    selector.put(np.arange(2000), rng.exponential(size=2000))
    for slots in (np.arange(1000), np.arange(2000, 2500)):
        td[slots] = rng.exponential(size=len(slots))
        selector.put(slots, td[slots])
    td[1000:2000] = -1
    selector.remove(np.arange(1000, 2000))
    stored = np.flatnonzero(td >= 0)
    expected = np.zeros(3000)
    expected[stored] = ranks(td[stored]) ** -ALPHA
    expected *= 400_000 / expected.sum()
    draws = [selector.sample(stratified_quantiles([500], rng)) for _ in range(800)]
    counts = np.bincount(np.concatenate([slots for slots, _ in draws]), minlength=3000)
    assert counts[expected == 0].sum() == 0
    chi2 = ((counts[stored] - expected[stored]) ** 2 / expected[stored]).sum()
    assert chi2 < len(stored) + 5 * np.sqrt(2 * len(stored))
    slots, probability = draws[0]
    np.testing.assert_allclose(probability, expected[slots] / 400_000)


def test_weighted_draws_are_unbiased_with_outdated_ranks():
    """The mean of x_i / (N P(i)) is the mean of x, also when a tenth of the items has outdated ranks."""
    rng = np.random.default_rng(0)
    selector, td = Ranked(SelectorConfig(kind="rank"), 1000), rng.exponential(size=1000)
    selector.put(np.arange(1000), td)
    for slot in range(100):  # each becomes the largest
        td[slot] = 100 + slot
        selector.put(np.array([slot]), td[[slot]])
    x = np.arange(1000.0)
    draws = [selector.sample(stratified_quantiles([500], rng)) for _ in range(400)]
    estimates = [(x[slots] / (1000 * probability)).mean() for slots, probability in draws]
    assert np.mean(estimates) == pytest.approx(x.mean(), abs=5 * np.std(estimates) / 20)
    assert np.std(estimates) < 60


def test_equal_errors_are_drawn_equally():
    selector = Ranked(SelectorConfig(kind="rank"), 100)
    selector.put(np.arange(100), np.ones(100))
    _, probability = selector.sample(stratified_quantiles([50], np.random.default_rng(0)))
    np.testing.assert_allclose(probability, 0.01)


def test_a_new_item_can_be_drawn_immediately():
    selector = Ranked(SelectorConfig(kind="rank", alpha=1.0), 1000)
    selector.put(np.arange(999), np.arange(999.0))
    selector.put(np.array([999]), np.array([1e6]))  # one change in 999 items: no new ranking
    slots, probability = selector.sample(stratified_quantiles([1000], np.random.default_rng(0)))
    assert probability[slots == 999] == pytest.approx(1 / selector.total)
    assert (slots == 999).mean() == pytest.approx(1 / selector.total, rel=0.1)


def test_a_shard_draws_stored_items_by_rank(rng):
    shard = Shard(20, SMALL, SelectorConfig(kind="rank", alpha=1.0), limited=False)
    for sequence in range(1, 10):
        shard.insert("w", sequence, pack_segment(make_segment(rng, items=4, td_abs=rng.random(4))))
        shard.check_valid()
    sampled = shard.sample([500])
    keys, probability = sampled.keys, sampled.probability
    assert set(keys.tolist()) == set(range(16, 36))
    td = shard.storage.td_abs[(keys % 20).astype(int)]
    by_rank = (1 / np.arange(1, 21)) / (1 / np.arange(1, 21)).sum()
    place = {x: k for k, x in enumerate(sorted(set(td.tolist()), reverse=True))}
    np.testing.assert_allclose(probability, [by_rank[place[x]] for x in td.tolist()])
    assert shard.info().selector == "rank"
    assert shard.counts().total_priority == pytest.approx((1 / np.arange(1, 21)).sum())


def test_alpha_defaults_to_the_papers_value():
    assert SelectorConfig().exponent == 0.6
    assert SelectorConfig(kind="rank").exponent == 0.7
    assert SelectorConfig(kind="rank", alpha=0.5).exponent == 0.5
    with pytest.raises(BadInput, match="alpha is 1.5"):
        SelectorConfig(kind="rank", alpha=1.5)
