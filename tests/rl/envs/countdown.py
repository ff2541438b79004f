"""An environment with predictable episodes: ``qfleet-test/Countdown-v0`` and ``qfleet-test/Truncated-v0``."""

from __future__ import annotations

import gymnasium as gym
import numpy as np


class Countdown(gym.Env):
    """Observation [seed of the episode, t], reward t; terminates or truncates after ``length`` steps."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Discrete(3, start=1)

    def __init__(self, length=3, truncates=False):
        self.length, self.truncates = length, truncates

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seed_, self.t = float(seed if seed is not None else -1), 0
        return np.array([self.seed_, 0], np.float32), {}

    def step(self, action):
        assert action in (1, 2, 3)
        self.t += 1
        over = self.t == self.length
        observation = np.array([self.seed_, self.t], np.float32)
        return observation, float(self.t), over and not self.truncates, over and self.truncates, {}


gym.register("qfleet-test/Countdown-v0", Countdown)
gym.register("qfleet-test/Truncated-v0", lambda: Countdown(truncates=True))
