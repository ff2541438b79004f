"""Stepping a batch of N environments: the loop that training, evaluation, recording and the classic family share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from rl.errors import BadInput, EnvironmentFault, describe_error
from rl.ports import Environments
from rl.types import Array, Bool, EpisodeResult, Float64, Int64, Step


class SeedSequence:
    """A stream of episode seeds. The same ``seed``, ``stream`` and ``start`` give the same seeds."""

    def __init__(self, seed: int, stream: int, start: int = 0) -> None:
        self._rng = np.random.default_rng([seed, stream, start])

    def draw(self, count: int) -> Int64:
        """The next ``count`` seeds, int64 [count] in [0, 2^31 - 1)."""
        return self._rng.integers(0, 2**31 - 1, size=count, dtype=np.int64)


class ActorStep(NamedTuple):
    """One batched step of N environments, and the state of their episodes after it."""

    observation: Array  # [N, *observation], before the action
    action: Array  # [N], or [N, D] if continuous
    step: Step  # the result; its observation is the true successor even if the episode ended
    is_first: Bool  # [N], whether ``observation`` is the first of an episode
    ended: Bool  # [N], whether the episode ended: terminated, truncated, or cut at ``max_steps``
    episode_return: Float64  # [N], sum of the episode's raw rewards so far, undiscounted
    length: Int64  # [N], agent steps of the episode so far

    def finished_episodes(self, epsilons: Array | float) -> Iterator[tuple[int, EpisodeResult]]:
        """Yield (index of the environment, result) for each episode that ended at this step.

        ``epsilons`` are those that chose the actions, [N], or one number for all.
        """
        for i in np.flatnonzero(self.ended).tolist():
            epsilon = float(np.broadcast_to(epsilons, len(self.ended))[i])
            truncated = not self.step.terminated[i]
            yield i, EpisodeResult(float(self.episode_return[i]), int(self.length[i]), epsilon, truncated)


@contextlib.contextmanager
def environment_call(call: str) -> Iterator[None]:
    """A context for a call of environments (``call``: make, reset, or step): its errors become EnvironmentFault."""
    try:
        yield
    except Exception as error:
        # `make_environments` turns the error of a constructor into BadInput, which names it as its cause
        own = error.__cause__ if isinstance(error, BadInput) and error.__cause__ is not None else error
        raise EnvironmentFault(call, describe_error(own)) from error


def rollout(
    environments: Environments,
    act: Callable[[Array], Array],
    seeds: Callable[[int], Int64],
    max_steps: int | None = None,
) -> Iterator[ActorStep]:
    """Step forever and yield each batched step.

    An environment whose episode ended is restarted when the next step is requested, so the last step is not followed
    by a reset. Arrays that were yielded are never written to again. Raises EnvironmentFault if a call of the
    environments raises an error; those of ``act`` and ``seeds`` are raised as they are.

    Args:
        act: maps observations [N, *observation] to actions [N], or [N, D] if they are continuous.
        seeds: ``seeds(count)`` returns the seeds of ``count`` new episodes, for example `SeedSequence.draw`.
        max_steps: agent steps after which an episode is cut; None: never.
    """
    count = environments.count
    first_seeds = seeds(count)
    with environment_call("reset"):
        observation = environments.reset(first_seeds)
    is_first = np.ones(count, np.bool_)
    returns, lengths = np.zeros(count), np.zeros(count, np.int64)
    while True:
        action = act(observation)
        with environment_call("step"):
            step = environments.step(action)
        returns, lengths = returns + step.reward, lengths + 1
        ended = step.done if max_steps is None else step.done | (lengths >= max_steps)
        yield ActorStep(observation, action, step, is_first, ended, returns, lengths)
        observation, is_first = step.observation, ended
        if ended.any():
            new_seeds = seeds(int(ended.sum()))
            with environment_call("reset"):
                observation = environments.restart(ended, new_seeds)
            returns, lengths = np.where(ended, 0.0, returns), np.where(ended, 0, lengths)
