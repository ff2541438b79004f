"""Online deep Q-learning: its update by hand, and the effects of replay buffer and target network."""

from __future__ import annotations

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

from classic.interface import RecordingMonitor
from classic.online_q import OnlineLearner, OnlineQConfig, batches, online_q
from classic.replay_buffer import Batch
from rl.envs.config import EnvConfig
from rl.errors import BadInput, RunFault

GRID = EnvConfig(id="qfleet/GridWorld-v0")
SHORT = OnlineQConfig(steps=120, epsilon_steps=60, hidden=(16,))


def step(s, a, r, terminated, s_next):
    return Batch(
        np.array([[s]], np.float32),
        np.array([a]),
        np.array([r], np.float32),
        np.array([terminated]),
        np.array([[s_next]], np.float32),
    )


def linear_q():
    """q(s, a) = w_a s, w = (0.5, 2)."""
    network = nn.Linear(1, 2, bias=False)
    network.weight.data = torch.tensor([[0.5], [2.0]])
    return network


@pytest.mark.parametrize(("terminated", "td"), [(False, 1 + 0.9 * max(0.5 * 4, 2 * 4) - 0.5 * 3), (True, 1 - 0.5 * 3)])
def test_an_update_is_the_semi_gradient_of_one_step(terminated, td):
    learner = OnlineLearner(OnlineQConfig(gamma=0.9, loss="squared"), linear_q())
    loss = learner.update(step(3.0, 0, 1.0, terminated, 4.0))
    assert loss == pytest.approx(td**2 / 2)
    # d (td^2 / 2) / d w_0 = -td s; the target, which contains w_1, has no gradient
    np.testing.assert_allclose(learner.network.weight.grad, [[-td * 3.0], [0.0]], rtol=1e-6)


def test_the_target_network_is_copied_every_target_period():
    learner = OnlineLearner(OnlineQConfig(target_period=2), linear_q())
    before = learner.target.weight.clone()
    learner.update(step(3.0, 0, 1.0, False, 4.0))
    assert torch.equal(learner.target.weight, before)
    assert not torch.equal(learner.network.weight, before)
    learner.update(step(3.0, 0, 1.0, False, 4.0))
    assert torch.equal(learner.target.weight, learner.network.weight)
    online = OnlineLearner(OnlineQConfig(), linear_q())
    assert online.target is online.network


def test_replay_samples_from_the_last_steps_and_without_it_each_step_is_a_batch():
    steps = [step(float(i), 0, float(i), False, float(i + 1)) for i in range(20)]
    assert [b.r.tolist() for b in batches(OnlineQConfig(), iter(steps), 1)] == [[float(i)] for i in range(20)]
    drawn = [b.r for b in batches(OnlineQConfig(replay=5, batch=40), iter(steps), 1)]
    assert [len(r) for r in drawn] == [40] * 20
    assert set(drawn[-1]) == {15.0, 16.0, 17.0, 18.0, 19.0}


@pytest.mark.parametrize("options", [{}, {"replay": 50}, {"target_period": 10}, {"replay": 50, "target_period": 10}])
def test_all_four_combinations_are_reproducible(options):
    def run():
        seen = RecordingMonitor()
        learned = online_q(replace(SHORT, **options), GRID, 3, seen)
        return learned.arrays["loss"], [e.episode_return for e in seen.episodes]

    losses, returns = run()
    again, returns_again = run()
    np.testing.assert_array_equal(losses, again)
    assert len(losses) == SHORT.steps
    assert returns
    assert returns == returns_again


def test_it_learns_a_deterministic_frozen_lake():
    lake = EnvConfig(id="FrozenLake-v1", kwargs='{"is_slippery": false, "desc": ["SFFG"]}')
    config = OnlineQConfig(steps=800, gamma=0.9, epsilon_steps=600, hidden=(16,), learning_rate=0.01)
    learned = online_q(config, lake, 1, RecordingMonitor())
    assert learned.policy(np.eye(4, dtype=np.float32)[:3]).tolist() == [2, 2, 2]  # to the right
    np.testing.assert_allclose(learned.values(np.eye(4, dtype=np.float32)[:3]).max(axis=1), [0.81, 0.9, 1.0], atol=0.1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(steps=0), "steps is 0"),
        (dict(epsilon_steps=0), "epsilon_steps is 0"),
        (dict(replay=-1), "replay is -1"),
        (dict(target_period=-5), "target_period is -5"),
        (dict(gamma=2.0), "gamma is 2"),
        (dict(hidden=()), "hidden is"),
        (dict(learning_rate=0.0), "learning_rate is 0"),
    ],
)
def test_bad_settings_are_rejected(settings, message):
    with pytest.raises(BadInput, match=message):
        OnlineQConfig(**settings)


class OneState(gym.Env):
    """One state, reward 1 per step, no termination; a time limit truncates after one step."""

    observation_space = gym.spaces.Box(0.0, 1.0, (1,))
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.ones(1, np.float32), {}

    def step(self, action):
        return np.ones(1, np.float32), 1.0, False, False, {}


gym.register("qfleet-test/OneState-v0", OneState, max_episode_steps=1)


def test_a_truncated_step_bootstraps_in_the_loop_too():
    config = OnlineQConfig(steps=1_500, gamma=0.5, hidden=(16,), learning_rate=3e-3)
    q = online_q(config, EnvConfig(id="qfleet-test/OneState-v0"), 1, RecordingMonitor()).values(
        np.ones((1, 1), np.float32)
    )
    assert q.max() == pytest.approx(2.0, abs=0.1)  # 1 / (1 - 0.5); it would be 1 if truncation stopped the bootstrap


def test_divergence_raises_run_fault():
    with pytest.raises(RunFault, match="diverged after"):
        online_q(replace(SHORT, learning_rate=1e30, loss="squared"), GRID, 1, RecordingMonitor())
