"""Snapshots: a shard's whole content on disk and back, whatever happens in between."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import shutil
import subprocess
import sys
import time

import grpc
import numpy as np
import pytest

from protos import codec
from protos import replay_pb2 as pb
from qfleet.cli import main as cli
from replay.store import snapshots as snapshot
from replay.store.selectors import SelectorConfig
from replay.store.shard import KEYS, Shard
from replay.store.snapshot_files import LOCK, MANIFEST
from replay.store.snapshots import Snapshots
from replay.wire.writer import Writer
from rl.errors import BadInput
from tests.conftest import FRAMES, SMALL, make_message, make_segment
from tests.integration.shards import ShardProcess, shards_fixture, wait_for  # noqa: F401

CAPACITY = 60


def new_shard(capacity=CAPACITY, spec=FRAMES, kind="prioritized"):
    return Shard(capacity, spec, SelectorConfig(kind), limited=False)


def fill(shard, rng, segments, writer="w", items=4):
    for _ in range(segments):
        sequence = shard.get_state()["writers"].get(writer, 0) + 1
        segment = make_segment(rng, shard.spec, items, episode=sequence, td_abs=rng.random(items))
        shard.insert(writer, sequence, codec.pack_segment(segment))


def taken_back(directory, shard):
    """`shard`, filled from what `directory` holds."""
    with contextlib.closing(Snapshots(directory, shard)):
        shard.check_valid()
        return shard


def written(directory, shard, *steps):
    """Write a snapshot of `shard`, and another after each of `steps`; what each wrote."""

    async def write():
        found = []
        with contextlib.closing(Snapshots(directory, shard)) as snapshots:
            for step in (lambda: None, *steps):
                step()
                found.append(await snapshots.write())
        return found

    return asyncio.run(write())


def content(shard):
    return [(s.writer, s.first_key, codec.segment_to_message(s.segment)) for s in shard.storage.segments()]


def files(directory):
    return {f.name for f in directory.iterdir()} - {LOCK, MANIFEST}


def items_held(directory):
    return json.loads((directory / MANIFEST).read_text())["snapshot"]["state"]["end_key"]


@pytest.mark.parametrize("kind", ["prioritized", "uniform"])
@pytest.mark.parametrize("segments", [1, 9, 40])  # less than the capacity, and more
def test_a_shard_comes_back_as_it_was(tmp_path, rng, kind, segments):
    shard = new_shard(kind=kind)
    fill(shard, rng, segments)
    fill(shard, rng, segments // 3, writer="another", items=7)
    shard.update_priorities(shard.sample([32]).keys, rng.random(32).astype(np.float32) * 10)
    shard.update_priorities(np.array([2**30], np.uint64), np.ones(1, np.float32))
    (done,) = written(tmp_path, shard)
    again = taken_back(tmp_path, new_shard(kind=kind))
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


def test_any_selector_can_take_a_snapshot_back(tmp_path, rng):
    shard = new_shard(kind="uniform")
    fill(shard, rng, 9)
    written(tmp_path, shard)
    again = taken_back(tmp_path, new_shard(kind="prioritized"))
    assert again.selector.total == pytest.approx(((shard.storage.td_abs[:36].astype(float) + 1e-3) ** 0.6).sum())


def test_a_second_snapshot_writes_what_is_new_and_drops_what_is_evicted(tmp_path, rng, monkeypatch):
    monkeypatch.setattr(snapshot, "CHUNK_BYTES", 15_000)  # five of these segments
    shard, place = new_shard(), tmp_path / "shard"
    chunks, contents = [], []

    def look():
        chunks.append({f for f in files(place) if f.startswith("segments")})
        contents.append((shutil.copytree(place, tmp_path / str(len(contents))), content(shard)))

    def more(segments):
        look()
        fill(shard, rng, segments)

    fill(shard, rng, 12)
    written_bytes = [w.bytes for w in written(place, shard, *(lambda n=n: more(n) for n in (2, 0, 3, 40)))]
    look()
    assert [len(c) for c in chunks] == [3, 3, 3, 4, 3]
    assert [len(a & b) for a, b in itertools.pairwise(chunks)] == [2, 3, 3, 0]  # a small last one is written with more
    assert written_bytes[1] < written_bytes[0] / 2 < written_bytes[4]
    assert written_bytes[2] == 4 * 56  # nothing but |TD error|
    for copy, expected in contents:  # at the third of them, a chunk begins with what was evicted
        assert content(taken_back(copy, new_shard())) == expected


def test_nothing_new_is_not_written_again_however_little_it_is(tmp_path, rng):
    shard = new_shard()
    fill(shard, rng, 3)
    first, second = written(tmp_path, shard, lambda: None)
    assert first.bytes > second.bytes == 4 * 12


@pytest.mark.parametrize("inserted", [1, 4, 8, 13, 40])
def test_what_is_evicted_or_inserted_while_it_is_written_is_not_in_it(tmp_path, rng, monkeypatch, inserted):
    """Segments come and go between any two slices; the snapshot is of its first moment, less what went unwritten."""
    monkeypatch.setattr(snapshot, "CHUNK_BYTES", 3000)
    monkeypatch.setattr(snapshot, "SLICE", 0.0)
    shard = new_shard()
    fill(shard, rng, 15)
    before, td = content(shard), shard.storage.errors(0, 60)

    async def write():
        with contextlib.closing(Snapshots(tmp_path, shard)) as snapshots:
            task = asyncio.create_task(snapshots._take_turn())
            await asyncio.sleep(0)  # it is at its first slice
            for _ in range(inserted):
                fill(shard, rng, 1)
                shard.storage.td_abs[:] = 99.0
                await asyncio.sleep(0)
            return await task

    done = asyncio.run(write())
    again = taken_back(tmp_path, new_shard())
    kept = content(again)
    assert again.inserted == 60
    assert 15 - inserted <= len(kept) <= 15
    assert len(kept) * 4 == done.items
    assert [(k, m.frames) for _, k, m in kept] == [(k, m.frames) for _, k, m in before[len(before) - len(kept) :]]
    first = again.storage.first_key
    assert np.array_equal(again.storage.errors(first, 60), td[first:])


def test_whoever_asks_while_one_is_written_gets_the_next_one(tmp_path, rng):
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
        first.cancel()  # its caller is gone; it is written all the same
        return await asyncio.gather(*others), snapshots._snapshot["number"]

    found, number = asyncio.run(ask())
    assert [w.items for w in found] == [20, 20, 20]
    assert number == 2


@pytest.mark.parametrize("name", ["segments-1-", "td-1", MANIFEST])
def test_damage_in_any_file_is_found(tmp_path, rng, name):
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
    if name != MANIFEST:  # without one there is no snapshot
        file.unlink()
        assert refused()
    file.write_bytes(good)
    assert content(taken_back(tmp_path, new_shard())) == content(shard)


def test_a_snapshot_of_something_else_is_refused_in_words(tmp_path, rng):
    shard = new_shard()
    fill(shard, rng, 9)
    written(tmp_path, shard)
    with pytest.raises(BadInput, match="uint8 20x20 in stacks of 4, not float32 2 in stacks of 1"):
        Snapshots(tmp_path, new_shard(spec=SMALL))
    with pytest.raises(BadInput, match="none of its segments fits into the capacity of 3"):
        Snapshots(tmp_path, new_shard(capacity=3))
    file = tmp_path / MANIFEST
    file.write_text(file.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(BadInput, match="format 2, this Qfleet reads up to 1"):
        Snapshots(tmp_path, new_shard())


def test_a_smaller_shard_takes_the_newest_back(tmp_path, rng):
    shard = new_shard()
    fill(shard, rng, 40)
    written(tmp_path, shard)
    again = taken_back(tmp_path, new_shard(capacity=22))
    assert content(again) == content(shard)[-5:]
    assert again.inserted == 160
    again.check_valid()


def test_a_smaller_shard_takes_the_newest_that_fit_past_one_that_never_would(tmp_path, rng):
    shard = new_shard(capacity=100)
    for sequence, items in enumerate((40, 4, 4, 4), start=1):
        shard.insert("w", sequence, codec.pack_segment(make_segment(rng, shard.spec, items=items)))
    written(tmp_path, shard)
    again = taken_back(tmp_path, new_shard(capacity=20))
    assert content(again) == content(shard)[-3:]
    again.check_valid()


def test_keys_are_never_used_again(tmp_path, rng):
    """What a shard had after its snapshot is lost; its keys are not given to others, restart after restart."""
    seen, lost = set(), None
    written(tmp_path, new_shard())
    for restart in range(1, 4):
        shard = taken_back(tmp_path, new_shard(capacity=8))
        fill(shard, rng, 2, writer=str(restart))
        sampled = shard.sample([64]).keys
        keys = set(sampled.tolist())
        assert len(keys) == 8
        assert not keys & seen
        assert min(keys) >= restart * KEYS
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
    taken_back(tmp_path, new_shard())


def test_killed_in_the_middle_a_shard_restores_a_whole_one(tmp_path, shards, rng):
    """kill -9 at any moment while snapshots are written: the last that was answered comes back, or the one after."""
    draw, segment = random.Random(0), make_segment(rng, FRAMES, 40)
    shape = ["--shape", 20, 20, "--dtype", "uint8", "--stack", 4, "--capacity", 30_000, "--snapshots", tmp_path]
    answered, unanswered, took = 0, 0, 0.03  # seconds that a snapshot takes, here and now
    for attempt in range(10):
        (shard,) = shards(1, *shape)
        stored = shard.counts().stored
        assert stored >= answered, attempt
        writer = Writer([shard.address])
        for _ in range(60):
            writer.write(segment)
        writer.flush(20.0)
        writer.close()
        if attempt % 2:  # so that the next has little to write
            began = time.monotonic()
            answered = shard.stub.Snapshot(pb.SnapshotRequest(), timeout=20.0).items
            took = time.monotonic() - began
            assert answered == stored + 60 * 40
        reply = shard.stub.Snapshot.future(pb.SnapshotRequest(), timeout=20.0)
        time.sleep(0.7 * took * draw.random())
        shard.kill()
        if reply.exception(timeout=10.0) is None:
            answered = reply.result().items
        else:
            unanswered += 1
    assert unanswered >= 2
    assert answered > 0


def test_at_every_step_of_a_snapshot_a_whole_one_is_on_disk(tmp_path, rng, monkeypatch):
    monkeypatch.setattr(snapshot, "CHUNK_BYTES", 3000)
    put, moments = snapshot.put, []

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

    monkeypatch.setattr(snapshot, "put", watched)
    written(tmp_path / "shard", shard, more)
    monkeypatch.setattr(snapshot, "put", put)
    found = [contents.index(content(taken_back(moment, new_shard()))) for moment in moments]
    assert len(found) > 10
    assert found == sorted(found)
    assert set(found) == {0, 1, 2}


def test_a_writer_goes_on_after_a_restart_and_nothing_saved_is_stored_twice(tmp_path, shards, rng):
    (shard,) = shards(1, "--snapshots", tmp_path)
    writer = Writer([shard.address], give_up_after=30.0)
    for k in range(5):
        writer.write(make_segment(rng, mark=100 * k))
    writer.flush(10.0)
    assert shard.stub.Snapshot(pb.SnapshotRequest(), timeout=10.0).items == 20
    shard.kill()
    writer.write(make_segment(rng, mark=500))
    (again,) = shards(1, "--snapshots", tmp_path, port=shard.port)
    wait_for(lambda: again.counts().inserted == 24, 20.0)
    name = writer._streams[0]._name
    message = make_message(rng, mark=400)
    saved = pb.InsertRequest(writer=name, sequence=5, segment=message)
    (reply,) = again.stub.Insert(iter([saved]), timeout=5.0)
    assert reply.acknowledged == 6
    assert again.counts().inserted == 24
    writer.close()


def test_a_writer_whose_acknowledged_segments_were_lost_goes_on(tmp_path, shards, rng):
    (shard,) = shards(1, "--snapshots", tmp_path)
    writer = Writer([shard.address], give_up_after=30.0)
    writer.write(make_segment(rng))
    writer.flush(10.0)
    shard.stub.Snapshot(pb.SnapshotRequest(), timeout=10.0)
    writer.write(make_segment(rng))  # acknowledged, and in no snapshot
    writer.flush(10.0)
    shard.kill()
    (again,) = shards(1, "--snapshots", tmp_path, port=shard.port)
    writer.write(make_segment(rng))
    writer.flush(20.0)
    assert again.counts().inserted == 8
    writer.close()


def test_a_restored_shard_asks_for_credit_by_its_own_setting(tmp_path, rng):
    shard = new_shard()
    fill(shard, rng, 9)
    written(tmp_path, shard)
    again = Shard(CAPACITY, FRAMES, SelectorConfig(), limited=True)
    taken_back(tmp_path, again)
    assert again.credit_left == 0
    again.grant(40)
    assert again.credit_left == 4


def test_a_shard_without_a_directory_says_so(shards, capsys):
    (shard,) = shards(1)
    with pytest.raises(grpc.RpcError) as error:
        shard.stub.Snapshot(pb.SnapshotRequest(), timeout=5.0)
    assert error.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert cli.main(["replay", "snapshot", shard.address]) == 1
    assert "without a directory" in capsys.readouterr().err


def test_a_full_disk_is_said_and_the_snapshot_before_stays(tmp_path, rng, monkeypatch):
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
    assert content(taken_back(tmp_path, new_shard())) == before


def test_what_fails_after_its_manifest_is_in_place_is_not_written_over(tmp_path, rng, monkeypatch):
    """The directory's last sync fails, so nobody is told of the snapshot, which is there; the next is killed half way."""
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
    assert content(taken_back(tmp_path, new_shard())) == before


def test_the_commands_write_in_time_at_the_end_and_when_asked(tmp_path, rng, capsys):
    def start():
        command = [sys.executable, "-m", "qfleet", "replay", "serve", "--port", "0", "--frame-shape", "2"]
        command += ["--dtype", "float32", "--stack", "1", "--snapshots", str(tmp_path), "--snapshot-minutes", "0.01"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        line = process.stdout.readline()
        return process, line, line.split(":")[1]

    def end(process):
        process.terminate()
        assert process.wait(timeout=20) == 143
        process.stdout.close()

    process, line, port = start()
    assert "restored" not in line
    address = f"127.0.0.1:{port}"
    writer = Writer([address])
    writer.write(make_segment(rng))
    writer.flush(10.0)
    wait_for(lambda: json.loads((tmp_path / MANIFEST).read_text())["snapshot"]["number"] >= 2)
    assert items_held(tmp_path) == 4
    assert cli.main(["replay", "snapshot", address, "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])[address]["items"] == 4
    writer.write(make_segment(rng))
    writer.flush(10.0)
    writer.close()
    end(process)
    process, line, _ = start()
    assert "restored 8 transitions of a snapshot" in line
    end(process)


def test_a_killed_shard_is_taken_back_without_its_leftovers(tmp_path, rng):
    shard = new_shard()
    fill(shard, rng, 3)
    written(tmp_path, shard)
    for name in (".MANIFEST.json", ".segments-2-0-12.bin", "segments-2-0-12.bin", "td-2.bin"):
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("of somebody else")
    assert content(taken_back(tmp_path, new_shard())) == content(shard)
    assert files(tmp_path) == {"segments-1-0-12.bin", "td-1.bin", "notes.txt"}
