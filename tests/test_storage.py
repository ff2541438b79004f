"""Storage and shard beside naive lists, fuzzed together."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from protos import codec
from protos import replay_pb2 as pb
from replay.selectors import SelectorConfig
from replay.shard import OutOfOrder, Shard
from rl.returns import stack_frames
from rl.types import ObservationSpec
from tests.conftest import FRAMES, SMALL, make_segment

CAPACITY = 23


class NaiveShard:
    """Items as a list of dictionaries, oldest segment first."""

    def __init__(self, stack):
        self.stack = stack
        self.segments = []
        self.messages = []  # of the segments, as they should come back
        self.next_key = 0

    def insert(self, segment, message):
        start = segment.item_step.astype(int)
        s_tm1 = stack_frames(segment.frames, start, self.stack)
        s_t = stack_frames(segment.frames, start + segment.item_length, self.stack)
        items = []
        for i in range(segment.items):
            items.append(
                {
                    "key": self.next_key,
                    "s_tm1": s_tm1[i],
                    "s_t": s_t[i],
                    "a": int(segment.actions[start[i]]),
                    "r": float(segment.r_t[i]),
                    "discount": float(segment.discount_t[i]),
                    "p": (float(segment.priority[i]) + 1e-3) ** 0.6,
                    "td": segment.priority[i],
                }
            )
            self.next_key += 1
        while sum(map(len, self.segments)) + len(items) > CAPACITY:
            self.segments.pop(0)
            self.messages.pop(0)
        self.segments.append(items)
        self.messages.append(message)

    def items(self):
        return {item["key"]: item for segment in self.segments for item in segment}


def random_steps(rng, segment):
    """The same with flags and versions of all kinds."""
    steps = len(segment.actions)
    flags = {name: rng.random(steps) < 0.5 for name in ("terminated", "truncated", "lost_life")}
    return dataclasses.replace(segment, versions=rng.integers(0, 2**32, steps, np.uint32), **flags)


class ShardBesideNaive(RuleBasedStateMachine):
    """Insert, sample and update in any order: both hold the same."""

    spec = ObservationSpec((3,), "float32", 2)

    def __init__(self):
        super().__init__()
        self.rng = np.random.default_rng(0)
        self.shard = Shard(CAPACITY, self.spec, SelectorConfig(alpha=0.6), limited=False)
        self.naive = NaiveShard(self.spec.stack)
        self.sequence = 0

    @rule(items=st.integers(1, 9), first_step=st.sampled_from([0, 7]), data=st.data())
    def insert(self, items, first_step, data):
        priority = [data.draw(st.floats(0, 100, width=32)) for _ in range(items)]
        segment = make_segment(self.rng, self.spec, items, episode=2**60, first_step=first_step, priority=priority)
        segment = random_steps(self.rng, segment)
        message = codec.pack_segment(segment)
        self.sequence += 1
        assert self.shard.insert("w", self.sequence, message) == self.sequence
        self.naive.insert(segment, message)

    @precondition(lambda self: self.sequence > 0)
    @rule(back=st.integers(0, 3))
    def insert_again(self, back):
        sequence = max(1, self.sequence - back)
        message = codec.pack_segment(make_segment(self.rng, self.spec))
        assert self.shard.insert("w", sequence, message) == self.sequence

    @rule(skip=st.integers(2, 5))
    def insert_too_early(self, skip):
        with pytest.raises(OutOfOrder):
            self.shard.insert("w", self.sequence + skip, codec.pack_segment(make_segment(self.rng, self.spec)))

    @precondition(lambda self: self.naive.segments)
    @rule(count=st.integers(1, 12))
    def sample(self, count):
        transition, keys, probability = next(codec.unpack_samples(self.shard.sample(count), [count], self.spec))
        items = self.naive.items()
        total = sum(item["p"] for item in items.values())
        for i, key in enumerate(keys.tolist()):
            item = items[key]
            np.testing.assert_array_equal(transition.s_tm1[i], item["s_tm1"])
            np.testing.assert_array_equal(transition.s_t[i], item["s_t"])
            assert transition.a_tm1[i] == item["a"]
            assert transition.r_t[i] == pytest.approx(item["r"], rel=1e-6)
            assert transition.discount_t[i] == pytest.approx(item["discount"], rel=1e-6)
            assert probability[i] == pytest.approx(item["p"] / total, rel=1e-5)

    @precondition(lambda self: self.naive.next_key > 0)
    @rule(data=st.data())
    def update(self, data):
        keys = data.draw(st.lists(st.integers(0, self.naive.next_key - 1), min_size=1, max_size=8, unique=True))
        td = [data.draw(st.floats(0, 50, width=32)) for _ in keys]
        items = self.naive.items()
        request = pb.UpdatePrioritiesRequest(keys=np.array(keys, "<u8").tobytes(), td=np.array(td, "<f4").tobytes())
        dropped = self.shard.update_priorities(request)
        assert dropped == sum(key not in items for key in keys)
        for key, value in zip(keys, td, strict=True):
            if key in items:
                items[key]["p"], items[key]["td"] = (value + 1e-3) ** 0.6, value

    @rule()
    def give_back(self):
        kept = list(self.shard.storage.segments())
        assert [k.first_key for k in kept] == [items[0]["key"] for items in self.naive.segments]
        for k, items, message in zip(kept, self.naive.segments, self.naive.messages, strict=True):
            assert k.writer == "w"
            message.priority = np.array([item["td"] for item in items], "<f4").tobytes()
            assert k.message.SerializeToString() == message.SerializeToString()

    @invariant()
    def both_agree(self):
        self.shard.check_valid()
        items = self.naive.items()
        counts = self.shard.counts()
        assert counts.stored == len(items) <= CAPACITY
        assert counts.inserted == self.naive.next_key
        assert counts.total_priority == pytest.approx(sum(item["p"] for item in items.values()), rel=1e-5)


class ShardOfPixelsBesideNaive(ShardBesideNaive):
    """The same with compressed frames."""

    spec = FRAMES


TestShardBesideNaive = ShardBesideNaive.TestCase
TestShardOfPixelsBesideNaive = ShardOfPixelsBesideNaive.TestCase
TestShardBesideNaive.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestShardOfPixelsBesideNaive.settings = TestShardBesideNaive.settings


@pytest.mark.parametrize("kind", ["uniform", "prioritized"])
def test_draws_follow_the_selector(rng, kind):
    shard = Shard(100, SMALL, SelectorConfig(kind=kind, alpha=1.0, epsilon=1e-6), limited=False)
    shard.insert("w", 1, codec.pack_segment(make_segment(rng, items=4, priority=[1, 2, 3, 10])))
    keys = np.concatenate([next(codec.unpack_samples(shard.sample(1000), [1000], SMALL))[1] for _ in range(20)])
    expected = [0.25] * 4 if kind == "uniform" else [1 / 16, 2 / 16, 3 / 16, 10 / 16]
    np.testing.assert_allclose(np.bincount(keys.astype(int)) / len(keys), expected, atol=0.02)


def test_uniform_forgets_what_is_evicted(rng):
    shard = Shard(10, SMALL, SelectorConfig(kind="uniform"), limited=False)
    for sequence in range(1, 30):
        shard.insert("w", sequence, codec.pack_segment(make_segment(rng, items=int(rng.integers(1, 6)))))
        shard.check_valid()
    _, keys, _ = next(codec.unpack_samples(shard.sample(500), [500], SMALL))
    live = range(shard.storage.first_key, shard.storage.next_key)
    assert set(keys.tolist()) == set(live)


def test_a_refused_segment_leaves_no_trace(rng):
    shard = Shard(10, FRAMES, SelectorConfig(), limited=False)
    empty = shard.counts()
    message = codec.pack_segment(make_segment(rng, FRAMES))
    message.priority = np.array([1, 1, 1, np.nan], "<f4").tobytes()
    with pytest.raises(codec.InvalidMessage):
        shard.insert("w", 1, message)
    too_long = codec.pack_segment(make_segment(rng, FRAMES, items=11))
    with pytest.raises(codec.InvalidMessage, match="capacity"):
        shard.insert("w", 1, too_long)
    assert shard.counts() == empty
    assert not shard.is_duplicate("w", 1)


def test_what_is_inserted_while_segments_are_given_back_does_no_harm(rng):
    shard = Shard(12, SMALL, SelectorConfig(), limited=False)
    for sequence in (1, 2, 3):
        shard.insert(f"w{sequence}", 1, codec.pack_segment(make_segment(rng, items=4)))
    seen = []
    for kept in shard.storage.segments():
        seen.append((kept.writer, kept.first_key))
        shard.insert("late", len(seen), codec.pack_segment(make_segment(rng, items=5)))  # evicts two, then one
    assert seen == [("w1", 0), ("w3", 8)]


def test_evicted_keys_are_dropped_and_counted(rng):
    shard = Shard(8, SMALL, SelectorConfig(), limited=False)
    for sequence in (1, 2, 3):
        shard.insert("w", sequence, codec.pack_segment(make_segment(rng, items=4)))
    request = pb.UpdatePrioritiesRequest(keys=np.array([0, 3, 4], "<u8").tobytes(), td=np.ones(3, "<f4").tobytes())
    assert shard.update_priorities(request) == 2
    assert shard.counts().dropped_updates == 2


@pytest.mark.parametrize("bad", [[np.nan, 1], [-1, 1], [np.inf, 1]])
def test_bad_priorities_change_nothing(rng, bad):
    shard = Shard(8, SMALL, SelectorConfig(), limited=False)
    shard.insert("w", 1, codec.pack_segment(make_segment(rng)))
    before = shard.counts()
    request = pb.UpdatePrioritiesRequest(keys=np.array([0, 1], "<u8").tobytes(), td=np.array(bad, "<f4").tobytes())
    with pytest.raises(codec.InvalidMessage):
        shard.update_priorities(request)
    assert shard.counts() == before
