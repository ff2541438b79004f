"""What a checkpoint holds of the local replay; of the sampler's, tests/integration/test_service.py."""

from __future__ import annotations

import numpy as np

from replay.importance_weights import BetaConfig
from replay.local import LocalReplay
from replay.rate_limiter import LimiterConfig, RateLimiter
from replay.store.selectors import SelectorConfig
from replay.store.shard import Shard
from tests.conftest import SMALL, make_segment


def test_the_local_replay_goes_on_with_beta_where_a_checkpoint_left_it(rng):
    """Priorities of 1 and 4 at alpha 1: the weights' ratio is 4 ** beta, and beta goes from 0 to 1 in 100 batches."""
    shard = Shard(10, SMALL, SelectorConfig(alpha=1.0, epsilon=1e-9), limited=False)
    limiter = RateLimiter(LimiterConfig(samples_per_insert=0, min_size=1), 10, 64)
    replay = LocalReplay(shard, limiter, BetaConfig(0.0, 1.0, 100))
    replay.write(make_segment(rng, td_abs=[1.0, 1.0, 4.0, 4.0]))
    assert replay.get_state() == {"drawn": 0}
    replay.set_state({"drawn": 50})
    batch = replay.sample(0.0)
    assert replay.get_state() == {"drawn": 51}
    np.testing.assert_allclose(batch.weights.min(), 4**-0.5, rtol=1e-6)
