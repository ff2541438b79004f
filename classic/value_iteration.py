"""Planning: value iteration and Q-iteration in a model that is estimated by counting what random steps did.

Legend: S states, A actions; ``v`` [S], ``q`` [S, A]; r(s, a) the expected reward of a step; p(s' | s, a) the
probability that the episode goes on in s'. A step that terminates has no successor, so a terminal state is worth 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from classic.interface import Learned, Method, Monitor, Setting, from_values
from classic.steps import Step, episode, steps
from rl.bounds import at_least, between, positive, require
from rl.envs.config import EnvConfig
from rl.envs.spaces import AnyEnv
from rl.envs.vector import make_env
from rl.errors import BadSetting
from rl.types import Array, Bool, Float64

LARGEST = 10_000_000  # S * A * S that is still counted


class Model(NamedTuple):
    """A Markov decision process."""

    rewards: Float64  # r(s, a), [S, A]
    transitions: Float64  # p(s' | s, a), [S, A, S]; what is missing to 1 ends the episode


def size(env: AnyEnv, env_id: str) -> tuple[int, int]:
    """(S, A). Raises BadInput where the states are not numbered, or too many to count each (s, a, s')."""
    states, actions = env.observation_space, env.action_space
    assert isinstance(actions, gym.spaces.Discrete)
    if not isinstance(states, gym.spaces.Discrete) or states.n**2 * actions.n > LARGEST:
        raise BadSetting(
            EnvConfig,
            "id",
            f"{env_id!r} has observations {states}: a model counts every (s, a, s'); write one with at most some "
            "hundred Discrete states, such as FrozenLake-v1, or the method q-learning",
        )
    return int(states.n), int(actions.n)


def true_model(env: AnyEnv, env_id: str) -> Model:
    """The model that the environment itself has, as Gymnasium's toy worlds do: P[s][a] = [(p, s', r, terminated)].

    Raises BadInput where it has none.
    """
    outcomes = getattr(env.unwrapped, "P", None)
    if outcomes is None:
        raise BadSetting(
            EnvConfig, "id", f"{env_id!r} does not state its model: write one that does, such as FrozenLake-v1"
        )
    states, actions = size(env, env_id)
    model = Model(np.zeros((states, actions)), np.zeros((states, actions, states)))
    for s, of_state in outcomes.items():
        for a, of_action in of_state.items():
            for p, successor, reward, terminated in of_action:
                model.rewards[s, a] += p * reward
                model.transitions[s, a, successor] += p * (not terminated)
    return model


def reachable(model: Model, policy: Float64, start: int) -> Bool:
    """The states [S] that ``policy`` [S, A] can lead to from ``start`` before the episode ends, itself among them."""
    leads = np.einsum("sa,sat->st", policy, model.transitions) > 0.0
    found: Bool = np.arange(len(leads)) == start
    for _ in range(len(leads)):
        found = found | leads[found].any(axis=0)
    return found


def check_numbered(config: Any, env: EnvConfig) -> None:
    """Raise BadInput unless the environment's states can be counted."""
    with closing(make_env(env, "table")) as made:
        size(made, env.id)


def check_model(config: Any, env: EnvConfig) -> None:
    """Raise BadInput unless the environment states its model."""
    with closing(make_env(env, "table")) as made:
        true_model(made, env.id)


class Counts:
    """Counts, summed rewards and terminations of each (s, a, s'), three arrays [S, A, S]."""

    def __init__(self, states: int, actions: int) -> None:
        shape = (states, actions, states)
        self.counts, self.reward_sums, self.endings = np.zeros(shape), np.zeros(shape), np.zeros(shape)

    def add(self, seen: Iterable[Step]) -> None:
        """Count some steps."""
        for step in seen:
            where = (step.s, step.a, step.s_next)
            self.counts[where] += 1
            self.reward_sums[where] += step.reward
            self.endings[where] += step.terminated


def estimated_model(counts: Float64, reward_sums: Float64, endings: Float64) -> Model:
    """The model of the means: arrays [S, A, S] of `Counts`; a pair (s, a) never tried earns 0 and ends the episode."""
    tries = np.maximum(counts.sum(axis=2), 1)
    return Model(reward_sums.sum(axis=2) / tries, (counts - endings) / tries[..., None])


def lookahead(model: Model, v: Float64, gamma: float) -> Float64:
    """q(s, a) = r(s, a) + gamma sum_s' p(s' | s, a) v(s'): v [S] -> q [S, A]."""
    q: Float64 = model.rewards + gamma * model.transitions @ v
    return q


def value_iteration(model: Model, gamma: float, tolerance: float, v: Float64 | None = None) -> Float64:
    """v(s) <- max_a [r(s, a) + gamma sum_s' p(s' | s, a) v(s')] from ``v`` (or 0), until v is exact to ``tolerance``.

    Returns v [S]. Bellman 1957; Sutton & Barto 2018, 4.4.
    """
    start = np.zeros(len(model.rewards)) if v is None else v
    return _fixed_point(lambda v: lookahead(model, v, gamma).max(axis=1), start, gamma, tolerance)


def q_iteration(model: Model, gamma: float, tolerance: float, q: Float64 | None = None) -> Float64:
    """q(s, a) <- r(s, a) + gamma sum_s' p(s' | s, a) max_a' q(s', a') from ``q`` (or 0), until exact to ``tolerance``.

    Returns q [S, A]. The optimality equation (Sutton & Barto 2018, equation 4.2) as an update.
    """
    start = np.zeros_like(model.rewards) if q is None else q
    return _fixed_point(lambda q: lookahead(model, q.max(axis=1), gamma), start, gamma, tolerance)


def _fixed_point(update: Callable[[Float64], Float64], x: Float64, gamma: float, tolerance: float) -> Float64:
    """The fixed point of a contraction by gamma < 1: after a change d it is at most d gamma / (1 - gamma) away.

    Puterman 1994, 6.3. A change that shrinks no more is rounding, and ends it too.
    """
    change = np.inf
    while True:
        before, x_before, x = change, x, update(x)
        change = np.abs(x - x_before).max()
        if change * gamma <= tolerance * (1.0 - gamma) or change >= before:
            return x


def exact_values(model: Model, policy: Float64, gamma: float) -> Float64:
    """v [S] of a policy [S, A] of probabilities: solves v = r_pi + gamma P_pi v (Sutton & Barto 2018, 4.1)."""
    rewards = (policy * model.rewards).sum(axis=1)
    transitions = np.einsum("sa,sat->st", policy, model.transitions)
    return np.asarray(np.linalg.solve(np.eye(len(rewards)) - gamma * transitions, rewards))


@dataclass(frozen=True)
class PlanningConfig:
    """Planning in a model that grows."""

    gamma: float = 0.9
    """Discount a step, below 1."""
    steps: int = 100
    """Random steps an iteration, counted into the model."""
    test_episodes: int = 20
    """Episodes of the greedy policy after each iteration."""
    goal: float = 0.8
    """Mean return that the test must exceed before it is confirmed."""
    confirm_episodes: int = 1_000
    """Fresh episodes that confirm a test."""
    confirm_goal: float = 0.7
    """Mean return of the fresh episodes that is enough to stop."""
    max_iterations: int = 5_000
    """Iterations after which it gives up, unsolved."""
    learn_from_tests: bool = False
    """Count the steps of the test episodes into the model too."""
    tolerance: float = 1e-6
    """Largest error of the values that remains when an iteration stops sweeping, in units of return."""

    def __post_init__(self) -> None:
        between(self, 0, 1, "gamma", below=True)
        at_least(self, 1, "steps", "test_episodes", "confirm_episodes", "max_iterations")
        for name in ("goal", "confirm_goal"):
            require(bool(np.isfinite(getattr(self, name))), self, name, "a mean return")
        positive(self, "tolerance")


class _Planner:
    """Counts random steps, estimates a model, plans in it and tests the greedy policy, until a test is confirmed."""

    def __init__(self, config: PlanningConfig, env: EnvConfig, seed: int) -> None:
        self.c = config
        self.envs = [make_env(env, "table") for _ in range(2)]
        states, actions = size(self.envs[0], env.id)
        self.counts, self.q = Counts(states, actions), np.zeros((states, actions))
        rng = np.random.default_rng([seed, 0])
        explored, tested = (int(s) for s in rng.integers(2**31, size=2))
        self.random = steps(self.envs[0], lambda s: int(rng.integers(actions)), explored)
        self.greedy = steps(self.envs[1], lambda s: int(self.q[s].argmax()), tested)

    def values(self, observations: Array) -> Array:
        """q [N, A]."""
        return self.q[observations.astype(np.int64)]

    def model(self) -> Model:
        """The model as counted so far, after one more iteration's random steps."""
        self.counts.add(islice(self.random, self.c.steps))
        return estimated_model(self.counts.counts, self.counts.reward_sums, self.counts.endings)

    def test(self, episodes: int) -> float:
        """Mean return of the greedy policy over fresh episodes."""
        played = [list(episode(self.greedy)) for _ in range(episodes)]
        if self.c.learn_from_tests:
            self.counts.add(step for one in played for step in one)
        return float(np.mean([sum(step.reward for step in one) for one in played]))

    def until_solved(self, plan: Callable[[Model], Float64], monitor: Monitor) -> dict[str, Any]:
        """Iterate ``plan``, a model -> q [S, A]; returns the figures."""
        confirmed = None
        for iteration in range(1, self.c.max_iterations + 1):
            self.q = plan(self.model())
            tested = self.test(self.c.test_episodes)
            monitor.report(iteration, {"mean_return": tested, "steps": self.counts.counts.sum()})
            if tested > self.c.goal:
                confirmed = self.test(self.c.confirm_episodes)
                monitor.note(f"iteration {iteration}: {tested:.2f} in the test, {confirmed:.3f} in fresh episodes")
                if confirmed >= self.c.confirm_goal:
                    break
        solved = confirmed is not None and confirmed >= self.c.confirm_goal
        if not solved:
            monitor.note(f"not solved in {iteration} iterations: the last test returned {tested:.2f}")
        counted = int(self.counts.counts.sum())
        return dict(solved=solved, iterations=iteration, steps=counted, tested=tested, confirmed=confirmed)


def _learn(
    config: PlanningConfig, env: EnvConfig, seed: int, monitor: Monitor, plan: Callable[[Model, Float64], Float64]
) -> Learned:
    planner = _Planner(config, env, seed)
    figures = planner.until_solved(lambda model: plan(model, planner.q), monitor)
    for one in planner.envs:
        one.close()
    return from_values(planner.values, {"v": planner.q.max(axis=1), "q": planner.q}, **figures)


def learn_v(config: PlanningConfig, env: EnvConfig, seed: int, monitor: Monitor) -> Learned:
    """Value iteration in the counted model (Sutton & Barto 2018, 4.4); its policy looks one step ahead in the model."""
    gamma, tolerance = config.gamma, config.tolerance

    def plan(model: Model, q: Float64) -> Float64:
        return lookahead(model, value_iteration(model, gamma, tolerance, q.max(axis=1)), gamma)

    return _learn(config, env, seed, monitor, plan)


def learn_q(config: PlanningConfig, env: EnvConfig, seed: int, monitor: Monitor) -> Learned:
    """Q-iteration in the counted model; its policy needs no model."""
    return _learn(config, env, seed, monitor, lambda model, q: q_iteration(model, config.gamma, config.tolerance, q))


SETTINGS = (Setting(EnvConfig(id="FrozenLake-v1"), PlanningConfig()),)

METHODS = {
    "value-iteration": Method("V(s) in a model that random steps estimate", learn_v, "table", SETTINGS, check_numbered),
    "q-iteration": Method("Q(s, a) in a model that random steps estimate", learn_q, "table", SETTINGS, check_numbered),
}
