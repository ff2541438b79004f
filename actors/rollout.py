"""Acting: a generator of batched steps that others consume.

Legend: ``observation`` [N, *observation] before the action, ``q`` [N, A] its values, ``action`` [N].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from rl.policies import epsilon_greedy
from rl.ports import Environments
from rl.stepping import SeedSequence
from rl.types import Array, Bool, Float32, Float64, Int64, Step

Values = Callable[[Array], Float32]  # observations [N, ...] -> action values [N, A]


class ActorStep(NamedTuple):
    """One batched step: what was seen, what was done, and what came of it."""

    observation: Array
    q: Float32
    action: Int64
    step: Step
    begins: Bool  # [N], whether ``observation`` is the first of an episode


def rollout(
    environments: Environments,
    values: Values,
    epsilons: Callable[[], Float64],
    rng: np.random.Generator,
    seeds: SeedSequence,
) -> Iterator[ActorStep]:
    """Act epsilon-greedily for ever; an environment whose episode ended is restarted before its next action."""
    count = environments.count
    observation = environments.reset(seeds.draw(count))
    begins = np.ones(count, dtype=np.bool_)
    while True:
        q = values(observation)
        action = epsilon_greedy(q, epsilons(), rng)
        step = environments.step(action)
        done = step.done
        yield ActorStep(observation, q, action, step, begins)
        observation = environments.restart(done, seeds.draw(int(done.sum()))) if done.any() else step.observation
        begins = done
