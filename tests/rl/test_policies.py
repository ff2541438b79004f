"""Policies: from action values to actions."""

from __future__ import annotations

import numpy as np
import pytest

from rl.policies import epsilon_greedy, epsilon_greedy_probabilities, greedy, softmax, softmax_probabilities


def test_epsilon_greedy_explores_with_probability_epsilon():
    rng = np.random.default_rng(0)
    q = np.tile(np.array([[0.0, 1.0, 0.0, 0.0]]), (40_000, 1))
    share = (epsilon_greedy(q, 0.2, rng) == 1).mean()
    assert share == pytest.approx(0.8 + 0.2 / 4, abs=0.01)
    assert (epsilon_greedy(q, 0.0, rng) == greedy(q)).all()


def test_softmax_draws_by_its_probabilities():
    rng = np.random.default_rng(0)
    q = np.tile(np.array([[0.0, np.log(3.0)]]), (20_000, 1))
    np.testing.assert_allclose(softmax_probabilities(q[:1], 1.0), [[0.25, 0.75]])
    assert softmax(q, 1.0, rng).mean() == pytest.approx(0.75, abs=0.01)
    with pytest.raises(ValueError, match="positive"):
        softmax(q, 0.0, rng)


def test_of_equal_values_the_first_action_is_taken():
    assert greedy(np.array([[2.0, 5.0, 5.0], [1.0, 1.0, 1.0], [-1.0, -3.0, -0.5]])).tolist() == [1, 0, 2]


def test_each_environment_explores_with_its_own_epsilon():
    q, rng = np.tile(np.array([[0.0, 0.0, 1.0]]), (20_000, 1)), np.random.default_rng(0)
    epsilons = np.tile([0.0, 1.0], 10_000)
    actions = epsilon_greedy(q, epsilons, rng)
    assert (actions[::2] == 2).all()
    assert np.bincount(actions[1::2], minlength=3) / 10_000 == pytest.approx([1 / 3] * 3, abs=0.02)


def test_epsilon_greedy_probabilities():
    got = epsilon_greedy_probabilities(np.array([[0.0, 3.0], [4.0, 4.0]]), 0.2)
    np.testing.assert_allclose(got, [[0.1, 0.8 + 0.1], [0.8 + 0.1, 0.1]])


def test_softmax_of_large_values_and_low_temperatures_does_not_overflow():
    np.testing.assert_allclose(softmax_probabilities(np.array([[1e4, 1e4, 0.0]]), 1.0), [[0.5, 0.5, 0.0]])
    np.testing.assert_allclose(softmax_probabilities(np.array([[1.0, 0.0]]), 1e-3), [[1.0, 0.0]], atol=1e-12)
    cold = softmax_probabilities(np.array([[1.0, 0.0]]), 0.5)
    np.testing.assert_allclose(cold, [[np.e**2 / (np.e**2 + 1), 1 / (np.e**2 + 1)]])
