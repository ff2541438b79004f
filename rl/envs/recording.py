"""Videos of a policy, through Gymnasium's recording wrapper."""

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

GIF_SECONDS, GIF_SIDE, GIF_FPS = 20.0, 240, 12  # at most; pixels, frames/s


def record(
    act: Policy,
    config: EnvConfig,
    folder: Path,
    episodes: int,
    epsilon: float,
    seed: int,
    takes: SpaceKind = "network",
    gif: bool = False,
    max_steps: int = MAX_EPISODE_STEPS,
) -> list[Path]:
    """Play episodes and write an mp4 of each into ``folder``, with ``gif`` a GIF beside it. Returns the files.

    An episode has at most ``max_steps`` agent steps. ``act`` maps observations [1, ...] to actions [1], or [1, D] where
    they are continuous (``epsilon`` then does not apply). Raises BadInput when the environment cannot be recorded.
    """
    check_recording(config, takes)

    def make() -> AnyEnv:
        env = make_rendered(config, takes)
        return gym.wrappers.RecordVideo(env, str(folder), episode_trigger=lambda _: True, disable_logger=True)

    environments, rng, first = GymnasiumEnvironments(make, 1, takes), np.random.default_rng(seed), itertools.count(seed)

    def mostly(observation: Array) -> Array:
        action: Array = act(observation)
        if takes != "continuous" and rng.random() < epsilon:
            action = np.array([rng.integers(environments.actions)])
        return action

    steps = rollout(environments, mostly, lambda _: np.array([next(first)]), max_steps)
    while episodes > 0:
        episodes -= int(next(steps).ended[0])
    environments.close()
    files = sorted(folder.glob("*.mp4"))
    return files + [_gif(file) for file in files] if gif else files


def check_recording(config: EnvConfig, takes: SpaceKind = "network") -> None:
    """Raise BadInput, saying what is missing, when the environment cannot be drawn or draws nothing."""
    env = make_rendered(config, takes)
    try:
        env.reset(seed=0)
        picture = env.render()
    except Exception as error:  # whatever a renderer misses: a package, a library, a screen
        said = " ".join(str(error).split()) or type(error).__name__
        raise BadSetting(EnvConfig, "id", f"{config.id!r} cannot be drawn: {said}") from error
    finally:
        env.close()
    if picture is None:
        raise BadSetting(EnvConfig, "id", f"{config.id!r} draws no pictures")


def _gif(video: Path) -> Path:
    """The same pictures as a GIF beside the mp4, its beginning, and not too large for a page."""
    from moviepy import VideoFileClip

    to = video.with_suffix(".gif")
    with VideoFileClip(str(video)) as clip:
        shown = clip.subclipped(0, min(clip.duration, GIF_SECONDS))
        shown = shown.resized(GIF_SIDE / max(clip.size)) if max(clip.size) > GIF_SIDE else shown
        shown.write_gif(str(to), fps=min(clip.fps, GIF_FPS), logger=None)
    return to
