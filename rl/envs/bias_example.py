"""The maximisation-bias example of Sutton & Barto 2018, 6.7: where a maximum over noisy estimates goes astray."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from rl.types import Array

START, AWAY, OVER = 0, 1, 2
LEFT, ACTIONS = 9, 10


class MaximizationBias(gym.Env[np.int64, np.int64]):
    """Two states. From the first, the last action (left) leads to the second for nothing, every other ends the episode for
    nothing; in the second every action ends it with a reward drawn from N(-0.1, 1). So left is worth -0.1, never the best.

    The book's first state has two actions, and its ties are broken at random; here both states have ten, as a table wants
    it, and left is the last, so that a tie between equal values never goes there.
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
        super().reset(seed=seed)
        self._state = START
        return np.int64(self._state), {}

    def step(self, action: np.int64) -> tuple[np.int64, float, bool, bool, dict[str, Any]]:
        reward = 0.0
        if self._state == START and action == LEFT:
            self._state = AWAY
        else:
            reward = float(self.np_random.normal(-0.1, 1.0)) if self._state == AWAY else 0.0
            self._state = OVER
        return np.int64(self._state), reward, self._state == OVER, False, {}

    def render(self) -> Any:
        if self.render_mode == "ansi":
            return " ".join(
                f"[{name}]" if i == self._state else name for i, name in ((AWAY, "B"), (START, "A"), (OVER, "end"))
            )
        picture: Array = np.full((40, 120, 3), 230, np.uint8)
        column = {AWAY: 0, START: 1, OVER: 2}[self._state]
        picture[:, 40 * column : 40 * column + 40] = (40, 90, 160)
        return picture


gym.register("qfleet/MaximizationBias-v0", "rl.envs.bias_example:MaximizationBias", max_episode_steps=10)
