"""Tabular TD control: targets by hand, bootstrapping at the end of episodes, and the policies learned on the cliff."""

from __future__ import annotations

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from classic.interface import RecordingMonitor
from classic.methods import METHODS
from classic.q_learning import (
    BehaviourPolicy,
    QLearningConfig,
    expected_value,
    greedy_value,
    n_step_target,
    next_action_value,
)
from classic.tables import UNKNOWN, QTable, StateIndex
from rl.envs.config import EnvConfig
from rl.envs.make import make_environments
from rl.errors import BadInput
from rl.evaluation import evaluate

CHAIN = "qfleet-test/Chain-v0"


class Chain(gym.Env):
    """States 0, 1, 2, 3; every action leads to the next; rewards 10, 20, 40; terminates (or truncates) after three steps."""

    observation_space = gym.spaces.Discrete(4)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, truncates=False):
        self.truncates = truncates

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = 0
        return self.state, {}

    def step(self, action):
        reward = (10.0, 20.0, 40.0)[self.state]
        self.state += 1
        over = self.state == 3
        return self.state, reward, over and not self.truncates, over and self.truncates, {}


gym.register(CHAIN, Chain)


def learned(method, env_id=CHAIN, seed=1, monitor=None, kwargs="{}", **changes):
    setting = METHODS[method].setting(env_id)
    config = replace(setting.config, **changes)
    env = replace(setting.env, kwargs=kwargs) if kwargs != "{}" else setting.env
    return METHODS[method].learn(config, env, seed, monitor or RecordingMonitor())


def greedy_path(method, seed=1):
    """Return the states that the greedy policy visits on the cliff, and its return."""
    setting = METHODS[method].setting("CliffWalking-v1")
    policy = learned(method, "CliffWalking-v1", seed).policy
    env = gym.make("CliffWalking-v1", max_episode_steps=200)
    state, _ = env.reset(seed=0)
    path, total, done = [int(state)], 0.0, False
    while not done:
        state, reward, terminated, truncated, _ = env.step(int(policy(np.array([state]))[0]))
        path.append(int(state))
        total, done = total + reward, terminated or truncated
    assert setting.env.max_episode_steps == 200
    return path, total


def test_the_three_bootstrap_values():
    q, other, greedy = np.array([1.0, 4.0, 2.0]), np.array([10.0, 20.0, 30.0]), BehaviourPolicy(0.3)
    assert greedy_value(q, q, 2, greedy) == 4.0
    assert greedy_value(q, other, 2, greedy) == 20.0  # action chosen by one table, valued by the other
    assert next_action_value(q, q, 2, greedy) == 2.0
    assert expected_value(q, q, 2, greedy) == pytest.approx(0.7 * 4 + 0.1 * (1 + 4 + 2))
    e = np.exp([1 / 2, 4 / 2, 2 / 2])
    assert expected_value(q, q, 2, BehaviourPolicy(0.3, 2.0)) == pytest.approx(
        (e[0] * 1 + e[1] * 4 + e[2] * 2) / e.sum()
    )


def test_the_behaviour_policy_acts_with_its_probabilities(rng):
    q = np.array([1.0, 3.0, 2.0])
    for behaviour in (BehaviourPolicy(0.4), BehaviourPolicy(0.0, 0.7)):
        counts = np.bincount([behaviour.act(q, rng) for _ in range(4_000)], minlength=3)
        assert counts / 4_000 == pytest.approx(behaviour.probabilities(q), abs=0.03)
        assert behaviour.probabilities(q).sum() == pytest.approx(1)


def test_an_n_step_target_is_the_discounted_sum_and_the_bootstrap():
    assert n_step_target([1.0, 2.0, 3.0], 0.9, 100.0) == pytest.approx(1 + 0.9 * 2 + 0.81 * 3 + 0.729 * 100)
    assert n_step_target([5.0], 0.9, 0.0) == 5.0


@pytest.mark.parametrize("method", ["q-learning", "sarsa", "expected-sarsa"])
def test_one_step_methods_move_q_by_alpha_times_the_td_error(method):
    q = learned(method, episodes=2, alpha=0.5, alpha_end=0.5, gamma=0.9, epsilon=0.0, epsilon_end=0.0).arrays["q"]
    # the first episode bootstraps from zeros, the second from the values of the first
    assert q[:3, 0] == pytest.approx(
        [5 + 0.5 * (10 + 0.9 * 10 - 5), 10 + 0.5 * (20 + 0.9 * 20 - 10), 20 + 0.5 * (40 - 20)]
    )
    assert (q[:, 1] == 0).all()


def test_n_step_targets_are_shorter_at_the_end_of_an_episode():
    q = learned("n-step-q", episodes=1, alpha=1.0, alpha_end=1.0, gamma=0.5, epsilon=0.0, epsilon_end=0.0, n_step=2)
    assert q.arrays["q"][:3, 0] == pytest.approx([10 + 0.5 * 20, 20 + 0.5 * 40, 40])


def test_a_truncated_episode_bootstraps_and_a_terminated_one_does_not():
    settings = dict(episodes=1, alpha=1.0, alpha_end=1.0, gamma=0.5, epsilon=0.0, epsilon_end=0.0, initial=8.0)
    ended = learned("q-learning", **settings).arrays["q"]
    cut = learned("q-learning", kwargs='{"truncates": true}', **settings).arrays["q"]
    assert ended[2, 0] == 40
    assert cut[2, 0] == 40 + 0.5 * 8
    cut = learned("n-step-q", kwargs='{"truncates": true}', **settings, n_step=2).arrays["q"]
    assert cut[1, 0] == 20 + 0.5 * 40 + 0.25 * 8
    assert cut[2, 0] == 40 + 0.5 * 8


def test_double_q_learning_returns_the_mean_of_two_tables():
    result = learned("double-q-learning", episodes=400, alpha=0.5, alpha_end=0.5, gamma=1.0)
    assert result.arrays["q"][0] == pytest.approx([70, 70], rel=0.01)
    assert result.values(np.array([0]))[0] == pytest.approx(result.arrays["q"][0])


def test_learning_is_reproducible():
    runs = [learned("q-learning", "FrozenLake-v1", seed, episodes=300).arrays["q"] for seed in (3, 3, 4)]
    assert np.array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])


def test_q_learning_walks_along_the_cliff_and_sarsa_away_from_it():
    short, best = greedy_path("q-learning")
    safe, worse = greedy_path("sarsa")
    assert best == -13
    assert -21 <= worse < -13
    assert set(short) & set(range(25, 35))  # the row above the cliff
    assert not set(safe) & set(range(25, 35))


def test_q_learning_overestimates_noisy_values_and_double_q_learning_does_not():
    left = {}
    for method in ("q-learning", "double-q-learning"):
        lengths = []
        for seed in range(20):
            monitor = RecordingMonitor()
            learned(method, "qfleet/MaximizationBias-v0", seed, monitor)
            lengths.append([e.length - 1 for e in monitor.episodes[150:]])
        left[method] = float(np.mean(lengths))
    assert left["q-learning"] > 0.15  # 0.27; 0.01 is chance
    assert left["double-q-learning"] < 0.06  # 0.02


def test_the_maximization_bias_environment_passes_gymnasiums_check():
    check_env(gym.make("qfleet/MaximizationBias-v0").unwrapped)


def test_alpha_and_epsilon_decay_and_never_rise():
    config = QLearningConfig(episodes=10, alpha=0.5, alpha_end=0.1, epsilon=0.8, epsilon_end=0.1, epsilon_decay=0.5)
    assert [config.epsilon_at(t) for t in (0, 1, 2, 9)] == pytest.approx([0.8, 0.4, 0.2, 0.1])
    assert [config.alpha_at(t) for t in (0, 5)] == pytest.approx([0.5, 0.3])
    low = QLearningConfig(epsilon=0.0, alpha=0.001)
    assert low.epsilon_at(0) == low.epsilon_at(5_000) == 0.0
    assert low.alpha_at(5_000) == 0.001
    assert replace(config, behaviour="random").epsilon_at(9) == 1.0


def test_random_behaviour_learns_the_greedy_policy():
    q = learned("q-learning", "CliffWalking-v1", episodes=60, behaviour="random", alpha=1.0, alpha_end=1.0).arrays["q"]
    assert q[36].argmax() == 0  # from the start upwards


def test_states_that_are_not_discrete_get_rows_in_the_order_of_adding():
    states = StateIndex(gym.spaces.Box(0, 1, (2, 2), np.int8))
    first, second = np.zeros((2, 2), np.int8), np.eye(2, dtype=np.int8)
    assert [states.add(first), states.add(second), states.add(first)] == [0, 1, 0]
    assert states.lookup(np.stack([second, 1 - second])).tolist() == [1, UNKNOWN]
    table = QTable(gym.spaces.Box(0, 1, (2, 2), np.int8), 2, initial=7.0)
    for i in range(200):  # more than the initial rows
        table.row(np.full((2, 2), i % 127 - 60 * (i > 126), np.int8))[0] = i
    assert table(np.stack([first + 100, first - 99])).tolist() == [[100, 7], [7, 7]]


def test_q_learning_learns_blackjack():
    env = EnvConfig(id="Blackjack-v1")
    result = METHODS["q-learning"].learn(QLearningConfig(episodes=3_000), env, 1, RecordingMonitor())
    environments = make_environments(env, 10, space_kind="table")
    assert environments.spec.shape == ()
    assert evaluate(result.policy, environments, 500, 0.0, 1).mean_return > -0.35
    environments.close()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"alpha": 1.5}, "alpha is 1.5: write a number from 0 to 1"),
        ({"episodes": 0}, "episodes is 0: write at least 1"),
        ({"gamma": float("nan")}, "gamma is nan"),
        ({"temperature": 0.0}, "temperature is 0: write a positive number"),
    ],
)
def test_bad_settings_are_rejected(changes, words):
    with pytest.raises(BadInput, match=words):
        QLearningConfig(**changes)
