"""Scikit-learn's regressors: what each can fit, reproducibility, and units of the inputs."""

from __future__ import annotations

import numpy as np
import pytest

from classic.regressors import REGRESSORS, make_regressor

pytest.importorskip("sklearn")
CURVED = [name for name in REGRESSORS if name != "linear"]


def data(rng, units=(1.0, 1.0), points=400):
    """Return x [N, 2] in ``units``, and y [N], a quadratic surface over x."""
    x = rng.uniform(-1, 1, (points, 2))
    return x * units, x[:, 0] ** 2 + 0.5 * x[:, 1]


@pytest.mark.parametrize("name", CURVED)
def test_all_but_linear_fit_a_quadratic_surface(name, rng):
    x, y = data(rng)
    model, line = (make_regressor(n, 1, 1).fit(x, y) for n in (name, "linear"))
    unseen, true = data(rng)
    assert model.score(unseen, true) > 0.8 > 0.6 > line.score(unseen, true)


@pytest.mark.parametrize("name", ["k-nearest", "polynomial"])
def test_predictions_do_not_depend_on_the_units_of_the_inputs(name, rng):
    x, y = data(rng)
    predictions = [
        make_regressor(name, 1, 1).fit(x * units, y).predict(x[:20] * units) for units in ([1.0, 1.0], [1000.0, 0.01])
    ]
    np.testing.assert_allclose(*predictions)


@pytest.mark.parametrize("name", ["forest", "extra-trees"])
def test_forests_are_reproducible(name, rng):
    x, y = data(rng)
    one, again, other = (make_regressor(name, seed, 1).fit(x, y).predict(x) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()
