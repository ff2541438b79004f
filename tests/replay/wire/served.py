"""Fixtures for shards that are served from a thread, and common requests."""

from __future__ import annotations

import threading

import grpc
import pytest

from protos import replay_pb2 as pb
from protos import replay_pb2_grpc as rpc
from replay.security import UNPROTECTED, Access, SecurityConfig
from replay.store.selectors import SelectorConfig
from replay.store.shard import Shard
from replay.wire.guard import Limits
from replay.wire.service import ShardServer
from replay.wire.writer import Writer
from rl.errors import RunFault
from tests.conftest import SMALL, make_message, make_segment
from tests.integration.shards import sampler, wait_for

TOKEN = "t0k3n-of-the-tests-and-of-nobody-else-at-all"
ACCESS = Access(token=TOKEN)


@pytest.fixture(name="serve")
def serve_fixture():
    """Return a function that serves a new shard from a thread: ``serve(access, **limits)``."""
    running = []

    def start(access=UNPROTECTED, **limits):
        shard = Shard(1000, SMALL, SelectorConfig(), limited=False)
        running.append(ShardServer(shard, access=access, limits=Limits(**limits)))
        return running[-1]

    yield start
    for server in running:
        server.stop()


@pytest.fixture(name="shard_tls")
def shard_tls_fixture(pem):
    return SecurityConfig(certificate=pem("shard.pem"), key=pem("shard.key"))


@pytest.fixture(name="shard_mutual")
def shard_mutual_fixture(pem):
    return SecurityConfig(
        certificate=pem("shard.pem"), key=pem("shard.key"), authority=pem("authority.pem"), mutual=True
    )


def insert(stub, rng, *sequences, writer="w", **kwargs):
    requests = [pb.InsertRequest(writer=writer, sequence=s, segment=make_message(rng)) for s in sequences]
    return list(stub.Insert(iter(requests), timeout=5.0, **kwargs))


def stub_of(server):
    return rpc.ReplayStub(grpc.insecure_channel(server.address, options=[("grpc.use_local_subchannel_pool", 1)]))


def open_and_silent():
    """Return a request stream that stays open and sends nothing."""
    threading.Event().wait(20.0)
    yield from ()


def round_trip(server, access, rng):
    """Write a segment, sample it and update its priorities."""
    writer = Writer([server.address], give_up_after=2.0, access=access)
    source = sampler([server], give_up_after=2.0, access=access)
    try:
        writer.write(make_segment(rng))
        writer.flush(5.0)
        batch = source.sample(5.0)
        assert batch is not None
        source.update_priorities(batch, batch.weights)
        wait_for(lambda: source._updates._value == 64)
        assert source.stats()["lost_updates"] == 0
    finally:
        writer.close()
        source.close()


def writer_error(server, access, rng):
    """Return the message of the error that a writer raises when it cannot reach the shard."""
    writer = Writer([server.address], give_up_after=0.3, access=access)
    with pytest.raises(RunFault) as fault:
        writer.write(make_segment(rng))
        writer.flush(10.0)
    writer.close()
    return str(fault.value)
