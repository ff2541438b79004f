"""Atari games through the C++ vector environment of ale-py."""

from __future__ import annotations

import ale_py
import gymnasium as gym
import numpy as np
from ale_py import roms
from ale_py.vector_env import AtariVectorEnv
from gymnasium.vector import AutoresetMode

from rl.envs.config import ATARI_FRAME_SKIP, ATARI_STACK, EnvConfig
from rl.errors import BadSetting
from rl.types import Array, Bool, Int64, ObservationSpec, Step

gym.register_envs(ale_py)


def atari_game(env_id: str) -> str | None:
    """The name of the game in ale-py for a Gymnasium id (``ALE/Pong-v5`` -> ``pong``). None if it is not Atari."""
    spec = gym.registry.get(env_id)
    if spec is None or not str(spec.entry_point).startswith("ale_py"):
        return None
    return str(spec.kwargs["game"])


class AtariEnvironments:
    """`Environments` for Atari, with observations uint8 [N, 4, size, size].

    The protocol: frame skip 4, maximum over the last 2 frames, grey frames, stacks of 4, no-op starts, the minimal
    action set, raw rewards. Raises BadSetting if there is no such game.
    """

    def __init__(self, config: EnvConfig, count: int, threads: int = 1) -> None:
        game = atari_game(config.id)
        if game is None or roms.get_rom_path(game) is None:
            raise BadSetting(EnvConfig, "id", f"{config.id!r} is not a game with a ROM in ale-py: write another id")
        self._env = AtariVectorEnv(
            game,
            count,
            num_threads=threads,
            autoreset_mode=AutoresetMode.NEXT_STEP,
            repeat_action_probability=config.sticky,
            max_num_frames_per_episode=config.max_frames,
            noop_max=config.noop_max,
            img_height=config.size,
            img_width=config.size,
            frameskip=ATARI_FRAME_SKIP,
            stack_num=ATARI_STACK,
            reward_clipping=False,
            use_fire_reset=False,
            episodic_life=False,
        )
        self.count = count
        self.actions = int(self._env.single_action_space.n)  # type: ignore[attr-defined]
        self.spec = ObservationSpec((config.size, config.size), "uint8", ATARI_STACK)
        self._lives = np.zeros(count, dtype=np.int32)

    def reset(self, seeds: Int64) -> Array:
        """See `Environments.reset`. Returns observations, uint8 [N, 4, size, size]."""
        observation, info = self._env.reset(seed=np.asarray(seeds, dtype=np.int32))
        self._lives = info["lives"].copy()
        return np.asarray(observation)

    def step(self, actions: Array) -> Step:
        """See `Environments.step`. The rewards are raw; ``lost_life`` [N] says where a life was lost in this step."""
        observation, reward, terminated, truncated, info = self._env.step(actions)
        lost = info["lives"] < self._lives
        self._lives = info["lives"].copy()
        return Step(observation, np.asarray(reward, np.float32), terminated, truncated, lost)

    def restart(self, mask: Bool, seeds: Int64) -> Array:
        """See `Environments.restart`. Returns all observations, uint8 [N, 4, size, size]."""
        observation, info = self._env.reset(seed=np.asarray(seeds, dtype=np.int32), options={"reset_mask": mask})
        self._lives = info["lives"].copy()
        return np.asarray(observation)

    def close(self) -> None:
        """Release the emulators."""
        self._env.close()
