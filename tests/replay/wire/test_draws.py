"""Requests for draws over streams to real shards: done when all shards have replied or are lost."""

from __future__ import annotations

import threading

import pytest

from replay.credit import ShardAccount
from replay.wire.connection import ShardConnection
from replay.wire.draws import DrawRequest, DrawStream, ShardRequest
from replay.wire.writer import Writer
from tests.conftest import make_segment
from tests.replay.wire.served import serve_fixture  # noqa: F401

ITEMS = 12


@pytest.fixture
def stream(serve, rng):
    """Return a function that starts a shard with ITEMS transitions and opens a stream: (server, stream)."""
    opened = []

    def start():
        server = serve()
        writer = Writer([server.address])
        for _ in range(3):
            writer.write(make_segment(rng, items=ITEMS // 3))
        writer.flush(10.0)
        writer.close()
        lock = threading.Lock()
        opened.append(DrawStream(len(opened), ShardConnection(server.address, 0.5), ShardAccount(lock)))
        return server, opened[-1]

    yield start
    for each in opened:
        each.leave()
        each.join()


def send_request(streams, *counts):
    request = DrawRequest({k: ShardRequest(list(n), 0.5) for k, n in enumerate(counts)})
    assert request.items == sum(map(sum, counts))
    for k, part in request.shards.items():
        streams[k].send(request, part, None)
    return request


def test_a_request_is_done_when_all_shards_have_replied(stream):
    streams = [stream()[1], stream()[1]]
    request = send_request(streams, [4, 3], [0, 2])
    assert request.done.wait(10.0)
    assert [part.is_complete for part in request.shards.values()] == [True, True]
    assert [(s.counts.stored, s.counts.sampled, s.account.sampled) for s in streams] == [(ITEMS, 7, 0), (ITEMS, 2, 0)]
    assert send_request(streams, [5], []).done.wait(10.0)
    assert [s.account.sampled for s in streams] == [5, 0]  # since the baselines, the first replies


def test_a_reply_without_items_is_not_complete(serve):
    server = serve()
    stream = DrawStream(0, ShardConnection(server.address, 0.5), ShardAccount(threading.Lock()))
    request = send_request([stream], [4])
    assert request.done.wait(10.0)
    assert not request.shards[0].is_complete  # the shard is empty
    assert not request.shards[0].is_lost
    stream.leave()
    stream.join()


def test_a_request_to_a_dead_shard_is_lost_and_done(stream):
    (_, alive), (server, dead) = stream(), stream()
    assert send_request([alive, dead], [1], [1]).done.wait(10.0)
    server.stop(grace=0.0)
    request = send_request([alive, dead], [2], [3])
    assert request.done.wait(10.0)
    assert (request.shards[0].is_complete, request.shards[1].is_lost, request.shards[1].is_complete) == (
        True,
        True,
        False,
    )
    assert not dead.account.is_reachable


def test_a_request_to_a_closed_stream_is_done_immediately(stream):
    (_, staying), (_, left) = stream(), stream()
    left.leave()
    request = send_request([staying, left], [2], [3])
    assert request.done.wait(10.0)
    assert (request.shards[0].is_complete, request.shards[1].is_lost, left.is_alive) == (True, True, False)
    assert not left.account.is_open
