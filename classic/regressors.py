"""Scikit-learn's regressors by name, for fitted Q-iteration: inputs [N, D] to values [N].

The distance, the powers and the penalty of some depend on the inputs' units, so those regressors scale each input to a
standard deviation of 1; trees do not need it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from rl.errors import BadInput
from rl.types import Array


class Regressor(Protocol):
    """What scikit-learn calls a regressor."""

    def fit(self, x: Array, y: Array) -> Any:
        """Fit y [N] at x [N, D], from scratch."""

    def predict(self, x: Array) -> Array:
        """Values [N] at x [N, D]."""

    def score(self, x: Array, y: Array) -> float:
        """R^2 = 1 - sum (y - predict(x))^2 / sum (y - mean y)^2 of x [N, D] and y [N]; 1 is a perfect fit."""


def _nearest_neighbours(seed: int, jobs: int) -> Regressor:
    from sklearn.neighbors import KNeighborsRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), KNeighborsRegressor(30, n_jobs=jobs))  # type: ignore[no-any-return]


def _linear(seed: int, jobs: int) -> Regressor:
    from sklearn.linear_model import LinearRegression

    return LinearRegression()  # type: ignore[no-any-return]


def _polynomial(seed: int, jobs: int) -> Regressor:
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import PolynomialFeatures, StandardScaler

    return make_pipeline(StandardScaler(), PolynomialFeatures(3), Ridge(1.0))  # type: ignore[no-any-return]


def _tree(seed: int, jobs: int) -> Regressor:
    from sklearn.tree import DecisionTreeRegressor

    return DecisionTreeRegressor(min_samples_leaf=10, random_state=seed)  # type: ignore[no-any-return]


def _forest(seed: int, jobs: int) -> Regressor:
    from sklearn.ensemble import RandomForestRegressor

    return RandomForestRegressor(25, min_samples_leaf=10, random_state=seed, n_jobs=jobs)  # type: ignore[no-any-return]


def _extra_trees(seed: int, jobs: int) -> Regressor:
    from sklearn.ensemble import ExtraTreesRegressor

    return ExtraTreesRegressor(25, min_samples_leaf=10, random_state=seed, n_jobs=jobs)  # type: ignore[no-any-return]


def _boosting(seed: int, jobs: int) -> Regressor:
    from sklearn.ensemble import HistGradientBoostingRegressor

    return HistGradientBoostingRegressor(  # type: ignore[no-any-return]
        max_iter=50, learning_rate=0.2, early_stopping=False, random_state=seed
    )


REGRESSORS: dict[str, Callable[[int, int], Regressor]] = {
    "k-nearest": _nearest_neighbours,
    "linear": _linear,
    "polynomial": _polynomial,
    "tree": _tree,
    "forest": _forest,
    "extra-trees": _extra_trees,
    "boosting": _boosting,
}


def make_regressor(name: str, seed: int, jobs: int) -> Regressor:
    """A regressor of REGRESSORS on ``jobs`` threads. Raises BadInput where scikit-learn is not installed."""
    try:
        return REGRESSORS[name](seed, jobs)
    except ImportError as error:
        raise BadInput('fitted-q needs the extra `classic`: pip install -c constraints.txt -e ".[classic]"') from error
