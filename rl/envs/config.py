"""The configuration of the environment."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, ClassVar

from rl.bounds import at_least, between
from rl.errors import BadSetting
from rl.resuming import Rules, rules

ATARI_FRAME_SKIP = 4  # emulator frames per agent step
ATARI_STACK = 4  # frames per observation


@dataclass(frozen=True)
class EnvConfig:
    """The environment and its preprocessing."""

    id: str = "PongNoFrameskip-v4"
    """Gymnasium id with Discrete actions and a Box or Discrete observation; Atari ids get the Atari preprocessing."""
    sticky: float = 0.0
    """Atari: probability that the last action is repeated (0.25 for the ALE/...-v5 protocol)."""
    noop_max: int = 30
    """Atari: maximum number of no-op actions at the start of an episode."""
    max_frames: int = 108_000
    """Atari: frames after which an episode is truncated (4 frames per agent step)."""
    size: int = 84
    """Atari: side of the square grayscale frame, in pixels."""
    kwargs: str = "{}"
    """Not for Atari: keyword arguments for gymnasium.make, a JSON object such as '{"is_slippery": false}'."""
    max_episode_steps: int = 0
    """Not for Atari: agent steps after which an episode is truncated; 0: the limit registered in Gymnasium."""

    on_resume: ClassVar[Rules] = rules(stays="id sticky noop_max max_frames size kwargs max_episode_steps")

    def __post_init__(self) -> None:
        between(self, 0, 1, "sticky", what="a probability")
        at_least(self, 0, "noop_max", unit="no-ops")
        at_least(self, ATARI_FRAME_SKIP, "max_frames", unit="frames")
        at_least(self, 36, "size", unit="pixels")
        at_least(self, 0, "max_episode_steps", unit="agent steps", zero="the limit registered in Gymnasium")
        kwargs_of(self.kwargs)


def kwargs_of(text: str) -> dict[str, Any]:
    """Parse ``text``, a JSON object with keyword arguments of an environment's constructor.

    Raises BadSetting if it is not a JSON object, or if it contains render_mode or max_episode_steps.
    """
    try:
        kwargs = json.loads(text)
    except ValueError:
        kwargs = None
    if not isinstance(kwargs, dict):
        raise BadSetting(EnvConfig, "kwargs", f"is {text!r}: write a JSON object, such as '{{\"is_slippery\": false}}'")
    reserved = sorted({"render_mode", "max_episode_steps"} & set(kwargs))
    if reserved:
        message = f"contains {reserved[0]}: leave it out (write `max_episode_steps` to limit the length of episodes)"
        raise BadSetting(EnvConfig, "kwargs", message)
    return kwargs
