"""Monte Carlo control: action values are averages of the returns of whole episodes (Sutton & Barto 2018, chapter 5).

Legend: ``q`` [S, A]; G_t the discounted return from step t on, in an episode of T steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import gymnasium as gym
import numpy as np

from classic.interface import Learned, Method, Monitor, Setting, from_values
from classic.steps import Step, episode_result, next_episode, play_steps
from classic.tables import QTable
from rl.bounds import at_least, between
from rl.envs.config import EnvConfig
from rl.envs.vector import make_env
from rl.schedules import decayed
from rl.types import Float64


@dataclass(frozen=True)
class MonteCarloConfig:
    """On-policy every-visit Monte Carlo control with an epsilon-greedy policy."""

    episodes: int = 50_000
    """Episodes of training."""
    gamma: float = 0.9
    """Discount factor."""
    average: Literal["step-size", "mean"] = "step-size"
    """How returns are averaged: with a constant step size, or as the mean of all returns."""
    alpha: float = 0.1
    """Constant step size (only with average step-size)."""
    epsilon: float = 1.0
    """Probability of a random action in the first episode."""
    epsilon_end: float = 0.05
    """Lower bound of epsilon."""
    epsilon_decay: float = 0.9999
    """Factor by which epsilon is multiplied after each episode; 1: constant."""
    initial: float = 0.0
    """Initial action value."""

    def __post_init__(self) -> None:
        between(self, 0, 1, "gamma", "alpha", "epsilon", "epsilon_end", "epsilon_decay")
        at_least(self, 1, "episodes")


def discounted_returns(rewards: Sequence[float], gamma: float, bootstrap: float) -> Float64:
    """Return G_t = r_{t+1} + gamma G_{t+1} for every step: rewards [T] -> [T] (Sutton & Barto 2018, equation 3.9).

    ``bootstrap`` is G_T: 0 if the episode terminated, the value of its last state if it was truncated.
    """
    g, result = bootstrap, np.empty(len(rewards))
    for t in reversed(range(len(rewards))):
        g = result[t] = rewards[t] + gamma * g
    return result


class _ReturnAverages:
    """Averages returns: q(s, a) += (G - q(s, a)) / n(s, a), or with alpha instead of 1 / n."""

    def __init__(self, config: MonteCarloConfig, space: gym.Space[Any], actions: int) -> None:
        self.c = config
        self.q, self.visits = QTable(space, actions, config.initial), QTable(space, actions)

    def learn(self, played: Sequence[Step]) -> None:
        """Update q for every visit. A truncated episode bootstraps from the greedy value of its last state."""
        last = played[-1]
        bootstrap = 0.0 if last.terminated else float(self.q.row(last.s_next).max())
        for step, g in zip(
            played, discounted_returns([step.reward for step in played], self.c.gamma, bootstrap), strict=True
        ):
            q, visits = self.q.row(step.s), self.visits.row(step.s)
            visits[step.a] += 1
            q[step.a] += (g - q[step.a]) * (self.c.alpha if self.c.average == "step-size" else 1.0 / visits[step.a])


def monte_carlo(config: MonteCarloConfig, env: EnvConfig, seed: int, monitor: Monitor) -> Learned:
    """On-policy Monte Carlo control (Sutton & Barto 2018, section 5.4, with every visit instead of the first).

    Plays each episode epsilon-greedily, then updates q(s, a) += alpha (G - q(s, a)), with 1 / n(s, a) instead of alpha
    if the mean is asked for. Returns q [S, A] and its greedy policy.
    """
    environment = make_env(env, "table")
    assert isinstance(environment.action_space, gym.spaces.Discrete)
    actions, rng = int(environment.action_space.n), np.random.default_rng([seed, 0])
    averages, epsilon = _ReturnAverages(config, environment.observation_space, actions), config.epsilon

    def act(s: Any) -> int:
        random = rng.random() < epsilon
        return int(rng.integers(actions)) if random else int(averages.q.row(s).argmax())

    stream = play_steps(environment, act, seed)
    for number in range(config.episodes):
        epsilon = decayed(config.epsilon, config.epsilon_end, config.epsilon_decay, number)
        played = list(next_episode(stream))
        averages.learn(played)
        monitor.episode(episode_result(played, epsilon))
    environment.close()
    return from_values(averages.q, {"q": averages.q.q})


# A mean never forgets: with epsilon near 1 at first, returns of random play would lower the value of hitting.
BLACKJACK = MonteCarloConfig(
    episodes=250_000, gamma=1.0, average="mean", epsilon=0.2, epsilon_end=0.1, epsilon_decay=0.999997
)

METHODS = {
    "monte-carlo": Method(
        "Monte Carlo control: learns from the returns of whole episodes",
        monte_carlo,
        "table",
        (
            Setting(EnvConfig(id="qfleet/GridWorld-v0"), MonteCarloConfig()),
            Setting(EnvConfig(id="Blackjack-v1"), BLACKJACK, episodes=100_000),
        ),
    ),
}
