"""Helpers: write datasets of a few episodes, and learn from them with `offline_q`."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

from classic.interface import RecordingMonitor
from classic.offline_q import OfflineQConfig, offline_q
from rl.envs.config import EnvConfig
from rl.envs.minari_files import NewDataset

pytest.importorskip("minari")

CLIFF = EnvConfig(id="CliffWalking-v1")  # 48 states, 4 actions


def write(name, episodes, states=48, space=None, action_space=None, seeds=None):
    """Write a dataset of episodes (states, actions, rewards, "terminated" or "truncated"); returns its name."""
    spaces = space or gym.spaces.Discrete(states), action_space or gym.spaces.Discrete(4)
    with NewDataset(name, *spaces, None, {}) as dataset:
        for k, (rows, actions, rewards, end) in enumerate(episodes):
            ended = np.zeros((2, len(rewards)), np.bool_)
            ended[("terminated", "truncated").index(end), -1] = True
            dataset.add(
                np.asarray(rows, spaces[0].dtype),
                np.asarray(rewards, float),
                actions=np.asarray(actions, spaces[1].dtype),
                terminations=ended[0],
                truncations=ended[1],
                infos={},
                seed=None if seeds is None else seeds[k],
            )
    return name


def learn(name, env=CLIFF, **settings):
    return offline_q(OfflineQConfig(dataset=name, **{"gamma": 0.9, **settings}), env, 1, RecordingMonitor())
