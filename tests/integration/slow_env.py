"""CartPole whose steps take a millisecond: a run on it leaves most of a machine to what runs beside it."""

from __future__ import annotations

import time

import gymnasium as gym
from gymnasium.envs.classic_control import CartPoleEnv


class SlowCartPole(CartPoleEnv):
    """CartPole with a pause in each step."""

    def step(self, action):
        time.sleep(0.001)
        return super().step(action)


gym.register("SlowCartPole-v1", SlowCartPole, max_episode_steps=500)
