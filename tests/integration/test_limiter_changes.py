"""The samples-per-insert limiter over gRPC: changes at run time, and messages to clients that wait for it."""

from __future__ import annotations

import threading
import time

import pytest

from protos import replay_pb2 as pb
from replay.rate_limiter import LimiterConfig
from replay.wire.writer import Writer
from rl.errors import RunFault
from tests.conftest import make_segment
from tests.integration.shards import sampler, shards_fixture  # noqa: F401


def test_the_limiter_can_be_switched_and_changed_at_run_time(shards, rng):
    """A shard is filled while the limiter is off, then the limiter is switched on.

    No samples are due for the items already stored; the ratio holds from then on.
    """
    (shard,) = shards(1, "--limited", "--insert-timeout", 0.5)
    writer = Writer([shard.address], write_timeout=30.0)
    assert not shard.stub.SetLimited(pb.SetLimitedRequest(limited=False)).limited
    for _ in range(50):
        writer.write(make_segment(rng))
    writer.flush(10.0)
    assert shard.stub.SetLimited(pb.SetLimitedRequest(limited=True)).limited
    source = sampler([shard], LimiterConfig(2.0, 100, slack=64), batch=16)
    batches = 0
    while source.sample(0.5) is not None:
        batches += 1
    assert batches == 4  # d falls from 200 to min_diff, 136
    assert source.blocked_reason().startswith("min_diff: d = 2 * 100 inserted - 64 sampled = 136")
    source.set_limiter(LimiterConfig(0.0, 1))
    for _ in range(20):
        assert source.sample(5.0) is not None
    source.set_limiter(LimiterConfig(2.0, 100, slack=64))
    batches = 0
    while source.sample(0.5) is not None:
        batches += 1
    assert 4 <= batches <= 8  # up to 4 batches were drawn while the ratio was off
    assert source.blocked_reason().startswith("min_diff: d = 2 * 100 inserted - 64 sampled = 136")
    writer.close()
    source.close()


def test_blocked_clients_and_info_name_the_bound_that_blocks(shards, rng):
    (shard,) = shards(1, "--limited", "--insert-timeout", 0.5)
    source = sampler([shard], LimiterConfig(2.0, 8, slack=40), batch=8)
    assert source.sample(0.2) is None
    assert source.blocked_reason() == "min_size: 0 of 8 items are stored"
    writer = Writer([shard.address], write_timeout=2.0)
    with pytest.raises(RunFault, match=r"max_diff 56.* items are stored \(min_size 8\)"):
        for _ in range(100):
            writer.write(make_segment(rng))
            source._poll_counts()
    for _ in range(2):  # the sampler hears of the last insert, then reports the limiter to the shard
        source._poll_counts()
    info = shard.stub.Info(pb.InfoRequest(), timeout=5.0)
    assert (info.limiter.samples_per_insert, info.limiter.min_size) == (2.0, 8)
    assert (info.limiter.min_diff, info.limiter.max_diff) == (-24.0, 56.0)
    assert info.limiter.diff == 2 * info.counts.inserted
    assert info.limiter_age < 60
    writer.close()
    source.close()


def test_close_unblocks_waiting_clients(shards, rng):
    limited, empty = *shards(1, "--limited"), *shards(1)
    writer, source = Writer([limited.address]), sampler([empty])
    faults, batches = [], []

    def write():
        try:
            for _ in range(10):
                writer.write(make_segment(rng))
        except RunFault as fault:
            faults.append(str(fault))

    threads = [threading.Thread(target=write), threading.Thread(target=lambda: batches.append(source.sample(60.0)))]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    began = time.monotonic()
    writer.close()
    source.close()
    for thread in threads:
        thread.join(10.0)
    assert time.monotonic() - began < 5
    assert faults == ["the writer was closed while it waited for replay to accept a segment"]
    assert batches == [None]
