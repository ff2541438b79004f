"""Play as a stream of single steps, for the methods that need no batches.

Legend: ``s`` an observation, ``a`` an action from 0, ``s_next`` the true successor, also where the episode ends there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import gymnasium as gym

from rl.envs.spaces import AnyEnv
from rl.types import EpisodeResult


class Step(NamedTuple):
    """One step of one environment."""

    s: Any
    a: int
    reward: float
    s_next: Any
    terminated: bool
    truncated: bool


def steps(env: AnyEnv, act: Callable[[Any], int], seed: int) -> Iterator[Step]:
    """An endless stream of steps, episode after episode; the environment is seeded once."""
    space = env.action_space
    assert isinstance(space, gym.spaces.Discrete)
    s, _ = env.reset(seed=seed)
    while True:
        a = act(s)
        s_next, reward, terminated, truncated, _ = env.step(a + int(space.start))
        yield Step(s, a, float(reward), s_next, terminated, truncated and not terminated)
        s = env.reset()[0] if terminated or truncated else s_next


def episode(stream: Iterator[Step]) -> Iterator[Step]:
    """The stream's steps to the end of the episode."""
    for step in stream:
        yield step
        if step.terminated or step.truncated:
            return


def result(played: Sequence[Step], epsilon: float) -> EpisodeResult:
    """An episode's undiscounted return, its length in steps, its epsilon, and whether it was truncated."""
    return EpisodeResult(sum(step.reward for step in played), len(played), epsilon, played[-1].truncated)
