"""Shards join, leave and are drained while writers and a sampler are running."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from protos import replay_pb2 as pb
from replay.rate_limiter import LimiterConfig
from replay.wire.connection import ShardConnection
from replay.wire.drain import drain
from replay.wire.writer import Writer
from rl.errors import BadInput, RunFault
from tests.conftest import make_segment
from tests.integration.shards import sampler, shards_fixture  # noqa: F401


def fill(shard, rng, segments, mark, priority=1.0):
    """Insert ``segments`` segments of 4 items, all with this priority; item i of segment k has mark + 10 k + i."""
    writer = Writer([shard.address])
    for k in range(segments):
        writer.write(make_segment(rng, mark=mark + 10 * k, td_abs=[priority] * 4))
    writer.flush(10.0)
    writer.close()


def write_in_background(writer):
    """Write segments as fast as possible in a thread; returns a function that ends it and closes the writer."""
    stop = threading.Event()

    def write():
        own = np.random.default_rng(5)
        while not stop.is_set():
            try:
                writer.write(make_segment(own, items=8))
            except RunFault:  # closed while it waited for credit
                assert stop.is_set()

    thread = threading.Thread(target=write, daemon=True)
    thread.start()

    def end():
        stop.set()
        writer.close()
        thread.join(10.0)
        assert not thread.is_alive()

    return end


def marks(batches):
    """The marks of all items in ``batches``, int [items]."""
    return np.concatenate([b.transitions.s_tm1[:, 0].astype(int) for b in batches])


def assert_proportional(drawn, priorities):
    """Assert by a chi-square test that the marks were drawn in proportion to ``priorities`` (by mark; alpha is 1)."""
    keys = sorted(priorities)
    p = np.array([priorities[k] for k in keys])
    expected = p / p.sum() * len(drawn)
    counts = np.array([(drawn == k).sum() for k in keys])
    assert counts.sum() == len(drawn), "an item was drawn that is not stored"
    chi2 = ((counts - expected) ** 2 / expected).sum()
    assert chi2 < len(keys) + 6 * np.sqrt(2 * len(keys))


def test_draws_match_a_single_buffer_as_shards_join_and_leave(shards, rng):
    """1, then 4, then 2 shards with unequal numbers of items and priorities; one shard is drained into another."""
    four = shards(4)
    priorities = {}
    for k, (shard, segments, priority) in enumerate(zip(four, (3, 9, 1, 6), (1.0, 2.0, 30.0, 0.5), strict=True)):
        fill(shard, rng, segments, 1000 * k, priority)
        priorities |= {1000 * k + 10 * s + i: priority for s in range(segments) for i in range(4)}
    source = sampler(four[:1], batch=256)

    def settle_and_draw(count=60):
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline - 9.3:  # until all shards have sent their counts
            source.sample(5.0)
        for _ in range(4):
            source.sample(5.0)  # batches that were drawn before the change
        return marks([source.sample(5.0) for _ in range(count)])

    assert_proportional(settle_and_draw(), {k: p for k, p in priorities.items() if k < 1000})
    source.set_shards([s.address for s in four])
    assert_proportional(settle_and_draw(), priorities)
    writer = Writer([four[1].address])
    assert drain(ShardConnection(four[2].address, 5.0), writer) == 4
    writer.close()
    source.set_shards([s.address for s in four[:2]])
    assert_proportional(settle_and_draw(), {k: p for k, p in priorities.items() if k < 3000})
    source.close()


def test_a_shard_is_drained_completely_while_it_is_sampled(shards, rng):
    """Segments arrive unchanged, need no credit and do not count as inserted. Sampling never fails meanwhile."""
    old, new = *shards(1), *shards(1, "--limited")
    fill(old, rng, 100, 0)
    before = [s.SerializeToString() for s in old.stub.Drain(pb.DrainRequest(segments=200)).segments]
    source = sampler([old, new], LimiterConfig(0.0, 1))
    assert source.sample(5.0) is not None
    writer, seen = Writer([new.address]), []
    thread = threading.Thread(target=lambda: seen.append(drain(ShardConnection(old.address, 5.0), writer)))
    thread.start()
    while thread.is_alive():
        assert source.sample(5.0) is not None
    assert seen == [400]
    assert old.counts().stored == 0
    counts = new.counts()
    assert (counts.stored, counts.inserted, counts.transferred) == (400, 0, 400)
    assert [s.SerializeToString() for s in new.stub.Drain(pb.DrainRequest(segments=200)).segments] == before
    assert source.sample(5.0) is not None
    writer.close()
    source.close()


def test_an_interrupted_drain_loses_nothing(shards, rng):
    old, new = shards(2)
    fill(old, rng, 100, 0)
    writer = Writer([new.address], give_up_after=0.5, write_timeout=5.0)

    def kill(moved, left):
        new.kill()

    with pytest.raises(RunFault):
        drain(ShardConnection(old.address, 5.0), writer, kill)
    assert old.counts().stored >= 400 - 64 * 4
    writer.close()


def test_a_writer_that_changes_shards_delivers_its_segments_in_flight(shards, rng):
    one, two = shards(2)
    writer = Writer([one.address])
    for k in range(50):
        writer.write(make_segment(rng, mark=k))
    writer.set_shards([two.address])
    for k in range(50):
        writer.write(make_segment(rng, mark=k))
    writer.flush(10.0)
    assert (one.counts().inserted, two.counts().inserted) == (200, 200)
    writer.set_shards([one.address])  # a shard that rejoins still has the old sequence numbers
    writer.write(make_segment(rng))
    writer.flush(10.0)
    assert (one.counts().inserted, two.counts().inserted) == (204, 200)
    with pytest.raises(BadInput, match="at least one"):
        writer.set_shards([])
    writer.close()


def test_sampling_continues_when_a_dead_shard_leaves(shards, rng):
    """Requests made while its stream pauses between two attempts to connect are given up, not waited for."""
    stays, dies = shards(2)
    fill(stays, rng, 3, 0)
    fill(dies, rng, 3, 100)
    source = sampler([stays, dies], give_up_after=60.0)
    assert source.sample(5.0) is not None
    dies.kill()
    until = time.monotonic() + 3.0  # so that the pauses between attempts grow
    while time.monotonic() < until:
        source.sample(0.1)
    source.set_shards([stays.address])
    for _ in range(20):
        assert source.sample(5.0) is not None, "the sampler waits for a shard that has left"
    source.close()


def test_the_samples_per_insert_ratio_holds_while_shards_join_and_leave(shards, rng):
    three = shards(3, "--capacity", 4000, "--limited")
    source = sampler(three[:1], LimiterConfig(4.0, 100, slack=200), batch=64)
    writer = Writer([three[0].address])
    end = write_in_background(writer)
    for members in ([0], [0, 1], [0, 1, 2], [1, 2], [2], [0, 2]):
        addresses = [three[k].address for k in members]
        source.set_shards(addresses)
        writer.set_shards(addresses)
        for _ in range(150):
            assert source.sample(10.0) is not None, f"stalled with shards {members}: {source.blocked_reason()}"
    end()
    counts = [s.counts() for s in three]
    d = 4.0 * sum(c.inserted for c in counts) - sum(c.sampled for c in counts)
    assert abs(d - 4.0 * 100) <= 200 + 8 * 64
    with pytest.raises(BadInput, match="slack"):
        source.set_shards([f"127.0.0.1:{k}" for k in range(1, 40)])
    source.close()


def test_a_shard_that_lost_its_content_neither_blocks_the_learner_nor_lets_writers_run_ahead(shards, rng):
    """The learner is slow, so that writers have the time to use up credit that was granted before the restart."""
    two = shards(2, "--limited", "--capacity", 20_000)
    source = sampler(two, LimiterConfig(1.0, 40, slack=100), batch=64)
    writer = Writer([s.address for s in two])
    end = write_in_background(writer)
    for _ in range(100):
        assert source.sample(10.0) is not None
    lost = two[0].counts().inserted
    two[0].kill()
    (again,) = shards(1, "--limited", "--capacity", 20_000, port=two[0].port)
    for i in range(20):
        assert source.sample(10.0) is not None, f"stalled after {i} batches: {source.blocked_reason()}"
        time.sleep(0.1)
        counts = [again.counts(), two[1].counts()]
        d = lost + sum(c.inserted for c in counts) - source._ledger.totals().sampled
        assert d <= 140 + 64 * 4 + 16, f"the writers are too far ahead: d is {d}"
    assert again.counts().inserted > 0
    end()
    source.close()


def test_batches_in_flight_keep_their_weights_when_all_shards_are_replaced(shards, rng):
    one, two = shards(2)
    fill(one, rng, 5, 0)
    fill(two, rng, 5, 100)
    source = sampler([one], batches_ahead=8)
    for _ in range(5):
        source.sample(5.0)
    source.set_shards([two.address])
    batches = [source.sample(5.0) for _ in range(20)]
    assert all(np.isfinite(b.weights).all() and b.weights.max() == 1.0 for b in batches)
    assert (marks(batches[-1:]) >= 100).all()
    for batch in batches:  # some are from the shard that has left
        source.update_priorities(batch, np.ones(32, np.float32))
    assert source.stats()["lost_updates"] > 0
    source.close()


def test_several_changes_before_the_next_batch_all_take_effect(shards, rng):
    two = shards(2)
    source = sampler(two, LimiterConfig(1.0, 1, slack=100), batch=16)
    source.set_limiter(LimiterConfig(4.0, 1, slack=200))
    source.set_shards([s.address for s in two] * 2)
    with pytest.raises(BadInput, match="slack"):  # enough for 2 shards, not for 8
        source.set_shards([f"127.0.0.1:{k}" for k in range(1, 12)])
    source.sample(0.1)
    assert (source._ledger.limiter.sigma, source._ledger.limiter.shards, len(source._streams)) == (4.0, 2, 2)
    source.close()


def test_the_content_of_a_shard_that_leaves_and_rejoins_counts_once(shards, rng):
    """The learner gets no batches for the same items a second time."""
    two = shards(2)
    fill(two[0], rng, 25, 0)
    fill(two[1], rng, 25, 1000)
    source = sampler(two, LimiterConfig(2.0, 100, slack=64), batch=16)

    def batches_allowed():
        batches = 0
        while source.sample(0.3) is not None:
            batches += 1
        return batches

    assert batches_allowed() == 4
    source.set_shards([two[0].address])
    assert batches_allowed() == 0
    source.set_shards([s.address for s in two])
    assert batches_allowed() == 0
    source.set_limiter(LimiterConfig(2.0, 100, slack=64))
    assert batches_allowed() == 4
    source.close()
