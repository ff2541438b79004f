"""Gymnasium environments with the spaces that a method needs: for a network, a table, or continuous actions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from rl.envs.config import EnvConfig, kwargs_of
from rl.envs.grid_states import WholeGrid, grid_space, is_grid, pack_grid
from rl.envs.registry import known_ids, register
from rl.errors import BadInput, BadSetting, suggestion

SpaceKind = Literal["network", "table", "continuous"]  # described at `make_env_by_id`
AnyEnv = gym.Env[Any, Any]

LARGEST_STATE = 4_096  # numbers in an observation; a table of larger ones, such as pictures, would fill the memory


def make_env_by_id(
    env_id: str, space_kind: SpaceKind, kwargs: str = "{}", max_episode_steps: int = 0, **more: Any
) -> AnyEnv:
    """One environment with the spaces that a method needs.

    Args:
        space_kind: "network": Box observations (Discrete ones become one-hot vectors) and Discrete actions.
            "table": observations converted by `table_states` (of MiniGrid the whole grid) and Discrete actions.
            "continuous": Box observations and Box actions, which are scaled to [-1, 1].
        kwargs: keyword arguments of the environment's constructor, as a JSON object. ``more`` is added to them.
        max_episode_steps: 0 means the limit registered in Gymnasium.

    Raises BadInput, with a suggestion, if the environment does not exist or its spaces do not fit.
    """
    env = _make(env_id, {**kwargs_of(kwargs), **more}, max_episode_steps)
    try:
        return _adapt_spaces(env, env_id, space_kind)
    except BadInput:
        env.close()
        raise


def _make(env_id: str, kwargs: dict[str, Any], max_episode_steps: int) -> AnyEnv:
    register(env_id)
    if env_id not in gym.registry and ":" not in env_id:
        hint = f"{suggestion(env_id, known_ids())} (for your own environment write MODULE:ID)"
        raise BadSetting(EnvConfig, "id", f"{env_id!r} is not a Gymnasium environment: {hint}")
    try:
        return gym.make(env_id, max_episode_steps=max_episode_steps or None, **kwargs)
    except ModuleNotFoundError as error:
        reason = str(error).split(". ")[0]
        hint = "install its package, or add its directory to PYTHONPATH"
        raise BadSetting(EnvConfig, "id", f"{env_id!r} cannot be imported ({reason}): {hint}") from error
    except Exception as error:  # constructors raise different errors for bad arguments
        reason = f"{type(error).__name__}: {error}"
        raise BadSetting(EnvConfig, "id", f"{env_id!r} cannot be created: {' '.join(reason.split())}") from error


def _adapt_spaces(env: AnyEnv, env_id: str, space_kind: SpaceKind) -> AnyEnv:
    """``env``, wrapped if needed, with spaces of the kind ``space_kind``. Raises BadSetting if they do not fit."""
    action, observation = env.action_space, env.observation_space
    if space_kind == "continuous":
        if not isinstance(action, spaces.Box) or len(action.shape) != 1 or not action.is_bounded():
            raise BadSetting(
                EnvConfig,
                "id",
                f"{env_id!r} has actions {action}: continuous control needs a bounded Box, such as Pendulum-v1's; for "
                "Discrete actions use dqn or q-learning",
            )
        if not isinstance(observation, spaces.Box):
            raise BadSetting(
                EnvConfig,
                "id",
                f"{env_id!r} has observations {observation}: write an environment with a Box, such as Pendulum-v1",
            )
        return gym.wrappers.RescaleAction(env, np.float32(-1.0), np.float32(1.0))
    if not isinstance(action, spaces.Discrete):
        raise BadSetting(
            EnvConfig,
            "id",
            f"{env_id!r} has actions {action}: write an environment with Discrete actions, such as CartPole-v1; for "
            "continuous actions use `qfleet classic continuous`",
        )
    if space_kind == "table":
        return _with_table_states(env, env_id)
    if isinstance(observation, spaces.Discrete):
        return gym.wrappers.FlattenObservation(env)
    if not isinstance(observation, spaces.Box):
        raise BadSetting(
            EnvConfig,
            "id",
            f"{env_id!r} has observations {_shorten(observation)}: write an environment with a Box or Discrete space, "
            "or use a method with a table, such as `qfleet classic q-learning`",
        )
    return env


def _shorten(space: gym.Space[Any]) -> str:
    """The space as text of at most about 100 characters."""
    text = " ".join(str(space).split())
    return text if len(text) <= 100 else text[:100] + " ..."


def _with_table_states(env: AnyEnv, env_id: str) -> AnyEnv:
    """``env`` with observations converted by `table_states`. Raises BadSetting if a table cannot hold them."""
    if is_grid(env.observation_space):
        env = WholeGrid(env)
    states = table_states(env.observation_space)
    if isinstance(env.observation_space, spaces.Box) and math.prod(env.observation_space.shape) > LARGEST_STATE:
        states = None
    if states is None:
        raise BadSetting(
            EnvConfig,
            "id",
            f"{env_id!r} has observations {_shorten(env.observation_space)}: a table needs Discrete ones, such as "
            "FrozenLake-v1's; for a Box use fitted-q, neural-fitted-q or dqn",
        )
    space, convert = states
    return env if space is env.observation_space else gym.wrappers.TransformObservation(env, convert, space)


def table_states(space: gym.Space[Any]) -> tuple[gym.Space[Any], Callable[[Any], Any]] | None:
    """(state space of a table, function from observation to state) for observations of ``space``.

    A Discrete space, or a tuple of them, becomes one integer from 0. MiniGrid's dict becomes a uint8 vector
    (`grid_states.pack_grid`). An integer Box is unchanged: its bytes identify the state. Returns None for other spaces.
    """
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.integer):
        return space, lambda observation: observation
    if isinstance(space, spaces.Discrete) and space.start == 0:
        return space, lambda observation: observation
    if isinstance(space, spaces.Dict) and is_grid(space):
        return grid_space(space), pack_grid
    parts = space.spaces if isinstance(space, spaces.Tuple) else (space,)
    if not all(isinstance(part, spaces.Discrete) for part in parts):
        return None
    sizes = tuple(int(part.n) for part in parts if isinstance(part, spaces.Discrete))
    starts = tuple(int(part.start) for part in parts if isinstance(part, spaces.Discrete))

    def number(observation: Any) -> Any:
        values = observation if isinstance(space, spaces.Tuple) else (observation,)
        return np.int64(np.ravel_multi_index([int(v) - s for v, s in zip(values, starts, strict=True)], sizes))

    return spaces.Discrete(math.prod(sizes)), number
