"""Writer and sampler when shards are gone, restart, fill late, or reject requests."""

from __future__ import annotations

import signal
import time

import numpy as np
import pytest

from replay.wire.writer import Writer
from rl.errors import RunFault
from rl.types import ObservationSpec
from tests.conftest import make_segment
from tests.integration.shards import sampler, shards_fixture, wait_for  # noqa: F401


def test_a_writer_without_credit_fails_with_a_reason_instead_of_hanging(shards, rng):
    (shard,) = shards(1, "--limited", "--insert-timeout", 0.5)
    writer = Writer([shard.address], write_timeout=2.0)
    began = time.monotonic()
    with pytest.raises(RunFault, match="credit"):
        for _ in range(10):
            writer.write(make_segment(rng))
    assert time.monotonic() - began < 10
    assert shard.counts().inserted == 0
    writer.close()


def test_clients_name_a_shard_that_is_gone(shards, rng):
    (shard,) = shards(1)
    writer = Writer([shard.address], give_up_after=1.0, write_timeout=30.0)
    source = sampler([shard], give_up_after=1.0)
    writer.write(make_segment(rng))
    writer.flush(10.0)
    assert source.sample(5.0) is not None
    shard.kill()
    began = time.monotonic()
    with pytest.raises(RunFault, match=shard.address):
        for _ in range(100):
            writer.write(make_segment(rng))
            time.sleep(0.05)
    with pytest.raises(RunFault, match=shard.address):
        for _ in range(100):
            source.sample(0.2)
    assert time.monotonic() - began < 20
    writer.close()
    source.close()


def test_the_other_shards_take_over_from_a_shard_that_is_gone(shards, rng):
    two = shards(2)
    writer = Writer([s.address for s in two], give_up_after=1.0)
    for k in range(6):
        writer.write(make_segment(rng, mark=100 * k))
    writer.flush(10.0)
    source = sampler(two, give_up_after=1.0)
    assert source.sample(5.0) is not None
    two[0].kill()
    before = two[1].counts().inserted
    for k in range(20):
        writer.write(make_segment(rng, mark=1000 + k))
        time.sleep(0.1)
    writer.flush(20.0)
    assert two[1].counts().inserted >= before + 20 * 4  # also the segments first sent to the dead shard
    got = [source.sample(0.5) for _ in range(20)]
    assert got[-1] is not None
    assert set(got[-1].shards.tolist()) == {1}
    assert source.stats()["shards_gone"] == 1
    writer.close()
    source.close()


def test_a_writer_continues_with_a_restarted_shard(shards, rng):
    """A shard is killed and restarted empty on its port: the segment that was not acknowledged arrives."""
    (shard,) = shards(1)
    writer = Writer([shard.address], give_up_after=30.0)
    for _ in range(3):
        writer.write(make_segment(rng))
    writer.flush(10.0)
    shard.kill()
    writer.write(make_segment(rng))
    (again,) = shards(1, port=shard.port)
    wait_for(lambda: again.counts().inserted == 4, 20.0)
    writer.close()


def test_a_restarted_shard_is_sampled_again(shards, rng):
    two = shards(2)
    writers = [Writer([s.address]) for s in two]
    for writer in writers:
        writer.write(make_segment(rng))
        writer.flush(10.0)
    source = sampler(two, give_up_after=30.0)
    assert source.sample(5.0) is not None
    two[0].kill()
    (again,) = shards(1, port=two[0].port)
    late = Writer([again.address])
    late.write(make_segment(rng))
    late.flush(10.0)
    seen = set()
    deadline = time.monotonic() + 20
    while 0 not in seen:
        batch = source.sample(1.0)
        seen |= set() if batch is None else set(batch.shards.tolist())
        assert time.monotonic() < deadline, "the shard was never drawn from again"
    for client in (*writers, late, source):
        client.close()


def test_a_shard_that_fills_later_is_noticed_while_sampling(shards, rng):
    two = shards(2)
    first, second = Writer([two[0].address]), Writer([two[1].address])
    first.write(make_segment(rng))
    first.flush(10.0)
    source = sampler(two)
    assert source.sample(5.0) is not None
    for _ in range(20):
        second.write(make_segment(rng))
    second.flush(10.0)
    time.sleep(0.3)
    shares = [np.mean(source.sample(5.0).shards) for _ in range(200)]
    assert np.mean(shares[-50:]) == pytest.approx(20 / 21, abs=0.03)
    assert source.stats()["stored"] == 21 * 4
    for client in (first, second, source):
        client.close()


def test_an_idle_writer_survives_a_short_outage(shards, rng):
    (shard,) = shards(1)
    writer = Writer([shard.address], give_up_after=5.0)
    writer.write(make_segment(rng))
    writer.flush(10.0)
    time.sleep(6.0)  # idle for longer than give_up_after
    shard.kill()
    (again,) = shards(1, port=shard.port)
    writer.write(make_segment(rng))
    writer.flush(15.0)
    assert again.counts().inserted == 4
    writer.close()


def test_a_batch_too_large_for_a_message_is_an_error(shards, rng):
    spec = ObservationSpec((1000, 1000), "uint8")
    (shard,) = shards(1, "--shape", 1000, 1000, "--dtype", "uint8")
    writer = Writer([shard.address])
    writer.write(make_segment(rng, spec))
    writer.flush(20.0)
    source = sampler([shard], spec=spec, batch=64)
    with pytest.raises(RunFault, match="larger than max"):
        for _ in range(50):
            source.sample(0.2)
    writer.close()
    source.close()


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
def test_priority_updates_to_a_dead_or_stopped_shard_are_counted_and_do_not_block(shards, rng, fault):
    (shard,) = shards(1)
    writer = Writer([shard.address])
    writer.write(make_segment(rng))
    writer.flush(10.0)
    source = sampler([shard], give_up_after=30.0)
    batch = source.sample(5.0)
    shard.process.send_signal(fault)
    began = time.monotonic()
    for _ in range(3):
        source.update_priorities(batch, np.ones(32, np.float32))
    assert time.monotonic() - began < 0.5
    wait_for(lambda: source.stats()["lost_updates"] == 3 * 32, 10.0)
    if fault == signal.SIGSTOP:
        shard.process.send_signal(signal.SIGCONT)
        source.update_priorities(batch, np.full(32, 1000.0, np.float32))
        wait_for(lambda: shard.counts().total_priority > 500.0)
        assert source.stats()["lost_updates"] == 3 * 32
    writer.close()
    source.close()
