"""Snapshots of shards in processes of their own, which are killed and come back."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time

import grpc
import pytest

from protos import replay_pb2 as pb
from qfleet.cli import main as cli
from replay.store.snapshot_files import MANIFEST
from replay.wire.writer import Writer
from tests.conftest import FRAMES, make_message, make_segment
from tests.integration.shards import ShardProcess, shards_fixture, wait_for  # noqa: F401
from tests.replay.store.snapshot_steps import items_held


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


def test_a_shard_without_a_directory_says_so(shards, capsys):
    (shard,) = shards(1)
    with pytest.raises(grpc.RpcError) as error:
        shard.stub.Snapshot(pb.SnapshotRequest(), timeout=5.0)
    assert error.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert cli.main(["replay", "snapshot", shard.address]) == 1
    assert "without a directory" in capsys.readouterr().err


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
    assert "restored 8 transitions from a snapshot" in line
    end(process)
