"""Wiring. The Python interface: `from launch import train, load_policy, preset`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from launch.api import Policy, load_policy, train
    from launch.config import TrainConfig
    from launch.presets import preset

__all__ = ["Policy", "TrainConfig", "load_policy", "preset", "train"]

_HOMES = {"TrainConfig": "launch.config", "preset": "launch.presets"}


def __getattr__(name: str) -> Any:
    """Imported when asked for: each process of a run needs a part of this package, and starts the sooner for it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES.get(name, "launch.api")), name)
