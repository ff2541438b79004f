"""Limits on connections, streams and messages, over sockets."""

from __future__ import annotations

import itertools
import socket
import ssl
import time

import grpc
import pytest

from protos import replay_pb2 as pb
from replay.security import UNPROTECTED, Access
from replay.wire.channel import NO_STREAM
from replay.wire.writer import Writer
from tests.conftest import make_message, make_segment
from tests.integration.shards import sampler, wait_for
from tests.replay.wire.served import insert, open_and_silent, serve_fixture, shard_tls_fixture, stub_of, writer_error  # noqa: F401


def closed_after(connection, seconds):
    """Return the seconds until the other side closes an idle connection."""
    began = time.monotonic()
    connection.settimeout(seconds)
    while connection.recv(4096):
        pass
    return time.monotonic() - began


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"  # with empty settings


@pytest.mark.parametrize("tls", [False, True])
def test_a_silent_connection_is_closed(serve, shard_tls, tls):
    server = serve(Access(shard_tls) if tls else UNPROTECTED, handshake=0.4, connection_idle=30.0)
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        assert 0.2 < closed_after(connection, 5.0) < 4.0


def test_a_connection_without_calls_is_closed(serve, pem, shard_tls):
    limits = {"handshake": 30.0, "connection_idle": 0.4}
    with socket.create_connection(("127.0.0.1", serve(**limits).port)) as connection:
        connection.sendall(PREFACE)
        assert closed_after(connection, 5.0) < 4.0
    context = ssl.create_default_context(cafile=pem("authority.pem"))
    context.set_alpn_protocols(["h2"])
    raw = socket.create_connection(("127.0.0.1", serve(Access(shard_tls), **limits).port))
    with context.wrap_socket(raw, server_hostname="127.0.0.1") as connection:
        connection.sendall(PREFACE)
        assert closed_after(connection, 5.0) < 4.0


def test_a_connection_without_ping_answers_is_closed(serve):
    server = serve(keepalive=0.3)
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(PREFACE)
        assert closed_after(connection, 5.0) < 4.0


def test_connections_are_limited(serve):
    server = serve(connections=2)
    held = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(2)]
    assert all(connection.recv(1) for connection in held)
    with socket.create_connection(("127.0.0.1", server.port)) as third:
        assert closed_after(third, 5.0) < 4.0
    for connection in held:
        connection.close()
    channel = stub_of(server)
    wait_for(lambda: channel.Info(pb.InfoRequest(), timeout=5.0, wait_for_ready=True).capacity == 1000)


def test_an_idle_stream_is_aborted_and_an_active_one_is_not(serve, rng):
    server = serve(stream_idle=0.5)
    for method in ("Insert", "Sample"):
        began = time.monotonic()
        with pytest.raises(grpc.RpcError) as caught:
            list(getattr(stub_of(server), method)(open_and_silent(), timeout=10.0))
        assert caught.value.code() == grpc.StatusCode.ABORTED
        assert "nothing for 0.5 s" in caught.value.details()
        assert time.monotonic() - began < 3.0

    def talking():
        for sequence in range(1, 6):
            yield pb.InsertRequest(writer="w", sequence=sequence, segment=make_message(rng))
            time.sleep(0.25)

    assert [r.acknowledged for r in stub_of(server).Insert(talking(), timeout=10.0)] == [1, 2, 3, 4, 5]


def test_idle_clients_continue_without_loss(serve, rng):
    """The shard allows one stream. Another client can use it while the writer is idle; then the writer gets it again."""
    server = serve(streams=1, stream_idle=0.3)
    writer = Writer([server.address], give_up_after=0.2)
    for k in range(3):
        writer.write(make_segment(rng))
        writer.flush(5.0)
        assert server.counts().inserted == 4 * (2 * k + 1)
        time.sleep(0.8)
        insert(stub_of(server), rng, 1, writer=f"another {k}")
    assert not writer._streams[0].connection.is_gone
    writer.close()
    other = serve(stream_idle=0.3)
    source = sampler([other], give_up_after=0.2)
    insert(stub_of(other), rng, 1)
    for _ in range(3):
        assert source.sample(5.0) is not None
        time.sleep(0.8)
    assert source.stats()["shards_gone"] == 0
    source.close()


def test_streams_are_limited_and_freed(serve, rng):
    server = serve(streams=2)
    asked = [itertools.chain([pb.SampleRequest()], open_and_silent()) for _ in range(2)]
    held = [stub_of(server).Sample(requests, timeout=20.0) for requests in asked]
    for call in held:
        next(call)  # now it is open
    third = stub_of(server)

    def refused():
        try:
            insert(third, rng, 1)
        except grpc.RpcError as error:
            return error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED and error.details().startswith(NO_STREAM)
        return False

    assert refused()
    inserted = server.counts().inserted
    assert NO_STREAM in writer_error(server, UNPROTECTED, rng)
    assert third.Info(pb.InfoRequest(), timeout=5.0).counts.inserted == inserted  # unary calls still work
    patient = Writer([server.address], give_up_after=30.0)
    patient.write(make_segment(rng))
    time.sleep(0.3)
    assert patient.in_flight == 1
    held.pop().cancel()
    patient.flush(10.0)
    patient.close()
    for k in range(12):  # a cancelled stream is freed, however early it was cancelled
        wait_for(lambda: not refused())
        call = stub_of(server).Insert(open_and_silent(), timeout=20.0)
        time.sleep(0.02 * (k % 3))
        call.cancel()
    held.pop().cancel()
    wait_for(lambda: not refused())


def too_long(rng, items):
    message = make_message(rng, items=items, n=1)
    return pb.InsertRequest(writer="w", sequence=1, segment=message)


def test_requests_above_the_limits_are_rejected_and_change_nothing(serve, rng):
    server = serve()
    stub, before = stub_of(server), server.counts()
    doubled = too_long(rng, 5_001)  # two items a step
    for name in ("item_step", "item_length", "r_t", "discount_t", "td_abs"):
        setattr(doubled.segment, name, getattr(doubled.segment, name) * 2)
    many = pb.UpdatePrioritiesRequest(keys=bytes(8 * 65_537), td_abs=bytes(4 * 65_537))
    calls = {
        "10001 and 10001": lambda: list(stub.Insert(iter([too_long(rng, 10_001)]), timeout=5.0)),
        "5001 and 10002": lambda: list(stub.Insert(iter([doubled]), timeout=5.0)),
        "65537 elements": lambda: stub.UpdatePriorities(many, timeout=5.0),
        "for 65537 items": lambda: list(stub.Sample(iter([pb.SampleRequest(counts=[65_536, 1])]), timeout=5.0)),
    }
    for words, call in calls.items():
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT, words
        assert words in caught.value.details()
    with pytest.raises(grpc.RpcError) as caught:
        stub.UpdatePriorities(pb.UpdatePrioritiesRequest(keys=bytes(70 * 2**20)), timeout=5.0)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max" in caught.value.details()
    assert server.counts() == before
