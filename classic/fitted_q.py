"""Fitted Q-iteration: Q-learning as a sequence of regressions over one dataset (Ernst, Geurts & Wehenkel 2005, figure 1).

    Q_1 is fitted to r,   Q_k+1 to r + gamma max_a Q_k(s', a),   r alone where s' is terminal

Legend: columns of the dataset as in `classic.dataset`; ``q`` [N, A]; ``target`` [N]. Q_k looks k steps ahead.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from classic.dataset import Dataset, DatasetConfig, check, transitions
from classic.interface import ActionValues, Learned, Method, Monitor, Setting, from_values
from classic.regressors import REGRESSORS, Regressor, make_regressor
from rl.bounds import at_least, between
from rl.envs.config import EnvConfig
from rl.envs.make import describe, make_environments
from rl.errors import BadSetting, nearest
from rl.evaluation import evaluate
from rl.policies import greedy
from rl.types import Array, Float64, Int64


@dataclass(frozen=True)
class BatchConfig(DatasetConfig):
    """Learning from one dataset of random steps, an iteration at a time."""

    iterations: int = 30
    """Regressions, each upon the values of the one before."""
    gamma: float = 0.98
    """Discount a step."""
    evaluate_every: int = 3
    """Iterations between evaluations of fresh episodes, of which the best one's values are kept; 0: no evaluation, the last
    iteration's values are kept."""
    evaluation_episodes: int = 10
    """Episodes of such an evaluation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "iterations", "evaluation_episodes")
        between(self, 0, 1, "gamma")
        at_least(self, 0, "evaluate_every", unit="iterations", zero="never")


@dataclass(frozen=True)
class FittedQConfig(BatchConfig):
    """Fitted Q-iteration with a regressor of scikit-learn."""

    regressor: str = "extra-trees"
    """k-nearest, linear, polynomial, tree, forest, extra-trees, or boosting."""
    jobs: int = 1
    """Threads of k-nearest, forest and extra-trees (boosting obeys OMP_NUM_THREADS)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.regressor not in REGRESSORS:
            raise BadSetting(type(self), "regressor", f"is {self.regressor!r}: {nearest(self.regressor, REGRESSORS)}")
        at_least(self, 1, "jobs", unit="thread")


class Model(Protocol):
    """Action values that are fitted to targets; calls as `ActionValues`."""

    def fit(self, s: Array, a: Int64, target: Float64) -> float:
        """Fit q(s, a) to the targets: s [N, *observation], a [N], target [N].

        Returns R^2, the share of the targets' variance that is explained.
        """

    def __call__(self, s: Array) -> Array:
        """q [N, A] of observations [N, *observation]."""


def targets(data: Dataset, q_next: Array, gamma: float) -> Float64:
    """r + gamma max_a q(s', a), r alone where terminated: q_next [N, A] -> [N] (Ernst et al. 2005, figure 1).

    A truncated step bootstraps as any other does.
    """
    return data.r + gamma * np.where(data.terminated, 0.0, q_next.max(axis=1))


def inputs(s: Array, a: Int64, actions: int) -> Array:
    """A regressor's inputs for (s, a), float64 [N, D]: s flat, then a as 0 or 1, one-hot where there are more."""
    columns = a[:, None] if actions == 2 else np.eye(actions)[a]
    return np.concatenate([s.reshape(len(s), -1), columns], axis=1, dtype=np.float64)


class Regression:
    """q(s, a) by a regressor over states and actions."""

    def __init__(self, regressor: Regressor, actions: int) -> None:
        self._regressor, self._actions = regressor, actions

    def fit(self, s: Array, a: Int64, target: Float64) -> float:
        """Fit the regressor to ``target`` [N] at (s [N, *observation], a [N]); returns R^2."""
        x = inputs(s, a, self._actions)
        self._regressor.fit(x, target)
        return float(self._regressor.score(x, target))

    def __call__(self, s: Array) -> Array:
        """q [N, A] of observations [N, *observation]."""
        a = np.arange(self._actions).repeat(len(s))
        every = inputs(np.concatenate([s] * self._actions), a, self._actions)
        return self._regressor.predict(every).reshape(self._actions, -1).T


def iterate(config: BatchConfig, env: EnvConfig, seed: int, monitor: Monitor, model: Model, data: Dataset) -> Learned:
    """Fit ``model`` again and again; returns the best of the iterations that were evaluated (the last, if none was).

    Learning from a dataset takes no other steps in the environment than these evaluations.
    """
    draws = np.random.default_rng([seed, 2])
    best, best_return, best_at = model, -np.inf, config.iterations
    scores, evaluated = np.zeros(config.iterations), []
    target = data.r
    for k in range(1, config.iterations + 1):
        scores[k - 1] = model.fit(data.s, data.a, target)
        figures = {"score": float(scores[k - 1])}
        if config.evaluate_every and k % config.evaluate_every == 0:
            figures["mean_return"] = play(model, env, config.evaluation_episodes, int(draws.integers(2**31)))
            evaluated.append((k, figures["mean_return"]))
            if figures["mean_return"] > best_return:
                best, best_return, best_at = copy.deepcopy(model), figures["mean_return"], k
        monitor.report(k, figures)
        if k < config.iterations:
            target = targets(data, model(data.s_next), config.gamma)
    arrays = {"score": scores, "evaluations": np.array(evaluated).reshape(-1, 2)}
    if env.id.startswith("CartPole-"):
        arrays |= surface(best)
    return from_values(best, arrays, transitions=len(data), best_iteration=best_at, score=float(scores[best_at - 1]))


def play(values: ActionValues, env: EnvConfig, episodes: int, seed: int) -> float:
    """Mean undiscounted return of the greedy policy over ``episodes`` episodes."""
    environments = make_environments(env, min(episodes, 10))
    result = evaluate(lambda s: greedy(values(s)), environments, episodes, 0.0, seed)
    environments.close()
    return result.mean_return


def surface(values: ActionValues, points: int = 61) -> dict[str, Array]:
    """max_a q and the greedy action over CartPole's pole angle (rad) and angular velocity (rad/s), cart at rest at 0.

    Value and action are [velocity, angle], ``points`` each; the angles end where the pole counts as fallen.
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
    """Fitted Q-iteration by trees, neighbours or polynomials (Ernst, Geurts & Wehenkel 2005, figure 1).

    Raises BadInput where the dataset does not fit or scikit-learn is missing.
    """
    _, actions = describe(env)
    model = Regression(make_regressor(config.regressor, seed, config.jobs), actions)
    data = transitions(config, env, seed)
    return iterate(config, env, seed, monitor, model, data)


METHODS = {
    "fitted-q": Method(
        "a regression after another over one dataset of random steps",
        fitted_q,
        "network",
        (Setting(EnvConfig(id="CartPole-v1"), FittedQConfig(), episodes=10),),
        check,
    ),
}
