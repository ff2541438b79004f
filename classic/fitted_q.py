"""Fitted Q-iteration: a sequence of regressions on one dataset (Ernst, Geurts & Wehenkel 2005, figure 1).

    Q_1 is fitted to r;   Q_k+1 is fitted to r + gamma max_a Q_k(s', a), or to r if s' is terminal

Q_k approximates the optimal value over a horizon of k steps.

Legend: the columns of a dataset as in `classic.dataset`; ``q`` [N, A]; ``target`` [N].
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from classic.dataset import Dataset, DatasetConfig, check_dataset, load_or_collect
from classic.interface import ActionValues, Learned, Method, Monitor, Setting, from_values
from classic.regressors import REGRESSORS, Regressor, make_regressor
from rl.bounds import at_least, between
from rl.envs.config import EnvConfig
from rl.envs.make import make_environments, spec_and_actions
from rl.errors import BadSetting, suggestion
from rl.evaluation import evaluate
from rl.policies import greedy
from rl.types import Array, Float64, Int64


@dataclass(frozen=True)
class FittedIterationConfig(DatasetConfig):
    """Settings that fitted Q-iteration has with any regressor."""

    iterations: int = 30
    """Iterations; each fits the regressor to the targets of the previous one."""
    gamma: float = 0.98
    """Discount factor."""
    evaluate_every: int = 3
    """Iterations between evaluations. The values with the best evaluation are returned; 0: no evaluation, and the last
    values are returned."""
    evaluation_episodes: int = 10
    """Episodes of each of these evaluations."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "iterations", "evaluation_episodes")
        between(self, 0, 1, "gamma")
        at_least(self, 0, "evaluate_every", unit="iterations", zero="never")


@dataclass(frozen=True)
class FittedQConfig(FittedIterationConfig):
    """Fitted Q-iteration with a scikit-learn regressor."""

    regressor: str = "extra-trees"
    """Regressor: k-nearest, linear, polynomial, tree, forest, extra-trees or boosting."""
    jobs: int = 1
    """Threads of k-nearest, forest and extra-trees. Boosting uses OMP_NUM_THREADS."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.regressor not in REGRESSORS:
            raise BadSetting(
                type(self), "regressor", f"is {self.regressor!r}: {suggestion(self.regressor, REGRESSORS)}"
            )
        at_least(self, 1, "jobs", unit="thread")


class QModel(Protocol):
    """Action values that can be fitted to targets; callable as `ActionValues`."""

    def fit(self, s: Array, a: Int64, target: Float64) -> float:
        """Fit q(s, a) to the targets: s [N, *observation], a [N], target [N].

        Returns R^2, the explained share of the targets' variance.
        """

    def __call__(self, s: Array) -> Array:
        """Return q [N, A] of observations [N, *observation]."""


def bellman_targets(data: Dataset, q_next: Array, gamma: float) -> Float64:
    """Return r + gamma max_a q_next(a), or r where terminated: q_next [N, A] -> [N] (Ernst et al. 2005, figure 1).

    ``q_next`` are the action values of ``data.s_next``. A truncated transition bootstraps like any other.
    """
    return data.r + gamma * np.where(data.terminated, 0.0, q_next.max(axis=1))


def regressor_inputs(s: Array, a: Int64, actions: int) -> Array:
    """Return the inputs of a regressor for (s, a), float64 [N, D]: s flattened, then a.

    Two actions are one column of 0 or 1; more are one-hot.
    """
    columns = a[:, None] if actions == 2 else np.eye(actions)[a]
    return np.concatenate([s.reshape(len(s), -1), columns], axis=1, dtype=np.float64)


class RegressorModel:
    """q(s, a) as a scikit-learn regressor with the inputs s and a."""

    def __init__(self, regressor: Regressor, actions: int) -> None:
        self._regressor, self._actions = regressor, actions

    def fit(self, s: Array, a: Int64, target: Float64) -> float:
        """Fit the regressor to ``target`` [N] at (s [N, *observation], a [N]); returns R^2."""
        x = regressor_inputs(s, a, self._actions)
        self._regressor.fit(x, target)
        return float(self._regressor.score(x, target))

    def __call__(self, s: Array) -> Array:
        """Return q [N, A] of observations [N, *observation]."""
        a = np.arange(self._actions).repeat(len(s))
        x = regressor_inputs(np.concatenate([s] * self._actions), a, self._actions)
        return self._regressor.predict(x).reshape(self._actions, -1).T


def run_iterations(
    config: FittedIterationConfig, env: EnvConfig, seed: int, monitor: Monitor, model: QModel, data: Dataset
) -> Learned:
    """Fit ``model`` `iterations` times; returns the iteration with the best evaluation, the last if there is none.

    Only the evaluations step the environment.
    """
    seed_rng = np.random.default_rng([seed, 2])
    best, best_return, best_at = model, -np.inf, config.iterations
    scores, evaluated = np.zeros(config.iterations), []
    target = data.r
    for k in range(1, config.iterations + 1):
        scores[k - 1] = model.fit(data.s, data.a, target)
        metrics = {"score": float(scores[k - 1])}
        if config.evaluate_every and k % config.evaluate_every == 0:
            metrics["mean_return"] = mean_greedy_return(
                model, env, config.evaluation_episodes, int(seed_rng.integers(2**31))
            )
            evaluated.append((k, metrics["mean_return"]))
            if metrics["mean_return"] > best_return:
                best, best_return, best_at = copy.deepcopy(model), metrics["mean_return"], k
        monitor.report(k, metrics)
        if k < config.iterations:
            target = bellman_targets(data, model(data.s_next), config.gamma)
    arrays = {"score": scores, "evaluations": np.array(evaluated).reshape(-1, 2)}
    if env.id.startswith("CartPole-"):
        arrays |= cartpole_surface(best)
    return from_values(best, arrays, transitions=len(data), best_iteration=best_at, score=float(scores[best_at - 1]))


def mean_greedy_return(values: ActionValues, env: EnvConfig, episodes: int, seed: int) -> float:
    """Play ``episodes`` episodes with the greedy policy; return their mean undiscounted return."""
    environments = make_environments(env, min(episodes, 10))
    result = evaluate(lambda s: greedy(values(s)), environments, episodes, 0.0, seed)
    environments.close()
    return result.mean_return


def cartpole_surface(values: ActionValues, points: int = 61) -> dict[str, Array]:
    """Return the arrays of CartPole's picture: max_a q and greedy action, both [R, C], velocities [R], angles [C].

    The cart is at rest in the middle. R = C = ``points``. Angles are in rad, up to those at which an episode ends;
    angular velocities in rad/s.
    """
    angle, velocity = np.linspace(-0.21, 0.21, points), np.linspace(-2.0, 2.0, points)
    s = np.zeros((points, points, 4), np.float32)
    s[..., 2], s[..., 3] = angle[None], velocity[:, None]
    q = values(s.reshape(-1, 4)).astype(np.float64)
    return {
        "surface_angle": angle,
        "surface_velocity": velocity,
        "surface_value": q.max(axis=1).reshape(points, points),
        "surface_action": greedy(q).reshape(points, points),
    }


def fitted_q(config: FittedQConfig, env: EnvConfig, seed: int, monitor: Monitor) -> Learned:
    """Fitted Q-iteration with a scikit-learn regressor (Ernst, Geurts & Wehenkel 2005, figure 1).

    Raises BadInput if the dataset does not fit, or if scikit-learn is not installed.
    """
    _, actions = spec_and_actions(env)
    model = RegressorModel(make_regressor(config.regressor, seed, config.jobs), actions)
    data = load_or_collect(config, env, seed)
    return run_iterations(config, env, seed, monitor, model, data)


METHODS = {
    "fitted-q": Method(
        "fitted Q-iteration: a sequence of regressions on one dataset of random steps",
        fitted_q,
        "network",
        (Setting(EnvConfig(id="CartPole-v1"), FittedQConfig(), episodes=10),),
        check_dataset,
    ),
}
