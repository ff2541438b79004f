"""Damaged, incompatible and interrupted snapshots: a complete one is on disk at every moment."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil

import pytest

from replay.store import snapshots as snapshot
from replay.store.selectors import SelectorConfig
from replay.store.shard import Shard, fixed_bytes
from replay.store.snapshot_files import MANIFEST, PREVIOUS, key_range
from replay.store.snapshots import Snapshots
from rl.errors import BadInput
from tests.conftest import FRAMES, SMALL
from tests.replay.store.snapshot_steps import CAPACITY, content, files, fill, new_shard, restored, written


@pytest.mark.parametrize("name", ["segments-1-", MANIFEST])
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


def damage(file, at=None):
    """Change a bit of a file, by default in its middle."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2 if at is None else at] ^= 1
    file.write_bytes(data)


def two_snapshots(directory, rng, monkeypatch):
    """A shard that has written two snapshots, with a chunk of their own for every two segments; and their contents."""
    monkeypatch.setattr(snapshot, "CHUNK_BYTES", 5000)
    shard, contents = new_shard(), []

    def more():
        contents.append(content(shard))
        fill(shard, rng, 4)

    fill(shard, rng, 6)
    written(directory, shard, more)
    return shard, [*contents, content(shard)]


def chunks(directory, number):
    """The chunks that the snapshot ``number`` has written, oldest first."""
    return sorted(directory.glob(f"segments-{number}-*"), key=lambda file: key_range(file.name))


def check_that_it_goes_on(directory, rng, expected):
    """The snapshot in ``directory`` has the content ``expected``; a shard goes on from it, and so does another."""
    shard = new_shard()

    async def go_on():
        with contextlib.closing(Snapshots(directory, shard)) as snapshots:
            assert content(shard) == expected
            fill(shard, rng, 3)
            await snapshots.write()

    asyncio.run(go_on())
    assert content(restored(directory, new_shard())) == content(shard)


@pytest.mark.parametrize("broken", [MANIFEST, "td-2.bin", "the newest chunk"])
def test_the_snapshot_before_a_damaged_one_is_restored(tmp_path, rng, monkeypatch, caplog, broken):
    _, (first, _) = two_snapshots(tmp_path, rng, monkeypatch)
    damage(chunks(tmp_path, 2)[-1] if broken == "the newest chunk" else tmp_path / broken)
    again = restored(tmp_path, new_shard())
    assert content(again) == first
    assert again.generation == 1  # not 0, which the damaged snapshot's keys have
    assert "the newest snapshot is damaged (" in caplog.text
    again.check_valid()
    check_that_it_goes_on(tmp_path, rng, first)
    assert caplog.text.count("damaged") == 1


def test_what_is_newer_than_a_damaged_chunk_of_both_snapshots_is_restored(tmp_path, rng, monkeypatch, caplog):
    shard, (first, last) = two_snapshots(tmp_path, rng, monkeypatch)
    shared = chunks(tmp_path, 1)
    assert len(shared) >= 3
    damage(shared[1])
    again = restored(tmp_path, new_shard())
    assert "and only a part of it is whole" in caplog.text
    _, end = key_range(shared[1].name)
    assert 0 < end < len(first) * 4
    assert content(again) == [found for found in last if found[1] >= end]
    assert again.storage.td_errors(end, 40).tolist() == shard.storage.td_errors(end, 40).tolist()
    again.check_valid()
    check_that_it_goes_on(tmp_path, rng, content(again))
    assert caplog.text.count("damaged") == 1


def test_items_whose_td_errors_are_damaged_keep_those_of_their_insert(tmp_path, rng, monkeypatch, caplog):
    _, (_, last) = two_snapshots(tmp_path, rng, monkeypatch)
    damage(tmp_path / "td-1.bin")
    damage(tmp_path / "td-2.bin")
    again = restored(tmp_path, new_shard())
    assert content(again) == last
    assert "td-2.bin does not match its checksum" in caplog.text
    again.check_valid()
    check_that_it_goes_on(tmp_path, rng, last)


@pytest.mark.parametrize("broken", ["the only chunk", "both newest chunks", MANIFEST])
def test_damaged_snapshots_are_set_aside_if_nothing_can_be_restored(tmp_path, rng, monkeypatch, broken):
    if broken == "both newest chunks":
        two_snapshots(tmp_path, rng, monkeypatch)
        damage(chunks(tmp_path, 2)[-1])
        damage(chunks(tmp_path, 1)[-1])
    else:
        shard = new_shard()
        fill(shard, rng, 9)
        written(tmp_path, shard)
        damage(tmp_path / MANIFEST if broken == MANIFEST else chunks(tmp_path, 1)[0])
    before = files(tmp_path)
    with pytest.raises(BadInput, match=r"cannot be restored \(.*\): write another directory"):
        Snapshots(tmp_path, new_shard())
    assert files(tmp_path) == before
    shard = new_shard()
    with contextlib.closing(Snapshots(tmp_path, shard, set_aside=True)) as snapshots:
        assert snapshots.restored is None
        (folder,) = tmp_path.glob("damaged-*")
        assert snapshots.damage.endswith(f") and was moved to {folder}")
    assert files(folder) == before
    assert shard.storage.size == 0
    shard.check_valid()
    assert shard.generation > 2  # a random one: the damaged snapshot may have any
    for file in tmp_path.glob("*.json"):
        file.unlink()  # as if the shard had been killed before it wrote its own manifest
    again = restored(tmp_path, new_shard())
    assert again.generation > 2
    check_that_it_goes_on(tmp_path, rng, [])


def test_a_setting_that_does_not_fit_is_no_damage(tmp_path, rng, monkeypatch):
    _, (_, last) = two_snapshots(tmp_path, rng, monkeypatch)
    before = {file.name: file.read_bytes() for file in tmp_path.glob("*.*")}
    few_bytes = fixed_bytes(CAPACITY, SelectorConfig()) + 9
    small = Shard(CAPACITY, FRAMES, SelectorConfig(), limited=False, capacity_bytes=few_bytes)
    with pytest.raises(
        BadInput, match=f"{tmp_path} cannot be restored: .*start the shard with a larger capacity in bytes$"
    ):
        Snapshots(tmp_path, small, set_aside=True)
    assert {file.name: file.read_bytes() for file in tmp_path.glob("*.*")} == before
    assert content(restored(tmp_path, new_shard())) == last


def test_a_file_that_cannot_be_read_now_is_no_damage(tmp_path, rng, monkeypatch):
    _, (_, last) = two_snapshots(tmp_path, rng, monkeypatch)
    file, elsewhere = tmp_path / "td-2.bin", tmp_path / "elsewhere"
    file.rename(elsewhere)
    file.mkdir()
    with pytest.raises(BadInput, match=r"cannot be restored: .*Is a directory: .*: make it readable$"):
        Snapshots(tmp_path, new_shard(), set_aside=True)
    file.rmdir()
    elsewhere.rename(file)
    assert content(restored(tmp_path, new_shard())) == last


def test_damage_of_the_older_snapshot_alone_is_no_damage(tmp_path, rng, monkeypatch, caplog):
    _, (_, last) = two_snapshots(tmp_path, rng, monkeypatch)
    damage(tmp_path / "td-1.bin")
    text = (tmp_path / PREVIOUS).read_text()
    (tmp_path / PREVIOUS).write_text(text.replace('"format": 1', '"format": 9'))
    assert content(restored(tmp_path, new_shard())) == last
    assert not caplog.text


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
        there.extend(files(tmp_path))
        monkeypatch.setattr(snapshot, "write_file", no_room)

    def no_room(path, pieces):
        if path.name.startswith("td-"):
            raise OSError(28, "No space left on device")
        return put(path, pieces)

    there, put = [], snapshot.write_file
    with pytest.raises(snapshot.RunFault, match="No space left"):
        written(tmp_path, shard, full)
    assert files(tmp_path) == set(there)  # the chunk that was written would keep the disk full
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
                    calls = iter([True, True, False]) if broken == "sync" else iter([False])
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
