"""Importance weights and the schedule of their exponent."""

from __future__ import annotations

import numpy as np
import pytest

from replay.importance_weights import BetaConfig, importance_weights
from rl.errors import BadInput


def test_weights_undo_the_bias_of_the_draws():
    """With beta = 1 each weight is 1 / P(i), divided by the largest weight, which the rarest item has."""
    probability = np.array([0.5, 0.25, 0.125])
    np.testing.assert_allclose(importance_weights(probability, 1.0), [0.125 / 0.5, 0.125 / 0.25, 1.0])
    np.testing.assert_allclose(importance_weights(probability, 0.5), [(0.125 / 0.5) ** 0.5, 0.5**0.5, 1.0], rtol=1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_uniform_draws_have_weight_1(beta):
    weights = importance_weights(np.full(4, 1 / 1_000_000), beta)
    assert weights.dtype == np.float32
    assert weights.tolist() == [1.0] * 4


def test_small_probabilities_do_not_overflow():
    weights = importance_weights(np.array([1e-39, 1e-3], np.float32), 1.0)
    np.testing.assert_allclose(weights, [1.0, 1e-36], rtol=1e-4)


def test_beta_is_linear_and_then_constant():
    beta = BetaConfig(start=0.4, end=1.0, batches=100)
    assert [beta.at(n) for n in (0, 50, 100, 1_000)] == pytest.approx([0.4, 0.7, 1.0, 1.0])
    assert BetaConfig(0.4, 0.4).at(77) == pytest.approx(0.4)


@pytest.mark.parametrize("bad", [{"start": -0.1}, {"end": 1.1}, {"batches": 0}])
def test_bad_settings_are_rejected(bad):
    with pytest.raises(BadInput, match=next(iter(bad))):
        BetaConfig(**bad)
