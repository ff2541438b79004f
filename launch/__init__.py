"""Wiring. The Python interface: `from launch import train, load_policy, preset`."""

from launch.api import Policy, load_policy, train
from launch.config import TrainConfig
from launch.presets import preset

__all__ = ["Policy", "TrainConfig", "load_policy", "preset", "train"]
