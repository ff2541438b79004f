"""Snapshots: writing a shard's content, incrementally and while it changes, and restoring it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import shutil

import numpy as np
import pytest

from protos import codec
from replay.store import snapshots as snapshot
from replay.store.selectors import SelectorConfig
from replay.store.shard import KEYS_PER_GENERATION, Shard
from replay.store.snapshots import Snapshots
from rl.errors import BadInput
from tests.conftest import FRAMES, make_segment
from tests.replay.store.snapshot_steps import CAPACITY, chunks_of, content, fill, new_shard, restored, written


@pytest.mark.parametrize("kind", ["prioritized", "uniform"])
@pytest.mark.parametrize("segments", [1, 9, 40])  # less than the capacity, and more
def test_a_shard_is_restored_completely(tmp_path, rng, kind, segments):
    shard = new_shard(kind=kind)
    fill(shard, rng, segments)
    fill(shard, rng, segments // 3, writer="another", items=7)
    shard.update_priorities(shard.sample([32]).keys, rng.random(32).astype(np.float32) * 10)
    shard.update_priorities(np.array([2**30], np.uint64), np.ones(1, np.float32))
    (done,) = written(tmp_path, shard)
    again = restored(tmp_path, new_shard(kind=kind))
    assert content(again) == content(shard)
    assert again.get_state() == shard.get_state()
    assert again.counts() == shard.counts()
    assert done.items == shard.storage.size
    assert again.dropped_updates == 1
    slots, probability = shard.selector.sample(np.linspace(0, 1, 500, endpoint=False))
    new_slots, new_probability = again.selector.sample(np.linspace(0, 1, 500, endpoint=False))
    by_slot, new_by_slot = (
        dict(zip(slots, probability, strict=True)),
        dict(zip(new_slots, new_probability, strict=True)),
    )
    assert by_slot == pytest.approx(new_by_slot)
    again.sample([8])
    fill(again, rng, 30)
    again.check_valid()


def test_a_snapshot_can_be_restored_with_another_selector(tmp_path, rng):
    shard = new_shard(kind="uniform")
    fill(shard, rng, 9)
    written(tmp_path, shard)
    again = restored(tmp_path, new_shard(kind="prioritized"))
    assert again.selector.total == pytest.approx(((shard.storage.td_abs[:36].astype(float) + 1e-3) ** 0.6).sum())


def test_a_second_snapshot_writes_new_segments_and_drops_evicted_ones(tmp_path, rng, monkeypatch):
    monkeypatch.setattr(snapshot, "CHUNK_BYTES", 15_000)  # five of these segments
    shard, place = new_shard(), tmp_path / "shard"
    chunks, contents = [], []

    def look():
        chunks.append(chunks_of(place))
        contents.append((shutil.copytree(place, tmp_path / str(len(contents))), content(shard)))

    def more(segments):
        look()
        fill(shard, rng, segments)

    fill(shard, rng, 12)
    written_bytes = [w.bytes for w in written(place, shard, *(lambda n=n: more(n) for n in (2, 0, 3, 40)))]
    look()
    assert [len(c) for c in chunks] == [3, 3, 3, 4, 3]
    # the second snapshot rewrites the small last chunk together with new items
    assert [len(a & b) for a, b in itertools.pairwise(chunks)] == [2, 3, 3, 0]
    assert written_bytes[1] < written_bytes[0] / 2 < written_bytes[4]
    assert written_bytes[2] == 4 * 56  # only |TD errors|
    for copy, expected in contents:  # in the third one a chunk begins with evicted segments
        assert content(restored(copy, new_shard())) == expected


def test_a_second_snapshot_without_new_items_writes_no_chunk(tmp_path, rng):
    shard = new_shard()
    fill(shard, rng, 3)
    first, second = written(tmp_path, shard, lambda: None)
    assert first.bytes > second.bytes == 4 * 12


@pytest.mark.parametrize("inserted", [1, 4, 8, 13, 40])
def test_inserts_and_evictions_while_a_snapshot_is_written(tmp_path, rng, monkeypatch, inserted):
    """The snapshot has the content at its start, without segments that were evicted before they were written."""
    monkeypatch.setattr(snapshot, "CHUNK_BYTES", 3000)
    monkeypatch.setattr(snapshot, "SLICE_SECONDS", 0.0)
    shard = new_shard()
    fill(shard, rng, 15)
    before, td = content(shard), shard.storage.td_errors(0, 60)

    async def write():
        with contextlib.closing(Snapshots(tmp_path, shard)) as snapshots:
            task = asyncio.create_task(snapshots._write_next())
            await asyncio.sleep(0)  # it has written its first slice
            for _ in range(inserted):
                fill(shard, rng, 1)
                shard.storage.td_abs[:] = 99.0
                await asyncio.sleep(0)
            return await task

    done = asyncio.run(write())
    again = restored(tmp_path, new_shard())
    kept = content(again)
    assert again.inserted == 60
    assert 15 - inserted <= len(kept) <= 15
    assert len(kept) * 4 == done.items
    assert [(k, m.frames) for _, k, m in kept] == [(k, m.frames) for _, k, m in before[len(before) - len(kept) :]]
    first = again.storage.first_key
    assert np.array_equal(again.storage.td_errors(first, 60), td[first:])


def test_calls_while_a_snapshot_is_written_share_the_next_one(tmp_path, rng):
    shard = new_shard()
    fill(shard, rng, 3)

    async def ask():
        snapshots = Snapshots(tmp_path, shard)
        first = asyncio.create_task(snapshots.write())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        fill(shard, rng, 2)
        others = [asyncio.create_task(snapshots.write()) for _ in range(3)]
        await asyncio.sleep(0)
        first.cancel()  # writing continues without its caller
        return await asyncio.gather(*others), snapshots._snapshot["number"]

    found, number = asyncio.run(ask())
    assert [w.items for w in found] == [20, 20, 20]
    assert number == 2


def test_a_smaller_shard_restores_the_newest_segments(tmp_path, rng):
    shard = new_shard()
    fill(shard, rng, 40)
    written(tmp_path, shard)
    again = restored(tmp_path, new_shard(capacity=22))
    assert content(again) == content(shard)[-5:]
    assert again.inserted == 160
    again.check_valid()


def test_a_smaller_shard_skips_a_segment_that_does_not_fit(tmp_path, rng):
    shard = new_shard(capacity=100)
    for sequence, items in enumerate((40, 4, 4, 4), start=1):
        shard.insert("w", sequence, codec.pack_segment(make_segment(rng, shard.spec, items=items)))
    written(tmp_path, shard)
    again = restored(tmp_path, new_shard(capacity=20))
    assert content(again) == content(shard)[-3:]
    again.check_valid()


def test_keys_are_never_reused(tmp_path, rng):
    """Items after the snapshot are lost at a restart; their keys are not reused, also after several restarts."""
    seen, lost = set(), None
    written(tmp_path, new_shard())
    for restart in range(1, 4):
        shard = restored(tmp_path, new_shard(capacity=8))
        fill(shard, rng, 2, writer=str(restart))
        sampled = shard.sample([64]).keys
        keys = set(sampled.tolist())
        assert len(keys) == 8
        assert not keys & seen
        assert min(keys) >= restart * KEYS_PER_GENERATION
        seen |= keys
        if lost is not None:
            assert shard.update_priorities(lost, np.zeros(64, np.float32)) == 64
        lost = sampled
        assert shard.update_priorities(sampled, np.full(64, 3.0, np.float32)) == 0
        assert (shard.storage.td_abs[:8] == 3.0).all()


def test_two_shards_never_share_a_directory(tmp_path):
    snapshots = Snapshots(tmp_path, new_shard())
    with pytest.raises(BadInput, match="in use by another replay shard"):
        Snapshots(tmp_path, new_shard())
    snapshots.close()
    restored(tmp_path, new_shard())


def test_a_restored_shard_keeps_its_own_limited_setting(tmp_path, rng):
    shard = new_shard()
    fill(shard, rng, 9)
    written(tmp_path, shard)
    again = Shard(CAPACITY, FRAMES, SelectorConfig(), limited=True)
    restored(tmp_path, again)
    assert again.credit_left == 0
    again.grant(40)
    assert again.credit_left == 4
