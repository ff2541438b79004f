"""Environments in batches behind one interface: Atari through ale-py's vector environment, the rest through Gymnasium.

Both follow one rule: `step` returns the true observation after the action, also where the episode ends there, and a new
episode begins only through `restart`, which is not a step. So nothing that a reset returns can become a transition.
"""

from __future__ import annotations

import functools
import os

import gymnasium as gym

from rl.envs.atari import AtariEnvironments, atari_game
from rl.envs.config import ATARI_FRAME_SKIP, ATARI_STACK, EnvConfig
from rl.envs.spaces import AnyEnv, SpaceKind
from rl.envs.vector import GymnasiumEnvironments, single
from rl.errors import BadSetting
from rl.ports import Environments
from rl.types import ObservationSpec


def check_env(config: EnvConfig, takes: SpaceKind = "network") -> None:
    """Raise BadInput unless `make_environments` could make this environment."""
    if takes == "network" and atari_game(config.id) is not None and (config.kwargs != "{}" or config.max_episode_steps):
        said = "and `max_episode_steps` are not for Atari: write `max_frames`, or leave them out"
        raise BadSetting(EnvConfig, "kwargs", said)
    if takes != "network" or atari_game(config.id) is None:
        single(config, takes).close()


def make_environments(config: EnvConfig, count: int, threads: int = 1, takes: SpaceKind = "network") -> Environments:
    """``count`` environments behind one interface, with spaces that suit ``takes``.

    ``threads`` is the number of emulator threads (Atari only). Raises BadInput when the environment cannot be made.
    """
    if takes == "network" and atari_game(config.id) is not None:
        return AtariEnvironments(config, count, threads)
    return GymnasiumEnvironments(lambda: single(config, takes), count, takes)


@functools.cache
def describe(config: EnvConfig) -> tuple[ObservationSpec, int]:
    """The observation's spec and the number of actions of an environment.

    The environment is made once per process to find them out. Raises BadInput when it cannot be made.
    """
    env = make_environments(config, 1)
    env.close()
    return env.spec, env.actions


def frames_per_step(config: EnvConfig) -> int:
    """Frames of the emulator in an agent step: 4 on Atari, 1 elsewhere."""
    return ATARI_FRAME_SKIP if atari_game(config.id) is not None else 1


def make_rendered(config: EnvConfig, takes: SpaceKind = "network") -> AnyEnv:
    """One environment under the same protocol through Gymnasium's wrappers, with ``rgb_array`` rendering for videos.

    Raises BadInput when it cannot be made.
    """
    if not os.environ.get("DISPLAY") and not os.environ.get("WAYLAND_DISPLAY"):
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame complains where there is no screen
    game = atari_game(config.id)
    if game is None:
        return single(config, takes, render_mode="rgb_array")
    env = gym.make(
        config.id,
        frameskip=1,
        repeat_action_probability=config.sticky,
        max_num_frames_per_episode=config.max_frames,
        render_mode="rgb_array",
    )
    env = gym.wrappers.AtariPreprocessing(env, noop_max=config.noop_max, screen_size=config.size)
    return gym.wrappers.FrameStackObservation(env, ATARI_STACK, padding_type="zero")
