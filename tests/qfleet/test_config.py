"""The whole configuration: rules that span two components, and what is derived from them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qfleet.config import from_yaml, to_yaml, with_shards
from qfleet.presets import cartpole
from replay.security import SecurityConfig
from rl.errors import BadInput


def changed(part=None, **changes):
    config = cartpole()
    return replace(config, **({part: replace(getattr(config, part), **changes)} if part else changes))


def test_the_last_segment_of_an_episode_takes_up_the_steps_that_waited():
    config = cartpole()  # 20 items, 3 steps, 50,000 transitions
    assert config.max_segment_items == 20 + 3 - 1
    assert config.min_items_when_full(1) == 50_000 - 22
    assert config.min_items_when_full(4) == 4 * (50_000 - 22)


def test_environments_of_the_whole_fleet():
    assert changed("actors", count=3, environments=8).total_environments == 24


def test_more_shards_are_as_large_as_those_before():
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
        ("learner", {"batch_size": 60_000}, "batch.size is 60000.*50000"),
        ("actors", {"segment_items": 100_000}, "segment.items is 100000"),
        ("returns", {"n_step": 50_000}, "segment.items"),
        ("replay", {"security": SecurityConfig(certificate="a.pem", key="a.key")}, "must be set together in a run"),
        (None, {"offline": "d-v0"}, "offline needs a limit"),
        (None, {"max_minutes": float("nan")}, "max.minutes is nan"),
        (None, {"seed": 2**31}, "seed is 2147483648"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(part, changes, words):
    with pytest.raises(BadInput, match=words):
        changed(part, **changes)


def test_a_min_size_that_eviction_never_lets_be_reached_is_refused_with_the_most_that_goes():
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
def test_a_file_that_is_none_names_the_place(text, words):
    with pytest.raises(BadInput, match=words) as caught:
        from_yaml(text, "runs/x/config.yaml")
    assert "runs/x/config.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_configuration_survives_its_file():
    config = replace(changed("evaluation", goal=float("inf")), offline="d-v0", max_updates=5)
    assert from_yaml(to_yaml(config), "here") == config
