"""Any Gymnasium environment, in batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from rl.envs.config import EnvConfig
from rl.envs.spaces import AnyEnv, SpaceKind, make_single
from rl.types import Array, Bool, Int64, ObservationSpec, Step


class GymnasiumEnvironments:
    """`Environments` of ``count`` Gymnasium environments.

    ``make`` makes one of them, with spaces that suit ``takes`` (`single`).
    """

    def __init__(self, make: Callable[[], AnyEnv], count: int, takes: SpaceKind = "network") -> None:
        self._env = SyncVectorEnv(
            [make] * count,
            autoreset_mode=AutoresetMode.DISABLED,
            observation_mode="same",
            copy=True,  # it reuses one buffer for observations; those returned must not change
        )
        self.count = count
        self.spec = observed(self._env.single_observation_space, takes)
        action = self._env.single_action_space
        self.actions = int(action.n) if isinstance(action, gym.spaces.Discrete) else int(np.prod(action.shape or ()))
        self._first_action = int(action.start) if isinstance(action, gym.spaces.Discrete) else 0

    def reset(self, seeds: Int64) -> Array:
        """`Environments.reset`: returns observations [N, *observation] of new episodes from seeds [N]."""
        observation, _ = self._env.reset(seed=[int(s) for s in seeds])
        return np.asarray(observation, self.spec.dtype)

    def step(self, actions: Array) -> Step:
        """`Environments.step` with actions [N] counted from 0, or [N, D] where continuous; returns a `Step`.

        No life is ever lost in it.
        """
        observation, reward, terminated, truncated, _ = self._env.step(actions + self._first_action)
        no_lives = np.zeros(self.count, dtype=np.bool_)
        return Step(
            np.asarray(observation, self.spec.dtype),
            np.asarray(reward, np.float32),
            terminated,
            truncated & ~terminated,
            no_lives,
        )

    def restart(self, mask: Bool, seeds: Int64) -> Array:
        """`Environments.restart` where ``mask`` [N], from seeds [sum(mask)].

        Returns all observations, [N, *observation].
        """
        where: list[int | None] = [None] * self.count
        for env, seed in zip(np.flatnonzero(mask), seeds, strict=True):
            where[env] = int(seed)
        observation, _ = self._env.reset(seed=where, options={"reset_mask": mask})
        return np.asarray(observation, self.spec.dtype)

    def close(self) -> None:
        """Close the environments."""
        self._env.close()


def observed(space: gym.Space[Any], takes: SpaceKind) -> ObservationSpec:
    """The spec of the observations that a method gets from environments of ``space``.

    A network gets pixels (uint8) or float32; a table gets observations in their own type.
    """
    kept = takes == "table" or space.dtype == np.uint8
    return ObservationSpec(tuple(space.shape or ()), str(space.dtype) if kept else "float32")


def single(config: EnvConfig, takes: SpaceKind = "network", **more: Any) -> AnyEnv:
    """One Gymnasium environment as configured, its spaces as ``takes`` needs them; ``more`` goes to its constructor.

    Raises BadInput.
    """
    return make_single(config.id, takes, config.kwargs, config.max_episode_steps, **more)
