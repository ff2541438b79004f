"""Value iteration and Q-iteration: equal to policy iteration in the true model, close to it in an estimated one."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from classic.interface import RecordingMonitor
from classic.methods import METHODS
from classic.q_learning import QLearningConfig, q_learning
from classic.steps import Step, play_steps
from classic.value_iteration import (
    Model,
    PlanningConfig,
    TransitionCounts,
    estimated_model,
    exact_values,
    learn_by_q_iteration,
    learn_by_value_iteration,
    lookahead,
    q_iteration,
    true_model,
    value_iteration,
)
from rl.envs.config import EnvConfig
from rl.envs.vector import make_env
from rl.errors import BadInput

LAKE = EnvConfig(id="FrozenLake-v1")


def policy_iteration(outcomes, gamma):
    """q* by policy iteration (Sutton & Barto 2018, section 4.3); ``outcomes`` is Gymnasium's table P[s][a]."""
    states, actions = len(outcomes), len(outcomes[0])

    def action_value(s, a, v):
        return sum(p * (r + gamma * (0.0 if over else v[t])) for p, t, r, over in outcomes[s][a])

    policy = [0] * states
    while True:
        system, rewards = np.eye(states), np.zeros(states)
        for s in range(states):
            for p, t, r, over in outcomes[s][policy[s]]:
                rewards[s] += p * r
                system[s, t] -= 0.0 if over else gamma * p
        v = np.linalg.solve(system, rewards)
        q = np.array([[action_value(s, a, v) for a in range(actions)] for s in range(states)])
        better = [policy[s] if q[s, policy[s]] >= q[s].max() - 1e-12 else int(q[s].argmax()) for s in range(states)]
        if better == policy:
            return q
        policy = better


def model_and_optimum(env_id, gamma):
    env = make_env(EnvConfig(id=env_id), "table")
    return true_model(env, env_id), policy_iteration(env.unwrapped.P, gamma)


@pytest.mark.parametrize("gamma", [0.0, 0.9, 0.99])
@pytest.mark.parametrize("env_id", ["FrozenLake-v1", "FrozenLake8x8-v1", "CliffWalking-v1", "qfleet/WindyGridWorld-v0"])
def test_both_iterations_equal_policy_iteration_in_the_true_model(env_id, gamma):
    model, q = model_and_optimum(env_id, gamma)
    np.testing.assert_allclose(value_iteration(model, gamma, 1e-9), q.max(axis=1), atol=1e-8, rtol=0)
    np.testing.assert_allclose(q_iteration(model, gamma, 1e-9), q, atol=1e-8, rtol=0)


def test_the_tolerance_bounds_the_error_and_a_good_start_needs_fewer_sweeps():
    model, q = model_and_optimum("FrozenLake-v1", 0.99)
    rough = value_iteration(model, 0.99, 1e-2)
    assert 1e-5 < np.abs(rough - q.max(axis=1)).max() <= 1e-2
    again = value_iteration(model, 0.99, 1e-2, q.max(axis=1))
    assert np.abs(again - q.max(axis=1)).max() < 1e-12
    value_iteration(model, 0.99, 1e-300)  # below the precision of float64, yet it stops


def test_exact_values_of_a_policy_by_hand():
    # State 0 earns 1 and goes to 1 (action 0), or earns 0 and ends (action 1); 1 earns 2 and stays with probability 0.5.
    model = Model(np.array([[1.0, 0.0], [2.0, 2.0]]), np.zeros((2, 2, 2)))
    model.transitions[0, 0, 1], model.transitions[1, :, 1] = 1.0, 0.5
    v1 = 2 / (1 - 0.9 * 0.5)
    np.testing.assert_allclose(exact_values(model, np.full((2, 2), 0.5), 0.9), [0.5 * (1 + 0.9 * v1), v1])
    np.testing.assert_allclose(lookahead(model, np.array([10.0, 20.0]), 0.9), [[1 + 0.9 * 20, 0.0], [2 + 0.9 * 10] * 2])


def test_the_estimated_model_has_the_mean_rewards_and_relative_frequencies():
    counts = TransitionCounts(3, 2)
    counts.add(
        [Step(0, 1, 4.0, 1, False, False)] * 2 + [Step(0, 1, 1.0, 2, True, False), Step(0, 1, 1.0, 2, False, True)]
    )
    assert counts.counts[0, 1].tolist() == [0, 2, 2]
    assert counts.reward_sums[0, 1].tolist() == [0, 8, 2]
    model = estimated_model(counts.counts, counts.reward_sums, counts.terminations)
    assert model.rewards[0].tolist() == [0.0, (4 + 4 + 1 + 1) / 4]
    assert model.transitions[0, 1].tolist() == [
        0,
        2 / 4,
        1 / 4,
    ]  # a truncated step has a successor, a terminated one has none
    assert model.transitions[0, 0].tolist() == [0, 0, 0]


def test_planning_in_an_estimated_model_approximates_the_true_values():
    env = make_env(LAKE, "table")
    model = true_model(env, LAKE.id)
    rng, counts = np.random.default_rng(1), TransitionCounts(16, 4)
    counts.add(islice(play_steps(env, lambda _: int(rng.integers(4)), 1), 60_000))
    estimated = estimated_model(counts.counts, counts.reward_sums, counts.terminations)
    for iterate in (value_iteration, q_iteration):
        off = np.abs(iterate(estimated, 0.9, 1e-8) - iterate(model, 0.9, 1e-8)).max()
        assert 0 < off < 0.06


def test_q_learning_approximates_the_exact_values():
    pond = EnvConfig(id="FrozenLake-v1", kwargs='{"desc": ["SFF", "FFG"]}')
    q = policy_iteration(make_env(pond, "table").unwrapped.P, 0.9)
    config = QLearningConfig(episodes=4_000, gamma=0.9, behaviour="random", alpha=0.1, alpha_end=0.001)
    off = q_learning(config, pond, 1, RecordingMonitor()).arrays["q"] - q
    assert np.abs(off).max() < 0.05
    assert np.sqrt(np.square(off).mean()) < 0.02


@pytest.mark.parametrize("method", ["value-iteration", "q-iteration"])
def test_the_settings_for_frozen_lake_solve_it_and_are_reproducible(method):
    chosen = METHODS[method]
    setting = chosen.setting(None)
    monitors = [RecordingMonitor(), RecordingMonitor()]
    first, second = (chosen.learn(setting.config, setting.env, 1, monitor) for monitor in monitors)
    metrics = first.metrics
    assert metrics["solved"]
    assert metrics["tested"] > 0.80
    assert metrics["confirmed"] >= 0.70
    assert metrics["steps"] == 100 * metrics["iterations"]
    assert monitors[0].rows[-1] == (
        metrics["iterations"],
        {"mean_return": metrics["tested"], "steps": metrics["steps"]},
    )
    assert second.metrics == metrics
    assert monitors[0].rows == monitors[1].rows
    np.testing.assert_array_equal(first.arrays["q"], second.arrays["q"])
    np.testing.assert_array_equal(first.values(np.arange(16)), first.arrays["q"])
    np.testing.assert_array_equal(first.policy(np.arange(16)), first.arrays["q"].argmax(axis=1))
    np.testing.assert_array_equal(first.arrays["v"], first.arrays["q"].max(axis=1))


def test_the_first_test_alone_does_not_stop_learning():
    """A mean return above 0 in 20 episodes comes soon; 0.99 in the second test cannot be reached on slippery ice."""
    seen = RecordingMonitor()
    config = PlanningConfig(goal=0.0, confirm_goal=0.99, confirm_episodes=50, max_iterations=40)
    metrics = learn_by_q_iteration(config, LAKE, 1, seen).metrics
    assert max(row["mean_return"] for _, row in seen.rows) > 0.0
    assert not metrics["solved"]
    assert metrics["iterations"] == 40


def test_an_unreachable_goal_ends_unsolved():
    config = PlanningConfig(goal=1.0, max_iterations=3)
    assert learn_by_value_iteration(config, LAKE, 1, RecordingMonitor()).metrics["solved"] is False
    unconfirmed = replace(config, goal=-1.0, confirm_goal=2.0, confirm_episodes=2)
    metrics = learn_by_q_iteration(unconfirmed, LAKE, 1, RecordingMonitor()).metrics
    assert (metrics["solved"], metrics["iterations"], metrics["steps"]) == (False, 3, 300)


def test_learn_from_tests_counts_the_test_episodes():
    config = PlanningConfig(goal=1.0, max_iterations=3, learn_from_tests=True)
    assert learn_by_q_iteration(config, LAKE, 1, RecordingMonitor()).metrics["steps"] > 300 + 3 * 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gamma": 1.0}, "gamma is 1: write a number from 0 to below 1"),
        ({"steps": 0}, "steps is 0: write at least 1"),
        ({"max_iterations": 0}, "max_iterations is 0: write at least 1"),
        ({"tolerance": 0.0}, "tolerance is 0: write a positive number"),
    ],
)
def test_bad_settings_are_rejected(change, message):
    with pytest.raises(BadInput, match=message):
        PlanningConfig(**change)


def test_an_environment_without_discrete_states_or_a_true_model_is_rejected():
    with pytest.raises(BadInput, match="a model needs Discrete ones"):
        learn_by_value_iteration(PlanningConfig(), EnvConfig(id="qfleet/GridWorld-v0"), 1, RecordingMonitor())
    with pytest.raises(BadInput, match="has no table P"):
        true_model(make_env(EnvConfig(id="Blackjack-v1"), "table"), "Blackjack-v1")
