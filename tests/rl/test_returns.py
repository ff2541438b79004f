"""n-step returns: a table of expected values with the arithmetic written out."""

from __future__ import annotations

import numpy as np
import pytest

from rl.returns import ReturnConfig, n_step_returns, n_step_targets

G = 0.9
#        rewards          stops                 n   expected r_t, discount_t, length of each item
TABLE = [
    pytest.param(
        [1.0, 2.0, 200.0, 4.0],
        [False] * 4,
        3,
        [1 + G * 2 + G**2 * 200, 2 + G * 200 + G**2 * 4, 200 + G * 4, 4.0],
        [G**3, G**3, G**2, G],
        [3, 3, 2, 1],
        id="truncated: fewer steps near the end, each with its own power of gamma",
    ),
    pytest.param(
        [1.0, 2.0, 200.0, 4.0],
        [False, False, False, True],
        3,
        [1 + G * 2 + G**2 * 200, 2 + G * 200 + G**2 * 4, 200 + G * 4, 4.0],
        [G**3, 0.0, 0.0, 0.0],
        [3, 3, 2, 1],
        id="terminated: no bootstrap from inside the last n steps",
    ),
    pytest.param(
        [1.0, 2.0, 200.0, 4.0],
        [False, True, False, False],
        3,
        [1 + G * 2, 2.0, 200 + G * 4, 4.0],
        [0.0, 0.0, G**2, G],
        [2, 1, 2, 1],
        id="a lost life that counts: the sum stops there, and the next item starts a new one",
    ),
    pytest.param([5.0], [True], 4, [5.0], [0.0], [1], id="an episode of one step"),
    pytest.param([5.0], [False], 4, [5.0], [G], [1], id="one step, truncated"),
    pytest.param([1.0, 2.0], [False, True], 1, [1.0, 2.0], [G, 0.0], [1, 1], id="n = 1"),
]


@pytest.mark.parametrize(("rewards", "stops", "n", "r_t", "discount_t", "length"), TABLE)
def test_n_step_returns(rewards, stops, n, r_t, discount_t, length):
    got = n_step_returns(np.array(rewards), np.array(stops), len(rewards), n, G)
    np.testing.assert_allclose(got.r_t, r_t, rtol=1e-6)
    np.testing.assert_allclose(got.discount_t, discount_t, rtol=1e-6)
    assert got.length.tolist() == length


def test_clipped_rewards_and_lost_lives_follow_the_configuration():
    rewards, terminated, lost = (
        np.array([1.0, 7.0, 2.0]),
        np.array([False, False, True]),
        np.array([True, False, False]),
    )
    raw = n_step_targets(ReturnConfig(n_step=2, gamma=G), rewards, terminated, lost, 3)
    np.testing.assert_allclose(raw.r_t, [1 + G * 7, 7 + G * 2, 2.0], rtol=1e-6)
    np.testing.assert_allclose(raw.discount_t, [G**2, 0.0, 0.0], rtol=1e-6)
    atari = ReturnConfig(n_step=2, gamma=G, clip_reward=1.0, life_loss_terminates=True)
    clipped = n_step_targets(atari, rewards, terminated, lost, 3)
    np.testing.assert_allclose(clipped.r_t, [1.0, 1 + G * 1, 1.0], rtol=1e-6)
    assert clipped.discount_t.tolist() == [0.0, 0.0, 0.0]
