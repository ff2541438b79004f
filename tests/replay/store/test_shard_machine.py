"""A shard compared with a simple reference, `NaiveShard`, for random sequences of all operations."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from protos import codec
from protos.types import InvalidMessage, LimiterState
from replay.store.selectors import RERANK_FRACTION, SelectorConfig
from replay.store.shard import KEYS_PER_GENERATION, MAX_BATCH, OutOfOrder, Shard, fixed_bytes
from replay.store.snapshots import Snapshots
from rl.types import ObservationSpec
from tests.conftest import FRAMES, make_segment
from tests.replay.store.naive_shard import NaiveShard, serialized

VECTORS = ObservationSpec((3,), "float32", 2)
WRITERS = ("a", "b", "c")
TD = st.floats(0, 2.0**100, width=32) | st.floats(0, 10, width=32)
KINDS = st.sampled_from(["prioritized", "rank", "uniform"])


MALFORMED = {
    "a priority that is NaN": lambda m: setattr(m, "td_abs", b"\0\0\xc0\x7f" + m.td_abs[4:]),
    "a negative priority": lambda m: setattr(m, "td_abs", m.td_abs[:-4] + b"\0\0\x80\xbf"),
    "frames cut": lambda m: setattr(m, "frames", m.frames[:-1]),
    "an item too many": lambda m: setattr(m, "item_step", m.item_step + b"\0\0\0\0"),
    "an item outside": lambda m: setattr(m, "item_length", b"\xff\0\0\0" + m.item_length[4:]),
    "no items": lambda m: [m.ClearField(f) for f in ("item_step", "item_length", "r_t", "discount_t", "td_abs")],
    "a negative action": lambda m: setattr(m, "actions", b"\xff\xff\xff\xff" + m.actions[4:]),
}


def random_segment(rng, spec, items, first_step, priority):
    """Return a random segment with random flags and versions."""
    segment = make_segment(rng, spec, items, episode=2**60, first_step=first_step, td_abs=priority)
    steps = len(segment.actions)
    flags = {name: rng.random(steps) < 0.5 for name in ("terminated", "truncated", "lost_life")}
    return dataclasses.replace(segment, versions=rng.integers(0, 2**32, steps, np.uint32), **flags)


class ShardMachine(RuleBasedStateMachine):
    """Applies every operation to a shard and to its reference, and compares them."""

    @initialize(
        kind=KINDS,
        spec=st.sampled_from([VECTORS, FRAMES]),
        capacity=st.sampled_from([23, 60]),
        segments=st.sampled_from([None, 2.5, 6.5]),
        limited=st.booleans(),
    )
    def start(self, kind, spec, capacity, segments, limited):
        self.spec, self.config, self.limited = spec, SelectorConfig(kind=kind, epsilon=1e-2), limited
        self.rng = np.random.default_rng(0)
        largest = codec.pack_segment(make_segment(self.rng, spec, 9, first_step=9))
        room = round(segments * (len(largest.frames) + 1000)) if segments else sys.maxsize
        self.capacity_bytes = room + fixed_bytes(capacity, self.config) if segments else 0
        self.naive = NaiveShard(capacity, room, spec.stack)
        self.credit = 0
        self.shard = self.empty_shard()
        self.snapshots, self.kept = None, []  # copies of snapshot directories, each with its reference

    def empty_shard(self):
        return Shard(self.naive.capacity, self.spec, self.config, self.limited, capacity_bytes=self.capacity_bytes)

    def segment(self, data, items, first_step=0):
        return random_segment(self.rng, self.spec, items, first_step, [data.draw(TD) for _ in range(items)])

    @rule(
        writer=st.sampled_from(WRITERS),
        items=st.integers(1, 9),
        first_step=st.sampled_from([0, 7]),
        origin=st.sampled_from(["", "", "elsewhere"]),
        transferred=st.booleans(),
        data=st.data(),
    )
    def insert(self, writer, items, first_step, origin, transferred, data):
        segment = self.segment(data, items, first_step)
        packed, naive = codec.pack_segment(segment), self.naive
        sequence = naive.last.get(writer, 0) + 1
        fits = not self.limited or naive.inserted + items <= self.credit
        assert (items <= self.shard.credit_left) == fits
        if not fits and not transferred:
            return
        self.shard.check(packed)
        assert self.shard.insert(writer, sequence, packed, origin, transferred) == sequence
        naive.last[writer] = sequence
        naive.insert(origin or writer, segment, packed)
        if transferred:
            naive.transferred += items
        else:
            naive.inserted += items

    @rule(writer=st.sampled_from(WRITERS), back=st.integers(0, 3), data=st.data())
    def insert_again(self, writer, back, data):
        last = self.naive.last.get(writer, 0)
        if last:
            sequence = max(1, last - back)
            assert self.shard.check_order(writer, sequence) == last
            assert self.shard.insert(writer, sequence, codec.pack_segment(self.segment(data, 2))) == last

    @rule(writer=st.sampled_from(WRITERS), skip=st.integers(2, 5), data=st.data())
    def insert_too_early(self, writer, skip, data):
        sequence = self.naive.last.get(writer, 0) + skip
        with pytest.raises(OutOfOrder):
            self.shard.check_order(writer, sequence)
        with pytest.raises(OutOfOrder):
            self.shard.insert(writer, sequence, codec.pack_segment(self.segment(data, 2)))

    @rule(how=st.sampled_from(sorted(MALFORMED)), data=st.data())
    def check_malformed(self, how, data):
        message = codec.segment_to_message(codec.pack_segment(self.segment(data, 3)))
        MALFORMED[how](message)
        with pytest.raises(InvalidMessage):
            self.shard.check(codec.segment_from_message(message))

    @rule(
        name=st.sampled_from(["", "a", "w" * 201]),
        origin=st.sampled_from(["", "o" * 201]),
        items=st.sampled_from([1, 61]),
        sequence=st.sampled_from([0, 1]),
        data=st.data(),
    )
    def insert_invalid(self, name, origin, items, sequence, data):
        sequence += self.naive.last.get(name, 0) if sequence else 0
        if name != "a" or origin or items > 1 or not sequence:
            segment = codec.pack_segment(self.segment(data, items))
            with pytest.raises(InvalidMessage):
                self.shard.check(segment)
                self.shard.insert(name, sequence, segment, origin)

    @rule(credit=st.integers(0, 80), tell=st.booleans())
    def grant(self, credit, tell):
        assert self.shard.grant(credit, LimiterState(diff=3.0) if tell else None) == (credit > self.credit)
        self.credit = credit

    @rule()
    def switch_limited(self):
        self.shard.limited = self.limited = not self.limited

    @rule(counts=st.lists(st.integers(0, 9), max_size=4))
    def sample(self, counts):
        sampled, items = self.shard.sample(counts), self.naive.items
        if not items or not any(counts):
            assert len(sampled.keys) == 0
            return
        reply = codec.sampled_to_message(sampled, self.spec)
        self.naive.sampled += sum(counts)
        seen = {}
        for count, draw in zip(counts, codec.unpack_replies([(reply, counts)], self.spec), strict=True):
            transition, keys, probability = draw
            assert len(keys) == count
            for i, key in enumerate(keys.tolist()):
                item = items[key - self.naive.generation * KEYS_PER_GENERATION]
                np.testing.assert_array_equal(transition.s_tm1[i], item["s_tm1"])
                np.testing.assert_array_equal(transition.s_t[i], item["s_t"])
                assert transition.a_tm1[i] == item["a"]
                assert transition.r_t[i] == item["r"]
                assert transition.discount_t[i] == item["discount"]
                assert seen.setdefault(key, probability[i]) == probability[i]
        lowest, highest = self.priorities()
        for key, p in seen.items():
            key -= self.naive.generation * KEYS_PER_GENERATION
            p *= sampled.counts.total_priority
            assert lowest[key] * (1 - 1e-6) <= p <= highest[key] * (1 + 1e-6)

    @rule(counts=st.sampled_from([[MAX_BATCH + 1], [MAX_BATCH, 1], [0] * (MAX_BATCH + 1)]))
    def sample_too_much(self, counts):
        with pytest.raises(InvalidMessage):
            self.shard.sample(counts)

    def priorities(self):
        """Return the lower and the upper bound of each item's priority, by key."""
        td = {key: item["td"] for key, item in self.naive.items.items()}
        if self.config.kind == "uniform":
            return dict.fromkeys(td, 1.0), dict.fromkeys(td, 1.0)
        alpha = self.config.exponent
        if self.config.kind == "prioritized":
            exact = {key: (value + 1e-2) ** alpha for key, value in td.items()}
            return exact, exact
        values = np.array(list(td.values()))
        # upper bound of the changes since the last ranking, by which a rank may be wrong
        off = int(len(td) * RERANK_FRACTION / (1 - RERANK_FRACTION))
        rank = {key: (values > value).sum() + ((values == value).sum() + 1) / 2 for key, value in td.items()}
        return (
            {key: (r + off) ** -alpha for key, r in rank.items()},
            {key: max(r - off, 1.0) ** -alpha for key, r in rank.items()},
        )

    @precondition(lambda self: self.naive.next_key > 0)
    @rule(data=st.data())
    def update(self, data):
        """Update stored, evicted and nonexistent items, also from before a restart, some of them twice in one call."""
        base = self.naive.generation * KEYS_PER_GENERATION
        known = st.integers(base, base + self.naive.next_key - 1)
        alien = st.sampled_from(
            [
                base + self.naive.next_key,
                base + KEYS_PER_GENERATION,
                max(0, base - KEYS_PER_GENERATION),
                2**63,
                2**64 - 1,
            ]
        )
        keys = data.draw(st.lists(known | known | alien, min_size=1, max_size=8))
        td = [data.draw(TD) for _ in keys]
        given = np.array(keys, np.uint64)
        keys = [key - base for key in keys]
        items = self.naive.items
        dropped = sum(key not in items for key in keys)
        assert self.shard.update_priorities(given, np.array(td, np.float32)) == dropped
        self.naive.dropped += dropped
        for key, value in zip(keys, td, strict=True):
            if key in items:
                items[key]["td"] = value

    @rule(td=st.sampled_from([[1.0], [1.0, -1.0], [np.nan, 1.0], [1.0, np.inf]]))
    def update_malformed(self, td):
        keys = np.array([self.naive.first_key, self.naive.first_key + 1], np.uint64)
        with pytest.raises(InvalidMessage):
            self.shard.update_priorities(keys, np.array(td, np.float32))

    @rule(ahead=st.integers(-5, 12), segments=st.sampled_from([0, 1, 3, 100]))
    def drain(self, ahead, segments):
        """Drain with various values of ``taken``, and compare the returned segments."""
        naive, base = self.naive, self.naive.generation * KEYS_PER_GENERATION
        taken = max(0, naive.first_key + ahead)
        for never in (base + naive.next_key + 1, base - KEYS_PER_GENERATION + taken):
            if never > 0:
                with pytest.raises(InvalidMessage, match="not from a reply"):
                    self.shard.drain(never, segments)
        if taken > naive.next_key:
            return
        while naive.segments and naive.segments[0]["items"][-1]["key"] < taken:
            naive.segments.pop(0)
        drained = self.shard.drain(base + taken, segments)
        given, left = naive.segments[:segments], naive.segments[segments:]
        assert [(origin, serialized(s)) for origin, s in drained.segments] == [naive.expected_segment(s) for s in given]
        assert drained.next == base + (left[0]["items"][0]["key"] if left else naive.next_key)
        assert drained.left == sum(len(s["items"]) for s in left)

    def directory(self):
        return Path(tempfile.mkdtemp(dir=self.folder.name))

    @precondition(lambda self: len(self.kept) < 4)
    @rule()
    def snapshot(self):
        """Write a snapshot; all but the first are incremental."""
        if self.snapshots is None:
            self.folder = tempfile.TemporaryDirectory()
            self.snapshots = Snapshots(self.directory(), self.shard)
        written = asyncio.run(self.snapshots.write())
        assert written.items == len(self.naive.items)
        place = shutil.copytree(self.snapshots.directory, self.directory(), dirs_exist_ok=True)
        self.kept.append((place, copy.deepcopy(self.naive)))

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def restore(self, data):
        """Restore the last or an older snapshot into a new shard: it equals the reference at the snapshot's time."""
        place, naive = data.draw(st.sampled_from(self.kept))
        self.snapshots.close()
        self.naive, self.credit = copy.deepcopy(naive), 0
        self.naive.generation += 1
        self.shard = self.empty_shard()
        own = shutil.copytree(place, self.directory(), dirs_exist_ok=True)
        self.snapshots = Snapshots(own, self.shard)
        self.drain(0, 100)
        self.sample([9])

    def teardown(self):
        if getattr(self, "snapshots", None) is not None:
            self.snapshots.close()
            self.folder.cleanup()

    @invariant()
    def both_agree(self):
        self.shard.check_valid()
        naive, counts = self.naive, self.shard.counts()
        items = naive.items
        lowest, highest = (sum(p.values()) for p in self.priorities())
        assert counts.stored == len(items)
        assert lowest * (1 - 1e-6) <= counts.total_priority <= highest * (1 + 1e-6)
        assert (counts.inserted, counts.transferred) == (naive.inserted, naive.transferred)
        assert (counts.sampled, counts.dropped_updates) == (naive.sampled, naive.dropped)
        assert counts.bytes == sum(s["frames"] for s in naive.segments)
        assert counts.resident_bytes == naive.bytes + fixed_bytes(naive.capacity, self.config)
        assert (self.shard.storage.first_key, self.shard.storage.next_key) == (naive.first_key, naive.next_key)
        assert dict(self.shard._last_sequence) == naive.last


@pytest.mark.parametrize(
    ("examples", "steps"), [(40, 50), pytest.param(1000, 100, marks=[pytest.mark.slow, pytest.mark.timeout(3000)])]
)
def test_a_shard_equals_its_reference(examples, steps, monkeypatch):
    monkeypatch.setattr("replay.store.snapshots.CHUNK_BYTES", 2000)  # chunks of one or a few segments
    monkeypatch.setattr("os.fsync", lambda handle: None)
    profile = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    run_state_machine_as_test(ShardMachine, settings=profile)
