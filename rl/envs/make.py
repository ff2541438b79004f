"""Batches of environments behind one interface: Atari through ale-py's vector environment, the rest through Gymnasium.

`step` returns the true observation after the action, even if the episode ended. A new episode starts only in `restart`,
which is not a step. So the first observation of an episode never becomes the successor of a transition.
"""

from __future__ import annotations

import functools
import os

import gymnasium as gym

from rl.envs.atari import AtariEnvironments, atari_game
from rl.envs.config import ATARI_FRAME_SKIP, ATARI_STACK, EnvConfig
from rl.envs.spaces import AnyEnv, SpaceKind
from rl.envs.vector import GymnasiumEnvironments, make_env
from rl.errors import BadSetting
from rl.ports import Environments
from rl.types import ObservationSpec


def check_env(config: EnvConfig, space_kind: SpaceKind = "network") -> None:
    """Raise BadInput if this environment cannot be created with ``space_kind``, or a setting does not apply to it."""
    if (
        space_kind == "network"
        and atari_game(config.id) is not None
        and (config.kwargs != "{}" or config.max_episode_steps)
    ):
        message = "and `max_episode_steps` do not apply to Atari: leave them out; `max_frames` limits an episode"
        raise BadSetting(EnvConfig, "kwargs", message)
    if space_kind != "network" or atari_game(config.id) is None:
        make_env(config, space_kind).close()


def make_environments(
    config: EnvConfig, count: int, threads: int = 1, space_kind: SpaceKind = "network"
) -> Environments:
    """``count`` environments with spaces of the kind ``space_kind``, which `make_env_by_id` describes.

    ``threads`` is the number of emulator threads (Atari only). Raises BadInput if the environment cannot be created.
    """
    if space_kind == "network" and atari_game(config.id) is not None:
        return AtariEnvironments(config, count, threads)
    return GymnasiumEnvironments(lambda: make_env(config, space_kind), count, space_kind)


@functools.cache
def spec_and_actions(config: EnvConfig) -> tuple[ObservationSpec, int]:
    """(spec of an observation, number of actions) of an environment for a network.

    The first call for a configuration creates the environment; the result is cached. Raises BadInput if it cannot be
    created.
    """
    env = make_environments(config, 1)
    env.close()
    return env.spec, env.actions


def frames_per_step(config: EnvConfig) -> int:
    """Emulator frames per agent step: 4 for Atari, 1 for other environments."""
    return ATARI_FRAME_SKIP if atari_game(config.id) is not None else 1


def make_rendered(config: EnvConfig, space_kind: SpaceKind = "network") -> AnyEnv:
    """One Gymnasium environment with ``rgb_array`` rendering, for videos.

    Its observations are those of `make_environments`; Atari uses Gymnasium's wrappers. Raises BadInput if it cannot be
    created.
    """
    if not os.environ.get("DISPLAY") and not os.environ.get("WAYLAND_DISPLAY"):
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # without a display pygame needs this driver
    game = atari_game(config.id)
    if game is None:
        return make_env(config, space_kind, render_mode="rgb_array")
    env = gym.make(
        config.id,
        frameskip=1,
        repeat_action_probability=config.sticky,
        max_num_frames_per_episode=config.max_frames,
        render_mode="rgb_array",
    )
    env = gym.wrappers.AtariPreprocessing(env, noop_max=config.noop_max, screen_size=config.size)
    return gym.wrappers.FrameStackObservation(env, ATARI_STACK, padding_type="zero")
