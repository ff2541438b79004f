"""Segments that wait at a shard for credit: only valid ones wait, and each is validated once."""

from __future__ import annotations

import threading
import time

import grpc
import pytest

from protos import replay_pb2 as pb
from protos import replay_pb2_grpc as rpc
from replay.store import shard as shard_module
from replay.store.selectors import SelectorConfig
from replay.store.shard import Shard
from replay.wire.service import ShardServer
from tests.conftest import FRAMES, make_message


@pytest.fixture
def served():
    """A limited shard of 10 items without credit, and a stub of it."""
    server = ShardServer(Shard(10, FRAMES, SelectorConfig(), limited=True))
    with grpc.insecure_channel(server.address) as channel:
        yield server, rpc.ReplayStub(channel)
    server.stop()


def insert(stub, message, timeout=10.0):
    (reply,) = stub.Insert(iter([pb.InsertRequest(writer="w", sequence=1, segment=message)]), timeout=timeout)
    return reply.acknowledged


def test_a_waiting_segment_is_validated_once(served, rng, monkeypatch):
    server, stub = served
    looked, check_segment = [], shard_module.check_segment

    def counted(*args):
        looked.append(args)
        check_segment(*args)

    monkeypatch.setattr(shard_module, "check_segment", counted)
    stored = []
    writer = threading.Thread(target=lambda: stored.append(insert(stub, make_message(rng, FRAMES))))
    writer.start()
    while not looked:
        time.sleep(0.01)
    time.sleep(0.1)
    assert stored == []
    list(stub.Sample(iter([pb.SampleRequest(insert_credit=4)]), timeout=10.0))
    writer.join(timeout=10.0)
    assert stored == [1]
    assert len(looked) == 1
    assert server.counts().inserted == 4


MALFORMED = {
    "larger than the capacity of 10": lambda rng: make_message(rng, FRAMES, items=11),
    "td_abs must hold finite": lambda rng: make_message(rng, FRAMES, td_abs=[1.0, float("nan")] * 2),
    "add up": lambda rng: pb.Segment.FromString(
        make_message(rng, FRAMES).SerializeToString() + pb.Segment(frames=b"x").SerializeToString()
    ),
}


@pytest.mark.parametrize("words", MALFORMED)
def test_a_malformed_segment_does_not_wait(served, rng, words):
    server, stub = served
    with pytest.raises(grpc.RpcError, match=words) as caught:
        insert(stub, MALFORMED[words](rng), timeout=5.0)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert server.counts().stored == 0


def test_a_segment_waiting_on_two_streams_is_stored_once(served, rng):
    """This happens if a writer's stream breaks while its segment waits, and the writer sends it again."""
    server, stub = served
    message, stored = make_message(rng, FRAMES), []
    writers = [threading.Thread(target=lambda: stored.append(insert(stub, message))) for _ in range(2)]
    for writer in writers:
        writer.start()
    time.sleep(0.2)
    list(stub.Sample(iter([pb.SampleRequest(insert_credit=100)]), timeout=10.0))
    for writer in writers:
        writer.join(timeout=10.0)
    assert stored == [1, 1]
    assert server.counts().inserted == 4
