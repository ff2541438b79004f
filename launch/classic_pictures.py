"""What is drawn of a method that has learned."""

from __future__ import annotations

from pathlib import Path

from classic.interface import Learned
from rl.envs import EnvConfig


def draw(learned: Learned, env: EnvConfig, folder: Path, title: str) -> list[Path]:
    """The pictures that suit what was learned, in ``folder``."""
    del learned, env, folder, title
    return []
