"""Configuration of the replay: capacities per shard, and invalid settings."""

from __future__ import annotations

import pytest

from replay.config import MAX_CAPACITY, ReplayConfig
from rl.errors import BadInput


@pytest.mark.parametrize(
    ("capacity", "shards", "each"), [(100_000, 1, 100_000), (100_000, 3, 33_334), (99_999, 3, 33_333)]
)
def test_shards_together_hold_at_least_the_capacity(capacity, shards, each):
    assert ReplayConfig(capacity=capacity, shards=shards).shard_capacity == each


def test_capacity_bytes_is_divided_among_the_shards():
    config = ReplayConfig(capacity=100_000, shards=3, capacity_bytes=10**9)
    assert 3 * config.shard_capacity_bytes <= 10**9 < 3 * (config.shard_capacity_bytes + 1)
    assert ReplayConfig().shard_capacity_bytes == 0  # unlimited


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"capacity": 0}, "capacity is 0"),
        ({"capacity": MAX_CAPACITY + 1}, "transitions per shard"),
        ({"shards": 0}, "shards is 0"),
        ({"capacity_bytes": 1_000}, "capacity.bytes"),
        ({"capacity": 500}, "min.size is"),
        ({"give_up_after": 0.0}, "give.up.after is"),
        ({"snapshot_minutes": -1.0}, "snapshot.minutes is"),
    ],
)
def test_invalid_settings_are_rejected(settings, words):
    with pytest.raises(BadInput, match=words):
        ReplayConfig(**settings)
