"""Fitted Q-iteration: targets written out, every regressor, datasets in files, and one small enough to solve."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest

from classic.dataset import COLUMNS, Dataset, check, collect, load, save
from classic.fitted_q import FittedQConfig, Regression, fitted_q, inputs, iterate, surface, targets
from classic.interface import RecordingMonitor
from classic.neural_fitted_q import Network, NeuralFittedQConfig, neural_fitted_q
from classic.regressors import REGRESSORS, make_regressor
from rl.envs.config import EnvConfig
from rl.errors import BadInput

CARTPOLE = EnvConfig(id="CartPole-v1")
QUICK = FittedQConfig(steps=400, iterations=4, evaluate_every=2, evaluation_episodes=3, regressor="tree")


def chain(repeats: int = 1) -> Dataset:
    """States 0 -> 1 -> 2 -> end by action 1, for 1, 2 and 4; action 0 stays, for 0. The stay in 2 is a truncated step."""
    s, a = np.array([0.0, 1.0, 2.0, 0.0, 1.0, 2.0], np.float32), np.array([1, 1, 1, 0, 0, 0])
    columns = dict(
        s=s[:, None],
        a=a,
        r=np.array([1.0, 2.0, 4.0, 0.0, 0.0, 0.0]),
        terminated=np.array([False, False, True, False, False, False]),
        truncated=np.array([False, False, False, False, False, True]),
        s_next=(s + a).astype(np.float32)[:, None],
    )
    return Dataset("chain", **{name: np.concatenate([column] * repeats) for name, column in columns.items()})


def test_targets_bootstrap_unless_terminated_also_where_truncated():
    q_next = np.array([[1.0, 5.0], [7.0, 3.0], [100.0, 100.0], [2.0, 1.0], [0.0, 6.0], [8.0, 9.0]])
    expected = [1 + 0.9 * 5, 2 + 0.9 * 7, 4, 0.9 * 2, 0.9 * 6, 0.9 * 9]
    np.testing.assert_allclose(targets(chain(), q_next, 0.9), expected)


def test_actions_are_one_column_of_two_and_one_hot_of_more():
    s, a = np.array([[[5.0], [6.0]], [[7.0], [8.0]]]), np.array([1, 0])
    np.testing.assert_array_equal(inputs(s, a, 2), [[5, 6, 1], [7, 8, 0]])
    np.testing.assert_array_equal(inputs(s, a, 3), [[5, 6, 0, 1, 0], [7, 8, 1, 0, 0]])


def test_a_tree_that_can_hold_every_pair_finds_the_true_values():
    from sklearn.tree import DecisionTreeRegressor

    data, config = chain(), replace(QUICK, iterations=3, gamma=0.9, evaluate_every=0)
    model, seen = Regression(DecisionTreeRegressor(random_state=0), 2), RecordingMonitor()
    learned = iterate(config, EnvConfig(id="chain"), 1, seen, model, data)
    v0, v1, v2 = 1 + 0.9 * 2 + 0.9**2 * 4, 2 + 0.9 * 4, 4
    stays = [0.9 * (1 + 0.9 * 2), 0.9 * v1, 0.9 * v2]  # three iterations look three steps ahead
    np.testing.assert_allclose(learned.values(np.array([[0.0], [1.0], [2.0]])), np.stack([stays, [v0, v1, v2]], axis=1))
    assert [row["score"] for _, row in seen.rows] == [1.0, 1.0, 1.0]
    assert learned.figures["best_iteration"] == 3


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", REGRESSORS)
def test_every_regressor_runs_and_repeats_itself(name):
    data = collect(CARTPOLE, 300, seed=1)
    config = replace(QUICK, regressor=name, evaluate_every=0)

    def values():
        model = Regression(make_regressor(name, 1, 1), 2)
        return iterate(config, CARTPOLE, 1, RecordingMonitor(), model, data).values(data.s[:5])

    q = values()
    assert q.shape == (5, 2)
    assert np.isfinite(q).all()
    np.testing.assert_array_equal(q, values())


def test_a_run_keeps_its_best_iteration_and_draws_its_surface():
    seen = RecordingMonitor()
    learned = fitted_q(QUICK, CARTPOLE, 1, seen)
    evaluated = {k: row["mean_return"] for k, row in seen.rows if "mean_return" in row}
    assert list(evaluated) == [2, 4]
    assert learned.figures["best_iteration"] == max(evaluated, key=evaluated.get)
    np.testing.assert_array_equal(learned.arrays["evaluations"], list(evaluated.items()))
    alone = fitted_q(
        replace(QUICK, iterations=learned.figures["best_iteration"], evaluate_every=0), CARTPOLE, 1, RecordingMonitor()
    )
    some = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    np.testing.assert_array_equal(learned.values(some), alone.values(some))  # those of that iteration, not of the last
    q = learned.values(np.array([[0.0, 0.0, 0.21, -2.0]], np.float32))[0]
    assert learned.arrays["surface_value"][0, -1] == q.max()
    assert learned.arrays["surface_action"][0, -1] == q.argmax()
    assert surface(learned.values, 5)["surface_value"].shape == (5, 5)


def test_more_than_two_actions_and_images_are_taken():
    env = EnvConfig(id="qfleet/GridWorld-v0")
    learned = fitted_q(replace(QUICK, steps=200), env, 1, RecordingMonitor())
    assert learned.policy(np.zeros((3, 2, 4, 4), np.float32)).shape == (3,)
    assert "surface_value" not in learned.arrays


def test_a_network_fits_the_chain_and_repeats_itself():
    data = chain(repeats=10)
    config = NeuralFittedQConfig(iterations=5, epochs=20, batch=16, learning_rate=0.01, gamma=0.9, evaluate_every=0)

    def values():
        network = Network(config, data, 2, seed=1)
        learned = iterate(config, EnvConfig(id="chain"), 1, RecordingMonitor(), network, data)
        return learned.values(np.array([[0.0], [1.0], [2.0]], np.float32)), learned.figures["score"]

    q, score = values()
    np.testing.assert_allclose(q[:, 1], [1 + 0.9 * 2 + 0.9**2 * 4, 2 + 0.9 * 4, 4], atol=0.2)
    assert 0.99 < score <= 1.0
    np.testing.assert_array_equal(q, values()[0])


def test_neural_fitted_q_runs_on_cartpole():
    config = NeuralFittedQConfig(steps=500, iterations=2, evaluate_every=2, evaluation_episodes=2)
    assert neural_fitted_q(config, CARTPOLE, 1, RecordingMonitor()).figures["best_iteration"] == 2


def test_collected_steps_are_true_and_repeat_themselves():
    data = collect(replace(CARTPOLE, max_episode_steps=15), 500, seed=3)
    ends = data.terminated | data.truncated
    assert data.terminated.any()
    assert data.truncated.any()
    np.testing.assert_array_equal(data.s_next[:-1][~ends[:-1]], data.s[1:][~ends[:-1]])
    fallen = (np.abs(data.s_next[:, 2]) > 0.2095) | (np.abs(data.s_next[:, 0]) > 2.4)
    np.testing.assert_array_equal(fallen, data.terminated)  # the last observation is the true one
    again = collect(replace(CARTPOLE, max_episode_steps=15), 500, seed=3)
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(data, name), getattr(again, name))


def test_a_dataset_comes_back_from_its_file_and_is_learned_from(tmp_path):
    file = str(tmp_path / "cartpole.npz")
    first = fitted_q(replace(QUICK, save_dataset=file), CARTPOLE, 1, RecordingMonitor())
    data = load(file, CARTPOLE)
    collected = collect(CARTPOLE, QUICK.steps, 1)
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(data, name), getattr(collected, name))
    again = fitted_q(replace(QUICK, steps=31, dataset=file), CARTPOLE, 1, RecordingMonitor())
    np.testing.assert_array_equal(first.values(data.s), again.values(data.s))


def _columns(**changed):
    data = collect(CARTPOLE, 40, 1)
    return {"env_id": np.array("CartPole-v1"), **{name: getattr(data, name) for name in COLUMNS}} | changed


@pytest.mark.parametrize(
    ("columns", "complaint"),
    [
        (_columns(env_id=np.array("Acrobot-v1")), "wrong.npz is of: write id: Acrobot-v1"),
        (_columns(s=np.zeros((40, 3), np.float32)), r"s is float32 \(40, 3\), CartPole-v1 has \(40, 4\)"),
        (_columns(r=np.zeros(19)), "r is float64"),
        (_columns(a=np.full(40, 2)), "a is not from 0 to 1"),
        (_columns(a=np.zeros(40)), "a is float64"),
        (_columns(a=np.zeros(0, np.int64)), "holds no transitions"),
        (_columns(s=np.full((40, 4), np.nan, np.float32)), "not finite"),
        ({"s": np.zeros((20, 4))}, "is no dataset of transitions"),
        (_columns(s=np.array([None] * 20)), "is no dataset of transitions"),  # a pickle, which is not opened
    ],
)
def test_a_file_that_does_not_fit_is_refused_in_a_line(tmp_path, columns, complaint):
    file = tmp_path / "wrong.npz"
    np.savez(file, **columns)
    with pytest.raises(BadInput, match=complaint) as caught:
        fitted_q(replace(QUICK, dataset=str(file)), CARTPOLE, 1, RecordingMonitor())
    assert "\n" not in str(caught.value)


def test_files_that_are_missing_damaged_or_cannot_be_written_are_refused(tmp_path):
    with pytest.raises(BadInput, match="write save_dataset: "):
        load(str(tmp_path / "none.npz"), CARTPOLE)
    whole, damaged = tmp_path / "whole.npz", tmp_path / "damaged.npz"
    save(collect(CARTPOLE, 50, 1), str(whole))
    damaged.write_bytes(whole.read_bytes()[:-300])
    with pytest.raises(BadInput, match="is no dataset"):
        load(str(damaged), CARTPOLE)
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(BadInput, match="is no dataset"):
        load(str(tmp_path / "one.npy"), CARTPOLE)
    with pytest.raises(BadInput, match="directory is not there"):
        check(replace(QUICK, save_dataset=str(tmp_path / "no" / "x.npz")), CARTPOLE)
    save(collect(CARTPOLE, 29, 1), str(whole))
    with pytest.raises(BadInput, match="holds 29 transitions: write one of at least 30"):
        load(str(whole), CARTPOLE)


def test_spaces_that_do_not_fit_are_refused():
    with pytest.raises(BadInput, match="needs a Discrete action space"):
        fitted_q(QUICK, EnvConfig(id="Pendulum-v1"), 1, RecordingMonitor())


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (dict(regressor="extratrees"), "did you mean 'extra-trees'"),
        (dict(steps=0), "steps is 0"),
        (dict(iterations=0), "iterations is 0"),
        (dict(gamma=1.5), "gamma is 1.5"),
        (dict(evaluate_every=-1), "evaluate_every is -1"),
        (dict(jobs=0), "jobs is 0"),
        (dict(dataset="a.npz", save_dataset="b.npz"), "write the first"),
    ],
)
def test_bad_settings_are_refused(settings, complaint):
    with pytest.raises(BadInput, match=complaint):
        FittedQConfig(**settings)


@pytest.mark.parametrize("settings", [dict(hidden=()), dict(epochs=0), dict(batch=0), dict(learning_rate=0.0)])
def test_bad_settings_of_the_network_are_refused(settings):
    with pytest.raises(BadInput, match=next(iter(settings))):
        NeuralFittedQConfig(**settings)


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.tree", None)
    with pytest.raises(BadInput, match=r"extra `classic`: pip install"):
        make_regressor("tree", 1, 1)
