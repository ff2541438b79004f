"""Snapshots of shards in processes of their own, which are killed and restarted."""

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


def test_a_shard_killed_while_writing_restores_a_complete_snapshot(tmp_path, shards, rng):
    """Killed at random moments, a shard restores the last snapshot that it confirmed, or the one after it."""
    draw, segment = random.Random(0), make_segment(rng, FRAMES, 40)
    shape = ["--shape", 20, 20, "--dtype", "uint8", "--stack", 4, "--capacity", 30_000, "--snapshots", tmp_path]
    confirmed, unconfirmed, took = 0, 0, 0.03  # items, requests, seconds that a snapshot takes on this machine
    for attempt in range(10):
        (shard,) = shards(1, *shape)
        stored = shard.counts().stored
        assert stored >= confirmed, attempt
        writer = Writer([shard.address])
        for _ in range(60):
            writer.write(segment)
        writer.flush(20.0)
        writer.close()
        if attempt % 2:  # so that the next snapshot has little to write
            began = time.monotonic()
            confirmed = shard.stub.Snapshot(pb.SnapshotRequest(), timeout=20.0).items
            took = time.monotonic() - began
            assert confirmed == stored + 60 * 40
        reply = shard.stub.Snapshot.future(pb.SnapshotRequest(), timeout=20.0)
        time.sleep(0.7 * took * draw.random())
        shard.kill()
        if reply.exception(timeout=10.0) is None:
            confirmed = reply.result().items
        else:
            unconfirmed += 1
    assert unconfirmed >= 2
    assert confirmed > 0


def test_a_writer_continues_after_a_restart_and_no_saved_segment_is_stored_twice(tmp_path, shards, rng):
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


def test_a_writer_continues_after_acknowledged_segments_were_lost(tmp_path, shards, rng):
    (shard,) = shards(1, "--snapshots", tmp_path)
    writer = Writer([shard.address], give_up_after=30.0)
    writer.write(make_segment(rng))
    writer.flush(10.0)
    shard.stub.Snapshot(pb.SnapshotRequest(), timeout=10.0)
    writer.write(make_segment(rng))  # acknowledged, but in no snapshot
    writer.flush(10.0)
    shard.kill()
    (again,) = shards(1, "--snapshots", tmp_path, port=shard.port)
    writer.write(make_segment(rng))
    writer.flush(20.0)
    assert again.counts().inserted == 8
    writer.close()


def test_a_snapshot_without_a_directory_is_rejected_with_the_reason(shards, capsys):
    (shard,) = shards(1)
    with pytest.raises(grpc.RpcError) as error:
        shard.stub.Snapshot(pb.SnapshotRequest(), timeout=5.0)
    assert error.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert cli.main(["replay", "snapshot", shard.address]) == 1
    assert "without a directory" in capsys.readouterr().err


def test_serve_writes_snapshots_periodically_on_request_and_at_the_end(tmp_path, rng, capsys):
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
