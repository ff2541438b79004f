"""Videos of a policy, through Gymnasium's recording wrapper."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gymnasium as gym
import numpy as np

from rl.envs import EnvConfig, make_rendered
from rl.errors import BadInput
from rl.types import Array, Int64


def record(
    act: Callable[[Array], Int64], config: EnvConfig, folder: Path, episodes: int, epsilon: float, seed: int
) -> list[Path]:
    """Play ``episodes`` and write an mp4 of each into ``folder``; ``act`` maps observations [1, ...] to actions [1].

    Raises BadInput when the video encoder (the extra `video`) is not installed.
    """
    env = make_rendered(config)
    assert isinstance(env.action_space, gym.spaces.Discrete)
    actions, first = int(env.action_space.n), int(env.action_space.start)
    try:
        env = gym.wrappers.RecordVideo(env, str(folder), episode_trigger=lambda _: True, disable_logger=True)
    except gym.error.DependencyNotInstalled as error:
        raise BadInput("--video needs the extra `video`: pip install 'qfleet[video]'") from error
    rng = np.random.default_rng(seed)
    dtype = np.uint8 if env.observation_space.dtype == np.uint8 else np.float32
    for episode in range(episodes):
        observation, _ = env.reset(seed=seed + episode)
        done = False
        while not done:
            explore = rng.random() < epsilon
            batch = np.asarray(observation, dtype=dtype)[None]
            action = rng.integers(actions) if explore else act(batch)[0]
            observation, _, terminated, truncated, _ = env.step(int(action) + first)
            done = terminated or truncated
    env.close()
    return sorted(folder.glob("*.mp4"))
