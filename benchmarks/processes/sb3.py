"""Stable-Baselines3's DQN on Pong, as its own documentation sets it up: SECONDS. Prints steps/s after learning starts."""

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
    """Counts environment steps in a window that begins once updates are under way."""

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
    """Train for the seconds that the argument says, and print steps/s."""
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
