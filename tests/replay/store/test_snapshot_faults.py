"""Damaged, incompatible and interrupted snapshots: a complete one is on disk at every moment."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil

import pytest

from replay.store import snapshots as snapshot
from replay.store.snapshot_files import MANIFEST
from replay.store.snapshots import Snapshots
from rl.errors import BadInput
from tests.conftest import SMALL
from tests.replay.store.snapshot_steps import content, files, fill, new_shard, restored, written


@pytest.mark.parametrize("name", ["segments-1-", "td-1", MANIFEST])
def test_damage_in_any_file_is_detected(tmp_path, rng, name):
    shard = new_shard()
    fill(shard, rng, 9)
    written(tmp_path, shard)
    (file,) = (f for f in tmp_path.iterdir() if f.name.startswith(name))
    good = file.read_bytes()

    def refused():
        with pytest.raises(BadInput, match=str(tmp_path)) as error:
            Snapshots(tmp_path, new_shard())
        assert "\n" not in str(error.value)
        return True

    draw = random.Random(0)
    for _ in range(60):
        at, bit = draw.randrange(len(good)), draw.randrange(8)
        file.write_bytes(good[:at] + bytes([good[at] ^ 1 << bit]) + good[at + 1 :])
        assert refused(), (at, bit)
    for size in (0, 1, len(good) // 2, len(good) - 2):
        file.write_bytes(good[:size])
        assert refused(), size
    if name != MANIFEST:  # without a manifest there is no snapshot, which is no error
        file.unlink()
        assert refused()
    file.write_bytes(good)
    assert content(restored(tmp_path, new_shard())) == content(shard)


def test_an_incompatible_snapshot_is_rejected_with_an_explanation(tmp_path, rng):
    shard = new_shard()
    fill(shard, rng, 9)
    written(tmp_path, shard)
    with pytest.raises(BadInput, match="uint8 20x20 in stacks of 4, not float32 2 in stacks of 1"):
        Snapshots(tmp_path, new_shard(spec=SMALL))
    with pytest.raises(BadInput, match="none of the snapshot's segments fits into the capacity of 3"):
        Snapshots(tmp_path, new_shard(capacity=3))
    file = tmp_path / MANIFEST
    file.write_text(file.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(BadInput, match="format 2, but this Qfleet reads formats up to 1"):
        Snapshots(tmp_path, new_shard())


def test_a_complete_snapshot_is_on_disk_at_every_moment(tmp_path, rng, monkeypatch):
    monkeypatch.setattr(snapshot, "CHUNK_BYTES", 3000)
    put, moments = snapshot.write_file, []

    def watched(path, pieces):
        for when in ("before", "after"):
            moments.append(tmp_path / f"{len(moments)}-{when}-{path.name}")
            if when == "after":
                done = put(path, pieces)
            shutil.copytree(path.parent, moments[-1])
        return done

    shard = new_shard()
    fill(shard, rng, 15)
    contents = [[], content(shard)]

    def more():
        fill(shard, rng, 8)
        contents.append(content(shard))

    monkeypatch.setattr(snapshot, "write_file", watched)
    written(tmp_path / "shard", shard, more)
    monkeypatch.setattr(snapshot, "write_file", put)
    found = [contents.index(content(restored(moment, new_shard()))) for moment in moments]
    assert len(found) > 10
    assert found == sorted(found)
    assert set(found) == {0, 1, 2}


def test_a_full_disk_is_reported_and_the_previous_snapshot_is_intact(tmp_path, rng, monkeypatch):
    shard = new_shard()
    fill(shard, rng, 3)
    before = content(shard)

    def full():
        fill(shard, rng, 3)
        monkeypatch.setattr("os.fsync", no_room)

    def no_room(handle):
        raise OSError(28, "No space left on device")

    with pytest.raises(snapshot.RunFault, match="No space left"):
        written(tmp_path, shard, full)
    monkeypatch.undo()
    assert content(restored(tmp_path, new_shard())) == before


def test_a_snapshot_that_fails_after_its_manifest_is_not_overwritten(tmp_path, rng, monkeypatch):
    """The last sync fails, so `write` raises for a complete snapshot; the next one fails before its manifest."""
    shard = new_shard()
    fill(shard, rng, 3)

    async def write():
        with contextlib.closing(Snapshots(tmp_path, shard)) as snapshots:
            for broken in ("sync", "manifest_bytes"):
                with monkeypatch.context() as patch:
                    calls = iter([True, False]) if broken == "sync" else iter([False])
                    patch.setattr(snapshot, broken, lambda _, calls=calls: next(calls) or fail())
                    with pytest.raises(snapshot.RunFault):
                        await snapshots.write()
                shard.storage.td_abs[:] = 7.0

    def fail():
        raise OSError(5, "Input/output error")

    before = content(shard)
    asyncio.run(write())
    assert content(restored(tmp_path, new_shard())) == before


def test_a_killed_shard_is_restored_and_unfinished_files_are_deleted(tmp_path, rng):
    shard = new_shard()
    fill(shard, rng, 3)
    written(tmp_path, shard)
    for name in (".MANIFEST.json", ".segments-2-0-12.bin", "segments-2-0-12.bin", "td-2.bin"):
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("not a file of a snapshot")
    assert content(restored(tmp_path, new_shard())) == content(shard)
    assert files(tmp_path) == {"segments-1-0-12.bin", "td-1.bin", "notes.txt"}
