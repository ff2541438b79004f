"""Batches of Gymnasium environments."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from rl.envs.config import EnvConfig
from rl.envs.spaces import AnyEnv, SpaceKind, make_env_by_id
from rl.types import Array, Bool, Int64, ObservationSpec, Step


class GymnasiumEnvironments:
    """`Environments` of ``count`` Gymnasium environments.

    ``make`` creates one of them, with spaces of the kind ``space_kind`` (`make_env`).
    """

    def __init__(self, make: Callable[[], AnyEnv], count: int, space_kind: SpaceKind = "network") -> None:
        self._env = SyncVectorEnv(
            [make] * count,
            autoreset_mode=AutoresetMode.DISABLED,
            observation_mode="same",
            copy=True,  # the environment reuses its buffer, but returned observations must not change
        )
        self.count = count
        self.spec = observation_spec(self._env.single_observation_space, space_kind)
        action = self._env.single_action_space
        self.actions = int(action.n) if isinstance(action, gym.spaces.Discrete) else int(np.prod(action.shape or ()))
        self._first_action = int(action.start) if isinstance(action, gym.spaces.Discrete) else 0

    def reset(self, seeds: Int64) -> Array:
        """See `Environments.reset`."""
        observation, _ = self._env.reset(seed=[int(s) for s in seeds])
        return np.asarray(observation, self.spec.dtype)

    def step(self, actions: Array) -> Step:
        """See `Environments.step`. Discrete actions count from 0. ``lost_life`` is always False."""
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
        """See `Environments.restart`."""
        seed_of: list[int | None] = [None] * self.count
        for env, seed in zip(np.flatnonzero(mask), seeds, strict=True):
            seed_of[env] = int(seed)
        observation, _ = self._env.reset(seed=seed_of, options={"reset_mask": mask})
        return np.asarray(observation, self.spec.dtype)

    def close(self) -> None:
        """Close the environments. If one raises an error, the others are closed before it is raised."""
        if self._env.closed:
            return
        self._env.closed = True  # `SyncVectorEnv.close` would stop at the first error
        with contextlib.ExitStack() as stack:
            for env in self._env.envs:
                stack.callback(env.close)


def observation_spec(space: gym.Space[Any], space_kind: SpaceKind) -> ObservationSpec:
    """The spec of the observations of environments with the observation space ``space``.

    A table gets observations in their own dtype. Other methods get uint8 (pixels) or float32.
    """
    keeps_dtype = space_kind == "table" or space.dtype == np.uint8
    return ObservationSpec(tuple(space.shape or ()), str(space.dtype) if keeps_dtype else "float32")


def make_env(config: EnvConfig, space_kind: SpaceKind = "network", **more: Any) -> AnyEnv:
    """One Gymnasium environment as configured, with spaces of the kind ``space_kind`` (`make_env_by_id`).

    ``more`` are further arguments of its constructor. Raises BadInput if it cannot be created or does not fit.
    """
    return make_env_by_id(config.id, space_kind, config.kwargs, config.max_episode_steps, **more)
