"""Recording videos of a policy with Gymnasium's recording wrapper."""

from __future__ import annotations

import itertools
from pathlib import Path

import gymnasium as gym
import numpy as np

from rl.envs.config import EnvConfig
from rl.envs.make import make_rendered
from rl.envs.spaces import AnyEnv, SpaceKind
from rl.envs.vector import GymnasiumEnvironments
from rl.errors import BadSetting
from rl.evaluation import MAX_EPISODE_STEPS, Policy
from rl.stepping import rollout
from rl.types import Array

PREFIX = "rl-video"  # of the files' names
GIF_SECONDS, GIF_SIDE, GIF_FPS = 20.0, 240, 12  # upper limits: seconds, pixels, frames/s


def record(
    act: Policy,
    config: EnvConfig,
    folder: Path,
    episodes: int,
    epsilon: float,
    seed: int,
    space_kind: SpaceKind = "network",
    gif: bool = False,
    max_steps: int = MAX_EPISODE_STEPS,
) -> list[Path]:
    """Play ``episodes`` episodes and write an mp4 of each into ``folder``. With ``gif``, also write GIFs.

    Returns the paths of the mp4 files, then those of the GIFs. Raises BadInput if the environment cannot be recorded.

    Args:
        act: maps observations [1, *observation] to actions [1], or [1, D] if they are continuous.
        epsilon: probability of a random action. Has no effect if actions are continuous.
        max_steps: agent steps after which an episode is cut.
    """
    check_recording(config, space_kind)

    def make() -> AnyEnv:
        env = make_rendered(config, space_kind)
        return gym.wrappers.RecordVideo(env, str(folder), lambda _: True, name_prefix=PREFIX, disable_logger=True)

    environments = GymnasiumEnvironments(make, 1, space_kind)
    rng, seeds = np.random.default_rng(seed), itertools.count(seed)

    def act_epsilon_greedy(observation: Array) -> Array:
        action: Array = act(observation)
        if space_kind != "continuous" and rng.random() < epsilon:
            action = np.array([rng.integers(environments.actions)])
        return action

    steps = rollout(environments, act_epsilon_greedy, lambda _: np.array([next(seeds)]), max_steps)
    played = 0
    while played < episodes:
        played += int(next(steps).ended[0])
    environments.close()
    files = [folder / f"{PREFIX}-episode-{i}.mp4" for i in range(episodes)]
    return files + [_write_gif(file) for file in files] if gif else files


def check_recording(config: EnvConfig, space_kind: SpaceKind = "network") -> None:
    """Raise BadInput with the reason if the environment cannot be rendered as pictures."""
    env = make_rendered(config, space_kind)
    try:
        env.reset(seed=0)
        picture = env.render()
    except Exception as error:  # renderers raise different errors if a package, a library or a display is missing
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadSetting(EnvConfig, "id", f"{config.id!r} cannot be rendered: {reason}") from error
    finally:
        env.close()
    if picture is None:
        raise BadSetting(EnvConfig, "id", f"{config.id!r} cannot be recorded: its render() returns no picture")


def _write_gif(video: Path) -> Path:
    """Write the beginning of ``video`` as a small GIF next to it; returns the GIF's path."""
    from moviepy import VideoFileClip

    to = video.with_suffix(".gif")
    with VideoFileClip(str(video)) as clip:
        short = clip.subclipped(0, min(clip.duration, GIF_SECONDS))
        short = short.resized(GIF_SIDE / max(clip.size)) if max(clip.size) > GIF_SIDE else short
        short.write_gif(str(to), fps=min(clip.fps, GIF_FPS), logger=None)
    return to
