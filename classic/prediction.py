"""Prediction (policy evaluation): v of a given policy by Monte Carlo and by TD(0), compared with the exact values.

Legend: ``v`` [S]; ``policy`` [S, A] probabilities; G_t the discounted return from step t on.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from classic.interface import Learned, Method, Monitor, Setting
from classic.monte_carlo import discounted_returns
from classic.steps import Step, episode_result, next_episode, play_steps
from classic.value_iteration import Model, check_model, exact_values, q_iteration, reachable_states, true_model
from rl.bounds import at_least, between, positive
from rl.envs.config import EnvConfig
from rl.envs.vector import make_env
from rl.policies import greedy
from rl.types import Bool, Float64, Int64


@dataclass(frozen=True)
class PredictionConfig:
    """Estimate the state values of a given policy."""

    policy: Literal["random", "optimal"] = "random"
    """Policy to evaluate: uniformly random actions, or the optimal policy of the true model."""
    episodes: int = 50_000
    """Episodes of training."""
    gamma: float = 0.9
    """Discount factor, below 1."""
    power: float = 1.0
    """Step size n^-power at the n-th visit of a state. With 1, a value is the mean of its targets. With less, early
    targets count less; TD(0) needs this, because its early targets bootstrap from poor values."""
    tolerance: float = 0.04
    """Largest error of a reachable state's value at which the run counts as solved, in units of return."""

    def __post_init__(self) -> None:
        between(self, 0, 1, "gamma", below=True)
        between(self, 0, 1, "power")
        at_least(self, 1, "episodes")
        positive(self, "tolerance")


def make_policy(name: str, model: Model, gamma: float) -> Float64:
    """Return the policy to evaluate, probabilities [S, A]: "random" is uniform, "optimal" is greedy for q*."""
    states, actions = model.rewards.shape
    if name == "random":
        return np.full((states, actions), 1.0 / actions)
    return np.eye(actions)[greedy(q_iteration(model, gamma, 1e-10))]


def sample_actions(policy: Float64, s: Int64, rng: np.random.Generator) -> Int64:
    """Draw actions [N] from ``policy`` [S, A] in states [N], by inverting the cumulative distribution."""
    is_above = rng.random((len(s), 1)) >= policy[s].cumsum(axis=1)
    return np.asarray(is_above.sum(axis=1).clip(max=policy.shape[1] - 1), dtype=np.int64)


class StateValues:
    """Estimates v [S] of the state values, and the number of visits [S].

    At the n-th visit of s: v(s) += n^-power (target - v(s)). With power 1, v(s) is the mean of its targets; with a
    smaller power, early targets count less (Even-Dar & Mansour 2003).
    """

    def __init__(self, states: int, power: float) -> None:
        self.v, self.visits, self.power = np.zeros(states), np.zeros(states, np.int64), power

    def update(self, s: int, target: float) -> None:
        """Count a visit of s, its n-th, and add n^-power (target - v(s)) to v(s)."""
        self.visits[s] += 1
        self.v[s] += (target - self.v[s]) * float(self.visits[s]) ** -self.power


def learn_monte_carlo(values: StateValues, played: Iterable[Step], gamma: float) -> list[Step]:
    """Play an episode, then update v(s) towards the return G_t of every visit; returns the steps.

    Every-visit Monte Carlo prediction (Sutton & Barto 2018, section 5.1). A truncated episode bootstraps from v of its
    last observation.
    """
    episode = list(played)
    bootstrap = 0.0 if episode[-1].terminated else float(values.v[episode[-1].s_next])
    for step, g in zip(episode, discounted_returns([step.reward for step in episode], gamma, bootstrap), strict=True):
        values.update(step.s, g)
    return episode


def learn_td0(values: StateValues, played: Iterable[Step], gamma: float) -> list[Step]:
    """Play an episode and update v(s) towards r + gamma v(s') after each step; returns the steps.

    TD(0) (Sutton & Barto 2018, section 6.1, equation 6.2). The value of a terminal state is 0; a truncated episode
    bootstraps.
    """
    episode = []
    for step in played:
        values.update(step.s, step.reward + (0.0 if step.terminated else gamma * values.v[step.s_next]))
        episode.append(step)
    return episode


def value_errors(v: Float64, exact: Float64, reachable: Bool) -> dict[str, float]:
    """Return maximum and root mean square of |v - exact| over the states in the mask ``reachable``; all are [S]."""
    error = np.abs(v - exact)[reachable]
    return {"max_error": float(error.max()), "rms_error": float(np.sqrt(np.square(error).mean()))}


LearnEpisode = Callable[[StateValues, Iterable[Step], float], list[Step]]


def _predict(config: PredictionConfig, env: EnvConfig, seed: int, monitor: Monitor, learn: LearnEpisode) -> Learned:
    environment = make_env(env, "table")
    model = true_model(environment, env.id)
    policy = make_policy(config.policy, model, config.gamma)
    exact, values = exact_values(model, policy, config.gamma), StateValues(len(policy), config.power)
    reachable = reachable_states(model, policy, int(environment.reset(seed=seed)[0]))
    rng, cumulative = np.random.default_rng([seed, 0]), policy.cumsum(axis=1)[:, :-1].tolist()
    stream = play_steps(environment, lambda s: bisect_right(cumulative[s], rng.random()), seed)
    for number in range(1, config.episodes + 1):
        episode = learn(values, next_episode(stream), config.gamma)
        monitor.episode(episode_result(episode, float(config.policy == "random")))
        if number % max(config.episodes // 100, 1) == 0:
            monitor.report(number, value_errors(values.v, exact, reachable))
    environment.close()
    metrics, evaluation_rng = value_errors(values.v, exact, reachable), np.random.default_rng([seed, 1])
    return Learned(
        lambda observations: sample_actions(policy, observations.astype(np.int64), evaluation_rng),
        arrays={"v": values.v, "v_exact": exact, "visits": values.visits},
        metrics={**metrics, "solved": metrics["max_error"] <= config.tolerance},
    )


def mc_prediction(config: PredictionConfig, env: EnvConfig, seed: int, monitor: Monitor) -> Learned:
    """Monte Carlo prediction: v(s) += n^-power (G - v(s)), with the return G from s on.

    Sutton & Barto 2018, section 5.1. Returns v, the exact values and the visits, all [S]; `policy` is the given one.
    Raises BadInput without a true model.
    """
    return _predict(config, env, seed, monitor, learn_monte_carlo)


def td0(config: PredictionConfig, env: EnvConfig, seed: int, monitor: Monitor) -> Learned:
    """TD(0): v(s) += n^-power (r + gamma v(s') - v(s)) (Sutton 1988; Sutton & Barto 2018, section 6.1, equation 6.2).

    Returns v, the exact values and the visits, all [S]; `policy` is the given one. Raises BadInput without a true
    model.
    """
    return _predict(config, env, seed, monitor, learn_td0)


FROZEN_LAKE = EnvConfig(id="FrozenLake-v1")

METHODS = {
    "mc-prediction": Method(
        "values of a given policy, by Monte Carlo",
        mc_prediction,
        "table",
        (Setting(FROZEN_LAKE, PredictionConfig()),),
        check_model,
        headline="max_error",
    ),
    "td0": Method(
        "values of a given policy, by TD(0)",
        td0,
        "table",
        (Setting(FROZEN_LAKE, PredictionConfig(power=0.8)),),
        check_model,
        headline="max_error",
    ),
}
