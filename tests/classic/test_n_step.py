"""Off-policy n-step Q-learning: the three targets by hand, and their errors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from classic.interface import RecordingMonitor
from classic.n_step import CORRECTIONS, NStepConfig, OffPolicyStep, TrueValues, n_step, reachable_states, update
from classic.steps import Step
from classic.value_iteration import true_model
from rl.envs.config import EnvConfig
from rl.envs.vector import make_env
from rl.errors import BadInput

CLIFF = EnvConfig(id="CliffWalking-v1", max_episode_steps=200)
Q = np.array([[0.0, 0.0], [5.0, 6.0], [8.0, 7.0], [3.0, 4.0], [9.0, 2.0]])  # greedy: -, 1, 0, 1, 0


def window(actions, terminated=False):
    """Steps 0 -> 1 -> 2 -> ... for rewards 1, 10, 100, ..., each action taken with probability 0.5, 0.6, 0.7, ..."""
    last = len(actions) - 1
    return [
        OffPolicyStep(Step(i, a, 10.0**i, i + 1, terminated and i == last, False), 0.5 + 0.1 * i)
        for i, a in enumerate(actions)
    ]


# a_0 to a_3; the first of a_1, a_2, ... that is not greedy is none, a_1, a_2
GREEDY, SECOND, THIRD = [0, 1, 0, 1], [0, 0, 0, 1], [0, 1, 1, 1]
BOOTSTRAPPED = 1 + 0.9 * 10 + 0.9**2 * 100 + 0.9**3 * 1000 + 0.9**4 * 9
REWARDS = 1 + 0.9 * 10 + 0.9**2 * 100 + 0.9**3 * 1000


@pytest.mark.parametrize(
    ("correction", "actions", "terminated", "target", "rho"),
    [
        ("ignored", GREEDY, False, BOOTSTRAPPED, 1),
        ("ignored", SECOND, False, BOOTSTRAPPED, 1),
        ("ignored", THIRD, True, REWARDS, 1),
        ("cut", GREEDY, False, BOOTSTRAPPED, 1),
        ("cut", GREEDY, True, REWARDS, 1),
        ("cut", SECOND, False, 1 + 0.9 * 6, 1),
        ("cut", SECOND, True, 1 + 0.9 * 6, 1),
        ("cut", THIRD, True, 1 + 0.9 * 10 + 0.9**2 * 8, 1),
        ("weighted", GREEDY, False, BOOTSTRAPPED, 1 / 0.6 / 0.7 / 0.8),
        ("weighted", GREEDY, True, REWARDS, 1 / 0.6 / 0.7 / 0.8),
        ("weighted", SECOND, False, BOOTSTRAPPED, 0),
        ("weighted", THIRD, False, BOOTSTRAPPED, 0),
        ("weighted", [0], False, 1 + 0.9 * 6, 1),  # rho starts at the second action: q(s_0, a_0) is of a_0 itself
    ],
)
def test_updates_by_hand(correction, actions, terminated, target, rho):
    q = Q.copy()
    update(q, window(actions, terminated), CORRECTIONS[correction], gamma=0.9, alpha=0.1)
    expected = Q.copy()
    expected[0, 0] = 0.1 * rho * target
    np.testing.assert_allclose(q, expected)


def test_a_large_importance_weight_does_not_overshoot_the_target():
    q = Q.copy()
    update(q, window(GREEDY), CORRECTIONS["weighted"], gamma=0.9, alpha=0.9)  # 0.9 / 0.6 / 0.7 / 0.8 > 1
    assert q[0, 0] == pytest.approx(BOOTSTRAPPED)


def test_the_true_values_of_the_cliff():
    env = make_env(CLIFF, "table")
    true_values = TrueValues(env, CLIFF.id, 0.9)
    model = true_model(env, CLIFF.id)
    assert true_values.v[36] == pytest.approx(-sum(0.9**k for k in range(13)))  # 13 steps along the edge
    cells = set(range(37))  # three free rows and the start: neither the cliff nor the goal
    assert set(np.flatnonzero(reachable_states(model, np.ones_like(model.rewards), 36))) == cells
    q = model.rewards + 0.9 * model.transitions @ true_values.v
    assert true_values.error(q) == pytest.approx(0.0, abs=1e-8)
    assert true_values.regret(q) == pytest.approx(0.0, abs=1e-8)
    assert true_values.error(q + 2.0) == pytest.approx(2.0)
    assert true_values.regret(-q) > 1.0


def test_without_correction_the_error_is_larger_than_with_either_correction():
    config = NStepConfig(episodes=120, gamma=0.9, measure_every=20)
    seen = RecordingMonitor()
    learned = n_step(config, CLIFF, 1, seen)
    errors = {correction: learned.arrays[f"{correction}_error"][-1] for correction in CORRECTIONS}
    assert errors["ignored"] > 2 * max(errors["cut"], errors["weighted"])
    assert learned.arrays["measured_at"].tolist() == [20, 40, 60, 80, 100, 120]
    assert len(seen.episodes) == 120
    assert learned.metrics["last_cut_error"] == errors["cut"]


def test_corrections_agree_for_one_step_and_learning_is_reproducible():
    config = NStepConfig(episodes=10, n=1, measure_every=5)
    arrays = n_step(config, CLIFF, 2, RecordingMonitor()).arrays
    for correction in ("cut", "weighted"):
        np.testing.assert_array_equal(arrays[f"{correction}_error"], arrays["ignored_error"])
    four = replace(config, n=4)
    np.testing.assert_array_equal(
        n_step(four, CLIFF, 2, RecordingMonitor()).arrays["q"], n_step(four, CLIFF, 2, RecordingMonitor()).arrays["q"]
    )


def test_keep_selects_the_table():
    config = NStepConfig(episodes=10, measure_every=10)
    kept = {
        correction: n_step(replace(config, keep=correction), CLIFF, 1, RecordingMonitor()) for correction in CORRECTIONS
    }
    assert len({learned.arrays["q"].tobytes() for learned in kept.values()}) == 3
    learned = kept["weighted"]
    np.testing.assert_array_equal(learned.values(np.array([36, 25])), learned.arrays["q"][[36, 25]])


def test_an_environment_without_a_true_model_is_rejected():
    with pytest.raises(BadInput, match="has no table P"):
        n_step(NStepConfig(), EnvConfig(id="Blackjack-v1"), 1, RecordingMonitor())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(n=0), "n is 0"),
        (dict(episodes=0), "episodes is 0"),
        (dict(measure_every=0), "measure_every is 0"),
        (dict(epsilon=0.0), "epsilon is 0"),
        (dict(alpha=1.5), "alpha is 1.5"),
        (dict(gamma=1.0), "gamma is 1"),
    ],
)
def test_bad_settings_are_rejected(settings, message):
    with pytest.raises(BadInput, match=message):
        NStepConfig(**settings)
