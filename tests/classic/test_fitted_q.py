"""Fitted Q-iteration: targets by hand, each regressor, dataset files, and a problem small enough to solve exactly."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest

from classic.dataset import COLUMNS, Dataset, check_dataset, collect, load, save
from classic.fitted_q import (
    FittedQConfig,
    RegressorModel,
    bellman_targets,
    cartpole_surface,
    fitted_q,
    regressor_inputs,
    run_iterations,
)
from classic.interface import RecordingMonitor
from classic.neural_fitted_q import NetworkModel, NeuralFittedQConfig, neural_fitted_q
from classic.regressors import REGRESSORS, make_regressor
from rl.envs.config import EnvConfig
from rl.errors import BadInput

CARTPOLE = EnvConfig(id="CartPole-v1")
QUICK = FittedQConfig(steps=400, iterations=4, evaluate_every=2, evaluation_episodes=3, regressor="tree")


def chain(repeats: int = 1) -> Dataset:
    """States 0 -> 1 -> 2 -> end by action 1, with rewards 1, 2, 4; action 0 stays, with reward 0; in 2 it is truncated."""
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
    np.testing.assert_allclose(bellman_targets(chain(), q_next, 0.9), expected)


def test_two_actions_are_one_column_and_more_are_one_hot():
    s, a = np.array([[[5.0], [6.0]], [[7.0], [8.0]]]), np.array([1, 0])
    np.testing.assert_array_equal(regressor_inputs(s, a, 2), [[5, 6, 1], [7, 8, 0]])
    np.testing.assert_array_equal(regressor_inputs(s, a, 3), [[5, 6, 0, 1, 0], [7, 8, 1, 0, 0]])


def test_an_unlimited_tree_finds_the_exact_values():
    from sklearn.tree import DecisionTreeRegressor

    data, config = chain(), replace(QUICK, iterations=3, gamma=0.9, evaluate_every=0)
    model, seen = RegressorModel(DecisionTreeRegressor(random_state=0), 2), RecordingMonitor()
    learned = run_iterations(config, EnvConfig(id="chain"), 1, seen, model, data)
    v0, v1, v2 = 1 + 0.9 * 2 + 0.9**2 * 4, 2 + 0.9 * 4, 4
    stays = [0.9 * (1 + 0.9 * 2), 0.9 * v1, 0.9 * v2]  # three iterations look three steps ahead
    np.testing.assert_allclose(learned.values(np.array([[0.0], [1.0], [2.0]])), np.stack([stays, [v0, v1, v2]], axis=1))
    assert [row["score"] for _, row in seen.rows] == [1.0, 1.0, 1.0]
    assert learned.metrics["best_iteration"] == 3


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", REGRESSORS)
def test_every_regressor_is_reproducible(name):
    data = collect(CARTPOLE, 300, seed=1)
    config = replace(QUICK, regressor=name, evaluate_every=0)

    def values():
        model = RegressorModel(make_regressor(name, 1, 1), 2)
        return run_iterations(config, CARTPOLE, 1, RecordingMonitor(), model, data).values(data.s[:5])

    q = values()
    assert q.shape == (5, 2)
    assert np.isfinite(q).all()
    np.testing.assert_array_equal(q, values())


def test_the_best_iteration_is_returned_with_its_surface():
    seen = RecordingMonitor()
    learned = fitted_q(QUICK, CARTPOLE, 1, seen)
    evaluated = {k: row["mean_return"] for k, row in seen.rows if "mean_return" in row}
    assert list(evaluated) == [2, 4]
    assert learned.metrics["best_iteration"] == max(evaluated, key=evaluated.get)
    np.testing.assert_array_equal(learned.arrays["evaluations"], list(evaluated.items()))
    alone = fitted_q(
        replace(QUICK, iterations=learned.metrics["best_iteration"], evaluate_every=0), CARTPOLE, 1, RecordingMonitor()
    )
    some = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    np.testing.assert_array_equal(learned.values(some), alone.values(some))  # those of that iteration, not of the last
    q = learned.values(np.array([[0.0, 0.0, 0.21, -2.0]], np.float32))[0]
    assert learned.arrays["surface_value"][0, -1] == q.max()
    assert learned.arrays["surface_action"][0, -1] == q.argmax()
    assert cartpole_surface(learned.values, 5)["surface_value"].shape == (5, 5)


def test_more_than_two_actions_and_images_are_accepted():
    env = EnvConfig(id="qfleet/GridWorld-v0")
    learned = fitted_q(replace(QUICK, steps=200), env, 1, RecordingMonitor())
    assert learned.policy(np.zeros((3, 2, 4, 4), np.float32)).shape == (3,)
    assert "surface_value" not in learned.arrays


def test_a_network_fits_the_chain_and_is_reproducible():
    data = chain(repeats=10)
    config = NeuralFittedQConfig(iterations=5, epochs=20, batch=16, learning_rate=0.01, gamma=0.9, evaluate_every=0)

    def values():
        network = NetworkModel(config, data, 2, seed=1)
        learned = run_iterations(config, EnvConfig(id="chain"), 1, RecordingMonitor(), network, data)
        return learned.values(np.array([[0.0], [1.0], [2.0]], np.float32)), learned.metrics["score"]

    q, score = values()
    np.testing.assert_allclose(q[:, 1], [1 + 0.9 * 2 + 0.9**2 * 4, 2 + 0.9 * 4, 4], atol=0.2)
    assert 0.99 < score <= 1.0
    np.testing.assert_array_equal(q, values()[0])


def test_neural_fitted_q_runs_on_cartpole():
    config = NeuralFittedQConfig(steps=500, iterations=2, evaluate_every=2, evaluation_episodes=2)
    assert neural_fitted_q(config, CARTPOLE, 1, RecordingMonitor()).metrics["best_iteration"] == 2


def test_collected_transitions_are_correct_and_reproducible():
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


def test_a_dataset_is_saved_loaded_and_learned_from(tmp_path):
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
    ("columns", "message"),
    [
        (_columns(env_id=np.array("Acrobot-v1")), "wrong.npz is a dataset of Acrobot-v1: write id: Acrobot-v1"),
        (
            _columns(s=np.zeros((40, 3), np.float32)),
            r"s is float32 of shape \(40, 3\), but CartPole-v1 needs shape \(40, 4\)",
        ),
        (_columns(r=np.zeros(19)), "r is float64"),
        (_columns(a=np.full(40, 2)), "a has actions outside 0 to 1"),
        (_columns(a=np.zeros(40)), "a is float64"),
        (_columns(a=np.zeros(0, np.int64)), "has no transitions"),
        (_columns(s=np.full((40, 4), np.nan, np.float32)), "has NaN or infinite numbers"),
        ({"s": np.zeros((20, 4))}, "is not a dataset of transitions"),
        (_columns(s=np.array([None] * 20)), "is not a dataset of transitions"),  # a pickle, which is not opened
    ],
)
def test_a_file_that_does_not_fit_is_rejected(tmp_path, columns, message):
    file = tmp_path / "wrong.npz"
    np.savez(file, **columns)
    with pytest.raises(BadInput, match=message) as caught:
        fitted_q(replace(QUICK, dataset=str(file)), CARTPOLE, 1, RecordingMonitor())
    assert "\n" not in str(caught.value)


def test_missing_damaged_and_unwritable_files_are_rejected(tmp_path):
    with pytest.raises(BadInput, match="or save_dataset: "):
        load(str(tmp_path / "none.npz"), CARTPOLE)
    whole, damaged = tmp_path / "whole.npz", tmp_path / "damaged.npz"
    save(collect(CARTPOLE, 50, 1), str(whole))
    damaged.write_bytes(whole.read_bytes()[:-300])
    with pytest.raises(BadInput, match="is not a dataset"):
        load(str(damaged), CARTPOLE)
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(BadInput, match="is not a dataset"):
        load(str(tmp_path / "one.npy"), CARTPOLE)
    with pytest.raises(BadInput, match="in a directory that does not exist"):
        check_dataset(replace(QUICK, save_dataset=str(tmp_path / "no" / "x.npz")), CARTPOLE)
    save(collect(CARTPOLE, 29, 1), str(whole))
    with pytest.raises(BadInput, match="has 29 transitions: write a file with at least 30"):
        load(str(whole), CARTPOLE)


def test_spaces_that_do_not_fit_are_rejected():
    with pytest.raises(BadInput, match="write an environment with Discrete actions"):
        fitted_q(QUICK, EnvConfig(id="Pendulum-v1"), 1, RecordingMonitor())


@pytest.mark.parametrize(
    ("settings", "message"),
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
def test_bad_settings_are_rejected(settings, message):
    with pytest.raises(BadInput, match=message):
        FittedQConfig(**settings)


@pytest.mark.parametrize("settings", [dict(hidden=()), dict(epochs=0), dict(batch=0), dict(learning_rate=0.0)])
def test_bad_settings_of_the_network_are_rejected(settings):
    with pytest.raises(BadInput, match=next(iter(settings))):
        NeuralFittedQConfig(**settings)


def test_without_scikit_learn_the_message_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.tree", None)
    with pytest.raises(BadInput, match=r"extra `classic`: pip install"):
        make_regressor("tree", 1, 1)
