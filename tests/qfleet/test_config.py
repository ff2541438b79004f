"""`TrainConfig`: rules that involve two components, derived values, and its file."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qfleet.config import from_yaml, to_yaml, with_actors, with_shards
from qfleet.presets import cartpole
from replay.security import SecurityConfig
from rl.errors import BadInput


def changed(part=None, **changes):
    config = cartpole()
    return replace(config, **({part: replace(getattr(config, part), **changes)} if part else changes))


def test_max_segment_items_and_min_items_when_full():
    config = cartpole()  # 20 items, 3 steps, 50,000 transitions
    assert config.max_segment_items == 20 + 3 - 1
    assert config.min_items_when_full(1) == 50_000 - 22
    assert config.min_items_when_full(4) == 4 * (50_000 - 22)


def test_total_environments():
    assert changed("actors", count=3, environments=8).total_environments == 24


def test_with_actors_changes_only_their_number():
    config = changed("actors", count=3, environments=8)
    assert with_actors(config, 5) == changed("actors", count=5, environments=8)
    with pytest.raises(BadInput, match="^actors.count is 0: write at least 1$"):
        with_actors(config, 0)


def test_with_shards_keeps_the_size_of_a_shard():
    config = changed("replay", capacity=30_000, shards=3, capacity_bytes=3 * 10**9)
    more = with_shards(config, 5)
    assert (more.replay.shards, more.replay.capacity, more.replay.capacity_bytes) == (5, 50_000, 5 * 10**9)
    assert more.replay.shard_capacity == config.replay.shard_capacity
    assert replace(more, replay=config.replay) == config
    with pytest.raises(BadInput, match="slack"):
        with_shards(config, 300)


@pytest.mark.parametrize(
    ("part", "changes", "words"),
    [
        ("learner", {"batch_size": 60_000}, "batch.size is 60_000.*50_000"),
        ("actors", {"segment_items": 100_000}, "segment.items is 100_000"),
        ("returns", {"n_step": 50_000}, "segment.items"),
        ("replay", {"security": SecurityConfig(certificate="a.pem", key="a.key")}, "must be set together in a run"),
        (None, {"offline": "d-v0"}, "offline needs a limit"),
        (None, {"max_minutes": float("nan")}, "max.minutes is nan"),
        (None, {"seed": 2**31}, "seed is 2_147_483_648"),
    ],
)
def test_settings_that_contradict_each_other_are_rejected(part, changes, words):
    with pytest.raises(BadInput, match=words):
        changed(part, **changes)


def test_a_min_size_above_what_full_shards_hold_is_rejected_with_the_maximum():
    small = changed("replay", capacity=1_100)
    most = small.min_items_when_full(1)
    limiter = replace(small.replay.limiter, min_size=most)
    assert replace(small, replay=replace(small.replay, limiter=limiter)).make_limiter()
    with pytest.raises(BadInput, match=f"write at most {most}"):
        replace(small, replay=replace(small.replay, limiter=replace(limiter, min_size=most + 1)))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed: [1", "is not YAML"),
        ("- 1", "expected a mapping"),
        ("sede: 1", "unknown setting 'sede': did you mean 'seed'"),
        ("learner:\n  batchsize: 1", "did you mean 'batch_size'"),
        ("learner: 3", "expected a mapping"),
    ],
)
def test_a_malformed_file_is_rejected_with_its_name(text, words):
    with pytest.raises(BadInput, match=words) as caught:
        from_yaml(text, "runs/x/config.yaml")
    assert "runs/x/config.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_configuration_survives_its_file():
    config = replace(changed("evaluation", goal=float("inf")), offline="d-v0", max_updates=5)
    assert from_yaml(to_yaml(config), "here") == config
