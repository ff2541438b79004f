"""The samples-per-insert limiter over the wire: changed at run time, and what those who wait for it hear."""

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


def test_the_limiter_is_changed_at_run_time(shards, rng):
    """Preloaded with it off, then on: what is there owes nothing, and from there on the ratio holds."""
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
    assert 4 <= batches <= 8  # up to 4 were in hand, drawn while it was off
    assert source.blocked_reason().startswith("min_diff: d = 2 * 100 inserted - 64 sampled = 136")
    writer.close()
    source.close()


def test_who_waits_hears_which_bound_holds_and_info_shows_it(shards, rng):
    (shard,) = shards(1, "--limited", "--insert-timeout", 0.5)
    source = sampler([shard], LimiterConfig(2.0, 8, slack=40), batch=8)
    assert source.sample(0.2) is None
    assert source.blocked_reason() == "min_size: 0 of 8 items are stored"
    writer = Writer([shard.address], write_timeout=2.0)
    with pytest.raises(RunFault, match=r"max_diff 56.* items are stored \(min_size 8\)"):
        for _ in range(100):
            writer.write(make_segment(rng))
            source._poll()
    for _ in range(2):  # hear of the last insert, then tell
        source._poll()
    info = shard.stub.Info(pb.InfoRequest(), timeout=5.0)
    assert (info.limiter.samples_per_insert, info.limiter.min_size) == (2.0, 8)
    assert (info.limiter.min_diff, info.limiter.max_diff) == (-24.0, 56.0)
    assert info.limiter.diff == 2 * info.counts.inserted
    assert info.limiter_age < 60
    writer.close()
    source.close()


def test_who_waits_can_be_let_go(shards, rng):
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
