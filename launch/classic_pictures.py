"""What is drawn of a method that has learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from classic.interface import Learned
from report.grids import plot_states
from rl.envs import EnvConfig


def draw(learned: Learned, env: EnvConfig, folder: Path, title: str) -> list[Path]:
    """The pictures that suit what was learned, in ``folder``."""
    del env
    pictures = []
    if "highest" in learned.arrays:
        found = {name: [_caption(at) for at in learned.figures[name]] for name in ("highest", "lowest")}
        rows = [(name, list(learned.arrays[name]), captions) for name, captions in found.items()]
        pictures.append(
            plot_states(rows, f"{title}: states of the highest and the lowest value", folder / "states.png")
        )
    return pictures


def _caption(at: dict[str, Any]) -> str:
    """Where a state was seen first, and what it is worth."""
    return f"{at['mission']}\nvalue {at['value']:.3f}, episode {at['episode']}, step {at['step']}"
