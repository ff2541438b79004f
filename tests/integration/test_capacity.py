"""Nobody waits for what the shards will never hold."""

from __future__ import annotations

import signal

import pytest

from replay.rate_limiter import LimiterConfig
from replay.wire.writer import Writer
from rl.errors import RunFault
from tests.conftest import make_segment
from tests.integration.shards import sampler, shards_fixture  # noqa: F401


@pytest.mark.parametrize("capacity", [[], ["--capacity", 50]])
def test_a_min_size_that_eviction_never_lets_be_reached_ends_the_sampler(shards, rng, capacity):
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


def test_a_sampler_that_comes_late_hears_all_shards_before_it_judges(shards, rng):
    """Each shard has seen many more items than it holds, and one is slow to say what that is."""
    both = shards(2, "--capacity", 50)
    writer = Writer([s.address for s in both])
    for _ in range(120):
        writer.write(make_segment(rng))
    writer.flush(10.0)
    writer.close()
    both[1].process.send_signal(signal.SIGSTOP)
    source = sampler(both, LimiterConfig(samples_per_insert=0, min_size=90))
    assert source.sample(1.2) is None
    both[1].process.send_signal(signal.SIGCONT)
    assert source.sample(10.0) is not None
    source.close()
