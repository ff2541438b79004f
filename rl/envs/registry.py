"""The known environments: Gymnasium's, Qfleet's, and those of packages that register them on import."""

from __future__ import annotations

import re

import gymnasium as gym

from rl.envs import bias_example, grid_worlds
from rl.errors import BadInput

gym.register_envs(bias_example)
gym.register_envs(grid_worlds)

# {prefix of the ids: (package that registers them on import, extra of Qfleet that installs the package)}
PROVIDERS = {
    "FlappyBird": ("flappy_bird_gymnasium", "classic"),
    "MiniGrid-": ("minigrid", "classic"),
    "BabyAI-": ("minigrid", "classic"),
}


def known_ids() -> list[str]:
    """The ids in Gymnasium's registry, except the environments that need JAX."""
    return [k for k in gym.registry if not re.match(r"(phys2d|tabular)/", k)]


def register(env_id: str) -> None:
    """Import the package in PROVIDERS that registers ``env_id``, if any. Raises BadInput if it is not installed."""
    for prefix, (package, extra) in PROVIDERS.items():
        if env_id.startswith(prefix) and env_id not in gym.registry:
            try:
                __import__(package)
            except ImportError as error:
                raise BadInput(
                    f'{env_id} needs the extra `{extra}`: pip install -c constraints.txt -e ".[{extra}]"'
                ) from error


def has_time_limit(env_id: str) -> bool:
    """Whether the environment is registered with a limit of steps per episode. False for an unknown id.

    Raises BadInput if the package that registers it is not installed.
    """
    register(env_id)
    spec = gym.registry.get(env_id)
    return spec is not None and spec.max_episode_steps is not None
