"""Dynamic programming: value iteration and Q-iteration in a model that is estimated from random steps.

Legend: S states, A actions; ``v`` [S]; ``q`` [S, A]; r(s, a) the expected reward of a step; p(s' | s, a) the
probability that the next state is s' and the episode continues. A step that terminates the episode has no next state,
so the value of a terminal state is 0.
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
from classic.steps import Step, next_episode, play_steps
from rl.bounds import at_least, between, positive, require
from rl.envs.config import EnvConfig
from rl.envs.spaces import AnyEnv
from rl.envs.vector import make_env
from rl.errors import BadSetting
from rl.types import Array, Bool, Float64

MAX_MODEL_ENTRIES = 10_000_000  # largest S * A * S for which a model is kept in memory


class Model(NamedTuple):
    """A Markov decision process."""

    rewards: Float64  # r(s, a), [S, A]
    transitions: Float64  # p(s' | s, a), [S, A, S]; the probability of termination is 1 minus the sum over s'


def table_size(env: AnyEnv, env_id: str) -> tuple[int, int]:
    """Return (S, A). Raises BadInput unless the states are Discrete and S * A * S is at most MAX_MODEL_ENTRIES."""
    states, actions = env.observation_space, env.action_space
    assert isinstance(actions, gym.spaces.Discrete)
    if not isinstance(states, gym.spaces.Discrete) or states.n**2 * actions.n > MAX_MODEL_ENTRIES:
        raise BadSetting(
            EnvConfig,
            "id",
            f"{env_id!r} has observations {states}, but a model needs Discrete ones, with states^2 * actions at most "
            f"{MAX_MODEL_ENTRIES:,}: write an environment such as FrozenLake-v1, or the method q-learning",
        )
    return int(states.n), int(actions.n)


def true_model(env: AnyEnv, env_id: str) -> Model:
    """Return the true model, from the table P[s][a] = [(p, s', r, terminated), ...] of Gymnasium's toy environments.

    Raises BadInput if the environment has no such table.
    """
    outcomes = getattr(env.unwrapped, "P", None)
    if outcomes is None:
        raise BadSetting(
            EnvConfig, "id", f"{env_id!r} has no table P of its transitions: write one that has, such as FrozenLake-v1"
        )
    states, actions = table_size(env, env_id)
    model = Model(np.zeros((states, actions)), np.zeros((states, actions, states)))
    for s, actions_of_state in outcomes.items():
        for a, outcomes_of_action in actions_of_state.items():
            for p, successor, reward, terminated in outcomes_of_action:
                model.rewards[s, a] += p * reward
                model.transitions[s, a, successor] += p * (not terminated)
    return model


def reachable_states(model: Model, policy: Float64, start: int) -> Bool:
    """Return a mask [S] of the states that ``policy`` [S, A] can reach from ``start`` in an episode, with ``start``."""
    has_transition = np.einsum("sa,sat->st", policy, model.transitions) > 0.0
    found: Bool = np.arange(len(has_transition)) == start
    for _ in range(len(has_transition)):
        found = found | has_transition[found].any(axis=0)
    return found


def check_discrete_states(config: Any, env: EnvConfig) -> None:
    """Raise BadInput unless the environment has few enough Discrete states for a model."""
    with closing(make_env(env, "table")) as environment:
        table_size(environment, env.id)


def check_model(config: Any, env: EnvConfig) -> None:
    """Raise BadInput unless the environment has a true model."""
    with closing(make_env(env, "table")) as environment:
        true_model(environment, env.id)


class TransitionCounts:
    """How often each (s, a, s') occurred, its summed rewards and its terminations: three arrays [S, A, S]."""

    def __init__(self, states: int, actions: int) -> None:
        shape = (states, actions, states)
        self.counts, self.reward_sums, self.terminations = np.zeros(shape), np.zeros(shape), np.zeros(shape)

    def add(self, played: Iterable[Step]) -> None:
        """Count steps."""
        for step in played:
            where = (step.s, step.a, step.s_next)
            self.counts[where] += 1
            self.reward_sums[where] += step.reward
            self.terminations[where] += step.terminated


def estimated_model(counts: Float64, reward_sums: Float64, terminations: Float64) -> Model:
    """Estimate the model by relative frequencies, from the arrays [S, A, S] of `TransitionCounts` (maximum likelihood).

    A pair (s, a) that was never tried has reward 0 and terminates the episode.
    """
    tries = np.maximum(counts.sum(axis=2), 1)
    return Model(reward_sums.sum(axis=2) / tries, (counts - terminations) / tries[..., None])


def lookahead(model: Model, v: Float64, gamma: float) -> Float64:
    """One-step lookahead: v [S] -> q [S, A], q(s, a) = r(s, a) + gamma sum_s' p(s' | s, a) v(s').

    Sutton & Barto 2018, equation 4.6.
    """
    q: Float64 = model.rewards + gamma * model.transitions @ v
    return q


def value_iteration(model: Model, gamma: float, tolerance: float, v: Float64 | None = None) -> Float64:
    """Repeat v(s) <- max_a [r(s, a) + gamma sum_s' p(s' | s, a) v(s')] until the error of v is at most ``tolerance``.

    Starts from ``v`` [S], or from 0; returns the new v [S]. Bellman 1957; Sutton & Barto 2018, section 4.4.
    """
    start = np.zeros(len(model.rewards)) if v is None else v
    return _iterate_to_fixed_point(lambda v: lookahead(model, v, gamma).max(axis=1), start, gamma, tolerance)


def q_iteration(model: Model, gamma: float, tolerance: float, q: Float64 | None = None) -> Float64:
    """Repeat q(s, a) <- r(s, a) + gamma sum_s' p(s' | s, a) max_a' q(s', a') until its error is at most ``tolerance``.

    Starts from ``q`` [S, A], or from 0; returns the new q [S, A]. The update is the Bellman optimality equation for q*
    (Sutton & Barto 2018, equation 4.2).
    """
    start = np.zeros_like(model.rewards) if q is None else q
    return _iterate_to_fixed_point(lambda q: lookahead(model, q.max(axis=1), gamma), start, gamma, tolerance)


def _iterate_to_fixed_point(
    update: Callable[[Float64], Float64], x: Float64, gamma: float, tolerance: float
) -> Float64:
    """Apply a contraction by gamma < 1 until its fixed point is at most ``tolerance`` away.

    After a change d, the fixed point is at most d gamma / (1 - gamma) away (Puterman 1994, 6.3). Stops, too, when the
    change no longer shrinks: what is left is rounding.
    """
    change = np.inf
    while True:
        before, x_before, x = change, x, update(x)
        change = np.abs(x - x_before).max()
        if change * gamma <= tolerance * (1.0 - gamma) or change >= before:
            return x


def exact_values(model: Model, policy: Float64, gamma: float) -> Float64:
    """Return v [S] of a policy of probabilities [S, A], by solving v = r_pi + gamma P_pi v.

    Sutton & Barto 2018, section 4.1 and equation 4.4.
    """
    rewards = (policy * model.rewards).sum(axis=1)
    transitions = np.einsum("sa,sat->st", policy, model.transitions)
    return np.asarray(np.linalg.solve(np.eye(len(rewards)) - gamma * transitions, rewards))


@dataclass(frozen=True)
class PlanningConfig:
    """Plan in a model that is estimated from random steps, until the greedy policy reaches a goal."""

    gamma: float = 0.9
    """Discount factor, below 1."""
    steps: int = 100
    """Random steps per iteration, added to the counts of the model."""
    test_episodes: int = 20
    """Episodes that test the greedy policy after each iteration."""
    goal: float = 0.8
    """Mean return of the test above which the policy is tested again, with `confirm_episodes`."""
    confirm_episodes: int = 1_000
    """Episodes of the second, longer test."""
    confirm_goal: float = 0.7
    """Mean return of the second test at which learning stops as solved."""
    max_iterations: int = 5_000
    """Iterations after which learning stops unsolved."""
    learn_from_tests: bool = False
    """Add the steps of the test episodes to the counts of the model, too."""
    tolerance: float = 1e-6
    """Largest error of the values in the estimated model, in units of return."""

    def __post_init__(self) -> None:
        between(self, 0, 1, "gamma", below=True)
        at_least(self, 1, "steps", "test_episodes", "confirm_episodes", "max_iterations")
        for name in ("goal", "confirm_goal"):
            require(bool(np.isfinite(getattr(self, name))), self, name, "a finite mean return")
        positive(self, "tolerance")


class _Planner:
    """Explores, estimates the model, plans and tests the greedy policy, until a second test confirms the first."""

    def __init__(self, config: PlanningConfig, env: EnvConfig, seed: int) -> None:
        self.c = config
        self.envs = [make_env(env, "table") for _ in range(2)]
        states, actions = table_size(self.envs[0], env.id)
        self.counts, self.q = TransitionCounts(states, actions), np.zeros((states, actions))
        rng = np.random.default_rng([seed, 0])
        explore_seed, test_seed = (int(s) for s in rng.integers(2**31, size=2))
        self.random = play_steps(self.envs[0], lambda s: int(rng.integers(actions)), explore_seed)
        self.greedy = play_steps(self.envs[1], lambda s: int(self.q[s].argmax()), test_seed)

    def values(self, observations: Array) -> Array:
        """Return q [N, A] of states [N]."""
        return self.q[observations.astype(np.int64)]

    def explore(self) -> Model:
        """Play the random steps of one iteration; return the model estimated from all steps so far."""
        self.counts.add(islice(self.random, self.c.steps))
        return estimated_model(self.counts.counts, self.counts.reward_sums, self.counts.terminations)

    def mean_test_return(self, episodes: int) -> float:
        """Play new episodes with the greedy policy; return their mean return."""
        played = [list(next_episode(self.greedy)) for _ in range(episodes)]
        if self.c.learn_from_tests:
            self.counts.add(step for steps in played for step in steps)
        return float(np.mean([sum(step.reward for step in steps) for steps in played]))

    def plan_until_solved(self, plan: Callable[[Model], Float64], monitor: Monitor) -> dict[str, Any]:
        """Run the iterations; ``plan`` maps a model to q [S, A]. Returns the metrics of the run."""
        confirmed = None
        for iteration in range(1, self.c.max_iterations + 1):
            self.q = plan(self.explore())
            tested = self.mean_test_return(self.c.test_episodes)
            monitor.report(iteration, {"mean_return": tested, "steps": self.counts.counts.sum()})
            if tested > self.c.goal:
                confirmed = self.mean_test_return(self.c.confirm_episodes)
                monitor.note(
                    f"iteration {iteration}: mean return {tested:.2f} in {self.c.test_episodes:,} test episodes, "
                    f"{confirmed:.3f} in {self.c.confirm_episodes:,} more"
                )
                if confirmed >= self.c.confirm_goal:
                    break
        solved = confirmed is not None and confirmed >= self.c.confirm_goal
        if not solved:
            monitor.note(
                f"not solved in {iteration:,} iterations (the last test had a mean return of {tested:.2f}): "
                "raise `max_iterations`, or lower `goal` and `confirm_goal`"
            )
        counted = int(self.counts.counts.sum())
        return dict(solved=solved, iterations=iteration, steps=counted, tested=tested, confirmed=confirmed)


def _learn(
    config: PlanningConfig, env: EnvConfig, seed: int, monitor: Monitor, plan: Callable[[Model, Float64], Float64]
) -> Learned:
    planner = _Planner(config, env, seed)
    metrics = planner.plan_until_solved(lambda model: plan(model, planner.q), monitor)
    for environment in planner.envs:
        environment.close()
    return from_values(planner.values, {"v": planner.q.max(axis=1), "q": planner.q}, **metrics)


def learn_by_value_iteration(config: PlanningConfig, env: EnvConfig, seed: int, monitor: Monitor) -> Learned:
    """Value iteration in the estimated model (Sutton & Barto 2018, section 4.4).

    The greedy policy needs the model: it acts by a one-step lookahead.
    """
    gamma, tolerance = config.gamma, config.tolerance

    def plan(model: Model, q: Float64) -> Float64:
        return lookahead(model, value_iteration(model, gamma, tolerance, q.max(axis=1)), gamma)

    return _learn(config, env, seed, monitor, plan)


def learn_by_q_iteration(config: PlanningConfig, env: EnvConfig, seed: int, monitor: Monitor) -> Learned:
    """Q-iteration in the estimated model (Sutton & Barto 2018, equation 4.2). The greedy policy needs no model."""
    return _learn(config, env, seed, monitor, lambda model, q: q_iteration(model, config.gamma, config.tolerance, q))


SETTINGS = (Setting(EnvConfig(id="FrozenLake-v1"), PlanningConfig()),)

METHODS = {
    "value-iteration": Method(
        "V(s) by dynamic programming, in a model estimated from random steps",
        learn_by_value_iteration,
        "table",
        SETTINGS,
        check_discrete_states,
    ),
    "q-iteration": Method(
        "Q(s, a) by dynamic programming, in a model estimated from random steps",
        learn_by_q_iteration,
        "table",
        SETTINGS,
        check_discrete_states,
    ),
}
