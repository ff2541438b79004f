"""Two small grid worlds: their states can be counted and their values solved for exactly.

Cells are numbered row by row from 0; row 0 is the top one. Both register with Gymnasium when this file is imported.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from rl.types import Array

MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))  # up, right, down, left, as (rows, columns)
CELL = 48  # pixels a cell's side, in pictures
LINE = (170, 170, 170)
COLOURS = {".": (244, 244, 240), "1": (222, 233, 245), "2": (196, 215, 238), "G": (92, 168, 104), "A": (205, 92, 60)}


def moved(cell: int, action: int, rows: int, cols: int, wind: int = 0) -> int:
    """The cell that ``action``, an index into MOVES, leads to from ``cell``, and ``wind`` rows further up.

    The walls stop a move.
    """
    row, col = divmod(cell, cols)
    down, right = MOVES[action]
    row = min(max(row + down - wind, 0), rows - 1)
    return row * cols + min(max(col + right, 0), cols - 1)


class Grid(gym.Env[Any, Any]):
    """Common part of both worlds: the agent's cell, the goal's cell, and a picture of them."""

    metadata = {"render_modes": ["rgb_array", "ansi"], "render_fps": 4}  # noqa: RUF012 (Gymnasium's own form)
    rows: int
    cols: int
    agent: int
    goal: int

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.action_space = spaces.Discrete(len(MOVES))

    def ground(self) -> Array:
        """A letter for each cell [rows, cols], before agent and goal are drawn."""
        return np.full((self.rows, self.cols), ".")

    def render(self) -> Any:
        """The picture [rows * CELL, cols * CELL, 3] uint8, or lines of text: A the agent, G the goal, 1 and 2 the wind."""
        letters = self.ground()
        letters.flat[self.goal] = "G"
        letters.flat[self.agent] = "A"
        if self.render_mode == "ansi":
            return "\n".join("".join(row) for row in letters) + "\n"
        colours = np.array([[COLOURS[letter] for letter in row] for row in letters], np.uint8)
        picture = colours.repeat(CELL, axis=0).repeat(CELL, axis=1)
        picture[::CELL] = picture[:, ::CELL] = LINE
        return picture


class GridWorld(Grid):
    """The 4x4 grid: agent and goal start anywhere, never on the same cell.

    Observations: [2, 4, 4] int8, all 0 but for a 1 in the agent's channel and a 1 in the goal's. A step is worth -1, the
    step onto the goal ``goal_reward`` instead, and it terminates. ``reset(options={"agent": cell, "goal": cell})`` fixes
    either or both; raises ValueError unless they are two cells of the grid.
    """

    rows, cols = 4, 4

    def __init__(self, goal_reward: float = 10.0, render_mode: str | None = None) -> None:
        super().__init__(render_mode)
        self.goal_reward = float(goal_reward)
        self.observation_space = spaces.Box(0, 1, (2, self.rows, self.cols), np.int8)

    @classmethod
    def observation(cls, agent: int, goal: int) -> Array:
        """The observation, int8 [2, 4, 4], with the agent in cell ``agent`` and the goal in cell ``goal``."""
        channels = np.zeros((2, cls.rows, cls.cols), np.int8)
        channels[0].flat[agent] = channels[1].flat[goal] = 1
        return channels

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Start an episode; returns (observation int8 [2, 4, 4], empty info).

        ``options`` may fix the agent's and the goal's cell. Raises ValueError unless they are two different cells of
        the grid.
        """
        super().reset(seed=seed)
        fixed, drawn = options or {}, self.np_random.permutation(self.rows * self.cols)
        self.goal = int(fixed.get("goal", next(cell for cell in drawn if cell != fixed.get("agent"))))
        self.agent = int(fixed.get("agent", next(cell for cell in drawn if cell != self.goal)))
        if self.agent == self.goal or not {self.agent, self.goal} <= set(range(self.rows * self.cols)):
            raise ValueError(f"agent {self.agent} and goal {self.goal}: write two different cells from 0 to 15")
        return self.observation(self.agent, self.goal), {}

    def step(self, action: Any) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Move the agent; returns (observation int8 [2, 4, 4], reward, terminated, False, empty info)."""
        self.agent = moved(self.agent, int(action), self.rows, self.cols)
        there = self.agent == self.goal
        return self.observation(self.agent, self.goal), self.goal_reward if there else -1.0, there, False, {}


class WindyGridWorld(Grid):
    """The windy grid world (Sutton & Barto 2018, Example 6.5): 7x10, with a wind that blows up.

    The shortest path has 15 steps. Observations: the agent's cell, Discrete(70). Every step has reward -1; the goal
    terminates. ``P[s][a]`` holds [(probability, s', reward, terminated)], as in Gymnasium's toy-text environments.
    """

    rows, cols = 7, 10
    wind = (0, 0, 0, 1, 1, 1, 2, 2, 1, 0)  # rows up, by the column that the step begins in
    start, goal = 30, 37  # (3, 0) and (3, 7)

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(render_mode)
        cells = range(self.rows * self.cols)
        self.observation_space = spaces.Discrete(len(cells))
        self.P = {s: {a: [self._outcome(s, a)] for a in range(len(MOVES))} for s in cells}

    def _outcome(self, cell: int, action: int) -> tuple[float, int, float, bool]:
        if cell == self.goal:
            return 1.0, cell, 0.0, True
        successor = moved(cell, action, self.rows, self.cols, self.wind[cell % self.cols])
        return 1.0, successor, -1.0, successor == self.goal

    def ground(self) -> Array:
        """A letter for each cell [7, 10]: the wind of its column, or a dot where there is none."""
        blown = np.array([str(w) if w else "." for w in self.wind])
        return np.tile(blown, (self.rows, 1))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        """Start in the start cell; returns (cell, empty info)."""
        super().reset(seed=seed)
        self.agent = self.start
        return self.agent, {}

    def step(self, action: Any) -> tuple[int, float, bool, bool, dict[str, Any]]:
        """Move the agent; returns (cell, reward, terminated, False, empty info)."""
        _, self.agent, reward, terminated = self.P[self.agent][int(action)][0]
        return self.agent, reward, terminated, False, {}


gym.register("qfleet/GridWorld-v0", "rl.envs.grid_worlds:GridWorld", max_episode_steps=100)
gym.register("qfleet/WindyGridWorld-v0", "rl.envs.grid_worlds:WindyGridWorld", max_episode_steps=1_000)
