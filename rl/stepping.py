"""Stepping a batch of environments: the one loop of training, evaluation, recording and the classic family.

Legend: N environments; ``observation`` [N, *observation] before the action, ``action`` [N] ([N, D] where continuous).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from rl.ports import Environments
from rl.types import Array, Bool, EpisodeResult, Float64, Int64, Step


class SeedSequence:
    """A stream of episode seeds of one environment batch, so that any episode can be replayed from its seed."""

    def __init__(self, seed: int, stream: int, start: int = 0) -> None:
        self._rng = np.random.default_rng([seed, stream, start])

    def draw(self, count: int) -> Int64:
        """``[count]`` seeds in [0, 2^31 - 1)."""
        return self._rng.integers(0, 2**31 - 1, size=count, dtype=np.int64)

    def get_state(self) -> Mapping[str, Any]:
        return dict(self._rng.bit_generator.state)

    def set_state(self, state: Mapping[str, Any]) -> None:
        self._rng.bit_generator.state = state


class ActorStep(NamedTuple):
    """One batched step: what was seen, what was done, what came of it, and how the episodes stand after it."""

    observation: Array
    action: Array
    step: Step  # its observation is the true successor, also where the episode ended
    begins: Bool  # [N], whether ``observation`` is the first of an episode
    ended: Bool  # [N], whether the episode is over: terminated, truncated, or cut by ``max_steps``
    episode_return: Float64  # [N], raw rewards of the episode so far, undiscounted
    length: Int64  # [N], agent steps of the episode so far

    def finished(self, epsilons: Array | float) -> Iterator[tuple[int, EpisodeResult]]:
        """(environment, result) of each episode that ended here; ``epsilons`` [N], or one for all: acted with."""
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
    """Step for ever, acting by ``act``: observations [N, ...] -> actions [N, ...].

    ``seeds(count)`` begins so many episodes (`SeedSequence.draw`). An episode is cut after ``max_steps`` agent steps, where
    given. What ended is restarted only when the next step is asked for: the last step taken is followed by no reset.
    No array that is yielded is written again.
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
