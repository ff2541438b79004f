"""Which environment, under which protocol: plain settings."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from rl.errors import BadInput

ATARI_FRAME_SKIP = 4  # frames an agent step


ATARI_STACK = 4  # frames an observation


@dataclass(frozen=True)
class EnvConfig:
    """Which environment, under which protocol."""

    id: str = "PongNoFrameskip-v4"
    """Any Gymnasium id with a Discrete action space and a Box or Discrete observation; Atari ids get the Atari protocol."""
    sticky: float = 0.0
    """Atari: probability that the last action is repeated (0.25 for the ALE/...-v5 protocol)."""
    noop_max: int = 30
    """Atari: up to this many no-ops at the start of an episode."""
    max_frames: int = 108_000
    """Atari: frames until an episode is truncated (4 frames an agent step)."""
    size: int = 84
    """Atari: side of the square grey frame, pixels."""
    kwargs: str = "{}"
    """Not Atari: arguments of the environment's constructor, a JSON object such as '{"is_slippery": false}'."""
    max_episode_steps: int = 0
    """Not Atari: agent steps until an episode is truncated; 0: as registered."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.sticky <= 1.0:
            raise BadInput(f"env.sticky is {self.sticky}: write a probability from 0 to 1")
        if self.noop_max < 0:
            raise BadInput(f"env.noop_max is {self.noop_max}: write 0 or more no-ops")
        if self.max_frames < ATARI_FRAME_SKIP or self.size < 36:
            raise BadInput("env.max_frames must be at least 4 and env.size at least 36")
        if self.max_episode_steps < 0:
            raise BadInput(f"env.max_episode_steps is {self.max_episode_steps}: write agent steps, or 0")
        kwargs_of(self.kwargs)


def kwargs_of(text: str) -> dict[str, Any]:
    """The constructor's arguments in a JSON object; raises BadInput."""
    try:
        kwargs = json.loads(text)
    except ValueError:
        kwargs = None
    if not isinstance(kwargs, dict):
        raise BadInput(f"env.kwargs is {text!r}: write a JSON object, such as '{{\"is_slippery\": false}}'")
    taken = sorted({"render_mode", "max_episode_steps"} & set(kwargs))
    if taken:
        raise BadInput(f"env.kwargs names {taken[0]}: leave it out (the length of episodes is --max-episode-steps)")
    return kwargs
