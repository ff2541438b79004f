"""Monte Carlo control, Monte Carlo prediction and TD(0): arithmetic, exact values, every start state."""

from __future__ import annotations

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest

from classic.interface import RecordingMonitor
from classic.methods import METHODS
from classic.monte_carlo import MonteCarloConfig, _ReturnAverages, discounted_returns, monte_carlo
from classic.prediction import PredictionConfig, StateValues, learn_monte_carlo, learn_td0, sample_actions, value_errors
from classic.steps import Step
from rl.envs.config import EnvConfig
from rl.envs.grid_worlds import GridWorld
from rl.errors import BadInput

TERMINATED = [Step(0, 1, 1.0, 1, False, False), Step(1, 0, 2.0, 0, False, False), Step(0, 1, 200.0, 2, True, False)]
TRUNCATED = [*TERMINATED[:2], Step(0, 1, 200.0, 2, False, True)]


def test_discounted_returns():
    assert discounted_returns([1.0, 2.0, 200.0], 0.9, 0.0).tolist() == pytest.approx(
        [1 + 0.9 * 2 + 0.9**2 * 200, 2 + 0.9 * 200, 200]
    )
    assert discounted_returns([1.0, 2.0], 0.9, 10.0).tolist() == pytest.approx(
        [1 + 0.9 * 2 + 0.9**2 * 10, 2 + 0.9 * 10]
    )


@pytest.mark.parametrize(
    ("average", "played", "expected"),
    [
        ("mean", TERMINATED, (1 + 0.9 * 2 + 0.9**2 * 200 + 200) / 2),
        ("step-size", TERMINATED, 0.5 * (0.5 * (1 + 0.9 * 2 + 0.9**2 * 200)) + 0.5 * 200),
        # truncated in state 2, whose greedy value is 7
        ("mean", TRUNCATED, (1 + 0.9 * 2 + 0.9**2 * 200 + 0.9**3 * 7 + 200 + 0.9 * 7) / 2),
    ],
)
def test_every_visit_updates_q(average, played, expected):
    config = MonteCarloConfig(average=average, gamma=0.9, alpha=0.5)
    averages = _ReturnAverages(config, gym.spaces.Discrete(3), 2)
    averages.q.row(2)[:] = (5.0, 7.0)
    averages.learn(played)
    assert averages.q.q[0].tolist() == pytest.approx([0.0, expected])


def test_monte_carlo_finds_the_shortest_path_from_every_start():
    setting = METHODS["monte-carlo"].setting("qfleet/GridWorld-v0")
    learned = monte_carlo(setting.config, setting.env, 1, RecordingMonitor())
    env = GridWorld()
    for agent in range(16):
        for goal in set(range(16)) - {agent}:
            seen, _ = env.reset(options={"agent": agent, "goal": goal})
            for _ in range(abs(agent // 4 - goal // 4) + abs(agent % 4 - goal % 4)):
                seen, _, terminated, *_ = env.step(learned.policy(seen[None])[0])
            assert terminated


def test_monte_carlo_is_reproducible():
    config = replace(METHODS["monte-carlo"].setting("Blackjack-v1").config, episodes=500)
    monitors = [RecordingMonitor(), RecordingMonitor()]
    one, other = (monte_carlo(config, EnvConfig(id="Blackjack-v1"), 3, monitor) for monitor in monitors)
    np.testing.assert_array_equal(one.arrays["q"], other.arrays["q"])
    assert monitors[0].episodes == monitors[1].episodes


def test_monte_carlo_learns_to_stick_on_twenty():
    config, monitor = (
        replace(METHODS["monte-carlo"].setting("Blackjack-v1").config, episodes=15_000),
        RecordingMonitor(),
    )
    one = monte_carlo(config, EnvConfig(id="Blackjack-v1"), 3, monitor)
    twenty = np.ravel_multi_index(np.array([(20, card, 0) for card in range(2, 11)]).T, (32, 11, 2))
    assert one.policy(twenty).tolist() == [0] * 9
    assert np.mean([e.episode_return for e in monitor.episodes[-5_000:]]) > -0.2  # random play: -0.39


def test_td0_updates_by_hand():
    values = StateValues(3, power=0.5)
    values.v[:] = (1.0, 2.0, 9.0)
    assert learn_td0(values, iter(TERMINATED), 0.9) == TERMINATED
    v0 = 1 + (1 + 0.9 * 2 - 1)  # n = 1: all the way
    v1 = 2 + 0.9 * v0
    assert values.v.tolist() == pytest.approx([v0 + 2**-0.5 * (200 - v0), v1, 9.0])
    assert values.visits.tolist() == [2, 1, 0]
    cut = StateValues(3, power=1.0)
    cut.v[:] = (1.0, 2.0, 9.0)
    learn_td0(cut, iter(TRUNCATED[-1:]), 0.9)
    assert cut.v[0] == pytest.approx(200 + 0.9 * 9)


def test_monte_carlo_prediction_averages_returns():
    values = StateValues(3, power=1.0)
    learn_monte_carlo(values, iter(TERMINATED), 0.9)
    learn_monte_carlo(values, iter(TERMINATED[-1:]), 0.9)
    assert values.v.tolist() == pytest.approx([(1 + 0.9 * 2 + 0.9**2 * 200 + 200 + 200) / 3, 2 + 0.9 * 200, 0.0])
    cut = StateValues(3, power=1.0)
    cut.v[2] = 7.0
    learn_monte_carlo(cut, iter(TRUNCATED[-1:]), 0.9)
    assert cut.v[0] == pytest.approx(200 + 0.9 * 7)


def test_value_errors_ignore_unreachable_states():
    values = StateValues(3, power=1.0)
    values.v[:] = (1.0, 2.0, 9.0)
    assert value_errors(values.v, np.zeros(3), np.array([True, True, False])) == {
        "max_error": 2.0,
        "rms_error": pytest.approx((5 / 2) ** 0.5),
    }


@pytest.mark.parametrize("method", ["mc-prediction", "td0"])
@pytest.mark.parametrize(("policy", "episodes"), [("random", 8_000), ("optimal", 1_000)])
def test_prediction_approximates_the_exact_values_and_is_reproducible(method, policy, episodes):
    chosen = METHODS[method]
    setting = chosen.setting(None)
    config = replace(setting.config, policy=policy, episodes=episodes, tolerance=0.08)
    one = chosen.learn(config, setting.env, 1, RecordingMonitor())
    assert one.metrics["solved"]
    assert one.metrics["rms_error"] < 0.03
    assert one.arrays["v"][14] > 0.2
    short = replace(config, episodes=50)
    two, three = (chosen.learn(short, setting.env, 1, RecordingMonitor()) for _ in range(2))
    np.testing.assert_array_equal(two.arrays["v"], three.arrays["v"])
    assert not np.array_equal(two.arrays["v"], chosen.learn(short, setting.env, 2, RecordingMonitor()).arrays["v"])


def test_actions_are_sampled_with_the_probabilities_of_the_policy():
    policy = np.array([[0.0, 1.0, 0.0], [0.25, 0.0, 0.75]])
    drawn = sample_actions(policy, np.array([0, 1] * 4_000), np.random.default_rng(1)).reshape(-1, 2)
    assert set(drawn[:, 0]) == {1}
    assert np.bincount(drawn[:, 1], minlength=3) / 4_000 == pytest.approx([0.25, 0.0, 0.75], abs=0.03)


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        (MonteCarloConfig, {"alpha": 1.5}, "alpha is 1.5: write a number from 0 to 1"),
        (MonteCarloConfig, {"epsilon_decay": -1.0}, "epsilon_decay is -1"),
        (MonteCarloConfig, {"episodes": 0}, "episodes is 0: write at least 1"),
        (PredictionConfig, {"gamma": 1.0}, "gamma is 1: write a number from 0 to below 1"),
        (PredictionConfig, {"power": 2.0}, "power is 2: write a number from 0 to 1"),
        (PredictionConfig, {"episodes": 0}, "episodes is 0: write at least 1"),
        (PredictionConfig, {"tolerance": 0.0}, "tolerance is 0: write a positive number"),
    ],
)
def test_bad_settings_are_rejected(config, change, message):
    with pytest.raises(BadInput, match=message):
        config(**change)


def test_prediction_needs_a_true_model():
    with pytest.raises(BadInput, match="has no table P"):
        METHODS["td0"].learn(PredictionConfig(), EnvConfig(id="Blackjack-v1"), 1, RecordingMonitor())
