"""The sampler ends with an error, instead of waiting forever, when the shards cannot hold min_size items."""

from __future__ import annotations

import signal

import pytest

from replay.rate_limiter import LimiterConfig
from replay.wire.writer import Writer
from rl.errors import RunFault
from tests.conftest import make_segment
from tests.integration.shards import sampler, shards_fixture  # noqa: F401


@pytest.mark.parametrize("capacity", [[], ["--capacity", 50]])
def test_the_sampler_fails_when_eviction_keeps_replay_below_min_size(shards, rng, capacity):
    (shard,) = shards(1, *capacity)
    source = sampler([shard], LimiterConfig(samples_per_insert=0, min_size=100))
    assert source.sample(0.1) is None
    writer = Writer([shard.address])
    for _ in range(60):
        writer.write(make_segment(rng))
    writer.flush(10.0)
    if capacity:
        with pytest.raises(RunFault, match="evicts transitions before it reaches"):
            source.sample(5.0)
    else:
        assert source.sample(5.0) is not None
    writer.close()
    source.close()


def test_the_sampler_hears_from_all_shards_before_it_decides_that_min_size_is_out_of_reach(shards, rng):
    """Each shard has evicted many items, and one does not answer at first."""
    both = shards(2, "--capacity", 50)
    for shard in both:  # one after the other: a writer to both could give the slower one too few
        writer = Writer([shard.address])
        for _ in range(60):
            writer.write(make_segment(rng))
        writer.flush(10.0)
        writer.close()
    both[1].process.send_signal(signal.SIGSTOP)
    source = sampler(both, LimiterConfig(samples_per_insert=0, min_size=90))
    assert source.sample(1.2) is None
    both[1].process.send_signal(signal.SIGCONT)
    assert source.sample(10.0) is not None
    source.close()
