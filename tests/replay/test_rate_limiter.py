"""The limiter: its definition, and that writers and sampler never deadlock."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay.rate_limiter import ROUNDING, LimiterConfig, RateLimiter, _water_fill
from rl.errors import BadInput, RunFault


@settings(max_examples=300, deadline=None)
@given(
    sigma=st.floats(0.1, 32),
    min_size=st.integers(1, 1000),
    inserted=st.integers(0, 10_000),
    sampled=st.integers(0, 100_000),
    k=st.integers(1, 50),
    b=st.integers(1, 64),
)
def test_limiter_follows_the_definition(sigma, min_size, inserted, sampled, k, b):
    slack = sigma * 50 + 64
    limiter = RateLimiter(LimiterConfig(sigma, min_size, slack), max_insert=50, batch=64)
    stored = min(inserted, 2_000)
    d = sigma * inserted - sampled
    max_diff, min_diff = sigma * min_size + slack, sigma * min_size - slack
    assert limiter.can_insert(inserted, sampled, stored, k) == (
        stored < min_size or sigma * (inserted + k) - sampled <= max_diff
    )
    assert limiter.can_sample(inserted, sampled, stored, b) == (stored >= min_size and d - b >= min_diff)
    if stored >= min_size:
        allowance = limiter.insert_allowance(inserted, sampled, stored)
        assert allowance == 0 or sigma * (inserted + allowance) - sampled <= max_diff + sigma * ROUNDING


@settings(max_examples=200, deadline=None)
@given(have=st.lists(st.integers(0, 50), min_size=1, max_size=6), free=st.integers(-20, 200))
def test_water_fill_distributes_exactly_the_free_units(have, free):
    got = _water_fill(have, free)
    assert all(g >= h for g, h in zip(got, have, strict=True))
    assert sum(got) - sum(have) <= max(free, 0)
    assert sum(got) - sum(have) > max(free, 0) - len(have)  # less than one unit a shard is left over
    raised = [g for g, h in zip(got, have, strict=True) if g > h]
    assert len(set(raised)) <= 1


def test_too_small_a_slack_is_rejected():
    with pytest.raises(BadInput, match="at least 352"):
        RateLimiter(LimiterConfig(8.0, 100, slack=351), max_insert=80, batch=64)
    RateLimiter(LimiterConfig(8.0, 100, slack=352), max_insert=80, batch=64)


@pytest.mark.parametrize("shards", [1, 2, 4, 12, 20, 38])
def test_no_deadlock_at_the_smallest_slack_that_is_accepted(shards):
    """Segments of equal length, from an empty replay until 500 batches, with the smallest slack that is accepted."""
    limiter = RateLimiter(LimiterConfig(8.0, 5_000, np.ceil((8.0 * 43 * shards + 64) / 2)), 43, 64, shards)
    inserted, granted, sampled, batches = [0] * shards, [0] * shards, 0, 0
    while batches < 500:
        granted = limiter.allocate_credit(
            inserted, granted, limiter.insert_allowance(sum(inserted), sampled, sum(inserted))
        )
        room = [i for i in range(shards) if granted[i] - inserted[i] >= 40]
        ready = limiter.can_sample(sum(inserted), sampled, sum(inserted), 64)
        assert room or ready, f"stalled with {sum(inserted)} inserted, {sampled} sampled"
        if room:
            inserted[room[0]] += 40
        if ready:
            sampled += 64
            batches += 1


@pytest.mark.parametrize(
    ("sigma", "items", "batch", "shards", "min_size", "inserted", "sampled"),
    [(0.1, 22, 1, 1, 3883, 703_567, 69_969), (1.6, 26, 32, 5, 4323, 186_373, 291_368)],
)
def test_at_the_smallest_slack_longest_segments_fit_whenever_the_sampler_is_blocked(
    sigma, items, batch, shards, min_size, inserted, sampled
):
    """Rounding of d / sigma does not cost an item: the slack leaves room for exactly one segment a shard."""
    config = LimiterConfig(sigma, min_size, (sigma * items * shards + batch) / 2)
    limiter = RateLimiter(config, items, batch, shards)
    assert not limiter.can_sample(inserted, sampled, min_size, batch)
    assert limiter.insert_allowance(inserted, sampled, min_size) == items * shards


@pytest.mark.parametrize("shards", [1, 4])
def test_writers_and_sampler_never_block_each_other(shards):
    """Simulates credit per shard and segments of all lengths; in every round a writer or the sampler must make progress."""
    rng = np.random.default_rng(1)
    limiter = RateLimiter(
        LimiterConfig(4.0, 200, slack=4.0 * 20 * shards / 2 + 32), max_insert=20, batch=64, shards=shards
    )
    inserted, granted, sampled = [0] * shards, [0] * shards, 0
    batches = 0
    while batches < 5_000:
        granted = limiter.allocate_credit(
            inserted, granted, limiter.insert_allowance(sum(inserted), sampled, sum(inserted))
        )
        moved = False
        k = int(rng.integers(1, 21))
        room = [i for i in range(shards) if granted[i] - inserted[i] >= k]
        if room:
            inserted[int(rng.choice(room))] += k
            moved = True
        if limiter.can_sample(sum(inserted), sampled, sum(inserted), 64):
            sampled += 64
            batches += 1
            moved = True
        assert moved, f"stalled after {batches} batches"
        d = 4.0 * sum(inserted) - sampled
        assert d <= limiter.max_diff + 4.0 * 20 * 2


def test_falling_below_min_size_for_a_while_is_no_error():
    limiter = RateLimiter(LimiterConfig(8.0, 100), 10, 32)
    inserted = 0
    for stored in [0, 50, 100, 99, 98, 100, 99] * 50:
        inserted += 60
        limiter.check_min_size_reachable(inserted, stored)
    with pytest.raises(RunFault, match="holds only 99"):
        for _ in range(4):
            inserted += 60
            limiter.check_min_size_reachable(inserted, 99)
