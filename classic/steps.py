"""One environment as a stream of single steps, for the tabular methods.

    stream = play_steps(env, act, seed)
    for _ in range(100):
        played = list(next_episode(stream))
        result = episode_result(played, epsilon)

Legend: ``s`` an observation; ``a`` an action, counted from 0; ``s_next`` the observation that follows, also at the end
of an episode, where it is the last observation and not the first of the next episode.
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


def play_steps(env: AnyEnv, act: Callable[[Any], int], seed: int) -> Iterator[Step]:
    """Play episode after episode and yield every step, without end; the environment is seeded once.

    ``act`` maps an observation to an action, counted from 0.
    """
    space = env.action_space
    assert isinstance(space, gym.spaces.Discrete)
    s, _ = env.reset(seed=seed)
    while True:
        a = act(s)
        s_next, reward, terminated, truncated, _ = env.step(a + int(space.start))
        yield Step(s, a, float(reward), s_next, terminated, truncated and not terminated)
        s = env.reset()[0] if terminated or truncated else s_next


def next_episode(stream: Iterator[Step]) -> Iterator[Step]:
    """Yield the steps of the stream up to the end of the current episode."""
    for step in stream:
        yield step
        if step.terminated or step.truncated:
            return


def episode_result(played: Sequence[Step], epsilon: float) -> EpisodeResult:
    """Summarize the steps of an episode: undiscounted return, length, epsilon, and whether it was truncated."""
    return EpisodeResult(sum(step.reward for step in played), len(played), epsilon, played[-1].truncated)
