"""`LocalReplay`: one shard in process, with the same limiter as the service."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from protos.types import InvalidMessage
from replay.importance_weights import BetaConfig
from replay.local import LocalReplay
from replay.rate_limiter import LimiterConfig, RateLimiter
from replay.store.selectors import SelectorConfig
from replay.store.shard import Shard, fixed_bytes
from rl.errors import RunFault
from tests.conftest import FRAMES, SMALL, make_segment

ITEMS, BATCH = 4, 8
UNIFORM = SelectorConfig(kind="uniform")


def replay(selector=None, limiter=None, capacity=1_000):
    shard = Shard(capacity, SMALL, selector or UNIFORM, limited=False)
    rule = RateLimiter(limiter or LimiterConfig(samples_per_insert=0, min_size=10), ITEMS + 2, BATCH)
    return LocalReplay(shard, rule, BetaConfig())


def test_nothing_is_drawn_below_min_size(rng):
    local = replay()
    for stored in (4, 8):
        local.write(make_segment(rng, items=ITEMS))
        assert local.stats()["stored"] == stored
        assert local.sample(0.0) is None
    local.write(make_segment(rng, items=ITEMS))
    batch = local.sample(0.0)
    assert batch.transitions.s_tm1.shape == (BATCH, *SMALL.shape)
    assert local.stats()["sampled"] == BATCH


def test_writer_and_sampler_keep_the_ratio(rng):
    """Neither side gets further ahead than the slack and one step of its own, however often it tries."""
    local = replay(limiter=LimiterConfig(samples_per_insert=2.0, min_size=20, slack=60))
    for turn in range(300):
        wrote = drew = False
        for _ in range(3 if turn < 150 else 1):
            if local.may_insert():
                local.write(make_segment(rng, items=ITEMS))
                wrote = True
        for _ in range(1 if turn < 150 else 3):
            drew |= local.sample(0.0) is not None
        assert wrote or drew, "both wait"
        stats = local.stats()
        if stats["inserted"] > 20 + 60:
            assert abs(stats["sampled"] - 2.0 * (stats["inserted"] - 20)) <= 2 * 60 + BATCH
    assert stats["sampled"] > 500


def test_a_transition_is_sampled_as_it_was_written(rng):
    local = replay(limiter=LimiterConfig(samples_per_insert=0, min_size=1))
    segment = make_segment(rng, items=1, n=1, mark=40.0)
    local.write(segment)
    t = local.sample(0.0).transitions
    np.testing.assert_array_equal(t.s_tm1, np.full((BATCH, 2), 40.0))
    np.testing.assert_array_equal(t.s_t, np.full((BATCH, 2), 41.0))
    assert t.a_tm1.tolist() == [segment.actions[0]] * BATCH
    np.testing.assert_array_equal(t.r_t, np.repeat(segment.r_t, BATCH))


def test_updated_priorities_change_draws_and_weights(rng):
    local = replay(SelectorConfig(alpha=1.0, epsilon=1e-6))
    for k in range(5):
        local.write(make_segment(rng, items=ITEMS, episode=k))
    seen = np.array([], np.uint64)
    while len(seen) < 20:  # until every item was drawn
        batch = local.sample(0.0)
        np.testing.assert_array_equal(batch.weights, 1.0)
        seen = np.union1d(seen, batch.keys)
    for key in seen:  # one item 19 times as likely as each of the others: half of all draws
        same_key = batch.keys.copy()
        same_key[:] = key
        error = np.full(BATCH, 19.0 if key == seen[0] else 1.0)
        local.update_priorities(batch.__class__(batch.transitions, same_key, batch.shards, batch.weights), error)
    drawn = [local.sample(0.0) for _ in range(300)]
    keys, weights = (np.concatenate([getattr(b, name) for b in drawn]) for name in ("keys", "weights"))
    assert (keys == seen[0]).mean() == pytest.approx(0.5, abs=0.04)
    assert weights[keys == seen[0]].max() < 0.4 < 1.0 == weights[keys != seen[0]].min()


def test_a_resumed_local_replay_continues_annealing_beta(rng):
    """With priorities 1 and 4 and alpha = 1 the ratio of the weights is 4 ** beta; after 50 of 100 batches beta is 0.5."""
    shard = Shard(10, SMALL, SelectorConfig(alpha=1.0, epsilon=1e-9), limited=False)
    limiter = RateLimiter(LimiterConfig(samples_per_insert=0, min_size=1), 10, 64)
    replay = LocalReplay(shard, limiter, BetaConfig(0.0, 1.0, 100))
    replay.write(make_segment(rng, td_abs=[1.0, 1.0, 4.0, 4.0]))
    assert replay.get_state() == {"drawn": 0}
    replay.set_state({"drawn": 50})
    batch = replay.sample(0.0)
    assert replay.get_state() == {"drawn": 51}
    np.testing.assert_allclose(batch.weights.min(), 4**-0.5, rtol=1e-6)


def test_a_serial_run_raises_if_min_size_is_unreachable(rng):
    config = LimiterConfig(samples_per_insert=8.0, min_size=50)
    shard = Shard(100, FRAMES, UNIFORM, limited=False, capacity_bytes=fixed_bytes(100, UNIFORM) + 15_000)
    replay = LocalReplay(shard, RateLimiter(config, 10, 32), BetaConfig())
    with pytest.raises(RunFault, match="min_size` of 50"):
        for _ in range(100):
            assert replay.sample(0.0) is None
            replay.write(make_segment(rng, FRAMES))
    assert shard.inserted == pytest.approx(2 * 50, abs=4)


@pytest.mark.parametrize("spec", [SMALL, FRAMES], ids=["raw", "compressed"])
def test_frames_with_a_wrong_shape_or_type_are_rejected(rng, spec):
    shard = Shard(1_000, spec, UNIFORM, limited=False)
    local = LocalReplay(shard, RateLimiter(LimiterConfig(0, min_size=1), ITEMS + 2, BATCH), BetaConfig())
    segment = make_segment(rng, spec, ITEMS)
    frames = segment.frames
    for wrong in (frames[:-1], frames[..., :-1], frames.astype(np.float64)):
        with pytest.raises(InvalidMessage, match="^frames of .* steps must be .*, got"):
            local.write(dataclasses.replace(segment, frames=wrong))
    local.write(segment)
    assert local.stats()["inserted"] == ITEMS
