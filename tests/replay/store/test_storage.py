"""Single cases of storage and shard; test_shard_machine.py compares random sequences of operations."""

from __future__ import annotations

import numpy as np
import pytest

from protos import codec
from protos.types import InvalidMessage
from replay.store.selectors import SelectorConfig
from replay.store.shard import MAX_NAME_BYTES, Shard
from tests.conftest import FRAMES, SMALL, make_segment


@pytest.mark.parametrize("kind", ["uniform", "prioritized"])
def test_draws_follow_the_selector(rng, kind):
    shard = Shard(100, SMALL, SelectorConfig(kind=kind, alpha=1.0, epsilon=1e-6), limited=False)
    shard.insert("w", 1, codec.pack_segment(make_segment(rng, items=4, td_abs=[1, 2, 3, 10])))
    keys = np.concatenate([shard.sample([1000]).keys for _ in range(20)])
    expected = [0.25] * 4 if kind == "uniform" else [1 / 16, 2 / 16, 3 / 16, 10 / 16]
    np.testing.assert_allclose(np.bincount(keys.astype(int)) / len(keys), expected, atol=0.02)


def test_uniform_draws_only_stored_items(rng):
    shard = Shard(10, SMALL, SelectorConfig(kind="uniform"), limited=False)
    for sequence in range(1, 30):
        shard.insert("w", sequence, codec.pack_segment(make_segment(rng, items=int(rng.integers(1, 6)))))
        shard.check_valid()
    keys = shard.sample([500]).keys
    live = range(shard.storage.first_key, shard.storage.next_key)
    assert set(keys.tolist()) == set(live)


def test_a_rejected_segment_changes_nothing(rng):
    shard = Shard(10, FRAMES, SelectorConfig(), limited=False)
    empty = shard.counts()
    bad = codec.pack_segment(make_segment(rng, FRAMES, td_abs=[1, 1, 1, np.nan]))
    with pytest.raises(InvalidMessage, match="td_abs must hold finite"):
        shard.check(bad)
    too_long = codec.pack_segment(make_segment(rng, FRAMES, items=11))
    with pytest.raises(InvalidMessage, match="capacity"):
        shard.check(too_long)
    assert shard.counts() == empty
    assert shard.check_order("w", 1) == 0


@pytest.mark.parametrize(("writer", "origin"), [("é" * 100, ""), ("w", "é" * 100), ("€" * 66 + "ab", "")])
def test_names_are_limited_in_bytes(rng, writer, origin):
    """The names have 200 bytes in fewer characters; one more byte is rejected."""
    shard = Shard(10, SMALL, SelectorConfig(), limited=False)
    segment = codec.pack_segment(make_segment(rng))
    for name, source in ((writer + "x", origin), (writer, origin + "x")):
        if max(len(name.encode()), len(source.encode())) > MAX_NAME_BYTES:
            with pytest.raises(InvalidMessage, match="1 to 200 bytes"):
                shard.insert(name, 1, segment, source)
    assert shard.counts().stored == 0
    assert shard.insert(writer, 1, segment, origin) == 1
    assert next(shard.storage.segments()).writer == (origin or writer)


def test_segments_can_be_inserted_while_segments_are_read(rng):
    shard = Shard(12, SMALL, SelectorConfig(), limited=False)
    for sequence in (1, 2, 3):
        shard.insert(f"w{sequence}", 1, codec.pack_segment(make_segment(rng, items=4)))
    seen = []
    for stored in shard.storage.segments():
        seen.append((stored.writer, stored.first_key))
        shard.insert("late", len(seen), codec.pack_segment(make_segment(rng, items=5)))  # evicts two, then one
    assert seen == [("w1", 0), ("w3", 8)]


def test_evicted_keys_are_dropped_and_counted(rng):
    shard = Shard(8, SMALL, SelectorConfig(), limited=False)
    for sequence in (1, 2, 3):
        shard.insert("w", sequence, codec.pack_segment(make_segment(rng, items=4)))
    assert shard.update_priorities(np.array([0, 3, 4], np.uint64), np.ones(3, np.float32)) == 2
    assert shard.counts().dropped_updates == 2


@pytest.mark.parametrize("bad", [[np.nan, 1], [-1, 1], [np.inf, 1]])
def test_invalid_priorities_change_nothing(rng, bad):
    shard = Shard(8, SMALL, SelectorConfig(), limited=False)
    shard.insert("w", 1, codec.pack_segment(make_segment(rng)))
    before = shard.counts()
    with pytest.raises(InvalidMessage):
        shard.update_priorities(np.array([0, 1], np.uint64), np.array(bad, np.float32))
    assert shard.counts() == before
