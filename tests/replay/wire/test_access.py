"""Access to a shard over sockets: tokens and TLS."""

from __future__ import annotations

import functools
import pickle
import socket
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from protos import replay_pb2 as pb
from replay.security import Access, SecurityConfig
from replay.store.selectors import SelectorConfig
from replay.store.shard import Shard
from replay.wire.connection import CONNECTION_CLOSED_HINT, ShardConnection
from replay.wire.service import ShardServer
from replay.wire.writer import Writer
from rl.errors import BadInput, RunFault
from tests.conftest import SMALL, make_segment
from tests.integration.shards import sampler
from tests.replay.wire.served import (  # noqa: F401
    ACCESS,
    TOKEN,
    open_and_silent,
    round_trip,
    serve_fixture,
    shard_mutual_fixture,
    shard_tls_fixture,
    stub_of,
    writer_error,
)

WRONG = {
    "none": (),
    "another": (("authorization", "Bearer " + "x" * len(TOKEN)),),
    "its beginning": (("authorization", "Bearer " + TOKEN[:-1]),),
    "more": (("authorization", f"Bearer {TOKEN}x"),),
    "bare": (("authorization", TOKEN),),
    "another scheme": (("authorization", f"Basic {TOKEN}"),),
    "under another name": (("token", TOKEN),),
    "empty": (("authorization", ""),),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_every_method_checks_the_token_before_reading_a_message(serve, wrong):
    server = serve(ACCESS)
    stub, metadata = stub_of(server), WRONG[wrong]
    health = health_pb2_grpc.HealthStub(grpc.insecure_channel(server.address))
    calls = {
        "Insert": lambda: list(stub.Insert(open_and_silent(), timeout=5.0, metadata=metadata)),
        "Sample": lambda: list(stub.Sample(open_and_silent(), timeout=5.0, metadata=metadata)),
        **{
            m.name: functools.partial(getattr(stub, m.name), getattr(pb, m.input_type.name)(), 5.0, metadata)
            for m in pb.DESCRIPTOR.services_by_name["Replay"].methods
            if not m.client_streaming
        },
        "Watch": lambda: list(health.Watch(health_pb2.HealthCheckRequest(), timeout=5.0, metadata=metadata)),
    }
    assert len(calls) == 1 + len(pb.DESCRIPTOR.services_by_name["Replay"].methods)
    for name, call in calls.items():
        began = time.monotonic()
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED, name
        assert "token" in caught.value.details()
        assert time.monotonic() - began < 2.0
    assert health.Check(health_pb2.HealthCheckRequest(), timeout=5.0).status == 1  # probes need none


def test_clients_work_with_the_token_and_keep_it_when_pickled(serve, rng):
    server = serve(ACCESS)
    round_trip(server, ACCESS, rng)
    writer = pickle.loads(pickle.dumps(Writer([server.address], access=ACCESS)))
    writer.write(make_segment(rng))
    writer.flush(5.0)
    assert server.counts().inserted == 8
    connection = pickle.loads(pickle.dumps(ShardConnection(server.address, 1.0, ACCESS)))
    assert connection.stub.Info(pb.InfoRequest(), timeout=5.0, metadata=connection.metadata).counts.inserted == 8
    for thing in (ACCESS, writer, connection, server):
        assert TOKEN not in repr(thing) + str(thing)
    writer.close()


def test_clients_without_the_token_fail_immediately_with_the_reason(serve, rng):
    server = serve(ACCESS)
    writer = Writer([server.address], give_up_after=60.0, access=Access(token="x" * 43))
    source = sampler([server], give_up_after=60.0)
    began = time.monotonic()
    with pytest.raises(RunFault, match="rejected a request.*token"):
        writer.write(make_segment(rng))
        writer.flush(10.0)
    with pytest.raises(RunFault, match="rejected a request.*token"):
        for _ in range(50):
            source.sample(0.2)
    assert time.monotonic() - began < 5.0
    writer.close()
    source.close()


def test_tls(serve, rng, pem, shard_tls):
    server = serve(Access(shard_tls, TOKEN))
    client = SecurityConfig(authority=pem("authority.pem"))
    round_trip(server, Access(client, TOKEN), rng)
    named = SecurityConfig(authority=pem("authority.pem"), name="shard.qfleet")
    round_trip(server, Access(named, TOKEN), rng)
    assert CONNECTION_CLOSED_HINT in writer_error(server, ACCESS, rng)  # not encrypted
    stranger = SecurityConfig(authority=pem("stranger/authority.pem"))
    assert "CERTIFICATE_VERIFY_FAILED" in writer_error(server, Access(stranger, TOKEN), rng)
    misnamed = SecurityConfig(authority=pem("authority.pem"), name="shard.elsewhere")
    assert "Hostname Verification" in writer_error(server, Access(misnamed, TOKEN), rng)
    assert "WRONG_VERSION_NUMBER" in writer_error(serve(), Access(client, TOKEN), rng)  # a shard without TLS
    assert server.counts().inserted == 8
    for half in (shard_tls, SecurityConfig(name="shard.qfleet")):  # no silent fallback to a connection without TLS
        with pytest.raises(BadInput, match="SecurityConfig.authority"):
            Writer([server.address], access=Access(half))


def test_mutual_tls(serve, rng, pem, shard_mutual):
    server = serve(Access(shard_mutual))

    def client(place):
        return SecurityConfig(
            authority=pem("authority.pem"), certificate=pem(f"{place}client.pem"), key=pem(f"{place}client.key")
        )

    round_trip(server, Access(client("")), rng)
    assert CONNECTION_CLOSED_HINT in writer_error(server, Access(SecurityConfig(authority=pem("authority.pem"))), rng)
    assert CONNECTION_CLOSED_HINT in writer_error(server, Access(client("stranger/")), rng)
    assert server.counts().inserted == 4


def test_a_shard_on_a_public_address_needs_a_token():
    shard = Shard(10, SMALL, SelectorConfig(), limited=False)
    with pytest.raises(BadInput, match="without a token"):
        ShardServer(shard, "0.0.0.0")
    for access in (ACCESS, Access(SecurityConfig(require_token=False))):
        ShardServer(shard, "0.0.0.0", access=access).stop()
    if socket.has_dualstack_ipv6():
        server = ShardServer(shard, "::1")
        assert server.address == f"[::1]:{server.port}"
        assert stub_of(server).Info(pb.InfoRequest(), timeout=5.0).capacity == 10
        server.stop()
