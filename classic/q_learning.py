"""Tabular Q-learning, double Q-learning, SARSA, expected SARSA and n-step Q-learning: one loop.

    q(s, a) += alpha (target - q(s, a)),   target = r + gamma * bootstrap

The methods differ in ``bootstrap``, the value of the next state. It is 0 for a terminal state; a truncated episode
bootstraps.

Legend: ``q`` [S, A]; ``behaviour`` the policy that acts during learning (the behaviour policy); ``a_next`` the action
that it chooses in the next state.
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
    """Tabular temporal-difference control: Q-learning, double Q-learning, SARSA, expected SARSA, n-step Q-learning."""

    episodes: int = 10_000
    """Episodes of training."""
    gamma: float = 0.99
    """Discount factor."""
    alpha: float = 0.1
    """Step size in the first episode."""
    alpha_end: float = 0.01
    """Step size to which alpha falls linearly over the episodes."""
    epsilon: float = 1.0
    """Probability of a random action in the first episode."""
    epsilon_end: float = 0.05
    """Lower bound of epsilon."""
    epsilon_decay: float = 0.999
    """Factor by which epsilon is multiplied after each episode; 1: constant."""
    behaviour: Literal["epsilon-greedy", "softmax", "random"] = "epsilon-greedy"
    """Policy that acts during learning (the behaviour policy); random: uniformly random actions."""
    temperature: float = 1.0
    """Temperature of softmax, in units of action value; lower is greedier (only with softmax)."""
    initial: float = 0.0
    """Initial action value; one above the true values (optimistic) makes a greedy policy explore."""
    n_step: int = 3
    """Rewards in the target before it bootstraps (only n-step-q)."""

    def __post_init__(self) -> None:
        between(self, 0, 1, "gamma", "alpha", "alpha_end", "epsilon", "epsilon_end", "epsilon_decay")
        require(bool(np.isfinite(self.initial)), self, "initial", "a finite number")
        positive(self, "temperature")
        at_least(self, 1, "episodes", "n_step")

    def epsilon_at(self, episode: int) -> float:
        """Return the epsilon of an episode; the first is 0."""
        if self.behaviour == "random":
            return 1.0
        return decayed(self.epsilon, self.epsilon_end, self.epsilon_decay, episode)

    def alpha_at(self, episode: int) -> float:
        """Return the step size of an episode; the first is 0."""
        return self.alpha + min(self.alpha_end - self.alpha, 0.0) * episode / self.episodes


@dataclass(frozen=True)
class BehaviourPolicy:
    """The policy that acts during learning: epsilon-greedy, or softmax if it has a temperature.

    Sutton & Barto 2018, section 5.5.
    """

    epsilon: float
    temperature: float | None = None

    def act(self, q: Float64, rng: np.random.Generator) -> int:
        """Draw an action, counted from 0, from the action values q [A] of a state."""
        if self.temperature is not None:
            return int(softmax(q[None], self.temperature, rng)[0])
        return int(epsilon_greedy(q[None], self.epsilon, rng)[0])

    def probabilities(self, q: Float64) -> Float64:
        """Return the probability of each action, [A], given the action values q [A] of a state."""
        if self.temperature is not None:
            return softmax_probabilities(q[None], self.temperature).ravel()
        return epsilon_greedy_probabilities(q[None], self.epsilon).ravel()


# Value of the next state, given its q [A] in the table to update, its q [A] in the other table (the same table, if there
# is only one), the next action and the behaviour policy.
Bootstrap = Callable[[Float64, Float64, int, BehaviourPolicy], float]


def greedy_value(updated: Float64, other: Float64, a_next: int, behaviour: BehaviourPolicy) -> float:
    """Return other(argmax_a updated(a)), both [A]: Q-learning with one table (Watkins 1989), double Q-learning with two.

    Sutton & Barto 2018, sections 6.5 and 6.7; van Hasselt 2010.
    """
    del a_next, behaviour
    return float(other[updated.argmax()])


def next_action_value(updated: Float64, other: Float64, a_next: int, behaviour: BehaviourPolicy) -> float:
    """Return other(a_next), ``other`` [A]: SARSA (Sutton & Barto 2018, section 6.4, equation 6.7)."""
    del updated, behaviour
    return float(other[a_next])


def expected_value(updated: Float64, other: Float64, a_next: int, behaviour: BehaviourPolicy) -> float:
    """Return sum_a b(a) other(a), ``other`` [A] and b the behaviour policy: expected SARSA.

    Sutton & Barto 2018, section 6.6, equation 6.9.
    """
    del a_next
    return float(behaviour.probabilities(updated) @ other)


def n_step_target(rewards: Sequence[float], gamma: float, bootstrap: float) -> float:
    """Return r_1 + gamma r_2 + ... + gamma^(n-1) r_n + gamma^n bootstrap (Sutton & Barto 2018, equation 7.1)."""
    target = bootstrap
    for reward in reversed(rewards):
        target = reward + gamma * target
    return target


class _Learner:
    """One or two tables, and the loop that all methods share."""

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
        """Return the mean of the tables, q [N, A] of observations [N, ...]."""
        q: Array = np.mean([table(observations) for table in self.tables], axis=0)
        return q

    def act(self, observation: Any, behaviour: BehaviourPolicy) -> int:
        """Draw an action of the behaviour policy, given the mean of the tables."""
        return behaviour.act(np.mean([table.row(observation) for table in self.tables], axis=0), self.rng)

    def episode(self, number: int, seed: int | None) -> EpisodeResult:
        """Play one episode and update q once for each of its steps; returns the episode's result.

        ``seed`` seeds the environment; None: it continues with its own random state.
        """
        epsilon, alpha = self.c.epsilon_at(number), self.c.alpha_at(number)
        behaviour = BehaviourPolicy(epsilon, self.c.temperature if self.c.behaviour == "softmax" else None)
        observation, _ = self.env.reset(seed=seed)
        action, total, length, done = self.act(observation, behaviour), 0.0, 0, False
        # (observation, action, reward) of the steps whose update waits for more rewards
        window: deque[tuple[Any, int, float]] = deque()
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
        behaviour: BehaviourPolicy,
        alpha: float,
    ) -> None:
        """Update q(s, a) of the first step of ``window``; with two tables, in one that is chosen at random.

        ``window`` has the latest steps (observation, action, reward), oldest first; ``successor`` is the observation
        that follows them, and ``a_next`` the action in it.
        """
        updated, other = self.tables[0], self.tables[-1]
        if updated is not other and self.rng.random() < 0.5:
            updated, other = other, updated
        observation, action, _ = window[0]
        bootstrap = 0.0
        if not terminated:
            bootstrap = self.bootstrap(updated.row(successor), other.row(successor), a_next, behaviour)
        target = n_step_target([reward for *_, reward in window], self.c.gamma, bootstrap)
        q = updated.row(observation)
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
    """q(s, a) += alpha (r + gamma max_a' q(s', a') - q(s, a)).

    Watkins 1989; Sutton & Barto 2018, section 6.5, equation 6.8.
    """
    return _learn(config, env, seed, monitor, greedy_value)


def double_q_learning(config: QLearningConfig, env: EnvConfig, seed: int, monitor: Monitor) -> Learned:
    """q1(s, a) += alpha (r + gamma q2(s', argmax_a' q1(s', a')) - q1(s, a)), or with q1 and q2 exchanged, at random.

    van Hasselt 2010; Sutton & Barto 2018, section 6.7, equation 6.10. The behaviour policy and the returned values use
    the mean of the two tables.
    """
    return _learn(config, env, seed, monitor, greedy_value, tables=2)


def sarsa(config: QLearningConfig, env: EnvConfig, seed: int, monitor: Monitor) -> Learned:
    """q(s, a) += alpha (r + gamma q(s', a') - q(s, a)), with the action a' that is taken next.

    Rummery & Niranjan 1994; Sutton & Barto 2018, section 6.4, equation 6.7.
    """
    return _learn(config, env, seed, monitor, next_action_value)


def expected_sarsa(config: QLearningConfig, env: EnvConfig, seed: int, monitor: Monitor) -> Learned:
    """q(s, a) += alpha (r + gamma sum_a' pi(a'|s') q(s', a') - q(s, a)), pi the behaviour policy.

    van Seijen et al. 2009; Sutton & Barto 2018, section 6.6, equation 6.9.
    """
    return _learn(config, env, seed, monitor, expected_value)


def n_step_q(config: QLearningConfig, env: EnvConfig, seed: int, monitor: Monitor) -> Learned:
    """Q-learning with the target of ``n_step`` rewards, without off-policy correction, as in n-step DQN.

    Hessel et al. 2018. The target is G = r_1 + ... + gamma^(n-1) r_n + gamma^n max_a q(s_n, a).
    """
    return _learn(config, env, seed, monitor, greedy_value, n=config.n_step)


CLIFF_CONTROL = QLearningConfig(
    episodes=1_000, gamma=1.0, alpha=0.5, alpha_end=0.05, epsilon=0.1, epsilon_end=0.1, epsilon_decay=1.0
)
CLIFF = (Setting(EnvConfig(id="CliffWalking-v1", max_episode_steps=200), CLIFF_CONTROL, episodes=10),)
CLIFF_DOUBLE = replace(CLIFF[0], config=replace(CLIFF_CONTROL, episodes=3_000))  # each table gets half of the updates
# Sutton & Barto 2018, example 6.7 and figure 6.5: how often a method goes left, which is never optimal
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
    "double-q-learning": Method(
        "double Q-learning: two tables reduce overestimation", double_q_learning, "table", (CLIFF_DOUBLE, BIAS)
    ),
    "sarsa": Method("on-policy TD control: values of the epsilon-greedy policy", sarsa, "table", CLIFF),
    "expected-sarsa": Method("SARSA with the expectation over the next action", expected_sarsa, "table", CLIFF),
    "n-step-q": Method("Q-learning with n-step targets", n_step_q, "table", CLIFF),
}
