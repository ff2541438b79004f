"""Limits of a shard's content: transitions, memory, writers."""

from __future__ import annotations

import gc
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protos import codec
from protos import replay_pb2 as pb
from protos.types import InvalidMessage
from replay.store.selectors import SLOT_BYTES, SelectorConfig
from replay.store.shard import Shard, fixed_bytes
from replay.wire.service import ShardServer
from replay.wire.writer import Writer
from rl.types import ObservationSpec
from tests.conftest import FRAMES, SMALL, make_segment

UNIFORM = SelectorConfig(kind="uniform")
PIXELS = ObservationSpec((84, 84), "uint8", 4)


def counted(segment):
    """Return the bytes that a shard counts for a segment, measured on an empty shard."""
    shard = Shard(100, FRAMES, UNIFORM, limited=False)
    shard.insert("w", 1, codec.pack_segment(segment))
    return shard.counts().resident_bytes - fixed_bytes(100, UNIFORM)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), capacity=st.sampled_from([30, 1000]))
def test_the_newest_segments_that_fit_are_kept(seed, capacity):
    rng = np.random.default_rng(seed)
    room = 15_000
    bound = fixed_bytes(capacity, UNIFORM) + room
    shard = Shard(capacity, FRAMES, UNIFORM, limited=False, capacity_bytes=bound)
    sizes, items = [], []
    for sequence in range(1, 25):
        segment = make_segment(rng, FRAMES, items=int(rng.integers(1, 10)))
        shard.insert("w", sequence, codec.pack_segment(segment))
        shard.check_valid()
        sizes.append(counted(segment))
        items.append(segment.items)
        stay = len(list(shard.storage.segments()))
        assert shard.counts().resident_bytes == fixed_bytes(capacity, UNIFORM) + sum(sizes[-stay:]) <= bound
        assert sum(items[-stay:]) == shard.counts().stored <= capacity
        # one more of the older ones would not have fitted
        assert stay == sequence or sum(sizes[-stay - 1 :]) > room or sum(items[-stay - 1 :]) > capacity


def test_a_segment_above_the_capacity_is_rejected_and_changes_nothing(rng):
    bound = fixed_bytes(100, UNIFORM) + 8_000
    shard = Shard(100, FRAMES, UNIFORM, limited=False, capacity_bytes=bound)
    shard.insert("w", 1, codec.pack_segment(make_segment(rng, FRAMES)))
    before = shard.info()
    with pytest.raises(InvalidMessage, match="larger than the 8000 bytes"):
        shard.check(codec.pack_segment(make_segment(rng, FRAMES, items=60)))
    assert shard.info() == before
    assert before.capacity_bytes == bound
    assert shard.check_order("w", 2) == 1


def allocated(build):
    """Return the result of ``build``, the bytes allocated for it, and the peak during the call."""
    gc.collect()
    tracemalloc.start()
    try:
        made = build()
        gc.collect()
        return made, *tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", SLOT_BYTES)
def test_counted_memory_of_rows_and_selector_is_accurate(kind):
    config = SelectorConfig(kind=kind)

    def fill():
        shard = Shard(200_000, SMALL, config, limited=False)
        for first in range(0, 200_000, 1000):
            shard.selector.put(np.arange(first, first + 1000), np.ones(1000))
        return shard

    _, _, most = allocated(fill)
    assert most == pytest.approx(fixed_bytes(200_000, config), rel=0.05)


@pytest.mark.parametrize("spec", [SMALL, FRAMES, PIXELS])
def test_counted_memory_of_segments_is_accurate(spec, rng):
    """Compares with Python's allocations. SEGMENT_BYTES includes malloc's overhead, so the count may be higher."""
    segments = [codec.pack_segment(make_segment(rng, spec, items=40)) for _ in range(3)]
    messages = [codec.segment_to_message(segment).SerializeToString() for segment in segments]

    def fill():
        shard = Shard(1000, spec, UNIFORM, limited=False)
        for sequence in range(1, 26):
            message = pb.Segment.FromString(messages[sequence % 3])
            message.episode_id = 2**50 + sequence
            shard.insert("w", sequence, codec.segment_from_message(message))
        return shard

    shard, found, _ = allocated(fill)
    assert 0.95 * found < shard.counts().resident_bytes < 1.2 * found


def test_the_least_recent_writers_are_forgotten_first(rng, monkeypatch):
    monkeypatch.setattr("replay.store.shard.MAX_WRITERS", 3)
    shard = Shard(1000, SMALL, UNIFORM, limited=False)
    segment = codec.pack_segment(make_segment(rng))
    for writer, sequence in (("a", 1), ("b", 1), ("c", 1), ("a", 2), ("d", 1)):
        shard.insert(writer, sequence, segment)
    assert [w for w in "abcd" if shard.check_order(w, 1)] == ["a", "c", "d"]


def test_a_forgotten_writer_continues_and_nothing_is_stored_twice(rng, monkeypatch):
    monkeypatch.setattr("replay.store.shard.MAX_WRITERS", 2)
    shard = Shard(1000, SMALL, UNIFORM, limited=False)
    server = ShardServer(shard)
    writers = [Writer([f"127.0.0.1:{server.port}"]) for _ in range(4)]
    try:
        for episode in range(3):
            for writer in writers:  # the shard has always forgotten the next writer
                writer.write(make_segment(rng, episode=episode))
                writer.flush(10.0)
        assert server.counts().inserted == 3 * 4 * 4
        stored = list(shard.storage.segments())
        assert sorted(s.segment.episode_id for s in stored) == sorted([0, 1, 2] * 4)
        assert len({s.writer for s in stored}) == 4  # the origin does not change when a writer takes a new name
    finally:
        for writer in writers:
            writer.close()
        server.stop(grace=0.0)
