"""The maximization-bias example (Sutton & Barto 2018, section 6.7): the maximum of noisy estimates is too high."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from rl.types import Array

STATE_A, STATE_B, END = 0, 1, 2  # as in the book
LEFT, ACTIONS = 9, 10


class MaximizationBias(gym.Env[np.int64, np.int64]):
    """States A and B, and the end. Observations Discrete(3), actions Discrete(10).

    Episodes start in A. There the last action (left) leads to B with reward 0; every other action ends the episode with
    reward 0. In B every action ends the episode with a reward from N(-0.1, 1). So left has the value -0.1 and is never
    the best action.

    In the book A has two actions, and ties are broken at random. Here both states have ten actions, because a table has
    the same actions in every state. Left is the last action, so that a tie is never broken in its favour.
    """

    metadata = {"render_modes": ["ansi", "rgb_array"], "render_fps": 2}  # noqa: RUF012 (Gymnasium's convention)

    def __init__(self, render_mode: str | None = None) -> None:
        self.observation_space = gym.spaces.Discrete(3)
        self.action_space = gym.spaces.Discrete(ACTIONS)
        self.render_mode = render_mode
        self._state = STATE_A

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.int64, dict[str, Any]]:
        """Start in state A; returns (state, empty info)."""
        super().reset(seed=seed)
        self._state = STATE_A
        return np.int64(self._state), {}

    def step(self, action: np.int64) -> tuple[np.int64, float, bool, bool, dict[str, Any]]:
        """Take ``action``; returns (state, reward, terminated, False, empty info)."""
        reward = 0.0
        if self._state == STATE_A and action == LEFT:
            self._state = STATE_B
        else:
            reward = float(self.np_random.normal(-0.1, 1.0)) if self._state == STATE_B else 0.0
            self._state = END
        return np.int64(self._state), reward, self._state == END, False, {}

    def render(self) -> Any:
        """``ansi``: a line of text that marks the state. ``rgb_array``: a picture, uint8 [40, 120, 3]."""
        if self.render_mode == "ansi":
            return " ".join(
                f"[{name}]" if i == self._state else name for i, name in ((STATE_B, "B"), (STATE_A, "A"), (END, "end"))
            )
        picture: Array = np.full((40, 120, 3), 230, np.uint8)
        column = {STATE_B: 0, STATE_A: 1, END: 2}[self._state]
        picture[:, 40 * column : 40 * column + 40] = (40, 90, 160)
        return picture


gym.register("qfleet/MaximizationBias-v0", "rl.envs.bias_example:MaximizationBias", max_episode_steps=10)
