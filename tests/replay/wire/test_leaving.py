"""Shards that are about to be removed store nothing more; a shard at the address of one that is gone is used."""

from __future__ import annotations

import time

import numpy as np
import pytest

from protos import replay_pb2 as pb
from replay.store.selectors import SelectorConfig
from replay.store.shard import Shard
from replay.wire.service import ShardServer
from replay.wire.writer import Writer
from tests.conftest import SMALL, make_message, make_segment
from tests.integration.shards import sampler, wait_for
from tests.replay.wire.served import insert, stub_of


@pytest.fixture(name="serve")
def serve_fixture():
    """``serve(limited, port)`` serves a new shard from a thread."""
    running = []

    def start(limited=False, port=0):
        running.append(ShardServer(Shard(10_000, SMALL, SelectorConfig(), limited), port=port))
        return running[-1]

    yield start
    for server in running:
        server.stop(grace=0.0)


def marks(server):
    """The mark of each stored segment, in order; the shard keeps them."""
    reply = stub_of(server).Drain(pb.DrainRequest(segments=100_000), timeout=10.0)
    return [int(np.frombuffer(r.segment.frames, "<f4")[0]) for r in reply.segments]


def write(writer, marks):
    for mark in marks:
        writer.write(make_segment(np.random.default_rng(mark), mark=mark))


def test_a_leaving_shard_acknowledges_what_it_has_stored_and_stores_nothing_more(serve, rng):
    server = serve()
    stub = stub_of(server)
    assert [r.leaving for r in insert(stub, rng, 1, 2)] == [False, False]
    server.set_leaving(True)
    replies = insert(stub, rng, 2, 3, 4)  # a duplicate, a new one, and one after it
    assert [(r.acknowledged, r.leaving) for r in replies] == [(2, True)] * 3
    assert server.counts().inserted == 2 * 4
    request = pb.InsertRequest(writer="other", sequence=1, segment=make_message(rng), transferred=True)
    [reply] = stub.Insert(iter([request]), timeout=5.0)
    assert (reply.acknowledged, reply.leaving, server.counts().transferred) == (0, True, 0)
    server.set_leaving(False)
    assert [(r.acknowledged, r.leaving) for r in insert(stub, rng, 3)] == [(3, False)]


@pytest.mark.parametrize("limited", [False, True])
def test_segments_of_a_shard_that_leaves_go_to_another_one_and_are_stored_once(serve, limited):
    """The writer is not told. With ``limited``, segments that wait for credit at the leaving shard move, too."""
    leaves, stays = serve(limited), serve()
    writer = Writer([leaves.address, stays.address])
    write(writer, range(0, 200, 10))
    leaves.set_leaving(True)
    write(writer, range(200, 400, 10))
    writer.flush(10.0)
    assert sorted(marks(leaves) + marks(stays)) == list(range(0, 400, 10))
    assert (len(marks(leaves)) > 0) == (not limited)
    assert writer.in_use == [stays.address]
    writer.close()


def test_a_writer_returns_to_a_shard_that_stays_after_all(serve):
    one, other = serve(), serve()
    writer = Writer([one.address, other.address])
    one.set_leaving(True)
    write(writer, range(0, 100, 10))
    writer.flush(10.0)
    assert (len(marks(one)), len(marks(other))) == (0, 10)
    one.set_leaving(False)
    writer.set_shards([one.address, other.address])
    write(writer, range(100, 200, 10))
    writer.flush(10.0)
    assert sorted(marks(one) + marks(other)) == list(range(0, 200, 10))
    assert len(marks(one)) > 0
    writer.close()


def test_a_writer_whose_only_shard_leaves_delivers_once_it_is_told_of_another(serve):
    leaves, joins = serve(), serve()
    leaves.set_leaving(True)
    writer = Writer([leaves.address])
    write(writer, [0, 10])
    with pytest.raises(TimeoutError):
        writer.flush(0.3)
    writer.set_shards([joins.address])
    writer.flush(10.0)
    assert (marks(leaves), marks(joins), writer.in_use) == ([], [0, 10], [joins.address])
    writer.close()


def test_a_new_shard_at_the_address_of_one_that_is_gone_is_used(serve):
    """As with `replay.ports`, where the new shard takes the port of the lost one."""
    stays, lost = serve(), serve()
    addresses = [stays.address, lost.address]
    writer = Writer(addresses, give_up_after=0.3)
    source = sampler([stays, lost], give_up_after=0.3)
    write(writer, range(0, 80, 10))
    writer.flush(10.0)
    assert source.sample(5.0) is not None
    lost.stop(grace=0.0)

    def is_given_up():
        source.sample(0.05)
        return source.stats()["shards_gone"] == 1 and writer.in_use == [stays.address]

    wait_for(is_given_up)
    assert list(writer.silent_shards(0.3)) == [lost.address]
    assert writer.silent_shards(60.0) == {}
    again = serve(port=lost.port)
    source.set_shards(addresses)
    writer.set_shards(addresses)
    write(writer, range(1000, 1400, 10))
    writer.flush(10.0)
    assert len(marks(again)) > 0
    assert writer.silent_shards(0.3) == {}
    deadline, seen = time.monotonic() + 10.0, set()
    while 1 not in seen:
        assert time.monotonic() < deadline, "the new shard is not sampled"
        batch = source.sample(1.0)
        seen |= set() if batch is None else set(batch.shards.tolist())
    assert source.stats()["shards_gone"] == 0
    writer.close()
    source.close()
