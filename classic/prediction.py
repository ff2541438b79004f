"""Prediction: the value of a given policy, by Monte-Carlo and by TD(0), beside the exact solution.

Legend: ``v`` [S]; ``policy`` [S, A] probabilities; G_t the return that followed step t.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from classic.interface import Learned, Method, Monitor, Setting
from classic.monte_carlo import returns
from classic.steps import Step, episode, result, steps
from classic.value_iteration import Model, check_model, exact_values, q_iteration, reachable, true_model
from rl.bounds import at_least, between, positive
from rl.envs.config import EnvConfig
from rl.envs.vector import make_env
from rl.policies import greedy
from rl.types import Bool, Float64, Int64


@dataclass(frozen=True)
class PredictionConfig:
    """Values of one policy."""

    policy: Literal["random", "optimal"] = "random"
    """Whose values: every action with the same probability, or the optimal policy of the true model."""
    episodes: int = 50_000
    """Episodes played."""
    gamma: float = 0.9
    """Discount a step, below 1."""
    power: float = 1.0
    """Step size n^-power at a state's n-th visit; 1: the mean; TD(0) wants less, to forget its first guesses."""
    tolerance: float = 0.04
    """Largest error, over the states that the policy can come to, that counts as solved, in units of return."""

    def __post_init__(self) -> None:
        between(self, 0, 1, "gamma", below=True)
        between(self, 0, 1, "power")
        at_least(self, 1, "episodes")
        positive(self, "tolerance")


def given_policy(name: str, model: Model, gamma: float) -> Float64:
    """The policy to predict, probabilities [S, A]: uniform, or the greedy one of the model's optimal values."""
    states, actions = model.rewards.shape
    if name == "random":
        return np.full((states, actions), 1.0 / actions)
    return np.eye(actions)[greedy(q_iteration(model, gamma, 1e-10))]


def sampled(policy: Float64, s: Int64, rng: np.random.Generator) -> Int64:
    """Actions [N] drawn by ``policy`` [S, A] in states [N]."""
    beyond = rng.random((len(s), 1)) >= policy[s].cumsum(axis=1)
    return np.asarray(beyond.sum(axis=1).clip(max=policy.shape[1] - 1), dtype=np.int64)


class Values:
    """v [S] of the states, and how often each was visited.

    At the n-th visit of s: v(s) += n^-power (target - v(s)). Power 1 is the mean of the targets; a smaller one forgets the
    first of them (Even-Dar & Mansour 2003).
    """

    def __init__(self, states: int, power: float) -> None:
        self.v, self.visits, self.power = np.zeros(states), np.zeros(states, np.int64), power

    def move(self, s: int, target: float) -> None:
        """v(s) += n^-power (target - v(s)), at the n-th visit of s."""
        self.visits[s] += 1
        self.v[s] += (target - self.v[s]) * float(self.visits[s]) ** -self.power


def mc_learn(values: Values, played: Iterable[Step], gamma: float) -> list[Step]:
    """Targets G_t, at every visit of an episode that has ended (Sutton & Barto 2018, 5.1); returns its steps.

    A truncated episode bootstraps from v of its last observation.
    """
    seen = list(played)
    bootstrap = 0.0 if seen[-1].terminated else float(values.v[seen[-1].s_next])
    for step, g in zip(seen, returns([step.reward for step in seen], gamma, bootstrap), strict=True):
        values.move(step.s, g)
    return seen


def td0_learn(values: Values, played: Iterable[Step], gamma: float) -> list[Step]:
    """Targets r + gamma v(s'), at every step while the episode is played (Sutton & Barto 2018, 6.1); returns its steps.

    A terminal state is worth 0; a truncated episode bootstraps.
    """
    seen = []
    for step in played:
        values.move(step.s, step.reward + (0.0 if step.terminated else gamma * values.v[step.s_next]))
        seen.append(step)
    return seen


def errors(v: Float64, exact: Float64, counted: Bool) -> dict[str, float]:
    """The largest and the root-mean-square |v - exact|, both [S], over the states that are ``counted`` [S]."""
    off = np.abs(v - exact)[counted]
    return {"max_error": float(off.max()), "rms_error": float(np.sqrt(np.square(off).mean()))}


Learn = Callable[[Values, Iterable[Step], float], list[Step]]


def _predict(config: PredictionConfig, env: EnvConfig, seed: int, monitor: Monitor, learn: Learn) -> Learned:
    played_in = make_env(env, "table")
    model = true_model(played_in, env.id)
    policy = given_policy(config.policy, model, config.gamma)
    exact, values = exact_values(model, policy, config.gamma), Values(len(policy), config.power)
    counted = reachable(model, policy, int(played_in.reset(seed=seed)[0]))
    rng, cumulative = np.random.default_rng([seed, 0]), policy.cumsum(axis=1)[:, :-1].tolist()
    stream = steps(played_in, lambda s: bisect_right(cumulative[s], rng.random()), seed)
    for number in range(1, config.episodes + 1):
        seen = learn(values, episode(stream), config.gamma)
        monitor.episode(result(seen, float(config.policy == "random")))
        if number % max(config.episodes // 100, 1) == 0:
            monitor.report(number, errors(values.v, exact, counted))
    played_in.close()
    figures, evaluated = errors(values.v, exact, counted), np.random.default_rng([seed, 1])
    return Learned(
        lambda observations: sampled(policy, observations.astype(np.int64), evaluated),
        arrays={"v": values.v, "v_exact": exact, "visits": values.visits},
        figures={**figures, "solved": figures["max_error"] <= config.tolerance},
    )


def mc_prediction(config: PredictionConfig, env: EnvConfig, seed: int, monitor: Monitor) -> Learned:
    """v(s) += n^-power (G - v(s)), G the return that followed s (Sutton & Barto 2018, 5.1). Raises BadInput."""
    return _predict(config, env, seed, monitor, mc_learn)


def td0(config: PredictionConfig, env: EnvConfig, seed: int, monitor: Monitor) -> Learned:
    """v(s) += n^-power (r + gamma v(s') - v(s)) (Sutton 1988; Sutton & Barto 2018, 6.1). Raises BadInput."""
    return _predict(config, env, seed, monitor, td0_learn)


FROZEN_LAKE = EnvConfig(id="FrozenLake-v1")

METHODS = {
    "mc-prediction": Method(
        "values of a given policy by Monte-Carlo",
        mc_prediction,
        "table",
        (Setting(FROZEN_LAKE, PredictionConfig()),),
        check_model,
        headline="max_error",
    ),
    "td0": Method(
        "values of a given policy by TD(0)",
        td0,
        "table",
        (Setting(FROZEN_LAKE, PredictionConfig(power=0.8)),),
        check_model,
        headline="max_error",
    ),
}
