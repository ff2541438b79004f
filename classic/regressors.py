"""Scikit-learn regressors by name, for fitted Q-iteration.

k-nearest and polynomial depend on the units of the inputs (distances, penalty), so they standardize each input first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from rl.errors import BadInput
from rl.types import Array


class Regressor(Protocol):
    """The interface of scikit-learn's regressors."""

    def fit(self, x: Array, y: Array) -> Any:
        """Fit y [N] at x [N, D]; forgets earlier fits."""

    def predict(self, x: Array) -> Array:
        """Return the predictions [N] at x [N, D]."""

    def score(self, x: Array, y: Array) -> float:
        """Return R^2 = 1 - sum (y - predict(x))^2 / sum (y - mean y)^2 for x [N, D], y [N]; 1 is a perfect fit."""


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


REGRESSORS: dict[str, Callable[[int, int], Regressor]] = {  # functions of (seed, jobs)
    "k-nearest": _nearest_neighbours,
    "linear": _linear,
    "polynomial": _polynomial,
    "tree": _tree,
    "forest": _forest,
    "extra-trees": _extra_trees,
    "boosting": _boosting,
}


def make_regressor(name: str, seed: int, jobs: int) -> Regressor:
    """Create a regressor by its name in REGRESSORS; it uses ``jobs`` threads.

    Raises BadInput if scikit-learn is not installed.
    """
    try:
        return REGRESSORS[name](seed, jobs)
    except ImportError as error:
        raise BadInput('fitted-q needs the extra `classic`: pip install -c constraints.txt -e ".[classic]"') from error
