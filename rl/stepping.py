"""Stepping a batch of environments: the one loop of training, evaluation, recording and the classic family.

Legend: N environments; ``observation`` [N, *observation] before the action, ``action`` [N] ([N, D] where continuous).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from rl.ports import Environments
from rl.types import Array, Bool, EpisodeResult, Float64, Int64, Step


class SeedSequence:
    """A stream of episode seeds for a batch of environments, so that any episode can be replayed from its seed."""

    def __init__(self, seed: int, stream: int, start: int = 0) -> None:
        self._rng = np.random.default_rng([seed, stream, start])

    def draw(self, count: int) -> Int64:
        """The next ``count`` seeds, int64 [count] in [0, 2^31 - 1)."""
        return self._rng.integers(0, 2**31 - 1, size=count, dtype=np.int64)


class ActorStep(NamedTuple):
    """One batched step: observations, actions, what followed, and the state of the episodes after it."""

    observation: Array
    action: Array
    step: Step  # its observation is the true successor, also where the episode ended
    begins: Bool  # [N], whether ``observation`` is the first of an episode
    ended: Bool  # [N], whether the episode is over: terminated, truncated, or cut by ``max_steps``
    episode_return: Float64  # [N], raw rewards of the episode so far, undiscounted
    length: Int64  # [N], agent steps of the episode so far

    def finished(self, epsilons: Array | float) -> Iterator[tuple[int, EpisodeResult]]:
        """(environment's index, result) of each episode that ended at this step.

        ``epsilons`` that were acted with: [N], or one number for all.
        """
        for i in np.flatnonzero(self.ended).tolist():
            epsilon = float(np.broadcast_to(epsilons, len(self.ended))[i])
            truncated = not self.step.terminated[i]
            yield i, EpisodeResult(float(self.episode_return[i]), int(self.length[i]), epsilon, truncated)


def rollout(
    environments: Environments,
    act: Callable[[Array], Array],
    seeds: Callable[[int], Int64],
    max_steps: int | None = None,
) -> Iterator[ActorStep]:
    """Step without end and yield each batched step.

    ``act`` maps observations [N, *observation] to actions [N], or [N, D] where they are continuous. ``seeds(count)``
    gives the seeds of ``count`` new episodes (`SeedSequence.draw`). An episode is cut after ``max_steps`` agent steps,
    where given. An environment whose episode ended is restarted only when the next step is asked for, so that no reset
    follows the last step taken. No array that was yielded is written again.
    """
    count = environments.count
    observation = environments.reset(seeds(count))
    begins = np.ones(count, np.bool_)
    returns, lengths = np.zeros(count), np.zeros(count, np.int64)
    while True:
        action = act(observation)
        step = environments.step(action)
        returns, lengths = returns + step.reward, lengths + 1
        ended = step.done if max_steps is None else step.done | (lengths >= max_steps)
        yield ActorStep(observation, action, step, begins, ended, returns, lengths)
        observation, begins = step.observation, ended
        if ended.any():
            observation = environments.restart(ended, seeds(int(ended.sum())))
            returns, lengths = np.where(ended, 0.0, returns), np.where(ended, 0, lengths)
