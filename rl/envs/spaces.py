"""Gymnasium environments adapted to what a method takes: a network, a table, or continuous actions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from rl.envs.config import EnvConfig, kwargs_of
from rl.envs.grid_states import WholeGrid, grid_space, is_grid, pack
from rl.envs.registry import known_ids, register
from rl.errors import BadInput, BadSetting, nearest

SpaceKind = Literal["network", "table", "continuous"]
AnyEnv = gym.Env[Any, Any]

LARGEST_STATE = 4_096  # numbers in an observation that a table keeps; pictures would fill the memory


def make_single(env_id: str, takes: SpaceKind, kwargs: str = "{}", max_episode_steps: int = 0, **more: Any) -> AnyEnv:
    """One environment with spaces that suit ``takes``; raises BadInput, naming what would fit.

    network: observations Box (Discrete ones become one-hot vectors), actions Discrete. table: observations as
    `table_states` makes them, of MiniGrid's worlds the whole grid; actions Discrete. continuous: both Box, the actions
    scaled to [-1, 1]. ``kwargs``: a JSON object for the environment's constructor; ``max_episode_steps`` 0: as
    registered.
    """
    env = _make(env_id, {**kwargs_of(kwargs), **more}, max_episode_steps)
    try:
        return _fitted(env, env_id, takes)
    except BadInput:
        env.close()
        raise


def _make(env_id: str, kwargs: dict[str, Any], max_episode_steps: int) -> AnyEnv:
    register(env_id)
    if env_id not in gym.registry and ":" not in env_id:
        raise BadSetting(EnvConfig, "id", f"{env_id!r} is not a Gymnasium environment: {nearest(env_id, known_ids())}")
    try:
        return gym.make(env_id, max_episode_steps=max_episode_steps or None, **kwargs)
    except Exception as error:  # whatever a constructor makes of its arguments
        said = f"{type(error).__name__}: {error}"
        raise BadSetting(EnvConfig, "id", f"{env_id!r} cannot be made: {' '.join(said.split())}") from error


def _fitted(env: AnyEnv, env_id: str, takes: SpaceKind) -> AnyEnv:
    action, observation = env.action_space, env.observation_space
    if takes == "continuous":
        if not isinstance(action, spaces.Box) or len(action.shape) != 1 or not action.is_bounded():
            raise BadSetting(
                EnvConfig,
                "id",
                f"{env_id!r} has actions {action}: continuous control needs a bounded Box, such as Pendulum-v1's; "
                "for Discrete actions write dqn or q-learning",
            )
        if not isinstance(observation, spaces.Box):
            raise BadSetting(
                EnvConfig, "id", f"{env_id!r} has observations {observation}: write one with a Box, such as Pendulum-v1"
            )
        return gym.wrappers.RescaleAction(env, np.float32(-1.0), np.float32(1.0))
    if not isinstance(action, spaces.Discrete):
        raise BadSetting(
            EnvConfig,
            "id",
            f"{env_id!r} has actions {action}: this method needs a Discrete action space, such as CartPole-v1's",
        )
    if takes == "table":
        return _numbered(env, env_id)
    if isinstance(observation, spaces.Discrete):
        return gym.wrappers.FlattenObservation(env)
    if not isinstance(observation, spaces.Box):
        raise BadSetting(
            EnvConfig,
            "id",
            f"{env_id!r} has observations {_short(observation)}: write one with a Box or Discrete space, or a method "
            "with a table, such as q-learning",
        )
    return env


def _short(space: gym.Space[Any]) -> str:
    """A space in a few words."""
    text = " ".join(str(space).split())
    return text if len(text) <= 100 else text[:100] + " ..."


def _numbered(env: AnyEnv, env_id: str) -> AnyEnv:
    """The environment with observations as `table_states` has them; of MiniGrid's the whole grid."""
    if is_grid(env.observation_space):
        env = WholeGrid(env)
    fitted = table_states(env.observation_space)
    if isinstance(env.observation_space, spaces.Box) and math.prod(env.observation_space.shape) > LARGEST_STATE:
        fitted = None
    if fitted is None:
        raise BadSetting(
            EnvConfig,
            "id",
            f"{env_id!r} has observations {_short(env.observation_space)}: a table needs Discrete ones, such as "
            "FrozenLake-v1's; for a Box write fitted-q, neural-fitted-q or dqn",
        )
    space, convert = fitted
    return env if space is env.observation_space else gym.wrappers.TransformObservation(env, convert, space)


def table_states(space: gym.Space[Any]) -> tuple[gym.Space[Any], Callable[[Any], Any]] | None:
    """A table's state space and the function from an observation to a state; None where a table cannot hold them.

    Discrete spaces, and tuples of them: one integer from 0. MiniGrid's dict: uint8 [D] (`grid_states.pack`). An integer
    Box is unchanged: its bytes identify the state.
    """
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.integer):
        return space, lambda observation: observation
    if isinstance(space, spaces.Discrete) and space.start == 0:
        return space, lambda observation: observation
    if isinstance(space, spaces.Dict) and is_grid(space):
        return grid_space(space), pack
    parts = space.spaces if isinstance(space, spaces.Tuple) else (space,)
    if not all(isinstance(part, spaces.Discrete) for part in parts):
        return None
    sizes = tuple(int(part.n) for part in parts if isinstance(part, spaces.Discrete))
    starts = tuple(int(part.start) for part in parts if isinstance(part, spaces.Discrete))

    def number(observation: Any) -> Any:
        values = observation if isinstance(space, spaces.Tuple) else (observation,)
        return np.int64(np.ravel_multi_index([int(v) - s for v, s in zip(values, starts, strict=True)], sizes))

    return spaces.Discrete(math.prod(sizes)), number
