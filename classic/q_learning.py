"""Tabular Q-learning and its siblings: the same loop, with another value of the successor.

Legend: ``q`` [S, A]; ``behaviour`` is the policy that acts while learning, ``a_next`` the action that it takes in the
successor. Every rule moves q(s, a) towards a target by the step size alpha; a terminal state does not bootstrap, a
truncated episode does:

    q(s, a) += alpha (target - q(s, a)),   target = r + gamma * bootstrap
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import gymnasium as gym
import numpy as np

from classic.interface import Learned, Method, Monitor, Setting, from_values
from classic.tables import QTable
from rl.bounds import at_least, between, positive, require
from rl.envs.config import EnvConfig
from rl.envs.vector import make_env
from rl.policies import epsilon_greedy, epsilon_greedy_probabilities, softmax, softmax_probabilities
from rl.schedules import decayed
from rl.types import Array, EpisodeResult, Float64


@dataclass(frozen=True)
class QLearningConfig:
    """Tabular temporal-difference control."""

    episodes: int = 10_000
    """Episodes of training."""
    gamma: float = 0.99
    """Discount a step."""
    alpha: float = 0.1
    """Step size at the first episode."""
    alpha_end: float = 0.01
    """Step size that alpha falls to, on a straight line over the episodes."""
    epsilon: float = 1.0
    """Probability of a random action in the first episode."""
    epsilon_end: float = 0.05
    """Probability of a random action that epsilon never falls below."""
    epsilon_decay: float = 0.999
    """Factor on epsilon after each episode; 1: constant."""
    behaviour: Literal["epsilon-greedy", "softmax", "random"] = "epsilon-greedy"
    """Who acts while learning; random: every action uniformly; Q-learning learns the greedy policy all the same."""
    temperature: float = 1.0
    """Units of value that softmax tells apart: the lower, the greedier."""
    initial: float = 0.0
    """Value of what was never tried; above the true ones it makes exploring greedy."""
    n_step: int = 3
    """Steps of reward before bootstrapping (n-step-q alone)."""

    def __post_init__(self) -> None:
        between(self, 0, 1, "gamma", "alpha", "alpha_end", "epsilon", "epsilon_end", "epsilon_decay")
        require(bool(np.isfinite(self.initial)), self, "initial", "a finite value")
        positive(self, "temperature")
        at_least(self, 1, "episodes", "n_step")

    def epsilon_at(self, episode: int) -> float:
        """Probability of a random action in an episode, counted from 0."""
        if self.behaviour == "random":
            return 1.0
        return decayed(self.epsilon, self.epsilon_end, self.epsilon_decay, episode)

    def alpha_at(self, episode: int) -> float:
        """Step size in an episode, counted from 0."""
        return self.alpha + min(self.alpha_end - self.alpha, 0.0) * episode / self.episodes


@dataclass(frozen=True)
class Behaviour:
    """The policy that acts, by action values [A] of one state: epsilon-greedy, or softmax with a temperature."""

    epsilon: float
    temperature: float | None = None

    def act(self, q: Float64, rng: np.random.Generator) -> int:
        """An action, from 0, by the action values q [A]."""
        if self.temperature is not None:
            return int(softmax(q[None], self.temperature, rng)[0])
        return int(epsilon_greedy(q[None], self.epsilon, rng)[0])

    def probabilities(self, q: Float64) -> Float64:
        """The probability of each action, [A], by the action values q [A]."""
        if self.temperature is not None:
            return softmax_probabilities(q[None], self.temperature).ravel()
        return epsilon_greedy_probabilities(q[None], self.epsilon).ravel()


Bootstrap = Callable[
    [Float64, Float64, int, Behaviour], float
]  # (selector, value, a', behaviour) -> the successor's value


def greedy_value(selector: Float64, value: Float64, a_next: int, behaviour: Behaviour) -> float:
    """value(argmax_a selector(a)), both [A]: max_a value(a) for one table (Watkins 1989); two: van Hasselt 2010."""
    del a_next, behaviour
    return float(value[selector.argmax()])


def taken_value(selector: Float64, value: Float64, a_next: int, behaviour: Behaviour) -> float:
    """value(a') of the action that behaviour takes next, value [A]: SARSA (Sutton & Barto 2018, 6.4)."""
    del selector, behaviour
    return float(value[a_next])


def expected_value(selector: Float64, value: Float64, a_next: int, behaviour: Behaviour) -> float:
    """sum_a pi(a) value(a) under the behaviour pi, value [A]: expected SARSA (Sutton & Barto 2018, 6.6)."""
    del a_next
    return float(behaviour.probabilities(selector) @ value)


def n_step_target(rewards: Sequence[float], gamma: float, bootstrap: float) -> float:
    """r_1 + gamma r_2 + ... + gamma^(n-1) r_n + gamma^n bootstrap, of rewards [n] (Sutton & Barto 2018, 7.1)."""
    target = bootstrap
    for reward in reversed(rewards):
        target = reward + gamma * target
    return target


class _Learner:
    """One or two tables, and the loop that every rule shares."""

    def __init__(
        self, config: QLearningConfig, env: EnvConfig, seed: int, bootstrap: Bootstrap, tables: int, n: int
    ) -> None:
        self.c, self.bootstrap, self.n = config, bootstrap, n
        self.env = make_env(env, "table")
        assert isinstance(self.env.action_space, gym.spaces.Discrete)
        self.first_action, actions = int(self.env.action_space.start), int(self.env.action_space.n)
        self.tables = [QTable(self.env.observation_space, actions, config.initial) for _ in range(tables)]
        self.rng = np.random.default_rng([seed, 0])

    def values(self, observations: Array) -> Array:
        """The mean of the tables, q [N, A]."""
        q: Array = np.mean([table(observations) for table in self.tables], axis=0)
        return q

    def act(self, observation: Any, behaviour: Behaviour) -> int:
        """An action of the behaviour by the mean of the tables."""
        return behaviour.act(np.mean([table.values(observation) for table in self.tables], axis=0), self.rng)

    def episode(self, number: int, seed: int | None) -> EpisodeResult:
        """Play one episode and learn from each of its steps."""
        epsilon, alpha = self.c.epsilon_at(number), self.c.alpha_at(number)
        behaviour = Behaviour(epsilon, self.c.temperature if self.c.behaviour == "softmax" else None)
        observation, _ = self.env.reset(seed=seed)
        action, total, length, done = self.act(observation, behaviour), 0.0, 0, False
        window: deque[tuple[Any, int, float]] = (
            deque()
        )  # (observation, action, reward) of steps that wait for their target
        while not done:
            successor, reward, terminated, truncated, _ = self.env.step(action + self.first_action)
            done = terminated or truncated
            window.append((observation, action, float(reward)))
            observation, action = successor, self.act(successor, behaviour)
            total, length = total + float(reward), length + 1
            while len(window) == self.n or (done and window):
                self.update(window, observation, action, terminated, behaviour, alpha)
                window.popleft()
        return EpisodeResult(total, length, epsilon, truncated and not terminated)

    def update(
        self,
        window: Sequence[tuple[Any, int, float]],
        successor: Any,
        a_next: int,
        terminated: bool,
        behaviour: Behaviour,
        alpha: float,
    ) -> None:
        """Move q of the oldest step of ``window`` towards its target. Of two tables one is drawn at random to learn."""
        learning, judging = self.tables[0], self.tables[-1]
        if learning is not judging and self.rng.random() < 0.5:
            learning, judging = judging, learning
        observation, action, _ = window[0]
        bootstrap = 0.0
        if not terminated:
            selector, value = learning.values(successor), judging.values(successor)
            bootstrap = self.bootstrap(selector, value, a_next, behaviour)
        target = n_step_target([reward for *_, reward in window], self.c.gamma, bootstrap)
        q = learning.values(observation)
        q[action] += alpha * (target - q[action])


def _learn(
    config: QLearningConfig,
    env: EnvConfig,
    seed: int,
    monitor: Monitor,
    bootstrap: Bootstrap,
    tables: int = 1,
    n: int = 1,
) -> Learned:
    learner = _Learner(config, env, seed, bootstrap, tables, n)
    for episode in range(config.episodes):
        monitor.episode(learner.episode(episode, seed if episode == 0 else None))
    learner.env.close()
    return from_values(learner.values, {"q": np.mean([table.q for table in learner.tables], axis=0)})


def q_learning(config: QLearningConfig, env: EnvConfig, seed: int, monitor: Monitor) -> Learned:
    """q(s, a) += alpha (r + gamma max_a' q(s', a') - q(s, a)) (Watkins 1989; Sutton & Barto 2018, 6.5)."""
    return _learn(config, env, seed, monitor, greedy_value)


def double_q_learning(config: QLearningConfig, env: EnvConfig, seed: int, monitor: Monitor) -> Learned:
    """q1(s, a) += alpha (r + gamma q2(s', argmax_a' q1(s', a')) - q1(s, a)), or with q1 and q2 exchanged, at random.

    van Hasselt 2010; Sutton & Barto 2018, 6.7. Acts and evaluates by the mean of the two tables.
    """
    return _learn(config, env, seed, monitor, greedy_value, tables=2)


def sarsa(config: QLearningConfig, env: EnvConfig, seed: int, monitor: Monitor) -> Learned:
    """q(s, a) += alpha (r + gamma q(s', a') - q(s, a)), a' as taken (Rummery & Niranjan 1994)."""
    return _learn(config, env, seed, monitor, taken_value)


def expected_sarsa(config: QLearningConfig, env: EnvConfig, seed: int, monitor: Monitor) -> Learned:
    """q(s, a) += alpha (r + gamma sum_a' pi(a'|s') q(s', a') - q(s, a)) (van Seijen et al. 2009)."""
    return _learn(config, env, seed, monitor, expected_value)


def n_step_q(config: QLearningConfig, env: EnvConfig, seed: int, monitor: Monitor) -> Learned:
    """Q-learning with n = ``n_step`` rewards before it bootstraps, uncorrected, as in n-step DQN (Hessel et al. 2018).

    G = r_1 + ... + gamma^(n-1) r_n + gamma^n max_a q(s_n, a).
    """
    return _learn(config, env, seed, monitor, greedy_value, n=config.n_step)


CLIFF_CONTROL = QLearningConfig(
    episodes=1_000, gamma=1.0, alpha=0.5, alpha_end=0.05, epsilon=0.1, epsilon_end=0.1, epsilon_decay=1.0
)
CLIFF = (Setting(EnvConfig(id="CliffWalking-v1", max_episode_steps=200), CLIFF_CONTROL, episodes=10),)
CLIFF_DOUBLE = replace(CLIFF[0], config=replace(CLIFF_CONTROL, episodes=3_000))  # half of the steps for each table
# Sutton & Barto 2018, figure 6.5: how often a method goes left, where it never should
BIAS = Setting(
    EnvConfig(id="qfleet/MaximizationBias-v0"),
    QLearningConfig(300, gamma=1.0, alpha=0.1, alpha_end=0.1, epsilon=0.1, epsilon_end=0.1, epsilon_decay=1.0),
    episodes=100,
)

METHODS = {
    "q-learning": Method(
        "tabular Q-learning",
        q_learning,
        "table",
        (
            Setting(EnvConfig(id="FrozenLake-v1"), QLearningConfig()),
            Setting(EnvConfig(id="Taxi-v4"), QLearningConfig()),
            *CLIFF,
            Setting(EnvConfig(id="qfleet/WindyGridWorld-v0", max_episode_steps=200), CLIFF_CONTROL, episodes=10),
            BIAS,
        ),
    ),
    "double-q-learning": Method("two tables against overestimation", double_q_learning, "table", (CLIFF_DOUBLE, BIAS)),
    "sarsa": Method("on-policy: values of the policy that explores", sarsa, "table", CLIFF),
    "expected-sarsa": Method("SARSA without the luck of the next action", expected_sarsa, "table", CLIFF),
    "n-step-q": Method("Q-learning over several steps of reward", n_step_q, "table", CLIFF),
}
