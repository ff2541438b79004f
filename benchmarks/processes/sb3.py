"""Stable-Baselines3's DQN on Pong, set up as in its documentation, for `qfleet bench pipeline`.

    python -m benchmarks.processes.sb3 SECONDS

It trains until learning has started, measures for SECONDS more, and prints environment steps/s.
"""

from __future__ import annotations

import sys
import time

import ale_py
import gymnasium as gym
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.vec_env import VecFrameStack

LEARNING_STARTS = 2_000  # steps


class Window(BaseCallback):
    """Measures environment steps/s in a window that begins 100 steps after learning starts."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds
        self._began = 0.0
        self._first = 0
        self.steps_per_s = 0.0

    def _on_step(self) -> bool:
        if self.num_timesteps < LEARNING_STARTS + 100:
            return True
        now = time.perf_counter()
        if not self._began:
            self._began, self._first = now, self.num_timesteps
        self.steps_per_s = (self.num_timesteps - self._first) / max(now - self._began, 1e-9)
        return now - self._began < self._seconds


def main() -> None:
    """Train, and print steps/s of the window."""
    gym.register_envs(ale_py)
    env = VecFrameStack(make_atari_env("PongNoFrameskip-v4", n_envs=1, seed=0), n_stack=4)
    model = DQN(
        "CnnPolicy",
        env,
        buffer_size=50_000,
        learning_starts=LEARNING_STARTS,
        batch_size=32,
        train_freq=4,
        seed=0,
        device="cpu",
    )
    window = Window(float(sys.argv[1]))
    model.learn(10_000_000, callback=window)
    print(window.steps_per_s)


if __name__ == "__main__":
    main()
