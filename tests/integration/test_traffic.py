"""The bytes that writer and sampler count are those that crossed the network, as a proxy on the way counts them."""

from __future__ import annotations

import contextlib

import pytest

from replay.wire.writer import Writer
from tests.conftest import FRAMES, make_segment
from tests.integration.flaky_proxy import FlakyProxy
from tests.integration.shards import sampler, shards_fixture, wait_for  # noqa: F401

SEGMENTS, ITEMS = 60, 40
BATCHES, BATCH = 30, 64
OPTIONS = ("--capacity", 10_000, "--dtype", FRAMES.dtype, "--shape", *FRAMES.frame_shape, "--stack", FRAMES.stack)
NEVER = (10**12, 10**12)  # bytes before a proxy causes a fault


@pytest.fixture(name="proxies")
def proxies_fixture(shards):
    """``proxies(count)`` starts ``count`` proxies, each in front of a shard of its own; by default without faults."""
    with contextlib.ExitStack() as stack:

        def start(count, fault_after=NEVER):
            running = [FlakyProxy(shard.port, 0, fault_after) for shard in shards(count, *OPTIONS)]
            for proxy in running:
                stack.callback(proxy.stop)
            return running

        yield start


def crossed(proxies, direction):
    return sum(proxy.forwarded[direction] for proxy in proxies)


def test_the_counted_bytes_are_those_that_crossed_the_network(proxies, rng):
    """Of two shards, one leaves halfway: what was sent to it, or received from it, stays counted."""
    both = proxies(2)
    with contextlib.closing(Writer([p.address for p in both])) as writer:
        for k in range(SEGMENTS):
            writer.write(make_segment(rng, FRAMES, items=ITEMS))
            if k == SEGMENTS // 2:
                writer.flush(20.0)
                writer.set_shards([both[0].address], timeout=20.0)
        writer.flush(20.0)
        sent = writer.stats()
    assert sent["items_sent"] == SEGMENTS * ITEMS
    assert sent["bytes_sent"] > SEGMENTS * ITEMS * FRAMES.frame_bytes  # random frames do not shrink
    assert 0.97 < sent["bytes_sent"] / crossed(both, "requests") < 1

    written = crossed(both, "replies")  # acknowledgements
    with contextlib.closing(sampler(both, batch=BATCH, spec=FRAMES, max_insert=ITEMS + 2)) as source:
        for k in range(BATCHES):
            assert source.sample(20.0) is not None
            if k in (BATCHES // 2, BATCHES - 1):  # replies on their way are not counted: wait for them
                wait_for(lambda: all(request.done.is_set() for request in source._requests))
                source.set_shards([both[0].address])
        received = source.stats()
    assert received["items_received"] >= BATCHES * BATCH
    assert 0.97 < received["bytes_received"] / (crossed(both, "replies") - written) < 1


def test_a_segment_that_is_sent_twice_counts_twice(proxies, rng):
    (proxy,) = proxies(1, fault_after=(30_000, 30_000))  # while the second segment is sent
    proxy.FAULTS = ("drop_replies",)
    with contextlib.closing(Writer([proxy.address])) as writer:
        writer.write(make_segment(rng, FRAMES, items=ITEMS))
        writer.flush(20.0)
        once = writer.stats()
        assert once["items_sent"] == ITEMS
        writer.write(make_segment(rng, FRAMES, items=ITEMS))
        writer.flush(20.0)
        assert writer.stats() == {name: pytest.approx(3 * value, rel=0.001) for name, value in once.items()}
        assert proxy.faults["drop_replies"] == 1
        assert 0.97 < writer.stats()["bytes_sent"] / proxy.forwarded["requests"] < 1
