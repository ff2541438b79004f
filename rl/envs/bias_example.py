"""The maximization-bias example of Sutton & Barto 2018, section 6.7: a maximum over noisy estimates is too high."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from rl.types import Array

START, AWAY, OVER = 0, 1, 2
LEFT, ACTIONS = 9, 10


class MaximizationBias(gym.Env[np.int64, np.int64]):
    """Two states and the end; observations Discrete(3), actions Discrete(10).

    In the first state the last action (left) leads to the second state with reward 0, and every other action ends the
    episode with reward 0. In the second state every action ends it with a reward drawn from N(-0.1, 1). So left is
    worth -0.1 and is never the best action.

    The book's first state has two actions, and its ties are broken at random. Here both states have ten, as a table
    needs. Left is the last one, so that a tie between equal values never selects it.
    """

    metadata = {"render_modes": ["ansi", "rgb_array"], "render_fps": 2}  # noqa: RUF012  (Gymnasium's own way)

    def __init__(self, render_mode: str | None = None) -> None:
        self.observation_space = gym.spaces.Discrete(3)
        self.action_space = gym.spaces.Discrete(ACTIONS)
        self.render_mode = render_mode
        self._state = START

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.int64, dict[str, Any]]:
        """Start in the first state; returns (state, empty info)."""
        super().reset(seed=seed)
        self._state = START
        return np.int64(self._state), {}

    def step(self, action: np.int64) -> tuple[np.int64, float, bool, bool, dict[str, Any]]:
        """Take ``action``; returns (state, reward, terminated, False, empty info)."""
        reward = 0.0
        if self._state == START and action == LEFT:
            self._state = AWAY
        else:
            reward = float(self.np_random.normal(-0.1, 1.0)) if self._state == AWAY else 0.0
            self._state = OVER
        return np.int64(self._state), reward, self._state == OVER, False, {}

    def render(self) -> Any:
        """A line of text that marks the state (``ansi``), or else a picture, uint8 [40, 120, 3]."""
        if self.render_mode == "ansi":
            return " ".join(
                f"[{name}]" if i == self._state else name for i, name in ((AWAY, "B"), (START, "A"), (OVER, "end"))
            )
        picture: Array = np.full((40, 120, 3), 230, np.uint8)
        column = {AWAY: 0, START: 1, OVER: 2}[self._state]
        picture[:, 40 * column : 40 * column + 40] = (40, 90, 160)
        return picture


gym.register("qfleet/MaximizationBias-v0", "rl.envs.bias_example:MaximizationBias", max_episode_steps=10)
