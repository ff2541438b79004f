"""Evaluation of a policy by raw, undiscounted returns, in separate environments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rl.bounds import at_least, between
from rl.ports import Environments
from rl.resuming import Rules, rules
from rl.stepping import SeedSequence, rollout
from rl.types import Array, EpisodeResult, Int64

MAX_EPISODE_STEPS = 27_000  # agent steps: the Atari protocol's 108,000 frames

Policy = Callable[[Array], Int64]  # observations [N, ...] -> actions [N]


@dataclass(frozen=True)
class EvaluationConfig:
    """How and when a policy is evaluated."""

    episodes: int = 30
    """Episodes of a full evaluation."""
    epsilon: float = 0.01
    """Probability of a random action during an evaluation."""
    environments: int = 10
    """Environments stepped together; each plays an equal share of the episodes."""
    period: int = 100_000
    """Agent steps (offline: learner updates) between periodic evaluations; 0: evaluate only when the greedy return is
    within `margin` of the goal."""
    quick_episodes: int = 10
    """Episodes of a quick evaluation; if it reaches the goal, a full one of the same weights follows."""
    max_episode_steps: int = MAX_EPISODE_STEPS
    """Agent steps after which an episode of an evaluation is cut off; its return so far counts (Atari: 27,000)."""
    goal: float = 0.0
    """Mean return of a full evaluation at which the run is solved, if an evaluation of fresh episodes confirms it;
    inf: no goal."""
    margin: float = 0.0
    """A greedy return (mean training return where epsilon is at most `exploration.greedy_below`) within this much
    of the goal starts an evaluation before it is due."""
    stop_when_solved: bool = True
    """End the run when it is solved."""

    on_resume: ClassVar[Rules] = rules(
        may="episodes environments period quick_episodes goal margin stop_when_solved",
        epsilon="earlier evaluations, among them the one that chose best/, used the old value",
        max_episode_steps="earlier evaluations, among them the one that chose best/, used the old value",
    )

    def __post_init__(self) -> None:
        at_least(self, 1, "episodes", "environments", "quick_episodes", "max_episode_steps")
        between(self, 0, 1, "epsilon", what="a probability")
        at_least(self, 0, "period", unit="agent steps (offline: learner updates)")


@dataclass(frozen=True)
class EvaluationResult:
    """The episodes of an evaluation."""

    episodes: tuple[EpisodeResult, ...]
    seconds: float = 0.0  # wall time
    cut: int = 0  # number of episodes that were cut at the step limit

    @property
    def mean_return(self) -> float:
        """Mean of the raw, undiscounted returns of the episodes."""
        return float(np.mean([e.episode_return for e in self.episodes]))

    @property
    def std_return(self) -> float:
        """Population standard deviation of the episodes' returns (divided by N, not N - 1)."""
        return float(np.std([e.episode_return for e in self.episodes]))

    @property
    def worst_return(self) -> float:
        """The lowest return of an episode. Raises ValueError if there is no episode."""
        return min(e.episode_return for e in self.episodes)


def describe_cut_episodes(result: EvaluationResult, max_steps: int) -> str:
    """Text to append to a message about ``result``: how many episodes the step limit cut off; empty if none."""
    if not result.cut:
        return ""
    cut = f"{result.cut} of {len(result.episodes)} episodes cut at {max_steps:,} steps"
    return f"; {cut} (the evaluation's `max_episode_steps`)"


def evaluate(
    policy: Policy,
    environments: Environments,
    episodes: int,
    epsilon: float,
    seed: int,
    max_steps: int = MAX_EPISODE_STEPS,
    should_stop: Callable[[], bool] = lambda: False,
) -> EvaluationResult:
    """Play ``episodes`` episodes and return their results.

    Each environment plays a fixed share of the episodes. Otherwise environments with short episodes would finish more
    of them and bias the mean. An episode is cut after ``max_steps`` agent steps. The result depends only on the policy,
    the environments and ``seed``.

    Args:
        policy: maps observations [N, *observation] to actions [N].
        epsilon: probability of a uniformly random action. Must be 0 if actions are continuous.
        should_stop: called before every step. If it returns True, the episodes finished so far are returned.
    """
    count = environments.count
    rng = np.random.default_rng([seed, 1])

    def act(observation: Array) -> Array:
        actions = policy(observation)
        if epsilon > 0.0:
            random = rng.random(count) < epsilon
            actions = np.where(random, rng.integers(0, environments.actions, count), actions)
        return actions

    quota = np.full(count, episodes // count) + (np.arange(count) < episodes % count)
    results: list[EpisodeResult] = []
    cut = 0
    steps = rollout(environments, act, SeedSequence(seed, 0).draw, max_steps)
    while (quota > 0).any() and not should_stop():
        acted = next(steps)
        for i, result in acted.finished_episodes(epsilon):
            if quota[i] > 0:
                results.append(result)
                cut += not acted.step.done[i]
            quota[i] -= 1
    return EvaluationResult(tuple(results), cut=cut)
