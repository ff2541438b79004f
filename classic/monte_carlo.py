"""Monte-Carlo control: values are averages of whole episodes' returns; only a truncated episode bootstraps.

Legend: ``q`` [S, A]; G_t the return that followed step t of an episode of T steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import gymnasium as gym
import numpy as np

from classic.interface import Learned, Method, Monitor, Setting, from_values
from classic.steps import Step, episode, result, steps
from classic.tables import QTable
from rl.bounds import at_least, between
from rl.envs.config import EnvConfig
from rl.envs.vector import make_env
from rl.schedules import decayed
from rl.types import Float64


@dataclass(frozen=True)
class MonteCarloConfig:
    """Every-visit Monte-Carlo control."""

    episodes: int = 50_000
    """Episodes of training."""
    gamma: float = 0.9
    """Discount a step."""
    average: Literal["step-size", "mean"] = "step-size"
    """How returns become values: an exponential average by the step size, or the mean of all of them."""
    alpha: float = 0.1
    """Step size of the exponential average."""
    epsilon: float = 1.0
    """Probability of a random action in the first episode."""
    epsilon_end: float = 0.05
    """Probability of a random action that epsilon never falls below."""
    epsilon_decay: float = 0.9999
    """Factor on epsilon after each episode; 1: constant."""
    initial: float = 0.0
    """Value of what was never tried."""

    def __post_init__(self) -> None:
        between(self, 0, 1, "gamma", "alpha", "epsilon", "epsilon_end", "epsilon_decay")
        at_least(self, 1, "episodes")


def returns(rewards: Sequence[float], gamma: float, bootstrap: float) -> Float64:
    """G_t = r_{t+1} + gamma G_{t+1} of every step: rewards [T] -> [T], backwards (Sutton & Barto 2018, 5.1).

    ``bootstrap``: G_T, the value of the state where an episode was truncated; 0 where it terminated.
    """
    g, after = bootstrap, np.empty(len(rewards))
    for t in reversed(range(len(rewards))):
        g = after[t] = rewards[t] + gamma * g
    return after


class _Averages:
    """q(s, a) += (G - q(s, a)) / n(s, a), or alpha in the place of 1 / n."""

    def __init__(self, config: MonteCarloConfig, space: gym.Space[Any], actions: int) -> None:
        self.c = config
        self.q, self.visits = QTable(space, actions, config.initial), QTable(space, actions)

    def learn(self, played: Sequence[Step]) -> None:
        """Learn from every visit of an episode; a truncated one bootstraps from the greedy value of its last state."""
        last = played[-1]
        bootstrap = 0.0 if last.terminated else float(self.q.values(last.s_next).max())
        for step, g in zip(played, returns([step.reward for step in played], self.c.gamma, bootstrap), strict=True):
            q, visits = self.q.values(step.s), self.visits.values(step.s)
            visits[step.a] += 1
            q[step.a] += (g - q[step.a]) * (self.c.alpha if self.c.average == "step-size" else 1.0 / visits[step.a])


def monte_carlo(config: MonteCarloConfig, env: EnvConfig, seed: int, monitor: Monitor) -> Learned:
    """Every-visit control: play epsilon-greedily by q, then average each return into q (Sutton & Barto 2018, 5.4).

    q(s, a) += alpha (G - q(s, a)), or 1 / n(s, a) in the place of alpha. Returns q [S, A] and its greedy policy.
    """
    played_in = make_env(env, "table")
    assert isinstance(played_in.action_space, gym.spaces.Discrete)
    actions, rng = int(played_in.action_space.n), np.random.default_rng([seed, 0])
    averages, epsilon = _Averages(config, played_in.observation_space, actions), config.epsilon

    def act(s: Any) -> int:
        random = rng.random() < epsilon
        return int(rng.integers(actions)) if random else int(averages.q.values(s).argmax())

    stream = steps(played_in, act, seed)
    for number in range(config.episodes):
        epsilon = decayed(config.epsilon, config.epsilon_end, config.epsilon_decay, number)
        played = list(episode(stream))
        averages.learn(played)
        monitor.episode(result(played, epsilon))
    played_in.close()
    return from_values(averages.q, {"q": averages.q.q})


# A mean keeps every return: those of random play at first would make another card look bad for long.
BLACKJACK = MonteCarloConfig(
    episodes=250_000, gamma=1.0, average="mean", epsilon=0.2, epsilon_end=0.1, epsilon_decay=0.999997
)

METHODS = {
    "monte-carlo": Method(
        "control by the returns of whole episodes",
        monte_carlo,
        "table",
        (
            Setting(EnvConfig(id="qfleet/GridWorld-v0"), MonteCarloConfig()),
            Setting(EnvConfig(id="Blackjack-v1"), BLACKJACK, episodes=100_000),
        ),
    ),
}
