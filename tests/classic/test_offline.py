"""Offline tabular Q-learning: values against value iteration, untried actions, bad input."""

from __future__ import annotations

import json

import gymnasium as gym
import numpy as np
import pytest

from classic.interface import RecordingMonitor
from classic.offline_data import read_tabular
from classic.offline_q import OfflineQConfig, mask_untried, offline_q
from rl.envs.config import EnvConfig
from rl.envs.minari_files import NewDataset
from rl.errors import BadInput
from rl.policies import epsilon_greedy_probabilities
from tests.classic.offline_datasets import CLIFF, learn, write


@pytest.fixture(autouse=True)
def _datasets(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))


def random_episodes(rng, count=60, states=6, actions=3):
    """Yield random episodes with mostly negative rewards; half of them are truncated."""
    for k in range(count):
        rows = rng.integers(0, states, rng.integers(2, 9))
        steps = len(rows) - 1
        end = ("terminated", "truncated")[k % 2]
        yield rows, rng.integers(0, actions, steps), rng.normal(-1.0, 1.0, steps), end


def value_iteration(episodes, gamma):
    """Return {(s, a): q} of the maximum-likelihood model of the episodes, over the actions that occur in them."""
    outcomes: dict = {}
    for rows, actions, rewards, end in episodes:
        for t, (s, a, r, s2) in enumerate(zip(rows, actions, rewards, rows[1:], strict=False)):
            over = end == "terminated" and t == len(actions) - 1
            outcomes.setdefault((int(s), int(a)), []).append((r, None if over else int(s2)))
    q = dict.fromkeys(outcomes, 0.0)
    for _ in range(300):
        best: dict = {}
        for (s, _), value in q.items():
            best[s] = max(best.get(s, -np.inf), value)
        q = {key: np.mean([r + gamma * best.get(s2, 0.0) for r, s2 in seen]) for key, seen in outcomes.items()}
    return q


@pytest.mark.parametrize("alpha", [1.0, 0.3])
def test_the_values_equal_value_iteration_in_the_model_of_the_dataset(tmp_path, rng, alpha):
    episodes = list(random_episodes(rng))
    got = learn(write(str(tmp_path / "d-v0"), episodes), alpha=alpha, tolerance=1e-12, sweeps=5_000)
    expected = value_iteration(episodes, 0.9)
    assert len(expected) == (got.arrays["counts"] > 0).sum()
    for (s, a), q in expected.items():
        assert got.arrays["q"][s, a] == pytest.approx(q, abs=1e-9)
        assert got.values(np.array([s]))[0, a] == pytest.approx(q, abs=1e-9)


def test_a_terminal_state_does_not_bootstrap_and_a_truncated_one_does(tmp_path):
    ends = [([0, 2], [1], [1.0], "truncated"), ([1, 2], [1], [1.0], "terminated"), ([2, 3], [0], [2.0], "terminated")]
    q = learn(write(str(tmp_path / "d-v0"), ends)).arrays["q"]
    assert q[0, 1] == pytest.approx(1 + 0.9 * 2)
    assert q[1, 1] == pytest.approx(1)
    assert q[2, 0] == pytest.approx(2)


def test_untried_actions_are_not_chosen(tmp_path):
    """All rewards are negative, so that the initial 0 of untried actions would look best, also in the targets."""
    costly = [([0, 1, 2], [3, 2], [-1.0, -1.0], "terminated"), ([0, 2], [1], [-5.0], "terminated")]
    got = learn(write(str(tmp_path / "d-v0"), costly))
    assert got.arrays["q"][0, 3] == pytest.approx(-1 + 0.9 * -1)
    assert got.policy(np.array([0, 1])).tolist() == [3, 2]
    assert got.policy(np.array([2, 40])).tolist() == [0, 0], "states without an action: the first action"
    assert got.metrics["value_max"] == pytest.approx(-1)
    assert got.metrics["states"] == 3
    assert got.metrics["states_seen_again"] == 2  # 0 and 2
    assert got.metrics["actions_per_state"] == pytest.approx((2 + 1) / 2)
    assert got.metrics["action_share"] == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3])
    assert got.metrics["data_return"] == pytest.approx((-2 - 5) / 2)
    assert got.arrays["first_seen"][:4].tolist() == [[0, 0], [0, 1], [0, 2], [-1, -1]]
    assert [at["value"] for at in got.metrics["highest"]] == pytest.approx([-1, -1.9])
    json.dumps(got.metrics)


def test_the_policy_table_does_not_prefer_untried_actions(tmp_path):
    name = write(str(tmp_path / "d-v0"), [([0, 12], [2], [-5.0], "terminated")])
    learned = learn(name, training_seeds=0, epsilon=0.4)
    assert learned.arrays["q"][0].tolist() == [0, 0, -5, 0]  # the zeros are larger, but untried
    assert learned.arrays["policy"][0] == pytest.approx([0.1, 0.1, 0.7, 0.1])


def test_the_policy_table_is_epsilon_greedy():
    q = mask_untried(np.array([[1.0, 3.0, 2.0, 0.0], [0.0] * 4]), np.array([[1, 1, 1, 0], [0] * 4]))
    assert epsilon_greedy_probabilities(q, 0.1)[0] == pytest.approx([0.025, 0.9 + 0.025, 0.025, 0.025])
    assert epsilon_greedy_probabilities(q, 0.1)[1] == pytest.approx([0.9 + 0.025, 0.025, 0.025, 0.025])
    assert epsilon_greedy_probabilities(q, 0.0)[0].tolist() == [0, 1, 0, 0]
    for epsilon in (0.0, 0.3, 1.0):
        assert epsilon_greedy_probabilities(q, epsilon).sum(axis=1) == pytest.approx([1, 1])


def test_epsilon_is_constant_or_decays_with_each_episode(tmp_path):
    name = write(str(tmp_path / "d-v0"), [([0, 1], [2], [1.0], "terminated")] * 3)
    assert learn(name, epsilon=0.4).arrays["policy"][0] == pytest.approx([0.1, 0.1, 0.6 + 0.1, 0.1])
    falling = learn(name, epsilon=0.4, epsilon_decay=0.5)
    assert falling.metrics["epsilon"] == pytest.approx(0.4 * 0.5**3)
    assert learn(name, epsilon=0.4, epsilon_decay=0.5, epsilon_end=0.2).metrics["epsilon"] == pytest.approx(0.2)


def test_too_few_sweeps_are_noted(tmp_path):
    notes = []
    monitor = RecordingMonitor()
    monitor.note = notes.append
    name = write(str(tmp_path / "d-v0"), [([0, 1, 0], [0, 0], [1.0, 1.0], "truncated")])
    offline_q(OfflineQConfig(dataset=name, sweeps=5), CLIFF, 1, monitor)
    assert any("raise `sweeps`" in text for text in notes)
    assert any("not evaluated on the dataset's seeds: it has none" in text for text in notes)
    assert [at for at, _ in monitor.rows] == [1, 2, 3, 4, 5]
    assert monitor.rows[0][1]["max_change"] == pytest.approx(1.0)
    assert monitor.rows[1][1]["max_change"] == pytest.approx(0.99)


def test_the_greedy_policy_is_evaluated_on_the_seeds_of_the_dataset(tmp_path):
    """The dataset has the optimal path of 13 steps on the cliff: up, 11 to the right, down."""
    rows, actions = [36, *range(24, 36), 47], [0] + [1] * 11 + [2]
    name = write(str(tmp_path / "d-v0"), [(rows, actions, [-1.0] * 13, "terminated")], seeds=[5])
    metrics = learn(name, EnvConfig(id="CliffWalking-v1", max_episode_steps=50)).metrics
    assert metrics["training_return"] == metrics["training_data_return"] == -13
    assert (metrics["training_episodes"], metrics["training_unknown"], metrics["training_other_starts"]) == (1, 0, 0)
    elsewhere = write(str(tmp_path / "e-v0"), [([5, 6], [1], [-1.0], "terminated")], seeds=[5])
    metrics = learn(elsewhere, EnvConfig(id="CliffWalking-v1", max_episode_steps=50)).metrics
    assert (metrics["training_unknown"], metrics["training_other_starts"]) == (1, 1)
    assert "training_return" not in learn(name, training_seeds=0).metrics


def test_tuple_states_are_numbered_from_0(tmp_path):
    spaces = gym.spaces.Tuple((gym.spaces.Discrete(2), gym.spaces.Discrete(24))), gym.spaces.Discrete(4, start=0)
    with NewDataset(str(tmp_path / "d-v0"), *spaces, None, {}) as dataset:
        columns = (np.array([0, 1]), np.array([3, 5]))
        ends = {"terminations": np.array([True]), "truncations": np.array([False])}
        dataset.add(columns, np.array([1.0]), actions=np.array([2]), infos={}, **ends)
    data = read_tabular(str(tmp_path / "d-v0"), CLIFF)
    assert (data.s_tm1.tolist(), data.s_t.tolist(), data.a_tm1.tolist()) == ([3], [24 + 5], [2])


BOX = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
ONE = [([0, 1], [0], [1.0], "terminated")]
BAD = {
    "missing": (lambda d: "qfleet/none-v0", "export a run's replay, or make one"),
    "no version": (lambda d: "pickup", "must end in a version"),
    "empty": (lambda d: write(d, []), "has no episodes"),
    "floats": (
        lambda d: write(d, [(np.eye(2), [0], [1.0], "terminated")], space=BOX),
        "no state would occur twice: use `qfleet train --offline",
    ),
    "continuous actions": (
        lambda d: write(d, [([0, 1], np.zeros((1, 2)), [1.0], "terminated")], action_space=BOX),
        "Disc",
    ),
    "other states": (lambda d: write(d, ONE, states=7), "unknown environment.*write another environment"),
    "other actions": (lambda d: write(d, ONE, action_space=gym.spaces.Discrete(2)), "is 'CliffWalking-v1', which has"),
    "beyond its space": (lambda d: write(d, [([0, 50], [0], [1.0], "terminated")]), "cannot be read"),
    "action outside": (lambda d: write(d, [([0, 1], [9], [1.0], "terminated")]), "an action is outside"),
    "nan": (lambda d: write(d, [([0, 1], [0], [np.nan], "terminated")]), "not finite"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_dataset_that_does_not_fit_is_rejected_in_one_line(tmp_path, case):
    make, match = BAD[case]
    with pytest.raises(BadInput, match=match) as caught:
        learn(make(str(tmp_path / "d-v0")))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("gamma", 1.1),
        ("alpha", 0.0),
        ("sweeps", 0),
        ("tolerance", -1.0),
        ("epsilon", 2),
        ("epsilon_end", 1.5),
        ("epsilon_decay", -0.1),
        ("training_seeds", -1),
        ("extremes", -1),
    ],
)
def test_bad_settings_are_rejected(field, value):
    with pytest.raises(BadInput, match=f"{field} is {value:g}: write"):
        OfflineQConfig(**{field: value})
