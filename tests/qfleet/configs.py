"""Configurations that several tests use."""

from __future__ import annotations

from dataclasses import replace

from qfleet.config import TrainConfig
from qfleet.presets import cartpole


def short(seed=1, max_steps=1500, **changes) -> TrainConfig:
    config = cartpole()
    replay = replace(config.replay, limiter=replace(config.replay.limiter, min_size=200))
    evaluation = replace(config.evaluation, period=700, episodes=4, quick_episodes=2, environments=2)
    learner = replace(config.learner, device="cpu", metrics_period=10)
    return replace(
        config, replay=replay, evaluation=evaluation, learner=learner, seed=seed, max_steps=max_steps, **changes
    )
