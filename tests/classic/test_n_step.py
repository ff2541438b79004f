"""Multi-step returns off policy: the three targets written out, and where each of them leads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from classic.interface import RecordingMonitor
from classic.n_step import WAYS, NStepConfig, Taken, Truth, n_step, reachable, update
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
        Taken(Step(i, a, 10.0**i, i + 1, terminated and i == last, False), 0.5 + 0.1 * i) for i, a in enumerate(actions)
    ]


# a_0 to a_3; the first of a_1, a_2, ... that is not greedy is none, a_1, a_2
GREEDY, SECOND, THIRD = [0, 1, 0, 1], [0, 0, 0, 1], [0, 1, 1, 1]
WHOLE = 1 + 0.9 * 10 + 0.9**2 * 100 + 0.9**3 * 1000 + 0.9**4 * 9
SEEN = 1 + 0.9 * 10 + 0.9**2 * 100 + 0.9**3 * 1000


@pytest.mark.parametrize(
    ("way", "actions", "terminated", "target", "rho"),
    [
        ("ignored", GREEDY, False, WHOLE, 1),
        ("ignored", SECOND, False, WHOLE, 1),
        ("ignored", THIRD, True, SEEN, 1),
        ("cut", GREEDY, False, WHOLE, 1),
        ("cut", GREEDY, True, SEEN, 1),
        ("cut", SECOND, False, 1 + 0.9 * 6, 1),
        ("cut", SECOND, True, 1 + 0.9 * 6, 1),
        ("cut", THIRD, True, 1 + 0.9 * 10 + 0.9**2 * 8, 1),
        ("weighted", GREEDY, False, WHOLE, 1 / 0.6 / 0.7 / 0.8),
        ("weighted", GREEDY, True, SEEN, 1 / 0.6 / 0.7 / 0.8),
        ("weighted", SECOND, False, WHOLE, 0),
        ("weighted", THIRD, False, WHOLE, 0),
        ("weighted", [0], False, 1 + 0.9 * 6, 1),  # the first action is the one that is judged: it needs no weight
    ],
)
def test_an_update_written_out(way, actions, terminated, target, rho):
    q = Q.copy()
    update(q, window(actions, terminated), WAYS[way], gamma=0.9, alpha=0.1)
    expected = Q.copy()
    expected[0, 0] = 0.1 * rho * target
    np.testing.assert_allclose(q, expected)


def test_a_heavy_weight_goes_no_further_than_the_target():
    q = Q.copy()
    update(q, window(GREEDY), WAYS["weighted"], gamma=0.9, alpha=0.9)  # 0.9 / 0.6 / 0.7 / 0.8 > 1
    assert q[0, 0] == pytest.approx(WHOLE)


def test_the_truth_of_the_cliff():
    env = make_env(CLIFF, "table")
    truth = Truth(env, CLIFF.id, 0.9)
    model = true_model(env, CLIFF.id)
    assert truth.v[36] == pytest.approx(-sum(0.9**k for k in range(13)))  # 13 steps along the edge
    cells = set(range(37))  # three free rows and the start: neither the cliff nor the goal
    assert set(np.flatnonzero(reachable(model, np.ones_like(model.rewards), 36))) == cells
    q = model.rewards + 0.9 * model.transitions @ truth.v
    assert truth.error(q) == pytest.approx(0.0, abs=1e-8)
    assert truth.regret(q) == pytest.approx(0.0, abs=1e-8)
    assert truth.error(q + 2.0) == pytest.approx(2.0)
    assert truth.regret(-q) > 1.0


def test_ignoring_is_biased_where_behaviour_is_not_greedy_and_the_other_two_are_not():
    config = NStepConfig(episodes=120, gamma=0.9, measure_every=20)
    seen = RecordingMonitor()
    learned = n_step(config, CLIFF, 1, seen)
    errors = {way: learned.arrays[f"{way}_error"][-1] for way in WAYS}
    assert errors["ignored"] > 2 * max(errors["cut"], errors["weighted"])
    assert learned.arrays["measured_at"].tolist() == [20, 40, 60, 80, 100, 120]
    assert len(seen.episodes) == 120
    assert learned.figures["last_cut_error"] == errors["cut"]


def test_one_step_needs_no_correction_and_a_seed_repeats_itself():
    config = NStepConfig(episodes=10, n=1, measure_every=5)
    arrays = n_step(config, CLIFF, 2, RecordingMonitor()).arrays
    for way in ("cut", "weighted"):
        np.testing.assert_array_equal(arrays[f"{way}_error"], arrays["ignored_error"])
    four = replace(config, n=4)
    np.testing.assert_array_equal(
        n_step(four, CLIFF, 2, RecordingMonitor()).arrays["q"], n_step(four, CLIFF, 2, RecordingMonitor()).arrays["q"]
    )


def test_the_table_kept_is_the_one_asked_for():
    config = NStepConfig(episodes=10, measure_every=10)
    kept = {way: n_step(replace(config, keep=way), CLIFF, 1, RecordingMonitor()) for way in WAYS}
    assert len({learned.arrays["q"].tobytes() for learned in kept.values()}) == 3
    learned = kept["weighted"]
    np.testing.assert_array_equal(learned.values(np.array([36, 25])), learned.arrays["q"][[36, 25]])


def test_an_environment_without_a_model_is_refused():
    with pytest.raises(BadInput, match="does not state its model"):
        n_step(NStepConfig(), EnvConfig(id="Blackjack-v1"), 1, RecordingMonitor())


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (dict(n=0), "n is 0"),
        (dict(episodes=0), "episodes is 0"),
        (dict(measure_every=0), "measure_every is 0"),
        (dict(epsilon=0.0), "epsilon is 0"),
        (dict(alpha=1.5), "alpha is 1.5"),
        (dict(gamma=1.0), "gamma is 1"),
    ],
)
def test_bad_settings_are_refused(settings, complaint):
    with pytest.raises(BadInput, match=complaint):
        NStepConfig(**settings)
